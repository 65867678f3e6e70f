//! Store paths as text: their parts, what makes one valid, and how Nix computes them.
//!
//! Knows no disk: whether a path exists, and where the store lies physically, is for others.

use super::hash::{hex_encode, nix32_digit, nix32_encode, sha256, Sha256Hash};
use super::{excerpt, Error};

pub use super::derivation_hash::verify_output_paths;

/// Length of the hash part of a store path: 20 bytes in base 32.
pub const HASH_PART_LEN: usize = 32;
/// Nix's limit for the name part, in bytes.
pub const NAME_PART_BYTES_MAX: usize = 211;

/// The logical store directory, without a trailing slash; `/nix/store` by default.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StoreDir(pub String);

impl Default for StoreDir {
    fn default() -> Self {
        StoreDir("/nix/store".to_owned())
    }
}

impl StoreDir {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A path that no store has, to ask for when only the answer matters.
    pub fn nowhere(&self) -> String {
        self.join("00000000000000000000000000000000-none")
    }

    /// The store path with this base name.
    pub fn join(&self, base_name: &str) -> String {
        format!("{}/{}", self.0, base_name)
    }

    /// Splits a path at or below a store object into the store path and the rest, which is empty
    /// or starts with a slash. Nothing is normalised.
    pub fn split<'p>(&self, path: &'p str) -> Option<(&'p str, &'p str)> {
        let rest = path.strip_prefix(self.0.as_str())?.strip_prefix('/')?;
        let base_len = rest.find('/').unwrap_or(rest.len());
        if base_len == 0 {
            return None;
        }
        let (object, below) = path.split_at(path.len() - rest.len() + base_len);
        Some((object, below))
    }
}

/// Checks that `path` is directly inside `store_dir` and has a valid hash and name part.
pub fn check_store_path(store_dir: &StoreDir, path: &str) -> Result<(), Error> {
    let base = path
        .strip_prefix(store_dir.as_str())
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| bad(path, "it is not in the store"))?;
    check_base(path, base)
}

/// Checks `<hash>-<name>`, a store path without its directory.
pub fn check_base_name(base: &str) -> Result<(), Error> {
    check_base(base, base)
}

/// Checks a derivation's path: a valid store path ending in `.drv`.
pub fn check_drv_path(store_dir: &StoreDir, path: &str) -> Result<(), Error> {
    check_store_path(store_dir, path)?;
    match drv_name(path) {
        Some(_) => Ok(()),
        None => Err(bad(path, "it does not end in .drv")),
    }
}

fn check_base(path: &str, base: &str) -> Result<(), Error> {
    let bytes = base.as_bytes();
    if bytes.len() <= HASH_PART_LEN || bytes[HASH_PART_LEN] != b'-' {
        return Err(bad(path, "it has no hash part of 32 characters"));
    }
    let (hash, name) = (&bytes[..HASH_PART_LEN], &bytes[HASH_PART_LEN + 1..]);
    if !hash.iter().all(|&c| nix32_digit(c).is_some()) {
        return Err(bad(path, "its hash part is not base 32"));
    }
    check_name_bytes(name).map_err(|why| bad(path, why))
}

/// Checks the name part of a store path, which is also the name of a derivation.
pub fn check_name(name: &str) -> Result<(), Error> {
    check_name_bytes(name.as_bytes()).map_err(|why| bad(name, why))
}

fn check_name_bytes(name: &[u8]) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it has an empty name");
    }
    if name.len() > NAME_PART_BYTES_MAX {
        return Err("its name is longer than 211 bytes");
    }
    if !name
        .iter()
        .all(|&c| c.is_ascii_alphanumeric() || b"+-._?=".contains(&c))
    {
        return Err("its name has a character that is not allowed");
    }
    // Nix 2.8 takes any dot; newer versions refuse what could be mistaken for a directory.
    let first = name.split(|&c| c == b'-').next().unwrap_or(name);
    if first == b"." || first == b".." {
        return Err("its name begins like '.' or '..'");
    }
    Ok(())
}

/// What follows the last slash: `<hash>-<name>` of a store path.
pub fn base_name(path: &str) -> &str {
    match path.rfind('/') {
        Some(slash) => &path[slash + 1..],
        None => path,
    }
}

/// The 32 characters before the first dash of a store path or base name; all of the base name
/// if it is no valid one.
pub fn hash_part(path: &str) -> &str {
    let base = base_name(path);
    base.get(..HASH_PART_LEN).unwrap_or(base)
}

/// What follows the hash part and its dash; empty if the path is no valid one.
pub fn name_part(path: &str) -> &str {
    let after_hash = base_name(path).get(HASH_PART_LEN..);
    after_hash.and_then(|s| s.strip_prefix('-')).unwrap_or("")
}

/// The name of a derivation: the name part of its path without `.drv`.
pub fn drv_name(drv_path: &str) -> Option<&str> {
    name_part(drv_path).strip_suffix(".drv")
}

/// How the contents of a fixed output are hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ingestion {
    /// The bytes of one regular file.
    Flat,
    /// The NAR.
    Recursive,
}

/// The path of a file made from text (`builtins.toFile`, derivations). `references` in any order.
pub fn text_path(
    store_dir: &StoreDir,
    name: &str,
    contents: &Sha256Hash,
    references: &[String],
) -> String {
    let kind = with_references("text", references);
    make_path(store_dir, &kind, contents, name)
}

/// The path of a source, or of anything fixed by the SHA-256 of its NAR.
pub fn source_path(
    store_dir: &StoreDir,
    name: &str,
    nar_hash: &Sha256Hash,
    references: &[String],
) -> String {
    let kind = with_references("source", references);
    make_path(store_dir, &kind, nar_hash, name)
}

/// The path of a fixed output. `algorithm` is `sha256`, `sha1`, ...; `hash` is in base 16.
pub fn fixed_output_path(
    store_dir: &StoreDir,
    name: &str,
    ingestion: Ingestion,
    algorithm: &str,
    hash: &str,
) -> Result<String, Error> {
    let prefix = match ingestion {
        Ingestion::Recursive if algorithm == "sha256" => {
            return Ok(source_path(
                store_dir,
                name,
                &super::hash::hex_decode(hash)?,
                &[],
            ));
        }
        Ingestion::Recursive => "r:",
        Ingestion::Flat => "",
    };
    let inner = sha256(format!("fixed:out:{prefix}{algorithm}:{hash}:").as_bytes());
    Ok(make_path(store_dir, "output:out", &inner, name))
}

/// The path of an input-addressed output, from its derivation's name and masked hash.
pub fn output_path(
    store_dir: &StoreDir,
    drv_name: &str,
    output: &str,
    hash_modulo: &Sha256Hash,
) -> String {
    let kind = format!("output:{output}");
    if output == "out" {
        make_path(store_dir, &kind, hash_modulo, drv_name)
    } else {
        let name = format!("{drv_name}-{output}");
        make_path(store_dir, &kind, hash_modulo, &name)
    }
}

fn with_references(kind: &str, references: &[String]) -> String {
    let mut sorted: Vec<&str> = references.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut text = kind.to_owned();
    for reference in sorted {
        text.push(':');
        text.push_str(reference);
    }
    text
}

fn make_path(store_dir: &StoreDir, kind: &str, inner: &Sha256Hash, name: &str) -> String {
    let fingerprint = format!(
        "{kind}:sha256:{}:{}:{name}",
        hex_encode(inner),
        store_dir.as_str()
    );
    let mut folded = [0u8; 20];
    for (i, byte) in sha256(fingerprint.as_bytes()).iter().enumerate() {
        folded[i % 20] ^= byte;
    }
    format!("{}/{}-{name}", store_dir.as_str(), nix32_encode(&folded))
}

fn bad(path: &str, why: &'static str) -> Error {
    Error::StorePath {
        path: excerpt(path.as_bytes()),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    #[test]
    fn parts() {
        let path = format!("/nix/store/{HASH}-hello-2.12.drv");
        assert_eq!(base_name(&path), format!("{HASH}-hello-2.12.drv"));
        assert_eq!(hash_part(&path), HASH);
        assert_eq!(name_part(&path), "hello-2.12.drv");
        assert_eq!(drv_name(&path), Some("hello-2.12"));
        assert_eq!(drv_name(&format!("{HASH}-hello")), None);
        assert_eq!(hash_part("/x/short"), "short");
        assert_eq!(name_part("/x/short"), "");
        assert_eq!(name_part(&format!("/x/{HASH}_name")), "");
        // A character of two bytes across the hash part's end.
        assert_eq!(name_part(&format!("/x/{}é-name", &HASH[1..])), "");
    }

    #[test]
    fn splitting_below_a_store_path() {
        let store = StoreDir::default();
        assert_eq!(
            store.split("/nix/store/abc/x/y"),
            Some(("/nix/store/abc", "/x/y"))
        );
        assert_eq!(store.split("/nix/store/abc"), Some(("/nix/store/abc", "")));
        assert_eq!(store.split("/nix/store/"), None);
        assert_eq!(store.split("/nix/store"), None);
        assert_eq!(store.split("/nix/storeabc"), None);
        assert_eq!(store.split("/nix/store//abc"), None);
    }

    #[test]
    fn valid_and_invalid_paths() {
        let store = StoreDir::default();
        let ok = |name: &str| {
            check_store_path(&store, &format!("/nix/store/{HASH}-{name}")).unwrap_or_else(|e| {
                panic!("{e}");
            })
        };
        ok("a");
        ok("a+b-c.d_e?f=g");
        ok(".hidden");
        ok(&"x".repeat(211));
        for (path, why) in [
            ("", "not in the store"),
            ("/nix/store", "not in the store"),
            ("/gnu/store/x", "not in the store"),
            ("/nix/store/x", "no hash part"),
            (&format!("/nix/store/{HASH}"), "no hash part"),
            (&format!("/nix/store/{HASH}-"), "empty name"),
            (&format!("/nix/store/{HASH}_x"), "no hash part"),
            (&format!("/nix/store/e{}-x", &HASH[1..]), "not base 32"),
            (&format!("/nix/store/A{}-x", &HASH[1..]), "not base 32"),
            (&format!("/nix/store/{HASH}-x/y"), "not allowed"),
            (&format!("/nix/store/{HASH}-x y"), "not allowed"),
            (&format!("/nix/store/{HASH}-x\0"), "not allowed"),
            (&format!("/nix/store/{HASH}-é"), "not allowed"),
            (&format!("/nix/store/{HASH}-."), "begins like"),
            (&format!("/nix/store/{HASH}-..-x"), "begins like"),
            (
                &format!("/nix/store/{HASH}-{}", "x".repeat(212)),
                "longer than",
            ),
        ] {
            let error = check_store_path(&store, path).unwrap_err().to_string();
            assert!(error.contains(why), "{path}: {error}");
        }
        assert!(check_drv_path(&store, &format!("/nix/store/{HASH}-x.drv")).is_ok());
        assert!(check_drv_path(&store, &format!("/nix/store/{HASH}-x")).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text: String, tail: String) {
            let store = StoreDir::default();
            for path in [text.clone(), format!("/nix/store/{HASH}-{text}"), format!("/nix/store/{text}-{tail}")] {
                if check_store_path(&store, &path).is_ok() {
                    prop_assert_eq!(store.join(&format!("{}-{}", hash_part(&path), name_part(&path))), path);
                } else {
                    let _ = (hash_part(&path), name_part(&path), drv_name(&path), store.split(&path));
                }
            }
        }
    }
}
