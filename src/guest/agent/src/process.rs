//! Starts the image's process as a container runtime would: its user, its directory, its environment, a session of its
//! own, the console for what it says and nothing to read.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::config::Config;
use crate::program::{self, Found};
use crate::root;
use crate::sys;
use crate::user;

const CONSOLE: &str = "/dev/console";

fn open_console() -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(sys::O_NOCTTY).open(CONSOLE)
}

/// Bytes reach the host as they are written; without a console there is nothing to do.
pub fn make_console_plain() {
    let _ = open_console().and_then(|console| sys::make_plain(&console));
}

/// The error is a sentence about the image.
pub fn start(config: &Config) -> Result<i32, String> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    let identity = user::resolve(&config.user, &passwd, &group)?;
    let env = program::environment(&config.env, &config.hostname, program::TERM_NONE, &identity);
    let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);

    let directory = Path::new("/").join(&config.working_dir);
    let unusable = |error| format!("working directory {}: {error}", directory.display());
    root::make_directories(&directory).map_err(unusable)?;
    // Relative names in argv[0] and in PATH are looked up where the process will be.
    std::env::set_current_dir(&directory).map_err(unusable)?;
    let argv0 = config.argv.first().map_or("", String::as_str);
    let found = program::find(argv0, path, look);
    let _ = std::env::set_current_dir("/");
    let file = found?;

    let console = open_console().map_err(|error| format!("{CONSOLE}: {error}"))?;
    // As runtimes do, so that a process that is not root can open /dev/stdout again.
    let _ = sys::change_owner(Path::new(CONSOLE), identity.uid, 0);
    let mut command = Command::new(directory.join(&file));
    command.arg0(argv0).args(&config.argv[1..]).env_clear().envs(env);
    command.stdin(Stdio::null()).stderr(console.try_clone().map_err(|error| error.to_string())?).stdout(console);
    sys::enter(&mut command, &identity, &directory).map_err(unusable)?;
    let child = command.spawn().map_err(|error| refusal(&file, &error))?;
    Ok(child.id() as i32)
}

/// What stands at a path, links followed.
pub fn look(path: &str) -> Found {
    match fs::metadata(path) {
        Ok(it) if it.is_dir() => Found::Directory,
        Ok(it) if it.permissions().mode() & 0o111 != 0 => Found::Executable,
        Ok(_) => Found::Plain,
        Err(_) => Found::Nothing,
    }
}

/// Why the kernel did not execute a file that is there.
pub fn refusal(file: &str, error: &Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOEXEC) => format!("{file}: not a program for this machine (no #! line, or another architecture)"),
        _ if error.kind() == ErrorKind::NotFound => format!("{file}: its interpreter or loader is not in the image"),
        _ if error.kind() == ErrorKind::PermissionDenied => format!("{file}: permission denied"),
        _ => format!("{file}: {error}"),
    }
}
