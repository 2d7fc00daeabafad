//! The guest's pid 1, and the host's agent in it. The kernel starts it from the initrd; it makes the image's root, starts
//! the image's process, answers the host, and powers the machine off when the process has ended.
//!
//! ```text
//!   initrd ──► modules ──► config disk ──► layers, overlay, root ──► network, names, volumes ──► process ──► off
//!                                     └── anything fails: the report says why, one line on the console, off
//! ```
//!
//! The console belongs to the image. This program says one line there, prefixed `dataplane:`, when something is wrong.

mod archive;
mod config;
mod credit;
mod disks;
mod exec;
mod figures;
mod frame;
mod init;
mod json;
mod link;
mod mounts;
mod network;
mod pack;
mod pipes;
mod place;
mod proc;
mod process;
mod program;
mod protocol;
#[cfg(test)]
mod random;
mod root;
mod session;
mod signals;
mod stream;
mod streams;
mod sys;
mod tar;
mod tasks;
mod transfer;
mod unpack;
mod user;
mod verb;
mod volumes;
mod worker;

use std::fs::File;

use config::{Config, Report, Volume};
use disks::{ConfigDisk, Disks};
use init::Init;

fn main() {
    if std::process::id() != 1 {
        say("this is the init of a dataplane guest; it runs as pid 1 only");
        std::process::exit(2);
    }
    let report = match prepare() {
        Ok((config, mut disk, disks)) => {
            let mut volumes = Vec::new();
            let (report, overlay) = boot(&config, disks, &mut volumes);
            record(&mut disk, &report);
            init::end_others();
            root::settle(&volumes, overlay.as_ref());
            report
        }
        Err(why) => Report::Failed(why),
    };
    if let Report::Failed(why) = &report {
        say(why);
    }
    // The kernel's own farewell is no part of the image's output.
    let _ = std::fs::write("/proc/sys/kernel/printk", "0");
    sys::power_off();
}

/// One line on the console.
pub fn say(line: &str) {
    eprintln!("dataplane: {line}");
}

/// As far as the config: what fails here has no place for a report but the console.
fn prepare() -> Result<(Config, ConfigDisk, Disks), String> {
    root::mount_initrd()?;
    process::make_console_plain();
    let mut disks = Disks::watch(disks::BOOT_WAIT)?;
    root::accept_memory();
    root::load_modules();
    let mut disk = ConfigDisk::open(&disks.find(disks::CONFIG_SERIAL)?)?;
    let config = disk.read()?;
    Ok((config, disk, disks))
}

/// The overlay's handle is there as soon as it is mounted, however far the boot comes.
fn boot(config: &Config, mut disks: Disks, volumes: &mut Vec<Volume>) -> (Report, Option<File>) {
    let overlay = match root::enter(config, &mut disks) {
        Ok(overlay) => overlay,
        Err(why) => return (Report::Failed(why), None),
    };
    volumes.clone_from(&config.volumes);
    let report = start(config, disks).map(|(mut init, main)| {
        let report = init.run(main);
        *volumes = init.into_volumes();
        report
    });
    (report.unwrap_or_else(Report::Failed), Some(overlay))
}

fn start(config: &Config, mut disks: Disks) -> Result<(Init, i32), String> {
    root::mount_kernel()?;
    root::set_limits();
    root::name_machine(config)?;
    network::raise_loopback()?;
    if let Some(network) = &config.network {
        network::configure(network)?;
    }
    for volume in &config.volumes {
        root::mount_volume(volume, &mut disks)?;
    }
    let init = Init::new(disks.into_uevents(), config).map_err(|error| format!("init: {error}"))?;
    let main = process::start(config)?;
    Ok((init, main))
}

fn record(disk: &mut ConfigDisk, report: &Report) {
    if let Err(why) = disk.write(report) {
        say(&why);
    }
}
