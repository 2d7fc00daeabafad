use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::*;
use crate::pack::{Packer, Top};
use crate::random::Random;
use crate::tar;

/// A directory that is gone with the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Temporary {
        let path = std::env::temp_dir().join(format!("agent-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("inside")).unwrap();
        fs::create_dir_all(path.join("outside")).unwrap();
        Temporary(path)
    }

    fn root(&self) -> File {
        File::open(&self.0).unwrap()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn member(name: &str, kind: Kind) -> Member {
    // Owners as they are: a test does not need to be root.
    let own = fs::metadata("/proc/self").unwrap();
    Member {
        name: name.as_bytes().to_vec(),
        kind,
        mode: 0o750,
        uid: own.uid(),
        gid: own.gid(),
        size: 0,
        mtime: 1_234_567_890,
        link: Vec::new(),
        device: (0, 0),
    }
}

fn link(name: &str, to: &str) -> Vec<u8> {
    encoded(&Member { link: to.as_bytes().to_vec(), ..member(name, Kind::Symlink) }, b"")
}

fn hard_link(name: &str, to: &str) -> Vec<u8> {
    encoded(&Member { link: to.as_bytes().to_vec(), ..member(name, Kind::HardLink) }, b"")
}

fn file(name: &str, body: &[u8]) -> Vec<u8> {
    encoded(&Member { size: body.len() as u64, ..member(name, Kind::File) }, body)
}

fn directory(name: &str) -> Vec<u8> {
    encoded(&member(name, Kind::Directory), b"")
}

fn encoded(member: &Member, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    tar::encode(member, &mut bytes);
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len() + tar::padding(body.len() as u64) as usize, 0);
    bytes
}

fn unpack(at: &Temporary, members: &[Vec<u8>]) -> Result<(), Refusal> {
    Unpacker::open(&at.root(), "/inside").and_then(|it| it.unpack(&members.concat()[..]))
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_packed_is_unpacked() {
    let at = Temporary::new("roundtrip");
    let deep = at.at("inside/tree/a/b");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), vec![5; 200_000]).unwrap();
    fs::write(deep.join("empty"), b"").unwrap();
    let long = "n".repeat(200);
    fs::write(deep.join(&long), b"long").unwrap();
    fs::hard_link(deep.join("file"), at.at("inside/tree/again")).unwrap();
    symlink("/nowhere/at/all", at.at("inside/tree/link")).unwrap();
    fs::set_permissions(deep.join("file"), Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(at.at("inside/tree/a"), Permissions::from_mode(0o2700)).unwrap();
    sys::stamp(&File::open(at.at("inside/tree/a")).unwrap(), 1_000).unwrap();

    let mut bytes = Vec::new();
    Packer::new(&mut bytes).pack(Top::open(&at.root(), "/inside/tree").unwrap()).unwrap();
    Unpacker::open(&at.root(), "/outside/new").unwrap().unpack(&bytes[..]).unwrap();

    let copy = at.at("outside/new/tree");
    let about = |name: &str| fs::symlink_metadata(copy.join(name)).unwrap();
    assert_eq!(fs::read(copy.join("a/b/file")).unwrap(), vec![5; 200_000]);
    assert_eq!(fs::read(copy.join("a/b").join(&long)).unwrap(), b"long");
    assert_eq!((about("a/b/file").mode() & 0o7777, about("a/b/file").nlink()), (0o4751, 2));
    assert_eq!(about("a/b/file").ino(), about("again").ino());
    assert_eq!((about("a").mode() & 0o7777, about("a").mtime()), (0o2700, 1_000));
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("/nowhere/at/all"));
    assert_eq!(names(&copy.join("a/b")), ["empty", "file", &long]);
}

#[test]
fn one_file_is_packed_under_its_name() {
    let at = Temporary::new("one");
    fs::write(at.at("inside/file"), b"abc").unwrap();
    let mut bytes = Vec::new();
    Packer::new(&mut bytes).pack(Top::open(&at.root(), "/inside/file").unwrap()).unwrap();
    assert_eq!(Archive::new(&bytes[..]).next().unwrap().map(|it| (it.name, it.size)), Some((b"file".to_vec(), 3)));
    // Of the kernel's files nobody knows the size beforehand.
    let mut bytes = Vec::new();
    Packer::new(&mut bytes).pack(Top::open(&File::open("/").unwrap(), "/proc/cpuinfo").unwrap()).unwrap();
    assert!(Archive::new(&bytes[..]).next().unwrap().unwrap().size > 10);
    assert_eq!(Top::open(&at.root(), "/inside/none").err().and_then(|it| it.code), Some("ENOENT".into()));
    assert!(Top::open(&File::open("/").unwrap(), "/dev/null").is_err());
}

#[test]
fn no_name_and_no_link_leads_out() {
    let at = Temporary::new("escape");
    fs::write(at.at("outside/secret"), b"mine").unwrap();
    symlink("../outside", at.at("inside/out")).unwrap();
    symlink(at.at("outside"), at.at("inside/absolute")).unwrap();
    symlink("/proc/self/root", at.at("inside/magic")).unwrap();
    symlink("../outside/secret", at.at("inside/file")).unwrap();
    for members in [
        vec![file("../outside/x", b"x")],
        vec![file("a/../../outside/x", b"x")],
        vec![file("out/x", b"x")],
        vec![file("absolute/x", b"x")],
        vec![file("magic/tmp/x", b"x")],
        vec![directory("out/d")],
        vec![link("new", ".."), file("new/outside/x", b"x")],
        vec![link("new2", "out"), file("new2/x", b"x")],
        vec![directory("d"), link("d/up", "../.."), directory("d/up/outside/y")],
        vec![hard_link("h", "../outside/secret")],
        vec![hard_link("h", "out/secret")],
        vec![hard_link("h", "")],
        vec![link("out/l", "x")],
        vec![file("nul\0name/x", b"x"), file("..", b"x")],
    ] {
        let result = unpack(&at, &members);
        assert!(result.is_err(), "{:?}", String::from_utf8_lossy(&members.concat()[..100]));
    }
    assert_eq!(names(&at.at("outside")), ["secret"]);
    // A link that is there is replaced, not followed.
    unpack(&at, &[file("file", b"new"), file("/absolute", b"plain")]).unwrap();
    assert_eq!(fs::read(at.at("outside/secret")).unwrap(), b"mine");
    assert_eq!(fs::read(at.at("inside/file")).unwrap(), b"new");
    assert_eq!(fs::read(at.at("inside/absolute")).unwrap(), b"plain");
    // A directory takes the place of a link that leads out.
    unpack(&at, &[directory("out"), file("out/x", b"x")]).unwrap();
    assert_eq!(names(&at.at("outside")), ["secret"]);
    assert_eq!(names(&at.at("inside/out")), ["x"]);
}

#[test]
fn links_that_stay_inside_count() {
    let at = Temporary::new("merged");
    fs::create_dir_all(at.at("inside/usr/bin")).unwrap();
    symlink("usr/bin", at.at("inside/bin")).unwrap();
    unpack(&at, &[directory("bin"), file("bin/tool", b"t"), file("./deep/er/file", b"d"), directory("./")]).unwrap();
    assert!(fs::symlink_metadata(at.at("inside/bin")).unwrap().file_type().is_symlink());
    assert_eq!(fs::read(at.at("inside/usr/bin/tool")).unwrap(), b"t");
    assert_eq!(fs::read(at.at("inside/deep/er/file")).unwrap(), b"d");
}

#[test]
fn for_the_root_there_is_no_outside() {
    let at = Temporary::new("root");
    symlink("/outside", at.at("inside/out")).unwrap();
    let root = at.root();
    // As the agent's own root: an absolute link begins there.
    let bytes = [file("inside/out/x", b"x"), file("/inside/y", b"y")].concat();
    Unpacker::open(&root, "/").unwrap().unpack(&bytes[..]).unwrap();
    assert_eq!(fs::read(at.at("outside/x")).unwrap(), b"x");
    assert_eq!(fs::read(at.at("inside/y")).unwrap(), b"y");
}

#[test]
fn a_cut_archive_leaves_the_old_file_and_nothing_half() {
    let at = Temporary::new("cut");
    fs::write(at.at("inside/file"), b"old").unwrap();
    let bytes = file("file", &[1; 5_000]);
    for length in [513, 1_024, 3_000, 5_511] {
        let result = Unpacker::open(&at.root(), "/inside").unwrap().unpack(&bytes[..length]);
        assert!(result.is_err(), "{length}");
        assert_eq!(names(&at.at("inside")), ["file"]);
        assert_eq!(fs::read(at.at("inside/file")).unwrap(), b"old");
    }
    Unpacker::open(&at.root(), "/inside").unwrap().unpack(&bytes[..]).unwrap();
    assert_eq!(fs::read(at.at("inside/file")).unwrap(), [1; 5_000]);
}

#[test]
fn a_directory_is_never_replaced() {
    let at = Temporary::new("directory");
    fs::create_dir_all(at.at("inside/d/e")).unwrap();
    for members in [file("d", b"x"), link("d", "x"), hard_link("d", "d/e"), encoded(&member("d", Kind::Fifo), b"")] {
        assert!(unpack(&at, &[members]).is_err());
        assert_eq!(names(&at.at("inside")), ["d"]);
    }
    unpack(&at, &[file("f", b"1"), hard_link("g", "f"), hard_link("g", "f"), hard_link("f", "f")]).unwrap();
    assert_eq!(names(&at.at("inside")), ["d", "f", "g"]);
    assert_eq!(fs::metadata(at.at("inside/f")).unwrap().nlink(), 2);
}

#[test]
fn hostile_archives_stay_inside() {
    let at = Temporary::new("fuzz");
    fs::write(at.at("outside/secret"), b"mine").unwrap();
    let parts = ["a", "b", "..", ".", "/", "a/b", "../outside", "b/../..", "outside", "secret", "inside"];
    for seed in 0..1_500 {
        let random = &mut Random::new(seed);
        let path = |random: &mut Random| -> String {
            let names: Vec<&str> = (0..=random.below(3)).map(|_| parts[random.below(parts.len())]).collect();
            names.join("/")
        };
        let members: Vec<Vec<u8>> = (0..=random.below(6))
            .map(|_| {
                let (name, to) = (path(random), path(random));
                match random.below(5) {
                    0 => file(&name, b"hostile"),
                    1 => directory(&name),
                    2 => hard_link(&name, &to),
                    _ => link(&name, &to),
                }
            })
            .collect();
        // Whatever each of them does.
        for member in &members {
            let _ = unpack(&at, std::slice::from_ref(member));
        }
        assert_eq!(names(&at.at("outside")), ["secret"], "seed {seed}");
        assert_eq!(fs::read(at.at("outside/secret")).unwrap(), b"mine", "seed {seed}");
        assert_eq!(names(&at.0), ["inside", "outside"], "seed {seed}");
    }
}
