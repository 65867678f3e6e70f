//! Hashes as Nix writes them: base 16, Nix's own base 32, base 64, with or without a prefix.
//!
//! Knows SHA-256 only, since that is all that NAR hashes and store paths are made of; hashes of
//! other algorithms stay text. Does not know what is hashed.

use std::fmt::Write as _;
use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use super::{excerpt, Error};

/// Nix's base 32 leaves out e, o, t and u, so that a hash spells no words.
const NIX32_ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// A SHA-256 hash, 32 bytes.
pub type Sha256Hash = [u8; 32];

/// The SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> Sha256Hash {
    Sha256::digest(bytes).into()
}

/// Nix's base 32: `ceil(8 * len / 5)` characters, the last bits first.
pub fn nix32_encode(bytes: &[u8]) -> String {
    let digits = (bytes.len() * 8).div_ceil(5);
    let mut text = String::with_capacity(digits);
    for n in (0..digits).rev() {
        let (i, j) = (n * 5 / 8, n * 5 % 8);
        let low = u16::from(bytes[i]) >> j;
        let high = match bytes.get(i + 1) {
            Some(next) => u16::from(*next) << (8 - j),
            None => 0,
        };
        text.push(NIX32_ALPHABET[usize::from((low | high) & 31)] as char);
    }
    text
}

/// Undoes [`nix32_encode`] for exactly `N` bytes; unused bits have to be zero.
pub fn nix32_decode<const N: usize>(text: &str) -> Result<[u8; N], Error> {
    if text.len() != (N * 8).div_ceil(5) {
        return Err(bad(text, "wrong length for base 32"));
    }
    let mut bytes = [0u8; N];
    for (n, c) in text.bytes().rev().enumerate() {
        let digit = nix32_digit(c).ok_or_else(|| bad(text, "not a base 32 digit"))?;
        let (i, j) = (n * 5 / 8, n * 5 % 8);
        let bits = u16::from(digit) << j;
        bytes[i] |= bits as u8;
        let carry = (bits >> 8) as u8;
        match bytes.get_mut(i + 1) {
            Some(next) => *next |= carry,
            None if carry == 0 => {}
            None => return Err(bad(text, "base 32 digits beyond the last byte")),
        }
    }
    Ok(bytes)
}

/// The value of a base 32 digit.
pub(crate) fn nix32_digit(c: u8) -> Option<u8> {
    NIX32_ALPHABET.iter().position(|&a| a == c).map(|i| i as u8)
}

/// Base 16, lower case.
pub fn hex_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("BUG: writing to a String failed");
    }
    text
}

/// Base 16, either case, of exactly `N` bytes.
pub fn hex_decode<const N: usize>(text: &str) -> Result<[u8; N], Error> {
    if text.len() != N * 2 {
        return Err(bad(text, "wrong length for base 16"));
    }
    let mut bytes = [0u8; N];
    for (i, pair) in text.as_bytes().chunks_exact(2).enumerate() {
        let digit = |c: u8| {
            (c as char)
                .to_digit(16)
                .ok_or_else(|| bad(text, "not a base 16 digit"))
        };
        bytes[i] = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(bytes)
}

/// Base 64 (RFC 4648, with padding), as narinfo signatures and SRI hashes use it.
pub fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0u32, |bits, &byte| bits << 8 | u32::from(byte))
            << (8 * (3 - chunk.len()));
        for k in 0..4 {
            if k <= chunk.len() {
                text.push(BASE64_ALPHABET[(bits >> (18 - 6 * k) & 63) as usize] as char);
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// Undoes [`base64_encode`]; padding and zero unused bits are required.
pub fn base64_decode(text: &str) -> Result<Vec<u8>, Error> {
    if text.len() % 4 != 0 {
        return Err(bad(text, "wrong length for base 64"));
    }
    let padding = text.bytes().rev().take_while(|&c| c == b'=').count();
    if padding > 2 {
        return Err(bad(text, "too much base 64 padding"));
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut bit_count) = (0u32, 0);
    for c in text.bytes().take(text.len() - padding) {
        let digit = BASE64_ALPHABET
            .iter()
            .position(|&a| a == c)
            .ok_or_else(|| bad(text, "not a base 64 digit"))?;
        bits = bits << 6 | digit as u32;
        bit_count += 6;
        if bit_count >= 8 {
            bit_count -= 8;
            bytes.push((bits >> bit_count) as u8);
            bits &= (1 << bit_count) - 1;
        }
    }
    if bits != 0 {
        return Err(bad(text, "base 64 digits beyond the last byte"));
    }
    Ok(bytes)
}

const BASE64_ALPHABET: &[u8; 64] =
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Parses `sha256:<base 16, 32 or 64>`, the SRI form `sha256-<base 64>`, or a bare base 16 or
/// base 32 hash, as path infos and derivations carry them.
pub fn parse_sha256(text: &str) -> Result<Sha256Hash, Error> {
    if let Some(digits) = text.strip_prefix("sha256-") {
        return sha256_of_base64(text, digits);
    }
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    match digits.len() {
        64 => hex_decode(digits).map_err(|_| bad(text, "not base 16")),
        52 => nix32_decode(digits).map_err(|_| bad(text, "not base 32")),
        44 => sha256_of_base64(text, digits),
        _ if digits.contains(':') || digits.contains('-') => Err(bad(text, "not a SHA-256 hash")),
        _ => Err(bad(text, "wrong length for SHA-256")),
    }
}

/// `sha256:<base 32>`, as Nix prints NAR hashes.
pub fn sha256_text(hash: &Sha256Hash) -> String {
    format!("sha256:{}", nix32_encode(hash))
}

fn sha256_of_base64(text: &str, digits: &str) -> Result<Sha256Hash, Error> {
    let bytes = base64_decode(digits).map_err(|_| bad(text, "not base 64"))?;
    bytes
        .try_into()
        .map_err(|_| bad(text, "wrong length for SHA-256"))
}

fn bad(text: &str, why: &'static str) -> Error {
    Error::Hash {
        text: excerpt(text.as_bytes()),
        why,
    }
}

/// Passes reads through and keeps the SHA-256 and the number of the bytes.
pub struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    bytes: u64,
}

impl<R: Read> HashingReader<R> {
    pub fn new(inner: R) -> Self {
        HashingReader {
            inner,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    /// Hash and number of the bytes read so far.
    pub fn finish(self) -> (Sha256Hash, u64) {
        (self.hasher.finalize().into(), self.bytes)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

/// Passes writes through and keeps the SHA-256 and the number of the bytes.
/// `HashingWriter::new(io::sink())` just hashes.
pub struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    pub fn new(inner: W) -> Self {
        HashingWriter {
            inner,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    /// The inner writer, hash and number of the bytes written so far.
    pub fn finish(self) -> (W, Sha256Hash, u64) {
        (self.inner, self.hasher.finalize().into(), self.bytes)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // printf abc | nix-hash --type sha256 --flat [--base32] /dev/stdin
    const ABC_HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABC_NIX32: &str = "1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s";
    const ABC_BASE64: &str = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";

    #[test]
    fn notations_of_one_hash() {
        let hash = sha256(b"abc");
        assert_eq!(hex_encode(&hash), ABC_HEX);
        assert_eq!(nix32_encode(&hash), ABC_NIX32);
        assert_eq!(base64_encode(&hash), ABC_BASE64);
        assert_eq!(sha256_text(&hash), format!("sha256:{ABC_NIX32}"));
        for text in [
            format!("sha256:{ABC_HEX}"),
            ABC_HEX.to_owned(),
            ABC_HEX.to_uppercase(),
            format!("sha256:{ABC_NIX32}"),
            ABC_NIX32.to_owned(),
            format!("sha256:{ABC_BASE64}"),
            format!("sha256-{ABC_BASE64}"),
        ] {
            assert_eq!(parse_sha256(&text).unwrap(), hash, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_hash() {
        for text in [
            "",
            "sha256:",
            "sha256",
            "md5:900150983cd24fb0d6963f7d28e17f72",
            "sha1:a9993e364706816aba3e25717850c26c9cd0d89d",
            &ABC_HEX[1..],
            &format!("sha256:{}g", &ABC_HEX[1..]),
            &format!("sha256:{}e", &ABC_NIX32[1..]),
            // 52 digits hold 260 bits: the four highest have to be zero.
            &format!("sha256:z{}", &ABC_NIX32[1..]),
            "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa1=",
            "sha256-====",
            "sha256:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAF===",
            "sha256:öööööööööööööööööööööööööööööööö",
        ] {
            assert!(parse_sha256(text).is_err(), "{text}");
        }
    }

    #[test]
    fn readers_and_writers_hash_what_passes() {
        let mut reader = HashingReader::new(&b"abc"[..]);
        let mut writer = HashingWriter::new(Vec::new());
        io::copy(&mut reader, &mut writer).unwrap();
        assert_eq!(reader.finish(), (sha256(b"abc"), 3));
        assert_eq!(writer.finish(), (b"abc".to_vec(), sha256(b"abc"), 3));
    }

    proptest! {
        #[test]
        fn round_trips(bytes: [u8; 32], short: [u8; 20], any: Vec<u8>) {
            prop_assert_eq!(nix32_decode::<32>(&nix32_encode(&bytes)).unwrap(), bytes);
            prop_assert_eq!(nix32_decode::<20>(&nix32_encode(&short)).unwrap(), short);
            prop_assert_eq!(hex_decode::<32>(&hex_encode(&bytes)).unwrap(), bytes);
            prop_assert_eq!(base64_decode(&base64_encode(&any)).unwrap(), any);
        }

        #[test]
        fn any_text_is_answered(text: String, digits in "[0-9a-z+/=]{44,64}") {
            for text in [&text, &digits, &format!("sha256:{digits}"), &format!("sha256-{text}")] {
                let _ = parse_sha256(text);
            }
        }
    }
}
