//! A hasher that is the same in every process, for maps that are looked up but never iterated.
//!
//! Not for keys an attacker can choose freely: it does not resist flooding.

use std::hash::{BuildHasherDefault, Hasher};

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
const EVEN: u64 = 0xc6bc_2796_92b5_c323;

/// Multiplies and folds.
#[derive(Clone, Copy, Default)]
pub struct FixedHasher(u64);

/// A `hashbrown` map with [`FixedHasher`].
pub type FixedMap<K, V> = hashbrown::HashMap<K, V, BuildHasherDefault<FixedHasher>>;

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("BUG: eight bytes"))
}

impl Hasher for FixedHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Two words at a time: half as many multiplications wait for each other.
        let pairs = bytes.chunks_exact(16);
        let rest = pairs.remainder();
        for pair in pairs {
            self.0 = fold(self.0 ^ word_at(pair, 0) ^ ODD, word_at(pair, 8) ^ EVEN);
        }
        if !rest.is_empty() {
            let mut last = [0; 16];
            last[..rest.len()].copy_from_slice(rest);
            self.0 = fold(self.0 ^ word_at(&last, 0) ^ ODD, word_at(&last, 8) ^ EVEN);
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_i32(&mut self, word: i32) {
        self.write_u64(word as u32 as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = fold(self.0 ^ word ^ ODD, EVEN);
    }

    fn finish(&self) -> u64 {
        fold(self.0 ^ ODD, 0xd6e8_feb8_6659_fd93)
    }
}

/// The hash of a string.
pub fn hash_str(text: &str) -> u64 {
    hash_bytes(text.as_bytes())
}

/// The hash of some bytes.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hasher = FixedHasher(bytes.len() as u64);
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn nearly_equal_keys_differ_in_both_halves() {
        let hashes: Vec<u64> = (0..10_000)
            .map(|n| hash_str(&format!("/nix/store/{n:032}-hello.drv")))
            .collect();
        let low: HashSet<u32> = hashes.iter().map(|h| *h as u32).collect();
        let high: HashSet<u32> = hashes.iter().map(|h| (*h >> 32) as u32).collect();
        assert!(
            low.len() > 9_990 && high.len() > 9_990,
            "{} {}",
            low.len(),
            high.len()
        );
        assert_ne!(hash_str("a"), hash_str("a\0"));
    }
}
