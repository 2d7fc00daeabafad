//! The headers of tar archives, as POSIX.1-2001 describes them (ustar and pax) and, for reading, as GNU tar writes them
//! (long names of types L and K, numbers in base 256). Pure: blocks in, members out, and back.

pub const BLOCK: usize = 512;
/// Values of extended headers that count, and names: more is a mistake or worse.
pub const EXTENDED_MAX: u64 = 1024 * 1024;

pub type Block = [u8; BLOCK];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    /// Another name of an earlier member.
    HardLink,
    Fifo,
    CharacterDevice,
    BlockDevice,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: Vec<u8>,
    pub kind: Kind,
    /// The twelve bits of chmod(2).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes behind the header; only a file has any.
    pub size: u64,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// What a link points at.
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// What a header is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
    /// Of the archive's end, two in a row.
    Zero,
    Member(Member),
    /// So many bytes behind it say something about the next member, or about all.
    Extended(Extended, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extended {
    Next,
    Global,
    LongName,
    LongLink,
}

const CHECKSUM: std::ops::Range<usize> = 148..156;

/// Bytes that fill the last block of a body.
pub fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// The error is a sentence.
pub fn parse(block: &Block) -> Result<Header, String> {
    if block.iter().all(|&b| b == 0) {
        return Ok(Header::Zero);
    }
    check(block)?;
    let field = |from: usize, length: usize| number(&block[from..from + length]);
    let size = u64::try_from(field(124, 12)?).map_err(|_| "a size below zero")?;
    let kind = match block[156] {
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharacterDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'x' | b'X' => return Ok(Header::Extended(Extended::Next, size)),
        b'g' => return Ok(Header::Extended(Extended::Global, size)),
        b'L' => return Ok(Header::Extended(Extended::LongName, size)),
        b'K' => return Ok(Header::Extended(Extended::LongLink, size)),
        b'S' => return Err("a sparse file, which this agent does not unpack".to_string()),
        other => return Err(format!("a member of type {:?}, which this agent does not know", char::from(other))),
    };
    let name = full_name(block);
    // Before there was a type for directories.
    let kind = if kind == Kind::File && name.ends_with(b"/") { Kind::Directory } else { kind };
    Ok(Header::Member(Member {
        mode: field(100, 8)? as u32 & 0o7777,
        uid: id(field(108, 8)?)?,
        gid: id(field(116, 8)?)?,
        size: if kind == Kind::File { size } else { 0 },
        mtime: field(136, 12)?,
        link: text(&block[157..257]).to_vec(),
        device: (id(field(329, 8).unwrap_or(0))?, id(field(337, 8).unwrap_or(0))?),
        name,
        kind,
    }))
}

/// GNU tar has other things where ustar has the name's first part.
fn full_name(block: &Block) -> Vec<u8> {
    let (name, prefix) = (text(&block[..100]), text(&block[345..500]));
    if &block[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// The sum of all bytes, its own counted as spaces; some old writers took them as signed.
fn check(block: &Block) -> Result<(), String> {
    let own = |at: usize| CHECKSUM.contains(&at);
    let bytes = || block.iter().enumerate().map(|(at, &b)| if own(at) { b' ' } else { b });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|b| i64::from(b as i8)).sum();
    let good = number(&block[CHECKSUM]).map_or(false, |said| said == unsigned || said == signed);
    good.then_some(())
        .ok_or_else(|| "a header with a wrong checksum: this is no tar archive, or a broken one".to_string())
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs, or base 256 with its sign in the first byte.
fn number(field: &[u8]) -> Result<i64, String> {
    let wrong = || "a number that is none".to_string();
    if field.first().map_or(false, |it| it & 0x80 != 0) {
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let start: i128 = if negative { i128::from(first as i8) } else { i128::from(first) };
        let value = field[1..].iter().try_fold(start, |value, &b| value.checked_mul(256)?.checked_add(b.into()));
        return value.and_then(|it| i64::try_from(it).ok()).ok_or_else(wrong);
    }
    let digits = text(field).iter().copied().skip_while(|b| *b == b' ');
    let digits: Vec<u8> = digits.take_while(|b| *b != b' ').collect();
    if digits.is_empty() {
        return Ok(0);
    }
    let octal = digits.iter().all(|b| (b'0'..=b'7').contains(b));
    let value = std::str::from_utf8(&digits).ok().and_then(|it| i64::from_str_radix(it, 8).ok());
    value.filter(|_| octal).ok_or_else(wrong)
}

fn id(value: i64) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{value} is no id"))
}

/// What extended headers said of the next member. Later ones win; an empty value takes back what was said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
}

impl Overrides {
    /// Takes the body of an extended header.
    pub fn read(&mut self, kind: Extended, body: &[u8]) -> Result<(), String> {
        match kind {
            Extended::LongName => self.name = Some(text(body).to_vec()),
            Extended::LongLink => self.link = Some(text(body).to_vec()),
            Extended::Global => return Ok(()),
            Extended::Next => {
                let mut rest = body;
                while !rest.is_empty() {
                    let (record, behind) = split_record(rest).ok_or("an extended header that is none")?;
                    self.record(record)?;
                    rest = behind;
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, record: &[u8]) -> Result<(), String> {
        let at = record.iter().position(|&b| b == b'=').ok_or("an extended header without a value")?;
        let (key, value) = (&record[..at], &record[at + 1..]);
        let some = |value: &[u8]| Some(value.to_vec()).filter(|it| !it.is_empty());
        match key {
            b"path" => self.name = some(value),
            b"linkpath" => self.link = some(value),
            b"size" => self.size = decimal(value)?.map(u64::try_from).transpose().map_err(|_| "a size below zero")?,
            b"uid" => self.uid = decimal(value)?.map(id).transpose()?,
            b"gid" => self.gid = decimal(value)?.map(id).transpose()?,
            b"mtime" => self.mtime = decimal(value)?,
            key if key.starts_with(b"GNU.sparse.") => {
                return Err("a sparse file, which this agent does not unpack".to_string());
            }
            _ => {}
        }
        Ok(())
    }

    /// The size counts for a file only, as in a plain header.
    pub fn apply(self, mut member: Member) -> Member {
        member.size = self.size.filter(|_| member.kind == Kind::File).unwrap_or(member.size);
        member.name = self.name.unwrap_or(member.name);
        member.link = self.link.unwrap_or(member.link);
        member.uid = self.uid.unwrap_or(member.uid);
        member.gid = self.gid.unwrap_or(member.gid);
        member.mtime = self.mtime.unwrap_or(member.mtime);
        member
    }
}

/// `21 path=some/long/name\n`: its whole length, a space, key and value. Gives key and value, and what is behind them.
fn split_record(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = body.iter().take(20).position(|&b| b == b' ')?;
    let length: usize = std::str::from_utf8(&body[..space]).ok()?.parse().ok()?;
    let record = body.get(space + 1..length)?;
    Some((record.strip_suffix(b"\n")?, &body[length..]))
}

/// A whole number, its fraction cut off towards the past; none where the value is empty.
fn decimal(value: &[u8]) -> Result<Option<i64>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    let wrong = || "an extended header with a number that is none".to_string();
    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-') && fraction.bytes().any(|b| b != b'0');
    let whole: i64 = whole.parse().map_err(|_| wrong())?;
    whole.checked_sub(negative.into()).map(Some).ok_or_else(wrong)
}

/// Appends the member's header; before it, where ustar cannot say it all, an extended one. The body is the caller's.
pub fn encode(member: &Member, out: &mut Vec<u8>) {
    let records = records(member);
    if !records.is_empty() {
        let extended = Member {
            name: b"pax".to_vec(),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: records.len() as u64,
            mtime: 0,
            link: Vec::new(),
            device: (0, 0),
        };
        out.extend_from_slice(&plain(&extended, b'x'));
        out.extend_from_slice(&records);
        out.resize(out.len() + padding(records.len() as u64) as usize, 0);
    }
    out.extend_from_slice(&plain(member, letter(member.kind)));
}

fn letter(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharacterDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

const NAME: usize = 100;

/// What does not fit its field, in octal digits with one byte for the end.
fn records(member: &Member) -> Vec<u8> {
    let mut out = Vec::new();
    let small = |value: i64, digits: u32| (0..1 << (3 * digits)).contains(&value);
    if member.name.len() > NAME {
        put_record(b"path", &member.name, &mut out);
    }
    if member.link.len() > NAME {
        put_record(b"linkpath", &member.link, &mut out);
    }
    let numbers: [(&[u8], i64, u32); 4] = [
        (b"size", member.size as i64, 11),
        (b"uid", member.uid.into(), 7),
        (b"gid", member.gid.into(), 7),
        (b"mtime", member.mtime, 11),
    ];
    for (key, value, digits) in numbers {
        if !small(value, digits) {
            put_record(key, value.to_string().as_bytes(), &mut out);
        }
    }
    out
}

fn put_record(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    // Its length counts its own digits.
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn plain(member: &Member, letter: u8) -> Block {
    let mut block = [0; BLOCK];
    put_text(&mut block[..NAME], &member.name);
    put_number(&mut block[100..108], member.mode.into());
    put_number(&mut block[108..116], member.uid.into());
    put_number(&mut block[116..124], member.gid.into());
    put_number(&mut block[124..136], member.size as i64);
    put_number(&mut block[136..148], member.mtime);
    block[156] = letter;
    put_text(&mut block[157..257], &member.link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    if [Kind::CharacterDevice, Kind::BlockDevice].contains(&member.kind) {
        put_number(&mut block[329..337], member.device.0.into());
        put_number(&mut block[337..345], member.device.1.into());
    }
    block[CHECKSUM].fill(b' ');
    let sum: i64 = block.iter().map(|&b| i64::from(b)).sum();
    block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// As much of it as fits; an extended header has the rest.
fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// 0 where it does not fit; an extended header has it.
fn put_number(field: &mut [u8], value: i64) {
    let digits = field.len() - 1;
    let text = format!("{:0digits$o}", value.max(0));
    let text = if text.len() > digits { "0".repeat(digits) } else { text };
    field[..digits].copy_from_slice(text.as_bytes());
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
