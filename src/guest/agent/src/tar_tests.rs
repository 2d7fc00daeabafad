use std::io::Read;

use super::*;
use crate::archive::Archive;
use crate::random::Random;

fn member(name: &str) -> Member {
    Member {
        name: name.as_bytes().to_vec(),
        kind: Kind::File,
        mode: 0o640,
        uid: 33,
        gid: 34,
        size: 0,
        mtime: 1_700_000_000,
        link: Vec::new(),
        device: (0, 0),
    }
}

fn some(random: &mut Random) -> Member {
    let kinds = [
        Kind::File,
        Kind::Directory,
        Kind::Symlink,
        Kind::HardLink,
        Kind::Fifo,
        Kind::CharacterDevice,
        Kind::BlockDevice,
    ];
    let kind = kinds[random.below(kinds.len())];
    let name = |random: &mut Random| -> Vec<u8> {
        let lengths = [1, 99, 100, 101, 255, 1_000, 4_000];
        let length = lengths[random.below(lengths.len())];
        (0..length).map(|_| 1 + random.below(255) as u8).map(|b| if b == b'/' { b'x' } else { b }).collect()
    };
    let number = |random: &mut Random, most: u64| random.next() >> random.below(64) & most;
    let is_link = [Kind::Symlink, Kind::HardLink].contains(&kind);
    let is_device = [Kind::CharacterDevice, Kind::BlockDevice].contains(&kind);
    Member {
        name: name(random),
        kind,
        mode: random.next() as u32 & 0o7777,
        uid: number(random, u32::MAX.into()) as u32,
        gid: number(random, u32::MAX.into()) as u32,
        size: if kind == Kind::File { number(random, i64::MAX as u64) } else { 0 },
        mtime: random.next() as i64 >> random.below(64),
        link: if is_link { name(random) } else { Vec::new() },
        device: if is_device { (random.below(4_096) as u32, random.below(1 << 20) as u32) } else { (0, 0) },
    }
}

fn sum(block: &mut [u8]) {
    block[CHECKSUM].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn read_all(bytes: &[u8]) -> Result<Vec<Member>, String> {
    let mut archive = Archive::new(bytes);
    let mut members = Vec::new();
    while let Some(member) = archive.next()? {
        members.push(member);
    }
    Ok(members)
}

#[test]
fn members_come_back() {
    for seed in 0..2_000 {
        let random = &mut Random::new(seed);
        let member = some(random);
        let mut bytes = Vec::new();
        encode(&member, &mut bytes);
        assert_eq!(bytes.len() % BLOCK, 0);
        let read = Archive::new(&bytes[..]).next();
        assert_eq!(read, Ok(Some(member)), "seed {seed}");
    }
}

#[test]
fn bodies_come_back_read_or_not() {
    for seed in 0..300 {
        let random = &mut Random::new(seed);
        let mut bytes = Vec::new();
        let mut written = Vec::new();
        for _ in 0..random.below(5) {
            let length = random.below(2_000);
            let body = random.bytes(length);
            let member = Member { size: body.len() as u64, ..member("f") };
            encode(&member, &mut bytes);
            bytes.extend_from_slice(&body);
            bytes.resize(bytes.len() + padding(member.size) as usize, 0);
            written.push(body);
        }
        if random.below(2) == 0 {
            bytes.resize(bytes.len() + 2 * BLOCK, 0);
        }
        let mut archive = Archive::new(&bytes[..]);
        for body in written {
            assert!(archive.next().unwrap().is_some());
            let mut read = vec![0; random.below(body.len() + 1)];
            archive.read_exact(&mut read).unwrap();
            assert_eq!(body[..read.len()], read[..], "seed {seed}");
            if random.below(2) == 0 {
                let mut rest = Vec::new();
                archive.read_to_end(&mut rest).unwrap();
                assert_eq!(body[read.len()..], rest[..], "seed {seed}");
            }
        }
        assert_eq!(archive.next(), Ok(None));
    }
}

#[test]
fn a_cut_archive_is_no_archive() {
    let mut bytes = Vec::new();
    let long = "l".repeat(300);
    encode(&Member { size: 700, ..member(&long) }, &mut bytes);
    bytes.resize(bytes.len() + 1_024, 7);
    for length in 1..bytes.len() {
        let result = read_all(&bytes[..length]);
        assert!(result.is_err(), "{length}: {result:?}");
    }
    assert_eq!(read_all(&bytes).map(|it| it.len()), Ok(1));
}

#[test]
fn what_gnu_tar_writes() {
    let mut bytes = Vec::new();
    for (letter, text) in [(b'L', "n".repeat(150)), (b'K', "k".repeat(120))] {
        let mut block = plain(&Member { size: text.len() as u64 + 1, ..member("././@LongLink") }, letter);
        block[257..265].copy_from_slice(b"ustar  \0");
        sum(&mut block);
        bytes.extend_from_slice(&block);
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize((bytes.len() / BLOCK + 1) * BLOCK, 0);
    }
    let mut block = plain(&member("short"), b'2');
    block[257..265].copy_from_slice(b"ustar  \0");
    // A size and a time in base 256, and times of its own where ustar has a prefix.
    block[136..148].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]);
    block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
    block[345..350].copy_from_slice(b"12345");
    sum(&mut block);
    bytes.extend_from_slice(&block);
    let read = read_all(&bytes).unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!((read[0].name.len(), read[0].link.len()), (150, 120));
    assert_eq!((read[0].mtime, read[0].uid, read[0].kind), (-2, 0x7fff_ffff, Kind::Symlink));
}

#[test]
fn what_old_and_other_writers_write() {
    let mut block = plain(&member("name"), b'0');
    block[345..351].copy_from_slice(b"prefix");
    sum(&mut block);
    assert_eq!(read_all(&block).unwrap()[0].name, b"prefix/name");
    let mut block = plain(&member("old/"), 0);
    block[257..265].fill(0);
    block[100..108].copy_from_slice(b"  755 \0\0");
    sum(&mut block);
    let read = read_all(&block).unwrap();
    assert_eq!((read[0].kind, read[0].mode), (Kind::Directory, 0o755));
    // The header that GNU tar gives for an empty field, and a sum of signed bytes.
    let mut block = plain(&Member { name: vec![0xe9; 8], ..member("") }, b'0');
    block[108..116].fill(0);
    block[CHECKSUM].fill(b' ');
    let signed: i32 = block.iter().map(|&b| i32::from(b as i8)).sum();
    block[CHECKSUM].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    assert_eq!(read_all(&block).unwrap()[0].uid, 0);
}

#[test]
fn extended_headers_say_what_they_say() {
    let read = |records: &[u8]| {
        let mut overrides = Overrides::default();
        overrides.read(Extended::Next, records).map(|()| overrides.apply(Member { size: 5, ..member("n") }))
    };
    let mut records = Vec::new();
    put_record(b"path", b"a\nb=c", &mut records);
    put_record(b"mtime", b"-1.5", &mut records);
    put_record(b"SCHILY.xattr.user.x", b"\0\xff", &mut records);
    put_record(b"size", b"99", &mut records);
    put_record(b"size", b"", &mut records);
    let member = read(&records).unwrap();
    assert_eq!((&member.name[..], member.mtime, member.size), (&b"a\nb=c"[..], -2, 5));
    for hostile in [
        &b"0 path=a\n"[..],
        b"5 a=b",
        b"6 a=b",
        b"7 a=b\n",
        b"99999999999999999999 path=a\n",
        b"18446744073709551615 path=a\n",
        b" path=a\n",
        b"-3 path=a\n",
        b"10 path a\n",
        b"9 size=x\n",
        b"10 size=-1\n",
        b"17 uid=4294967296\n",
        b"27 mtime=9223372036854775808\n",
        b"22 GNU.sparse.major=1\n",
        b"6",
    ] {
        assert!(read(hostile).is_err(), "{:?}", String::from_utf8_lossy(hostile));
    }
}

#[test]
fn hostile_headers_never_panic_and_never_hold_much() {
    for seed in 0..4_000 {
        let random = &mut Random::new(seed);
        let mut bytes = Vec::new();
        for _ in 0..=random.below(3) {
            let letters = b"0123456xgLKS7A\0";
            let mut block = plain(&some(random), letters[random.below(letters.len())]);
            for _ in 0..random.below(6) {
                let at = random.below(BLOCK);
                block[at] = [0, b' ', b'7', b'9', b'-', 0x80, 0xff, random.next() as u8][random.below(8)];
            }
            sum(&mut block);
            bytes.extend_from_slice(&block);
            let length = random.below(1_500);
            bytes.extend_from_slice(&random.bytes(length));
        }
        let mut archive = Archive::new(&bytes[..]);
        while let Ok(Some(member)) = archive.next() {
            assert!(member.size <= i64::MAX as u64 && member.mode <= 0o7777, "seed {seed}");
            let mut body = Vec::new();
            let _ = archive.read_to_end(&mut body);
        }
    }
}

#[test]
fn headers_that_never_end_do() {
    let mut bytes = Vec::new();
    for _ in 0..1_000 {
        bytes.extend_from_slice(&plain(&Member { size: 0, ..member("pax") }, b'x'));
    }
    assert!(read_all(&bytes).is_err());
    assert!(read_all(&plain(&Member { size: EXTENDED_MAX + 1, ..member("pax") }, b'x')).is_err());
}
