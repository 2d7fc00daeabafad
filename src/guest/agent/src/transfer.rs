//! What the worker of an archive does, out of the image or into it.

use std::fs::File;
use std::io::{stdin, stdout, BufWriter};
use std::os::unix::io::AsFd;

use crate::pack::{Packer, Top};
use crate::place;
use crate::protocol::Refusal;
use crate::sys;
use crate::unpack::Unpacker;
use crate::worker::{Figures, Teller};

const BUFFER_BYTES: usize = 64 * 1024;

/// The archive goes to standard output.
pub fn read_files(path: &str, teller: &mut Teller) -> Result<Figures, Refusal> {
    let top = Top::open(&root()?, path)?;
    // Not std's own, which looks for the ends of lines.
    let output = stdout().as_fd().try_clone_to_owned().map_err(|error| Refusal::of("archive", &error))?;
    teller.started();
    Packer::new(BufWriter::with_capacity(BUFFER_BYTES, File::from(output))).pack(top)?;
    Ok(Vec::new())
}

/// The archive comes from standard input.
pub fn write_files(path: &str, teller: &mut Teller) -> Result<Figures, Refusal> {
    sys::clear_mode_mask();
    let unpacker = Unpacker::open(&root()?, path)?;
    let input = stdin().as_fd().try_clone_to_owned().map_err(|error| Refusal::of("archive", &error))?;
    teller.started();
    unpacker.unpack(File::from(input))?;
    Ok(Vec::new())
}

fn root() -> Result<File, Refusal> {
    place::root().map_err(|error| Refusal::of("/", &error))
}
