//! The frames of the agent channel; the host's twin is `src/guest/frame.ts`. Pure.
//!
//! A frame is a header and a payload, stuffed so that it holds no zero byte (Consistent Overhead Byte Stuffing, Cheshire
//! and Baker 1999), closed by one zero byte:
//!
//! ```text
//!   0  1 byte   kind
//!   1  4 bytes  stream, little endian
//!   5  2 bytes  length of the payload, little endian
//!   7  n bytes  payload
//! ```
//!
//! The zero byte is what a byte stream without connections needs (virtio-serial): whoever comes new to the channel, in
//! the middle of somebody else's frame, sends a zero and is understood from there. A frame that was cut short contradicts
//! its length and is dropped. Two zeros in a row are an empty frame, which says nothing.

/// Header and payload, before stuffing.
pub const FRAME_MAX: usize = 64 * 1024;
pub const HEADER: usize = 7;
pub const PAYLOAD_MAX: usize = FRAME_MAX - HEADER;
/// One byte of overhead for each 254, and one more (COBS).
pub const STUFFED_MAX: usize = FRAME_MAX + FRAME_MAX / 254 + 1;

/// JSON. What the others mean says `protocol.rs`; a kind that the receiver does not know is ignored.
pub const KIND_CONTROL: u8 = 1;
pub const KIND_DATA: u8 = 2;
pub const KIND_STDERR: u8 = 3;
pub const KIND_END: u8 = 4;
pub const KIND_CREDIT: u8 = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Appends the frame to `out`, closing zero included. The payload holds at most `PAYLOAD_MAX` bytes.
pub fn encode(kind: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= PAYLOAD_MAX, "a payload of {} bytes", payload.len());
    let mut plain = Vec::with_capacity(HEADER + payload.len());
    plain.push(kind);
    plain.extend_from_slice(&stream.to_le_bytes());
    plain.extend_from_slice(&(payload.len() as u16).to_le_bytes());
    plain.extend_from_slice(payload);
    stuff(&plain, out);
    out.push(0);
}

fn stuff(plain: &[u8], out: &mut Vec<u8>) {
    let mut rest = plain;
    loop {
        let run = rest.iter().take(254).position(|&b| b == 0).unwrap_or_else(|| rest.len().min(254));
        out.push(run as u8 + 1);
        out.extend_from_slice(&rest[..run]);
        if run == rest.len() {
            return;
        }
        // A full run of 254 stands for no zero; a shorter one for the zero behind it.
        rest = &rest[run + usize::from(run < 254)..];
    }
}

fn unstuff(stuffed: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(stuffed.len());
    let mut at = 0;
    while at < stuffed.len() {
        let code = usize::from(stuffed[at]);
        plain.extend_from_slice(stuffed.get(at + 1..at + code)?);
        at += code;
        if code < 255 && at < stuffed.len() {
            plain.push(0);
        }
    }
    Some(plain)
}

fn parse(stuffed: &[u8]) -> Option<Frame> {
    let plain = unstuff(stuffed)?;
    if plain.len() < HEADER || plain.len() > FRAME_MAX {
        return None;
    }
    let length = usize::from(u16::from_le_bytes([plain[5], plain[6]]));
    if plain.len() != HEADER + length {
        return None;
    }
    let stream = u32::from_le_bytes([plain[1], plain[2], plain[3], plain[4]]);
    Some(Frame { kind: plain[0], stream, payload: plain[HEADER..].to_vec() })
}

/// Takes bytes as they come and gives whole frames. What is no frame is skipped up to the next zero byte; it never holds
/// more than `STUFFED_MAX` bytes.
#[derive(Default)]
pub struct Decoder {
    held: Vec<u8>,
    overrun: bool,
}

impl Decoder {
    pub fn push(&mut self, input: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut rest = input;
        while let Some(end) = rest.iter().position(|&b| b == 0) {
            self.hold(&rest[..end]);
            rest = &rest[end + 1..];
            if !self.overrun {
                frames.extend(parse(&self.held));
            }
            self.held.clear();
            self.overrun = false;
        }
        self.hold(rest);
        frames
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.overrun || self.held.len() + bytes.len() > STUFFED_MAX {
            self.overrun = true;
            self.held.clear();
        } else {
            self.held.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn encode(frame: &Frame, out: &mut Vec<u8>) {
        super::encode(frame.kind, frame.stream, &frame.payload, out);
    }

    fn some(random: &mut Random) -> Frame {
        let lengths = [0, 1, 246, 247, 248, 253, 254, 255, 508, 4096, PAYLOAD_MAX];
        let exact = random.below(2) == 0;
        let length = if exact { lengths[random.below(lengths.len())] } else { random.below(2_000) };
        Frame { kind: random.next() as u8, stream: random.next() as u32, payload: random.bytes(length) }
    }

    fn decode_in_pieces(random: &mut Random, decoder: &mut Decoder, bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(random.below(rest.len().min(3_000)) + 1);
            frames.extend(decoder.push(piece));
            rest = behind;
        }
        frames
    }

    #[test]
    fn frames_come_back_at_any_split() {
        for seed in 0..300 {
            let random = &mut Random::new(seed);
            let frames: Vec<Frame> = (0..=random.below(4)).map(|_| some(random)).collect();
            let mut bytes = Vec::new();
            for frame in &frames {
                let from = bytes.len();
                encode(frame, &mut bytes);
                assert!(bytes.len() - from <= STUFFED_MAX + 1);
                assert_eq!(bytes[from..].iter().filter(|&&b| b == 0).count(), 1);
            }
            assert_eq!(decode_in_pieces(random, &mut Decoder::default(), &bytes), frames, "seed {seed}");
        }
    }

    #[test]
    fn a_frame_cut_anywhere_never_hides_the_next() {
        for seed in 0..1_000 {
            let random = &mut Random::new(seed);
            let (first, second) = (some(random), some(random));
            let mut bytes = Vec::new();
            encode(&first, &mut bytes);
            bytes.truncate(random.below(bytes.len()));
            bytes.push(0);
            encode(&second, &mut bytes);
            let frames = decode_in_pieces(random, &mut Decoder::default(), &bytes);
            let cut_at_its_end = frames.len() == 2 && frames[0] == first;
            assert!(cut_at_its_end || frames.len() == 1, "seed {seed}");
            assert_eq!(frames.last(), Some(&second), "seed {seed}");
        }
    }

    #[test]
    fn garbage_is_skipped_within_the_bound() {
        for seed in 0..300 {
            let random = &mut Random::new(seed);
            let length = random.below(300_000);
            let mut garbage = random.bytes(length);
            if random.below(2) == 0 {
                garbage.iter_mut().for_each(|b| *b |= 1);
            }
            let mut decoder = Decoder::default();
            decode_in_pieces(random, &mut decoder, &garbage);
            assert!(decoder.held.capacity() <= 2 * STUFFED_MAX);
            let frame = some(random);
            let mut bytes = vec![0];
            encode(&frame, &mut bytes);
            assert_eq!(decoder.push(&bytes).last(), Some(&frame), "seed {seed}");
        }
    }

    #[test]
    fn an_endless_frame_is_dropped() {
        let mut decoder = Decoder::default();
        for _ in 0..1_000 {
            assert!(decoder.push(&[0xff; 4096]).is_empty());
            assert!(decoder.held.capacity() <= 2 * STUFFED_MAX);
        }
        assert!(decoder.push(&[0]).is_empty());
    }

    #[test]
    fn known_bytes() {
        let mut bytes = Vec::new();
        encode(&Frame { kind: KIND_CONTROL, stream: 0, payload: b"{}".to_vec() }, &mut bytes);
        assert_eq!(bytes, [2, 1, 1, 1, 1, 2, 2, 3, b'{', b'}', 0]);
    }
}
