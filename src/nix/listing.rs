//! The listing of a NAR, `<hash part>.ls`: its files with sizes and where their contents begin, as JSON (version 1).
//!
//! Written while the NAR passes by; keeps no tree, only the text.

use super::nar::Visitor;
use super::Error;

/// A listing at most, bytes: a path with millions of files gets none.
pub const LISTING_BYTES_MAX: usize = 128 << 20;

/// Takes part in parsing a NAR and has its listing afterwards.
#[derive(Default)]
pub struct Listing {
    text: String,
    /// For each directory that has not ended: whether it has entries.
    open: Vec<bool>,
    contents_at: u64,
}

impl Listing {
    pub fn new() -> Listing {
        Listing {
            text: r#"{"version":1,"root":"#.to_owned(),
            ..Listing::default()
        }
    }

    /// The text after the whole NAR has passed; `None` if it would be too long.
    pub fn finish(mut self) -> Option<String> {
        while self.open.pop().is_some() {
            self.text.push_str("}}");
        }
        self.text.push('}');
        (self.text.len() <= LISTING_BYTES_MAX).then_some(self.text)
    }

    /// Ends the directories that the next member is not in, and writes its name.
    fn member(&mut self, path: &[u8]) {
        // From here on only what belongs to the end is added, to be found too long.
        if self.text.len() > LISTING_BYTES_MAX {
            self.text.truncate(LISTING_BYTES_MAX + 1);
        }
        let depth = match path {
            b"" => 0,
            path => path.iter().filter(|&&byte| byte == b'/').count() + 1,
        };
        while self.open.len() > depth {
            self.open.pop();
            self.text.push_str("}}");
        }
        if let Some(has_entries) = self.open.last_mut() {
            if std::mem::replace(has_entries, true) {
                self.text.push(',');
            }
            let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
            self.string(name);
            self.text.push(':');
        }
    }

    fn string(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        self.text
            .push_str(&serde_json::Value::from(text).to_string());
    }
}

impl Visitor for Listing {
    fn directory(&mut self, path: &[u8]) -> Result<(), Error> {
        self.member(path);
        self.text.push_str(r#"{"type":"directory","entries":{"#);
        self.open.push(false);
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
        self.member(path);
        self.text.push_str(r#"{"type":"symlink","target":"#);
        self.string(target);
        self.text.push('}');
        Ok(())
    }

    fn contents_at(&mut self, at: u64) {
        self.contents_at = at;
    }

    fn file(&mut self, path: &[u8], size: u64, executable: bool) -> Result<(), Error> {
        self.member(path);
        let at = self.contents_at;
        let executable = if executable {
            r#","executable":true"#
        } else {
            ""
        };
        self.text.push_str(&format!(
            r#"{{"type":"regular","size":{size}{executable},"narOffset":{at}}}"#
        ));
        Ok(())
    }

    fn contents(&mut self, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    fn file_end(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::nar;

    // Beside it lies what Nix 2.8.0 wrote with `write-nar-listing=true`; tests/golden/narinfo/make.sh makes both.
    #[test]
    fn the_listing_is_that_of_nix() {
        let bytes = include_bytes!("../../tests/golden/narinfo/tree.nar");
        let mut listing = Listing::new();
        nar::parse(&bytes[..], &mut listing).expect("a NAR");
        let ours: serde_json::Value =
            serde_json::from_str(&listing.finish().expect("short")).expect("JSON");
        let theirs: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/narinfo/tree.ls")).expect("JSON");
        assert_eq!(ours, theirs);
    }

    #[test]
    fn a_single_file_and_an_empty_directory() {
        for (member, expected) in [
            (
                "file",
                r#"{"version":1,"root":{"type":"regular","size":3,"narOffset":7}}"#,
            ),
            (
                "directory",
                r#"{"version":1,"root":{"type":"directory","entries":{}}}"#,
            ),
        ] {
            let mut listing = Listing::new();
            listing.contents_at(7);
            match member {
                "file" => listing.file(b"", 3, false),
                _ => listing.directory(b""),
            }
            .expect("taken");
            assert_eq!(listing.finish().as_deref(), Some(expected));
        }
    }
}
