//! What to execute: argv[0] looked up as execvp(3) does, and the environment that a container runtime would give.

use crate::user::Identity;

pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What stands at a path, as far as execution is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Directory,
    Plain,
    Executable,
}

/// The file to execute: argv[0] itself where it holds a slash, else the first executable in PATH. Empty entries mean the
/// working directory. The error is a sentence.
pub fn find(argv0: &str, path: &str, look: impl Fn(&str) -> Found) -> Result<String, String> {
    if argv0.is_empty() {
        return Err("the command is empty".to_string());
    }
    if argv0.contains('/') {
        return match look(argv0) {
            Found::Executable => Ok(argv0.to_string()),
            Found::Nothing => Err(format!("{argv0}: no such file")),
            Found::Directory => Err(format!("{argv0}: is a directory")),
            Found::Plain => Err(format!("{argv0}: not executable")),
        };
    }
    let places = path.split(':').map(|place| if place.is_empty() { "." } else { place });
    let candidates: Vec<String> = places.map(|place| format!("{}/{argv0}", place.trim_end_matches('/'))).collect();
    let executable = candidates.iter().find(|it| look(it) == Found::Executable);
    let plain = candidates.iter().find(|it| look(it) == Found::Plain);
    match (executable, plain) {
        (Some(file), _) => Ok(file.clone()),
        (None, Some(file)) => Err(format!("{file}: not executable")),
        (None, None) => Err(format!("{argv0}: not found in PATH {path}")),
    }
}

/// What TERM is where there is none.
pub const TERM_NONE: &str = "dumb";

/// The environment, and what it leaves open.
pub fn environment(env: &[(String, String)], hostname: &str, term: &str, identity: &Identity) -> Vec<(String, String)> {
    let mut env = env.to_vec();
    for (name, value) in [("PATH", PATH_DEFAULT), ("HOME", &identity.home), ("HOSTNAME", hostname), ("TERM", term)] {
        if !env.iter().any(|(known, _)| known == name) {
            env.push((name.to_string(), value.to_string()));
        }
    }
    env
}

/// `own` over `image`: the same name is said once.
pub fn merge(image: &[(String, String)], own: &[(String, String)]) -> Vec<(String, String)> {
    let kept = image.iter().filter(|(name, _)| !own.iter().any(|(it, _)| it == name));
    kept.chain(own).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(path: &str) -> Found {
        match path {
            "/bin/sh" | "./here" | "/opt/a/tool" | "rel/tool" => Found::Executable,
            "/bin/data" | "/first/sh" => Found::Plain,
            "/bin" | "/bin/dir" => Found::Directory,
            _ => Found::Nothing,
        }
    }

    #[test]
    fn search() {
        assert_eq!(find("sh", "/none:/first:/bin", look), Ok("/bin/sh".into()));
        assert_eq!(find("sh", "/bin/", look), Ok("/bin/sh".into()));
        assert_eq!(find("here", "/bin::/x", look), Ok("./here".into()));
        assert_eq!(find("/opt/a/tool", "", look), Ok("/opt/a/tool".into()));
        assert_eq!(find("rel/tool", "/bin", look), Ok("rel/tool".into()));
    }

    #[test]
    fn sentences() {
        assert_eq!(find("/bin/nope", "", look), Err("/bin/nope: no such file".into()));
        assert_eq!(find("/bin/data", "", look), Err("/bin/data: not executable".into()));
        assert_eq!(find("/bin", "", look), Err("/bin: is a directory".into()));
        assert_eq!(find("data", "/bin", look), Err("/bin/data: not executable".into()));
        assert_eq!(find("dir", "/bin", look), Err("dir: not found in PATH /bin".into()));
        assert_eq!(find("", "/bin", look), Err("the command is empty".into()));
    }

    #[test]
    fn own_variables_win() {
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        let merged = merge(&pairs(&[("A", "1"), ("B", "2")]), &pairs(&[("B", "3"), ("C", "4")]));
        assert_eq!(merged, pairs(&[("A", "1"), ("B", "3"), ("C", "4")]));
        let identity = Identity { uid: 0, gid: 0, groups: vec![], home: "/root".into() };
        let env = environment(&pairs(&[("PATH", ""), ("TERM", "vt100")]), "h", TERM_NONE, &identity);
        assert_eq!(env, pairs(&[("PATH", ""), ("TERM", "vt100"), ("HOME", "/root"), ("HOSTNAME", "h")]));
    }
}
