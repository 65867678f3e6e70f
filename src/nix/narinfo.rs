//! What a binary cache says of a store path: `<hash part>.narinfo`, and of itself: `nix-cache-info`.
//!
//! Knows the text and what is signed of it; does not know where it lies nor who may be believed.

use std::fmt::Write as _;

use super::hash::{parse_sha256, sha256_text, Sha256Hash};
use super::store_path::{base_name, check_base_name, check_store_path, StoreDir};
use super::{excerpt, Error, ValidPathInfo};

/// A narinfo at most, bytes. (References of a path with ten thousand of them take 600,000.)
pub const NARINFO_BYTES_MAX: u64 = 4 << 20;
/// `nix-cache-info` at most, bytes.
pub const CACHE_INFO_BYTES_MAX: u64 = 64 << 10;

/// The text of a narinfo, taken apart. The registration time of `info` is always 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NarInfo {
    pub info: ValidPathInfo,
    /// Where the NAR is, relative to the cache.
    pub url: String,
    /// `none`, `xz`, `zstd`, ...
    pub compression: String,
    /// Of the file behind `url`.
    pub file_hash: Option<Sha256Hash>,
    pub file_size: Option<u64>,
}

/// The key of a store path's narinfo in a cache.
pub fn narinfo_key(hash_part: &str) -> String {
    format!("{hash_part}.narinfo")
}

/// What a signature of a store path signs.
pub fn fingerprint(info: &ValidPathInfo) -> String {
    format!(
        "1;{};{};{};{}",
        info.path,
        sha256_text(&info.nar_hash),
        info.nar_size,
        sorted(&info.references).join(",")
    )
}

/// In Nix's order: by base name, each once.
fn sorted(references: &[String]) -> Vec<&str> {
    let mut sorted: Vec<&str> = references.iter().map(String::as_str).collect();
    sorted.sort_unstable_by_key(|path| base_name(path));
    sorted.dedup();
    sorted
}

impl NarInfo {
    /// As Nix writes it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &str| {
            writeln!(text, "{key}: {value}").expect("BUG: writing to a String failed");
        };
        let info = &self.info;
        line("StorePath", &info.path);
        line("URL", &self.url);
        line("Compression", &self.compression);
        if let Some(hash) = &self.file_hash {
            line("FileHash", &sha256_text(hash));
        }
        if let Some(size) = self.file_size {
            line("FileSize", &size.to_string());
        }
        line("NarHash", &sha256_text(&info.nar_hash));
        line("NarSize", &info.nar_size.to_string());
        let references: Vec<&str> = sorted(&info.references)
            .into_iter()
            .map(base_name)
            .collect();
        line("References", &references.join(" "));
        if let Some(deriver) = &info.deriver {
            line("Deriver", base_name(deriver));
        }
        let mut signatures: Vec<&str> = info.sigs.iter().map(String::as_str).collect();
        signatures.sort_unstable();
        signatures.dedup();
        for signature in signatures {
            line("Sig", signature);
        }
        if let Some(ca) = &info.ca {
            line("CA", ca);
        }
        text
    }

    /// Reads what Nix or any other writer of caches wrote; keys it does not know are passed over.
    ///
    /// # Errors
    /// [`Error::NarInfo`] names the line.
    pub fn parse(store_dir: &StoreDir, text: &str) -> Result<NarInfo, Error> {
        let mut found = NarInfo {
            info: ValidPathInfo::default(),
            url: String::new(),
            // What Nix takes it for if nothing is said.
            compression: "bzip2".to_owned(),
            file_hash: None,
            file_size: None,
        };
        let mut has_hash = false;
        for line in text.lines() {
            let wrong = |why: String| Error::NarInfo {
                line: excerpt(line.as_bytes()),
                why,
            };
            let number = |value: &str| {
                value
                    .parse::<u64>()
                    .map_err(|_| wrong("not a number".to_owned()))
            };
            let hash = |value: &str| parse_sha256(value).map_err(|error| wrong(error.to_string()));
            let path = |base: &str| {
                check_base_name(base).map_err(|error| wrong(error.to_string()))?;
                Ok::<_, Error>(store_dir.join(base))
            };
            let Some((key, value)) = line.split_once(':') else {
                if line.trim().is_empty() {
                    continue;
                }
                return Err(wrong("no 'key: value'".to_owned()));
            };
            let value = value.trim();
            match key {
                "StorePath" => {
                    check_store_path(store_dir, value).map_err(|error| wrong(error.to_string()))?;
                    found.info.path = value.to_owned();
                }
                "URL" => found.url = value.to_owned(),
                "Compression" if !value.is_empty() => found.compression = value.to_owned(),
                "FileHash" => found.file_hash = Some(hash(value)?),
                "FileSize" => found.file_size = Some(number(value)?),
                "NarHash" => {
                    found.info.nar_hash = hash(value)?;
                    has_hash = true;
                }
                "NarSize" => found.info.nar_size = number(value)?,
                "References" => {
                    found.info.references = value
                        .split_ascii_whitespace()
                        .map(path)
                        .collect::<Result<_, _>>()?;
                }
                "Deriver" if value != "unknown-deriver" && !value.is_empty() => {
                    found.info.deriver = Some(path(value)?);
                }
                "Sig" => found.info.sigs.push(value.to_owned()),
                "CA" if !value.is_empty() => found.info.ca = Some(value.to_owned()),
                _ => {}
            }
        }
        let missing = [
            ("StorePath", found.info.path.is_empty()),
            ("URL", found.url.is_empty()),
            ("NarHash", !has_hash),
            ("NarSize", found.info.nar_size == 0),
        ];
        match missing.iter().find(|(_, missing)| *missing) {
            None => Ok(found),
            Some((key, _)) => Err(Error::NarInfo {
                line: (*key).to_owned(),
                why: "it is missing".to_owned(),
            }),
        }
    }
}

/// `nix-cache-info`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheInfo {
    pub store_dir: String,
    pub want_mass_query: bool,
    /// Lower goes first.
    pub priority: i32,
}

impl CacheInfo {
    pub fn text(&self) -> String {
        format!(
            "StoreDir: {}\nWantMassQuery: {}\nPriority: {}\n",
            self.store_dir,
            i32::from(self.want_mass_query),
            self.priority
        )
    }

    /// The store directory that a `nix-cache-info` names; `None` if it names none.
    pub fn store_dir_of(text: &str) -> Option<&str> {
        text.lines()
            .find_map(|line| line.strip_prefix("StoreDir:"))
            .map(str::trim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::signing::{PublicKey, SecretKey};
    use proptest::prelude::*;

    // NIX_STORE_DIR=/tmp/g/store nix copy --to 'file:///tmp/g/cache?secret-key=/tmp/g/secret' (Nix 2.8.0); the keys
    // are those beside it. tests/golden/narinfo/make.sh does it again.
    const TEXT: &str = include_str!("../../tests/golden/narinfo/two-refs.narinfo");
    const SECRET: &str = include_str!("../../tests/golden/narinfo/secret");
    const PUBLIC: &str = include_str!("../../tests/golden/narinfo/public");

    fn store_dir() -> StoreDir {
        StoreDir("/tmp/hydrad-golden/store".to_owned())
    }

    #[test]
    fn what_nix_wrote_is_read_and_written_the_same() {
        let info = NarInfo::parse(&store_dir(), TEXT).expect("a narinfo");
        assert_eq!(info.text(), TEXT);
        assert_eq!(info.compression, "xz");
        assert_eq!(info.info.references.len(), 2);
        assert_eq!(info.info.sigs.len(), 1);
    }

    #[test]
    fn signatures_are_those_of_nix() {
        let info = NarInfo::parse(&store_dir(), TEXT).expect("a narinfo").info;
        let secret = SecretKey::parse(SECRET).expect("a key");
        let text = fingerprint(&info);
        assert_eq!(secret.sign(&text), info.sigs[0]);
        let public = PublicKey::parse(PUBLIC).expect("a key");
        assert_eq!(secret.public(), public);
        assert!(public.verify(&text, &info.sigs[0]));
        assert!(!public.verify(&format!("{text}x"), &info.sigs[0]));
        assert!(!public.verify(&text, "golden-1:AAAA"));
        assert!(!public.verify(&text, &info.sigs[0].replace("golden", "other")));
    }

    #[test]
    fn what_is_no_narinfo_is_told() {
        for (from, to, told) in [
            ("NarSize: ", "NarSize: x", "not a number"),
            ("NarHash: sha256:", "NarHash: md5:", "not a hash"),
            ("URL: ", "Url: ", "'URL': it is missing"),
            ("StorePath: /tmp", "StorePath: /nix", "not in the store"),
            ("References: ", "References: ../x ", "not a store path"),
            ("Compression: xz", "Compression", "no 'key: value'"),
        ] {
            let error = NarInfo::parse(&store_dir(), &TEXT.replace(from, to)).expect_err(told);
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn a_cache_says_whose_it_is() {
        let info = CacheInfo {
            store_dir: "/nix/store".to_owned(),
            want_mass_query: true,
            priority: 30,
        };
        let text = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n";
        assert_eq!(info.text(), text);
        assert_eq!(CacheInfo::store_dir_of(text), Some("/nix/store"));
        assert_eq!(CacheInfo::store_dir_of("Priority: 30\n"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text: String, lines in proptest::collection::vec("[A-Za-z]{2,10}: [ -~]{0,60}", 0..12)) {
            let _ = NarInfo::parse(&store_dir(), &text);
            let _ = NarInfo::parse(&store_dir(), &lines.join("\n"));
        }
    }
}
