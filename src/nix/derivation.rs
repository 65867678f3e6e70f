//! Derivations: the text of a `.drv` file, whole ([`Derivation`]) or just the facts that
//! scheduling needs ([`DerivationFacts`]).
//!
//! Knows no paths' validity and no hashing (that is `derivation_hash`). Texts that Nix does not
//! guarantee to be UTF-8 (builder, arguments, environment) are bytes.
//!
//! The format is one ATerm: `Derive([outputs],[input derivations],[input sources],platform,
//! builder,[arguments],[environment])`, no blanks, strings with the escapes `\"`, `\\`, `\n`,
//! `\r` and `\t` only.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{excerpt, Error};

/// Bytes of the longest derivation that is read. The largest in nixpkgs have a few hundred
/// kilobytes.
pub const DRV_BYTES_MAX: usize = 64 << 20;
/// Strings and tuples in one derivation: bounds what a small file can make us allocate.
pub const DRV_ELEMENTS_MAX: usize = 1_000_000;

/// One output of a derivation. Which fields are set depends on the [`DrvKind`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Output {
    /// Full store path; `None` if it is known only after the build.
    pub path: Option<String>,
    /// `sha256`, `r:sha256`, ...; empty unless content-addressed.
    pub hash_algo: String,
    /// Base 16; empty unless fixed (`impure` for impure derivations).
    pub hash: String,
}

/// How a derivation's outputs get their paths.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DrvKind {
    /// Paths computed from the derivation, the usual kind.
    InputAddressed,
    /// One output, with a hash known beforehand.
    Fixed,
    /// Paths computed from the contents after the build.
    FloatingCa,
    /// Input-addressed, but with an input whose path is not known yet.
    Deferred,
    /// Never cached, may use the network.
    Impure,
}

impl DrvKind {
    /// Whether the derivation says where its outputs will be.
    pub fn has_known_output_paths(self) -> bool {
        matches!(self, DrvKind::InputAddressed | DrvKind::Fixed)
    }

    fn of_output(has_path: bool, hash_algo: &[u8], hash: &[u8]) -> Option<DrvKind> {
        Some(match (has_path, hash_algo.is_empty(), hash) {
            (true, true, b"") => DrvKind::InputAddressed,
            (true, false, hash) if !hash.is_empty() && hash != b"impure" => DrvKind::Fixed,
            (false, false, b"") => DrvKind::FloatingCa,
            (false, true, b"") => DrvKind::Deferred,
            (false, false, b"impure") => DrvKind::Impure,
            _ => return None,
        })
    }
}

/// A whole derivation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Derivation {
    /// By output name; at least one.
    pub outputs: BTreeMap<String, Output>,
    /// By derivation path: the names of the outputs wanted of it, sorted.
    pub input_drvs: BTreeMap<String, Vec<String>>,
    /// Full store paths, sorted.
    pub input_srcs: Vec<String>,
    /// The system type, such as `x86_64-linux`.
    pub platform: String,
    pub builder: Vec<u8>,
    pub args: Vec<Vec<u8>>,
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Derivation {
    /// Parses a `.drv` file of at most [`DRV_BYTES_MAX`]. Refuses whatever Nix does not write:
    /// other escapes, duplicate keys, no outputs, outputs of different kinds, trailing bytes.
    pub fn parse(text: &[u8]) -> Result<Derivation, Error> {
        let mut cursor = Cursor::new(text)?;
        let mut drv = Derivation::default();
        let mut kinds = Kinds::default();
        cursor.expect(b"Derive(")?;
        cursor.list(|c| {
            let at = c.at;
            let fields = c.output()?;
            kinds.add(c, at, &fields)?;
            let output = Output {
                path: fields.path.map(Cow::into_owned),
                hash_algo: c.utf8_owned(at, fields.hash_algo)?,
                hash: c.utf8_owned(at, fields.hash)?,
            };
            match drv.outputs.insert(fields.name.into_owned(), output) {
                None => Ok(()),
                Some(_) => Err(c.bad(at, "the same output twice".to_owned())),
            }
        })?;
        kinds.of_derivation(&cursor)?;
        cursor.expect(b",")?;
        cursor.list(|c| {
            let at = c.at;
            c.expect(b"(")?;
            let path = c.path()?.into_owned();
            c.expect(b",")?;
            let mut names = Vec::new();
            c.list(|c| {
                names.push(c.utf8()?.into_owned());
                Ok(())
            })?;
            c.expect(b")")?;
            sort_unique(&mut names).map_err(|()| c.bad(at, "the same output twice".to_owned()))?;
            match drv.input_drvs.insert(path, names) {
                None => Ok(()),
                Some(_) => Err(c.bad(at, "the same input derivation twice".to_owned())),
            }
        })?;
        cursor.expect(b",")?;
        let at = cursor.at;
        cursor.list(|c| {
            drv.input_srcs.push(c.path()?.into_owned());
            Ok(())
        })?;
        sort_unique(&mut drv.input_srcs)
            .map_err(|()| cursor.bad(at, "the same input source twice".to_owned()))?;
        cursor.expect(b",")?;
        drv.platform = cursor.utf8()?.into_owned();
        cursor.expect(b",")?;
        drv.builder = cursor.string()?.into_owned();
        cursor.expect(b",")?;
        cursor.list(|c| {
            drv.args.push(c.string()?.into_owned());
            Ok(())
        })?;
        cursor.expect(b",")?;
        cursor.list(|c| {
            let at = c.at;
            c.expect(b"(")?;
            let key = c.string()?.into_owned();
            c.expect(b",")?;
            let value = c.string()?.into_owned();
            c.expect(b")")?;
            match drv.env.insert(key, value) {
                None => Ok(()),
                Some(_) => Err(c.bad(at, "the same variable twice".to_owned())),
            }
        })?;
        cursor.end()?;
        Ok(drv)
    }

    /// The text that Nix would write; [`Derivation::parse`] undoes it.
    pub fn to_aterm(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(b"Derive(");
        write_list(&mut out, &self.outputs, |out, (name, output)| {
            let path = output.path.as_deref().unwrap_or("");
            write_tuple(
                out,
                &[
                    name.as_bytes(),
                    path.as_bytes(),
                    output.hash_algo.as_bytes(),
                    output.hash.as_bytes(),
                ],
            );
        });
        out.push(b',');
        write_list(&mut out, &self.input_drvs, |out, (path, names)| {
            out.push(b'(');
            write_string(out, path.as_bytes());
            out.push(b',');
            write_list(out, names, |out, name| write_string(out, name.as_bytes()));
            out.push(b')');
        });
        out.push(b',');
        write_list(&mut out, &self.input_srcs, |out, path| {
            write_string(out, path.as_bytes())
        });
        out.push(b',');
        write_string(&mut out, self.platform.as_bytes());
        out.push(b',');
        write_string(&mut out, &self.builder);
        out.push(b',');
        write_list(&mut out, &self.args, |out, arg| write_string(out, arg));
        out.push(b',');
        write_list(&mut out, &self.env, |out, (key, value)| {
            write_tuple(out, &[key, value])
        });
        out.push(b')');
        out
    }

    /// How the outputs get their paths. `None` if there are none or they do not agree, which is
    /// so for no parsed derivation.
    pub fn kind(&self) -> Option<DrvKind> {
        let mut outputs = self.outputs.values().map(|o| {
            DrvKind::of_output(o.path.is_some(), o.hash_algo.as_bytes(), o.hash.as_bytes())
        });
        let first = outputs.next()??;
        outputs.all(|kind| kind == Some(first)).then_some(first)
    }

    /// What its own path is made of: input sources and input derivations, sorted.
    pub fn references(&self) -> Vec<String> {
        let mut references: Vec<String> = self.input_srcs.clone();
        references.extend(self.input_drvs.keys().cloned());
        references.sort_unstable();
        references
    }

    /// Name and full path of the outputs whose paths are known, ordered by name.
    pub fn known_outputs(&self) -> Vec<(String, String)> {
        let outputs = self.outputs.iter();
        outputs
            .filter_map(|(name, output)| Some((name.clone(), output.path.clone()?)))
            .collect()
    }

    /// A variable of the build environment.
    pub fn env_var(&self, name: &str) -> Option<&[u8]> {
        self.env.get(name.as_bytes()).map(Vec::as_slice)
    }
}

fn sort_unique(texts: &mut [String]) -> Result<(), ()> {
    texts.sort_unstable();
    match texts.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(()),
        false => Ok(()),
    }
}

fn write_list<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut item: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (i, value) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        item(out, value);
    }
    out.push(b']');
}

fn write_tuple(out: &mut Vec<u8>, fields: &[&[u8]]) {
    out.push(b'(');
    for (i, field) in fields.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_string(out, field);
    }
    out.push(b')');
}

fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for &byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// What scheduling needs of a derivation, found in one pass that borrows from the file's bytes.
///
/// The pass checks the syntax like [`Derivation::parse`], but not that keys are unique.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DerivationFacts<'a> {
    /// Name and full store path (`None` until built), in the order of the file.
    pub outputs: Vec<(Cow<'a, str>, Option<Cow<'a, str>>)>,
    /// Full paths of the input derivations, in the order of the file.
    pub input_drvs: Vec<Cow<'a, str>>,
    /// The system type, such as `x86_64-linux`.
    pub platform: Cow<'a, str>,
    /// Sorted, without duplicates. Includes `ca-derivations` for derivations whose output paths
    /// are not known, like Nix's own list.
    pub required_features: Vec<String>,
    pub prefer_local_build: bool,
    pub kind: DrvKind,
}

impl<'a> DerivationFacts<'a> {
    /// Scans a `.drv` file of at most [`DRV_BYTES_MAX`].
    pub fn scan(text: &'a [u8]) -> Result<DerivationFacts<'a>, Error> {
        let mut cursor = Cursor::new(text)?;
        let mut outputs = Vec::with_capacity(1);
        let mut input_drvs = Vec::new();
        let mut kinds = Kinds::default();
        cursor.expect(b"Derive(")?;
        cursor.list(|c| {
            let at = c.at;
            let fields = c.output()?;
            kinds.add(c, at, &fields)?;
            outputs.push((fields.name, fields.path));
            Ok(())
        })?;
        let kind = kinds.of_derivation(&cursor)?;
        cursor.expect(b",")?;
        cursor.list(|c| {
            c.expect(b"(")?;
            input_drvs.push(c.path()?);
            c.expect(b",")?;
            c.list(|c| c.skip_string())?;
            c.expect(b")")
        })?;
        cursor.expect(b",")?;
        cursor.list(|c| c.skip_string())?;
        cursor.expect(b",")?;
        let platform = cursor.utf8()?;
        cursor.expect(b",")?;
        cursor.skip_string()?;
        cursor.expect(b",")?;
        cursor.list(|c| c.skip_string())?;
        cursor.expect(b",")?;
        let (mut json, mut features, mut prefer_local) = (None, None, None);
        cursor.list(|c| {
            c.expect(b"(")?;
            let key = c.raw_string()?;
            c.expect(b",")?;
            match key.raw {
                b"__json" => json = Some(c.string()?),
                b"requiredSystemFeatures" => features = Some(c.string()?),
                b"preferLocalBuild" => prefer_local = Some(c.string()?),
                _ => c.skip_string()?,
            }
            c.expect(b")")
        })?;
        cursor.end()?;

        let attributes = match json {
            // With structured attributes Nix does not look at the environment at all.
            Some(json) => Attributes::of_json(&json)?,
            None => Attributes::of_env(features.as_deref(), prefer_local.as_deref())?,
        };
        let mut required_features = attributes.required_features;
        if !kind.has_known_output_paths() {
            required_features.push("ca-derivations".to_owned());
        }
        required_features.sort_unstable();
        required_features.dedup();
        Ok(DerivationFacts {
            outputs,
            input_drvs,
            platform,
            required_features,
            prefer_local_build: attributes.prefer_local_build,
            kind,
        })
    }

    /// Whether the output has a hash known beforehand.
    pub fn is_fixed_output(&self) -> bool {
        self.kind == DrvKind::Fixed
    }
}

/// The attributes of a derivation that concern scheduling.
#[derive(Default)]
struct Attributes {
    required_features: Vec<String>,
    prefer_local_build: bool,
}

const FEATURES: &str = "requiredSystemFeatures";
const PREFER_LOCAL: &str = "preferLocalBuild";

impl Attributes {
    fn of_env(features: Option<&[u8]>, prefer_local: Option<&[u8]>) -> Result<Attributes, Error> {
        let features = std::str::from_utf8(features.unwrap_or(b""))
            .map_err(|_| bad_attribute(FEATURES, "not UTF-8"))?;
        Ok(Attributes {
            required_features: features
                .split([' ', '\t', '\n', '\r'])
                .filter(|feature| !feature.is_empty())
                .map(str::to_owned)
                .collect(),
            prefer_local_build: prefer_local == Some(b"1"),
        })
    }

    fn of_json(json: &[u8]) -> Result<Attributes, Error> {
        // Most have neither key; then the JSON, possibly long, need not be parsed. Nix writes
        // keys without needless escapes, so they can be found as text.
        if !contains(json, FEATURES.as_bytes()) && !contains(json, PREFER_LOCAL.as_bytes()) {
            return Ok(Attributes::default());
        }
        let json: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(json).map_err(|e| bad_attribute("__json", &e.to_string()))?;
        let required_features = match json.get(FEATURES) {
            None => Vec::new(),
            Some(serde_json::Value::Array(items)) => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| bad_attribute(FEATURES, "not a list of strings"))?,
            Some(_) => return Err(bad_attribute(FEATURES, "not a list of strings")),
        };
        let prefer_local_build = match json.get(PREFER_LOCAL) {
            None => false,
            Some(serde_json::Value::Bool(value)) => *value,
            Some(_) => return Err(bad_attribute(PREFER_LOCAL, "not a boolean")),
        };
        Ok(Attributes {
            required_features,
            prefer_local_build,
        })
    }
}

fn bad_attribute(attribute: &'static str, why: &str) -> Error {
    Error::Attribute {
        attribute,
        why: why.to_owned(),
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    let mut rest = text;
    while let Some(i) = rest.iter().position(|&byte| byte == word[0]) {
        rest = &rest[i..];
        if rest.starts_with(word) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// The four fields of an output.
struct OutputFields<'a> {
    name: Cow<'a, str>,
    path: Option<Cow<'a, str>>,
    hash_algo: Cow<'a, [u8]>,
    hash: Cow<'a, [u8]>,
}

/// Collects the kinds of the outputs, which have to agree.
#[derive(Default)]
struct Kinds {
    kind: Option<DrvKind>,
    count: usize,
}

impl Kinds {
    fn add(&mut self, cursor: &Cursor, at: usize, output: &OutputFields) -> Result<(), Error> {
        let kind = DrvKind::of_output(output.path.is_some(), &output.hash_algo, &output.hash)
            .ok_or_else(|| cursor.bad(at, "an output of no known kind".to_owned()))?;
        if self.kind.is_some_and(|other| other != kind) {
            return Err(cursor.bad(at, "outputs of different kinds".to_owned()));
        }
        self.kind = Some(kind);
        self.count += 1;
        if kind == DrvKind::Fixed && (self.count > 1 || output.name != "out") {
            return Err(cursor.bad(at, "a fixed output that is not the only 'out'".to_owned()));
        }
        Ok(())
    }

    fn of_derivation(&self, cursor: &Cursor) -> Result<DrvKind, Error> {
        self.kind
            .ok_or_else(|| cursor.bad(cursor.at, "no outputs".to_owned()))
    }
}

/// A string of the file, still escaped.
struct RawString<'a> {
    raw: &'a [u8],
    has_escapes: bool,
    /// Where its first quote is.
    at: usize,
}

/// A position in the text of a derivation.
struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
    elements: usize,
}

impl<'a> Cursor<'a> {
    fn new(text: &'a [u8]) -> Result<Cursor<'a>, Error> {
        let cursor = Cursor {
            text,
            at: 0,
            elements: 0,
        };
        if text.len() > DRV_BYTES_MAX {
            return Err(cursor.bad(
                0,
                format!("{} bytes, the limit is {DRV_BYTES_MAX}", text.len()),
            ));
        }
        if text.starts_with(b"DrvWithVersion(") {
            return Err(cursor.bad(0, "a dynamic derivation, which is not supported".to_owned()));
        }
        Ok(cursor)
    }

    fn bad(&self, at: usize, why: String) -> Error {
        Error::Derivation { at, why }
    }

    fn expect(&mut self, literal: &[u8]) -> Result<(), Error> {
        let rest = &self.text[self.at..];
        if !rest.starts_with(literal) {
            let found = match rest {
                [] => "the end of the file".to_owned(),
                _ => format!("'{}'", excerpt(&rest[..rest.len().min(20)])),
            };
            let wanted = literal.escape_ascii();
            return Err(self.bad(self.at, format!("expected '{wanted}', found {found}")));
        }
        self.at += literal.len();
        Ok(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn end(&mut self) -> Result<(), Error> {
        self.expect(b")")?;
        match self.at == self.text.len() {
            true => Ok(()),
            false => Err(self.bad(self.at, "bytes after the end".to_owned())),
        }
    }

    fn list(
        &mut self,
        mut item: impl FnMut(&mut Cursor<'a>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.expect(b"[")?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.elements += 1;
            if self.elements > DRV_ELEMENTS_MAX {
                return Err(self.bad(self.at, format!("more than {DRV_ELEMENTS_MAX} elements")));
            }
            item(self)?;
            if self.peek() == Some(b']') {
                self.at += 1;
                return Ok(());
            }
            self.expect(b",")?;
        }
    }

    fn raw_string(&mut self) -> Result<RawString<'a>, Error> {
        let at = self.at;
        self.expect(b"\"")?;
        let start = self.at;
        let mut has_escapes = false;
        loop {
            let rest = &self.text[self.at..];
            let Some(i) = rest.iter().position(|&b| b == b'"' || b == b'\\') else {
                return Err(self.bad(at, "a string without an end".to_owned()));
            };
            self.at += i;
            if rest[i] == b'"' {
                let raw = &self.text[start..self.at];
                self.at += 1;
                return Ok(RawString {
                    raw,
                    has_escapes,
                    at,
                });
            }
            match rest.get(i + 1) {
                Some(b'"' | b'\\' | b'n' | b'r' | b't') => {}
                _ => return Err(self.bad(self.at, "an unknown escape".to_owned())),
            }
            has_escapes = true;
            self.at += 2;
        }
    }

    fn skip_string(&mut self) -> Result<(), Error> {
        self.raw_string().map(|_| ())
    }

    fn string(&mut self) -> Result<Cow<'a, [u8]>, Error> {
        let string = self.raw_string()?;
        Ok(match string.has_escapes {
            false => Cow::Borrowed(string.raw),
            true => Cow::Owned(unescape(string.raw)),
        })
    }

    fn utf8(&mut self) -> Result<Cow<'a, str>, Error> {
        let string = self.raw_string()?;
        let not_utf8 = |_| self.bad(string.at, "not UTF-8".to_owned());
        Ok(match string.has_escapes {
            false => Cow::Borrowed(std::str::from_utf8(string.raw).map_err(not_utf8)?),
            true => Cow::Owned(
                String::from_utf8(unescape(string.raw)).map_err(|e| not_utf8(e.utf8_error()))?,
            ),
        })
    }

    fn utf8_owned(&self, at: usize, bytes: Cow<'a, [u8]>) -> Result<String, Error> {
        String::from_utf8(bytes.into_owned()).map_err(|_| self.bad(at, "not UTF-8".to_owned()))
    }

    fn path(&mut self) -> Result<Cow<'a, str>, Error> {
        let at = self.at;
        let path = self.utf8()?;
        match path.starts_with('/') {
            true => Ok(path),
            false => Err(self.bad(at, "expected an absolute path".to_owned())),
        }
    }

    fn output(&mut self) -> Result<OutputFields<'a>, Error> {
        self.expect(b"(")?;
        let at = self.at;
        let name = self.utf8()?;
        if name.is_empty() {
            return Err(self.bad(at, "an output without a name".to_owned()));
        }
        self.expect(b",")?;
        let at = self.at;
        let path = self.utf8()?;
        let path = match path.as_ref() {
            "" => None,
            path if !path.starts_with('/') => {
                return Err(self.bad(at, "expected an absolute path".to_owned()))
            }
            _ => Some(path),
        };
        self.expect(b",")?;
        let hash_algo = self.string()?;
        self.expect(b",")?;
        let hash = self.string()?;
        self.expect(b")")?;
        Ok(OutputFields {
            name,
            path,
            hash_algo,
            hash,
        })
    }
}

/// Undoes the escapes of a string that [`Cursor::raw_string`] has checked.
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter();
    while let Some(&byte) = bytes.next() {
        text.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(&escaped) => escaped,
                None => break,
            },
            _ => byte,
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, btree_set, vec};
    use proptest::prelude::*;

    const OUT: &str = "/nix/store/zhgrfa5k4liyirk9in5n2f7lyal8scl7-x";

    /// A derivation around the given lists, by default the smallest there is.
    fn text(outputs: &str, inputs: &str, sources: &str, env: &str) -> String {
        format!("Derive([{outputs}],[{inputs}],[{sources}],\"x86_64-linux\",\"/bin/sh\",[\"-c\"],[{env}])")
    }

    fn smallest() -> String {
        text(&format!("(\"out\",\"{OUT}\",\"\",\"\")"), "", "", "")
    }

    fn with_env(env: &str) -> String {
        text(&format!("(\"out\",\"{OUT}\",\"\",\"\")"), "", "", env)
    }

    /// Both readers have to refuse, or just the whole one.
    fn refused(text: &str, why: &str, by_scan_too: bool) {
        let error = Derivation::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(why), "{text}: {error}");
        assert_eq!(
            DerivationFacts::scan(text.as_bytes()).is_err(),
            by_scan_too,
            "{text}"
        );
    }

    #[test]
    fn what_nix_would_not_write() {
        let output = |path: &str, algo: &str, hash: &str| {
            text(
                &format!("(\"out\",\"{path}\",\"{algo}\",\"{hash}\")"),
                "",
                "",
                "",
            )
        };
        Derivation::parse(smallest().as_bytes()).unwrap();
        for (text, why) in [
            (String::new(), "byte 0: expected 'Derive(', found the end"),
            (smallest().replace("Derive", "derive"), "byte 0: expected"),
            (smallest() + "\n", "bytes after the end"),
            (smallest().replace(",[],[]", ",[], []"), "expected '['"),
            (
                smallest().replace("\"/bin/sh\"", "/bin/sh"),
                "expected '\\\"'",
            ),
            (smallest().replace("[\"-c\"]", "[\"-c\",]"), "expected"),
            (
                smallest().replace("\"-c\"", "\"-c\\x\""),
                "an unknown escape",
            ),
            (
                smallest()[..smallest().len() - 15].to_owned(),
                "a string without an end",
            ),
            (text("", "", "", ""), "no outputs"),
            (output("", "", "abc"), "no known kind"),
            (output(OUT, "sha256", ""), "no known kind"),
            (output(OUT, "", "abc"), "no known kind"),
            (output("out", "", ""), "absolute path"),
            (
                smallest().replace("\"out\"", "\"\""),
                "an output without a name",
            ),
            (
                text(
                    &format!("(\"a\",\"{OUT}\",\"\",\"\"),(\"b\",\"\",\"\",\"\")"),
                    "",
                    "",
                    "",
                ),
                "different kinds",
            ),
            (
                text(&format!("(\"b\",\"{OUT}\",\"sha256\",\"00\")"), "", "", ""),
                "not the only 'out'",
            ),
            (
                "DrvWithVersion(\"xp-dyn-drv\",[]".to_owned(),
                "dynamic derivation",
            ),
        ] {
            refused(&text, why, true);
        }
        let one = format!("(\"out\",\"{OUT}\",\"\",\"\")");
        refused(
            &text(&format!("{one},{one}"), "", "", ""),
            "the same output twice",
            false,
        );
        refused(
            &text(&one, "(\"/a\",[]),(\"/a\",[])", "", ""),
            "derivation twice",
            false,
        );
        refused(
            &text(&one, "(\"/a\",[\"x\",\"x\"])", "", ""),
            "output twice",
            false,
        );
        refused(&text(&one, "", "\"/a\",\"/a\"", ""), "source twice", false);
        refused(
            &with_env("(\"a\",\"\"),(\"a\",\"\")"),
            "variable twice",
            false,
        );
    }

    #[test]
    fn features_from_the_environment() {
        let facts = |env: &str| {
            let text = with_env(env);
            let facts = DerivationFacts::scan(text.as_bytes()).unwrap();
            (facts.required_features, facts.prefer_local_build)
        };
        assert_eq!(facts(""), (vec![], false));
        assert_eq!(
            facts("(\"requiredSystemFeatures\",\" kvm\\tbig\\nkvm  \")"),
            (vec!["big".to_owned(), "kvm".to_owned()], false)
        );
        assert_eq!(facts("(\"preferLocalBuild\",\"1\")"), (vec![], true));
        assert_eq!(facts("(\"preferLocalBuild\",\"true\")"), (vec![], false));
        assert_eq!(facts("(\"preferLocalBuild\",\"\")"), (vec![], false));
    }

    #[test]
    fn features_from_structured_attributes() {
        let scan = |json: &str| {
            let env = format!(
                "(\"__json\",\"{}\"),(\"requiredSystemFeatures\",\"ignored\")",
                json.replace('"', "\\\"")
            );
            let text = with_env(&env);
            DerivationFacts::scan(text.as_bytes())
                .map(|facts| (facts.required_features, facts.prefer_local_build))
                .map_err(|e| e.to_string())
        };
        assert_eq!(scan("{\"a\":1}"), Ok((vec![], false)));
        assert_eq!(
            scan("{\"requiredSystemFeatures\":[\"kvm\"],\"preferLocalBuild\":true}"),
            Ok((vec!["kvm".to_owned()], true))
        );
        for (json, why) in [
            ("{\"requiredSystemFeatures\":\"kvm\"}", "not a list"),
            ("{\"requiredSystemFeatures\":[1]}", "not a list"),
            ("{\"preferLocalBuild\":\"1\"}", "not a boolean"),
            ("{\"preferLocalBuild\":", "'__json'"),
            ("[\"preferLocalBuild\"]", "'__json'"),
            (
                &format!("{{\"preferLocalBuild\":{}", "[".repeat(100_000)),
                "'__json'",
            ),
        ] {
            let error = scan(json).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn size_is_bounded() {
        let many = "\"\",".repeat(DRV_ELEMENTS_MAX + 1);
        let text = smallest().replace("\"-c\"", many.trim_end_matches(','));
        refused(&text, "more than 1000000 elements", true);
        let large = vec![b' '; DRV_BYTES_MAX + 1];
        let error = Derivation::parse(&large).unwrap_err().to_string();
        assert!(error.contains("the limit is"), "{error}");
    }

    fn any_path() -> impl Strategy<Value = String> {
        "/[ -~é\n]{0,12}"
    }

    fn any_outputs() -> impl Strategy<Value = BTreeMap<String, Output>> {
        let kind = |path: bool, hash_algo: &'static str, hash: &'static str| {
            btree_map("[a-z]{1,3}", any_path(), 1..4).prop_map(move |paths| {
                let output = |p| Output {
                    path: path.then_some(p),
                    hash_algo: hash_algo.to_owned(),
                    hash: hash.to_owned(),
                };
                paths.into_iter().map(|(n, p)| (n, output(p))).collect()
            })
        };
        let fixed = any_path().prop_map(|path| {
            let output = Output {
                path: Some(path),
                hash_algo: "r:sha256".to_owned(),
                hash: "00ff".to_owned(),
            };
            BTreeMap::from([("out".to_owned(), output)])
        });
        prop_oneof![
            kind(true, "", ""),
            kind(false, "", ""),
            kind(false, "sha256", ""),
            kind(false, "sha256", "impure"),
            fixed
        ]
    }

    prop_compose! {
        fn any_derivation()(
            outputs in any_outputs(),
            input_drvs in btree_map(any_path(), btree_set("[a-z]{1,3}", 0..3), 0..3),
            input_srcs in btree_set(any_path(), 0..3),
            platform: String,
            builder: Vec<u8>,
            args: Vec<Vec<u8>>,
            env in btree_map(vec(any::<u8>(), 0..9), vec(any::<u8>(), 0..30), 0..5),
        ) -> Derivation {
            Derivation {
                outputs,
                input_drvs: input_drvs.into_iter().map(|(k, v)| (k, v.into_iter().collect())).collect(),
                input_srcs: input_srcs.into_iter().collect(),
                platform, builder, args, env,
            }
        }
    }

    proptest! {
        #[test]
        fn round_trips(drv in any_derivation()) {
            let text = drv.to_aterm();
            prop_assert_eq!(&Derivation::parse(&text).unwrap(), &drv);
            let facts = DerivationFacts::scan(&text).unwrap();
            prop_assert_eq!(Some(facts.kind), drv.kind());
            prop_assert_eq!(&facts.platform, &drv.platform);
            let inputs: Vec<&str> = drv.input_drvs.keys().map(String::as_str).collect();
            prop_assert_eq!(facts.input_drvs, inputs);
            let outputs: Vec<_> = drv.outputs.iter().map(|(name, o)| (name.as_str(), o.path.as_deref())).collect();
            let found: Vec<_> = facts.outputs.iter().map(|(name, path)| (name.as_ref(), path.as_deref())).collect();
            prop_assert_eq!(found, outputs);
        }

        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            prop_assert!(Derivation::parse(&bytes).is_err());
            prop_assert!(DerivationFacts::scan(&bytes).is_err());
        }

        // What both accept they read alike, and what is read is written the same.
        #[test]
        fn damaged_derivations_are_answered(
            drv in any_derivation(), at: prop::sample::Index, byte: u8, cut: bool,
        ) {
            let mut text = drv.to_aterm();
            let at = at.index(text.len());
            if cut { text.truncate(at) } else { text[at] = byte }
            let scanned = DerivationFacts::scan(&text);
            if let Ok(parsed) = Derivation::parse(&text) {
                prop_assert!(!cut);
                prop_assert_eq!(parsed.clone(), Derivation::parse(&parsed.to_aterm()).unwrap());
                if let Ok(facts) = scanned {
                    prop_assert_eq!(Some(facts.kind), parsed.kind());
                    prop_assert_eq!(&facts.platform, &parsed.platform);
                }
            }
        }
    }
}
