//! Reads a tar archive member by member from a stream that is not trusted: what it holds is bounded, and every length is
//! what arrives, not what a header says.

use std::io::{self, ErrorKind, Read};

use crate::tar::{self, Header, Member, Overrides, BLOCK, EXTENDED_MAX};

/// Extended headers in a row before one member.
const EXTENDED_IN_A_ROW: usize = 64;

pub struct Archive<R> {
    input: R,
    /// Of the current member's body, padding not counted.
    left: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub fn new(input: R) -> Archive<R> {
        Archive { input, left: 0, padding: 0 }
    }

    /// The next member; what is left of the last one's body is skipped. The error is a sentence.
    pub fn next(&mut self) -> Result<Option<Member>, String> {
        let cut = |error: io::Error| format!("the archive ends in the middle of a member ({error})");
        let rest = self.left + self.padding;
        self.skip(rest).map_err(cut)?;
        (self.left, self.padding) = (0, 0);
        let mut overrides = Overrides::default();
        for extended in 0..=EXTENDED_IN_A_ROW {
            let mut block = [0; BLOCK];
            let complete = self.fill(&mut block).map_err(|error| format!("the archive cannot be read: {error}"))?;
            match complete {
                BLOCK => {}
                // Some writers leave the closing zeros away.
                0 if extended == 0 => return Ok(None),
                _ => return Err("the archive ends in the middle of a header".to_string()),
            }
            match tar::parse(&block)? {
                Header::Zero => return Ok(None),
                Header::Member(member) => {
                    let member = overrides.apply(member);
                    self.left = member.size;
                    self.padding = tar::padding(member.size);
                    return Ok(Some(member));
                }
                Header::Extended(_, size) if size > EXTENDED_MAX => {
                    return Err(format!("an extended header of {size} bytes"));
                }
                Header::Extended(kind, size) => {
                    let mut body = Vec::new();
                    let taken = (&mut self.input).take(size).read_to_end(&mut body).map_err(cut)?;
                    if taken as u64 != size {
                        return Err("the archive ends in the middle of an extended header".to_string());
                    }
                    self.skip(tar::padding(size)).map_err(cut)?;
                    overrides.read(kind, &body)?;
                }
            }
        }
        Err("extended headers without end".to_string())
    }

    /// Reads all that comes behind the archive's end, so that whoever sends it is not held up.
    pub fn drain(mut self) {
        let _ = io::copy(&mut self.input, &mut io::sink());
    }

    /// Less than the block only at the end.
    fn fill(&mut self, block: &mut [u8; BLOCK]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink())?;
        (skipped == bytes).then_some(()).ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))
    }
}

/// The current member's body.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        match self.input.read(&mut buffer[..want])? {
            0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "the archive ends in the middle of it")),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
    }
}
