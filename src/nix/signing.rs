//! Keys and signatures as Nix writes them: `NAME:BASE64`, ed25519.
//!
//! Knows the text and the arithmetic's library; does not know what is signed nor where keys lie.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};

use super::hash::{base64_decode, base64_encode};
use super::Error;

/// A secret key: `nix-store --generate-binary-cache-key` writes such a file.
pub struct SecretKey {
    name: String,
    key: SigningKey,
}

/// A public key, as in `trusted-public-keys`.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl SecretKey {
    /// The text of a key file.
    ///
    /// # Errors
    /// [`Error::Key`], which never repeats the text.
    pub fn parse(text: &str) -> Result<SecretKey, Error> {
        let (name, bytes) = parts(text)?;
        let bytes: [u8; 64] = bytes.try_into().map_err(|bytes: Vec<u8>| Error::Key {
            why: match bytes.len() {
                32 => "this is a public key; the secret one has twice as many bytes",
                _ => "a secret key has 64 bytes",
            },
        })?;
        let key = SigningKey::from_keypair_bytes(&bytes).map_err(|_| Error::Key {
            why: "its public half does not belong to its secret half",
        })?;
        Ok(SecretKey { name, key })
    }

    /// What goes before the colon of its signatures.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn public(&self) -> PublicKey {
        PublicKey {
            name: self.name.clone(),
            key: self.key.verifying_key(),
        }
    }

    /// Signs a text; the same text always gets the same signature.
    pub fn sign(&self, text: &str) -> String {
        let signature = self.key.sign(text.as_bytes());
        format!("{}:{}", self.name, base64_encode(&signature.to_bytes()))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.name)
    }
}

impl PublicKey {
    /// # Errors
    /// [`Error::Key`].
    pub fn parse(text: &str) -> Result<PublicKey, Error> {
        let (name, bytes) = parts(text)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| Error::Key {
            why: "a public key has 32 bytes",
        })?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| Error::Key {
            why: "this is no ed25519 key",
        })?;
        Ok(PublicKey { name, key })
    }

    /// Whether `signature` is this key's of this text.
    pub fn verify(&self, text: &str, signature: &str) -> bool {
        let Ok((name, bytes)) = parts(signature) else {
            return false;
        };
        let Ok(signature) = Signature::from_slice(&bytes) else {
            return false;
        };
        name == self.name && self.key.verify(text.as_bytes(), &signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, base64_encode(self.key.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// Whether a text has the form of a signature.
pub fn is_signature(text: &str) -> bool {
    parts(text).is_ok_and(|(_, bytes)| bytes.len() == 64)
}

fn parts(text: &str) -> Result<(String, Vec<u8>), Error> {
    let wrong = |why| Error::Key { why };
    let (name, bytes) = text
        .trim()
        .split_once(':')
        .ok_or(wrong("it is not NAME:BASE64"))?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(wrong("its name is empty or has blanks"));
    }
    let bytes = base64_decode(bytes).map_err(|_| wrong("what follows the colon is not base 64"))?;
    Ok((name.to_owned(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_key_is_told_without_its_text() {
        let secret = include_str!("../../tests/golden/narinfo/secret");
        let public = include_str!("../../tests/golden/narinfo/public");
        let mut damaged = secret.trim().to_owned();
        damaged.replace_range(damaged.len() - 10..damaged.len() - 9, "/");
        for (text, why) in [
            ("", "NAME:BASE64"),
            ("name", "NAME:BASE64"),
            (":AAAA", "name is empty"),
            ("name:????", "not base 64"),
            ("name:AAAA", "64 bytes"),
            (public, "this is a public key"),
            (&damaged, "its public half"),
        ] {
            let error = SecretKey::parse(text).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
            assert!(text.len() < 20 || !error.contains(text.trim()), "{error}");
        }
        let key = SecretKey::parse(secret).expect("a key");
        assert_eq!(format!("{key:?}"), "SecretKey(golden-1)");
        assert_eq!(key.public().to_string(), public.trim());
        assert!(is_signature(&key.sign("x")) && !is_signature(public));
    }
}
