//! A seeded generator for tests (splitmix64): the same seed, the same case.

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Bytes with as many zeros as a frame has to cope with.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let sparse = self.below(3);
        (0..length).map(|_| if self.below(4) < sparse { 0 } else { self.next() as u8 }).collect()
    }

    pub fn text(&mut self) -> String {
        let alphabet = ['a', 'Z', '"', '\\', '\n', '\u{1}', 'é', '😀', ' ', '/', '{', '\u{7f}'];
        (0..self.below(8)).map(|_| alphabet[self.below(alphabet.len())]).collect()
    }
}
