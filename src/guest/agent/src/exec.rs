//! A command that the host wants run beside the image's process: what its worker does before it becomes the command.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::config::Config;
use crate::process;
use crate::program;
use crate::protocol::Refusal;
use crate::sys;
use crate::user;
use crate::verb::Exec;
use crate::worker::Figures;

/// What a terminal is called where neither image nor host says it.
const TERM: &str = "xterm";
/// Of a passwd or group file that grew beyond all reason.
const ACCOUNTS_MAX: u64 = 4 * 1024 * 1024;

/// Returns only where the command cannot run.
pub fn become_command(order: &Exec, config: &Config) -> Result<Figures, Refusal> {
    let user = order.user.as_ref().unwrap_or(&config.user);
    let identity = user::resolve(user, &accounts("/etc/passwd"), &accounts("/etc/group")).map_err(Refusal::new)?;
    let term = if order.tty.is_some() { TERM } else { program::TERM_NONE };
    let image = program::merge(&config.env, &order.env);
    let env = program::environment(&image, &config.hostname, term, &identity);
    let path = env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);

    let directory = Path::new("/").join(order.cwd.as_ref().unwrap_or(&config.working_dir));
    let unusable = |error| Refusal::of(&format!("working directory {}", directory.display()), &error);
    std::env::set_current_dir(&directory).map_err(unusable)?;
    let argv0 = order.command.first().map_or("", String::as_str);
    let file = program::find(argv0, path, process::look).map_err(Refusal::new)?;
    sys::become_user(&identity).map_err(|error| Refusal::of(&format!("user {user}"), &error))?;
    let mut command = Command::new(directory.join(&file));
    command.arg0(argv0).args(&order.command[1..]).env_clear().envs(env);
    let error = command.exec();
    let code = Refusal::of("", &error).code;
    Err(Refusal { reason: process::refusal(&file, &error), code, holders: Vec::new() })
}

/// A file of accounts, where there is one. It may be anything, since it is the image's: nothing is waited for.
fn accounts(path: &str) -> String {
    let mut text = Vec::new();
    let file: std::io::Result<File> = fs::OpenOptions::new().read(true).custom_flags(sys::O_NONBLOCK).open(path);
    let _ = file.and_then(|it| it.take(ACCOUNTS_MAX).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}
