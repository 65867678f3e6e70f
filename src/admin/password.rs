//! Passwords of Hydra's web server: hashed as it hashes them, so that it accepts them and has no reason to hash them anew.
//!
//! argon2id with 256 MiB, 3 passes, one lane, 16 bytes of salt and 16 of hash, as a PHC string. Passwords of the time before
//! are sha1 sums; the web server checks those too if the sum, as 40 hexadecimal digits, was hashed like a password.

use anyhow::{anyhow, ensure, Result};
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::PasswordHasher;
use argon2::{Algorithm, Argon2, Params, Version};

const MEMORY_KIB: u32 = 256 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 1;
const HASH_BYTES: usize = 16;
/// A longer password is a file that was mistaken for one.
pub const PASSWORD_BYTES_MAX: usize = 4_096;

/// Whether this is a sha1 sum as old Hydras kept it.
pub fn is_sha1(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Hashes a password, or the digits of a sha1 sum. Takes a second and 256 MiB.
///
/// # Errors
/// When there is no memory or no randomness.
pub fn hash(password: &str) -> Result<String> {
    ensure!(!password.is_empty(), "the password is empty");
    ensure!(
        password.len() <= PASSWORD_BYTES_MAX,
        "the password has {} bytes; at most {PASSWORD_BYTES_MAX} make sense",
        password.len()
    );
    let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(HASH_BYTES))
        .expect("BUG: argon2 refuses our parameters");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(password.as_bytes());
    Ok(hash
        .map_err(|error| anyhow!("cannot hash the password: {error}"))?
        .to_string())
}

/// What `--password-hash` means: an argon2 hash is taken as it is, a sha1 sum is hashed.
///
/// # Errors
/// When it is neither.
pub fn from_hash(text: &str) -> Result<String> {
    if is_sha1(text) {
        return hash(text);
    }
    let is_argon2 = |hash: &PasswordHash| hash.algorithm.as_str().starts_with("argon2");
    let complete = |hash: &PasswordHash| hash.salt.is_some() && hash.hash.is_some();
    match PasswordHash::new(text) {
        Ok(hash) if is_argon2(&hash) && complete(&hash) => Ok(text.to_owned()),
        _ => Err(anyhow!(
            "this is no password hash that Hydra's web server understands: neither an argon2 hash \
             (`$argon2id$v=19$m=...`) nor a sha1 sum of 40 hexadecimal digits in small letters"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hashes_are_taken_for_hashes() {
        let argon = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert_eq!(from_hash(argon).expect("taken"), argon);
        for wrong in [
            "",
            "!",
            "secret",
            "8843d7f92416211de9ebb963ff4ce28125932878x",
            "8843D7F92416211DE9EBB963FF4CE28125932878",
            "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ",
            "$argon2id$",
            "$pbkdf2$i=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        ] {
            assert!(from_hash(wrong).is_err(), "{wrong}");
        }
    }
}
