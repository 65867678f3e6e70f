//! hydra.conf: the file format of Perl's Config::General, as Hydra reads it.
//!
//! Knows lines, comments, quotes, continuation, here-documents, blocks and includes, and from
//! which file and line each value comes. Does not know which keys exist or what they mean.
//!
//! Reading goes in two passes. The first turns files into *pieces* (a whole line, or a finished
//! here-document), following includes; the second gives the pieces their block structure. So an
//! include may open a block that the including file closes, as in the original.
//!
//! Hydra's C++ programs read the same file with a much simpler parser ([`flat`]): a setting can
//! therefore mean one thing to them and another here. [`flat_differences`] names such settings.
//!
//! Limits: [`FILES_MAX`], [`DEPTH_MAX`], [`BYTES_MAX`]. Deliberately absent, because Hydra does not
//! switch them on: variables, directories and patterns as includes, booleans.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files read for one configuration, counting a file again each time it is included.
pub const FILES_MAX: usize = 256;
/// Includes within includes, and blocks within blocks.
pub const DEPTH_MAX: usize = 32;
/// Bytes of all the files of one configuration.
pub const BYTES_MAX: usize = 16 << 20;

/// Where a value was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    pub file: Arc<Path>,
    /// From 1. Of several joined lines, the first.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Why a configuration file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HydraConfError {
    /// The main file exists but cannot be read.
    #[error("cannot read {}: {cause}; check its owner and mode", .path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    /// An included file is missing or cannot be read.
    #[error(
        "{at}: cannot read the included file {}: {cause}; \
         a relative path starts at the folder of the including file", .path.display()
    )]
    Include {
        at: Origin,
        path: PathBuf,
        cause: io::Error,
    },
    /// A file includes itself, directly or through others.
    #[error("{at}: {} includes itself; remove one of the includes", .path.display())]
    IncludeCycle { at: Origin, path: PathBuf },
    /// Includes are nested too deeply.
    #[error("{at}: includes are nested more than {DEPTH_MAX} deep")]
    IncludeDepth { at: Origin },
    /// The configuration consists of too many files.
    #[error("{at}: more than {FILES_MAX} files are included")]
    TooManyFiles { at: Origin },
    /// The files together are larger than any sensible configuration.
    #[error("{}: the configuration is larger than {BYTES_MAX} bytes; is this the right file?", .path.display())]
    TooLarge { path: PathBuf },
    /// A line is not UTF-8.
    #[error("{at}: the line is not UTF-8 text; convert the file, for instance with iconv")]
    NotUtf8 { at: Origin },
    /// A here-document has no end.
    #[error("{at}: the here-document of `{key}` has no closing line `{tag}`")]
    OpenHereDocument {
        at: Origin,
        key: String,
        tag: String,
    },
    /// A block is not closed.
    #[error("{at}: block <{name}> has no </{name}>")]
    OpenBlock { at: Origin, name: String },
    /// A block is closed that was not opened.
    #[error("{at}: </{name}> closes a block that was never opened")]
    StrayEnd { at: Origin, name: String },
    /// Blocks are nested too deeply.
    #[error("{at}: blocks are nested more than {DEPTH_MAX} deep")]
    BlockDepth { at: Origin },
}

/// One `key = value`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// Case counts.
    pub key: String,
    /// Without surrounding double quotes; empty if there was none.
    pub text: String,
    pub at: Origin,
}

/// What stands between `<name argument>` and `</name>`, or the whole file (name empty).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Block {
    pub name: String,
    pub argument: Option<String>,
    pub at: Origin,
    pub assignments: Vec<Assignment>,
    pub blocks: Vec<Block>,
}

impl Block {
    fn new(name: String, argument: Option<String>, at: Origin) -> Block {
        Block {
            name,
            argument,
            at,
            assignments: Vec::new(),
            blocks: Vec::new(),
        }
    }

    /// The last assignment of `key`, as a program that wants one value takes it.
    pub fn get(&self, key: &str) -> Option<&Assignment> {
        self.assignments.iter().rev().find(|a| a.key == key)
    }

    /// Every assignment of `key`, in the order of the file.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Assignment> + 'a {
        self.assignments.iter().filter(move |a| a.key == key)
    }

    /// Every block called `name`, in the order of the file.
    pub fn blocks_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Block> + 'a {
        self.blocks.iter().filter(move |b| b.name == name)
    }
}

/// Something that is read, but probably not as its author meant it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remark {
    pub at: Origin,
    pub text: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.text)
    }
}

/// A configuration with everything it includes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    pub root: Block,
    /// Every file read, the main one first, each once.
    pub files: Vec<PathBuf>,
    pub remarks: Vec<Remark>,
    /// What Hydra's C++ programs read from the main file.
    pub flat: BTreeMap<String, FlatValue>,
}

impl Document {
    /// A configuration without any value, for a file that does not exist.
    pub fn empty(path: &Path) -> Document {
        let at = Origin {
            file: Arc::from(path),
            line: 1,
        };
        Document {
            root: Block::new(String::new(), None, at),
            files: Vec::new(),
            remarks: Vec::new(),
            flat: BTreeMap::new(),
        }
    }
}

/// Reads `path` and what it includes. `Ok(None)` if `path` does not exist, which Hydra takes as an
/// empty configuration; a missing *included* file is an error.
pub fn read(path: &Path) -> Result<Option<Document>, HydraConfError> {
    match fs::read(path) {
        Ok(bytes) => parse(path, &bytes, &|p| fs::read(p)).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(HydraConfError::Unreadable {
            path: path.to_owned(),
            cause,
        }),
    }
}

/// Parses the bytes of the main file `path`; `open` reads included files.
pub fn parse(
    path: &Path,
    bytes: &[u8],
    open: &dyn Fn(&Path) -> io::Result<Vec<u8>>,
) -> Result<Document, HydraConfError> {
    let mut reader = Reader {
        open,
        pieces: Vec::new(),
        files: Vec::new(),
        files_count: 0,
        bytes_count: 0,
        remarks: Vec::new(),
        chain: Vec::new(),
    };
    reader.file(path, bytes)?;
    let Reader {
        pieces,
        files,
        mut remarks,
        ..
    } = reader;
    let root = structure(path, pieces, &mut remarks)?;
    Ok(Document {
        root,
        files,
        remarks,
        flat: flat(&String::from_utf8_lossy(bytes)),
    })
}

/// A line as it stands after comments and continuation, or a complete here-document.
enum Piece {
    Line(String),
    HereDocument { key: String, body: String },
}

/// First pass: files to pieces.
struct Reader<'a> {
    open: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
    pieces: Vec<(Origin, Piece)>,
    files: Vec<PathBuf>,
    files_count: usize,
    bytes_count: usize,
    remarks: Vec<Remark>,
    /// The files being read, outermost first.
    chain: Vec<PathBuf>,
}

struct HereDocument {
    at: Origin,
    key: String,
    tag: String,
    lines: Vec<String>,
}

impl Reader<'_> {
    /// Recursion is bounded by [`DEPTH_MAX`].
    fn file(&mut self, path: &Path, bytes: &[u8]) -> Result<(), HydraConfError> {
        self.files_count += 1;
        self.bytes_count = self.bytes_count.saturating_add(bytes.len());
        if self.bytes_count > BYTES_MAX {
            return Err(HydraConfError::TooLarge {
                path: path.to_owned(),
            });
        }
        if !self.files.iter().any(|p| p == path) {
            self.files.push(path.to_owned());
        }
        self.chain.push(path.to_owned());
        let file: Arc<Path> = Arc::from(path);
        let mut in_c_comment = false;
        let mut here: Option<HereDocument> = None;
        // A line being continued, and where it began.
        let mut joined: Option<(Origin, String)> = None;

        for (index, raw) in bytes.split(|b| *b == b'\n').enumerate() {
            let at = Origin {
                file: Arc::clone(&file),
                line: u32::try_from(index + 1).unwrap_or(u32::MAX),
            };
            let Ok(line) = std::str::from_utf8(raw) else {
                return Err(HydraConfError::NotUtf8 { at });
            };
            let line = line.strip_suffix('\r').unwrap_or(line);
            let line = if index == 0 {
                line.trim_start_matches('\u{feff}')
            } else {
                line
            };

            if let Some(doc) = &mut here {
                if line.trim() == doc.tag {
                    let indent = &line[..line.len() - line.trim_start().len()];
                    let body: Vec<&str> = doc
                        .lines
                        .iter()
                        .map(|l| l.strip_prefix(indent).unwrap_or(l))
                        .collect();
                    let piece = Piece::HereDocument {
                        key: doc.key.clone(),
                        body: body.join("\n"),
                    };
                    self.pieces.push((doc.at.clone(), piece));
                    here = None;
                } else {
                    doc.lines.push(line.to_owned());
                }
                continue;
            }

            let Some(line) = self.without_c_comment(line, &at, &mut in_c_comment) else {
                continue;
            };
            let line = without_comment(&line);
            if line.trim().is_empty() {
                continue;
            }
            if ends_in_continuation(line) {
                let part = line[..line.len() - 1].trim_start();
                joined.get_or_insert((at, String::new())).1.push_str(part);
                continue;
            }
            if let Some((at, mut whole)) = joined.take() {
                whole.push_str(line.trim_start());
                self.pieces.push((at, Piece::Line(whole)));
                continue;
            }
            if let Some((key, tag)) = here_document_start(line) {
                here = Some(HereDocument {
                    at,
                    key: key.to_owned(),
                    tag: tag.to_owned(),
                    lines: Vec::new(),
                });
                continue;
            }
            if let Some(include) = include_of(line) {
                self.include(path, include, at)?;
                continue;
            }
            self.pieces.push((at, Piece::Line(line.to_owned())));
        }

        if let Some(doc) = here {
            return Err(HydraConfError::OpenHereDocument {
                at: doc.at,
                key: doc.key,
                tag: doc.tag,
            });
        }
        if let Some((at, whole)) = joined {
            self.remarks.push(Remark {
                at: at.clone(),
                text: "the last line of the file ends in a backslash; Hydra's own programs drop it"
                    .to_owned(),
            });
            self.pieces.push((at, Piece::Line(whole)));
        }
        if in_c_comment {
            self.remarks.push(Remark {
                at: Origin { file, line: 1 },
                text: "a comment /* is open at the end of the file".to_owned(),
            });
        }
        self.chain.pop();
        Ok(())
    }

    fn include(
        &mut self,
        from: &Path,
        include: Include<'_>,
        at: Origin,
    ) -> Result<(), HydraConfError> {
        if self.chain.len() >= DEPTH_MAX {
            return Err(HydraConfError::IncludeDepth { at });
        }
        if self.files_count >= FILES_MAX {
            return Err(HydraConfError::TooManyFiles { at });
        }
        let path = match from.parent() {
            Some(folder) => folder.join(include.path),
            None => PathBuf::from(include.path),
        };
        if self.chain.contains(&path) {
            return Err(HydraConfError::IncludeCycle { at, path });
        }
        match (self.open)(&path) {
            Ok(bytes) => self.file(&path, &bytes),
            Err(e) if include.optional && e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(HydraConfError::Include { at, path, cause }),
        }
    }

    /// `None` if the whole line belongs to a C comment. A comment that spans lines counts only if
    /// its `/*` begins a line: that is the original's rule, and it keeps `/nix/*` a value.
    fn without_c_comment(&mut self, line: &str, at: &Origin, inside: &mut bool) -> Option<String> {
        let open = line.find("/*");
        let close = line.rfind("*/");
        if let (Some(open), Some(close)) = (open, close) {
            if open + 2 <= close && !*inside {
                let mut rest = line[..open].trim_end().to_owned();
                rest.push_str(line[close + 2..].trim_start());
                return Some(rest);
            }
        }
        if *inside {
            let close = close?;
            *inside = false;
            return Some(line[close + 2..].to_owned());
        }
        if line.trim_start().starts_with("/*") {
            *inside = true;
            return None;
        }
        if let Some(close) = close {
            self.remarks.push(Remark {
                at: at.clone(),
                text: "*/ without /*: everything before it is dropped, as Hydra does".to_owned(),
            });
            return Some(line[close + 2..].to_owned());
        }
        Some(line.to_owned())
    }
}

/// Cuts at the first `#` that has no backslash before it.
fn without_comment(line: &str) -> &str {
    let bytes = line.as_bytes();
    let start = (0..bytes.len()).find(|&i| bytes[i] == b'#' && (i == 0 || bytes[i - 1] != b'\\'));
    match start {
        Some(start) => &line[..start],
        None => line,
    }
}

fn ends_in_continuation(line: &str) -> bool {
    line.ends_with('\\') && !line.ends_with("\\\\")
}

/// `key = <<TAG` or `key <<TAG`.
fn here_document_start(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let (key, rest) = match line.split_once('=') {
        Some((key, rest)) => (key.trim(), rest),
        None => line.split_once(char::is_whitespace)?,
    };
    let tag = rest.trim().strip_prefix("<<")?.trim();
    (!key.is_empty() && !tag.is_empty()).then_some((key, tag))
}

struct Include<'a> {
    path: &'a str,
    optional: bool,
}

/// `Include path`, `IncludeOptional path` or `<<include path>>`, in any case of letters.
fn include_of(line: &str) -> Option<Include<'_>> {
    let line = line.trim();
    let inner = match line.strip_prefix("<<").and_then(|l| l.strip_suffix(">>")) {
        Some(inner) => inner.trim(),
        None => line,
    };
    let (word, path) = inner.split_once(char::is_whitespace)?;
    let optional = word.eq_ignore_ascii_case("includeoptional");
    if !optional && !word.eq_ignore_ascii_case("include") {
        return None;
    }
    let path = path.trim();
    // `include = x` is a setting of that name, not a file called "= x".
    if path.is_empty() || path.starts_with('=') {
        return None;
    }
    let path = quoted(path, '"')
        .or_else(|| quoted(path, '\''))
        .unwrap_or(path);
    Some(Include { path, optional })
}

fn quoted(text: &str, quote: char) -> Option<&str> {
    text.strip_prefix(quote)?.strip_suffix(quote)
}

/// Second pass: pieces to blocks. The stack replaces recursion.
fn structure(
    path: &Path,
    pieces: Vec<(Origin, Piece)>,
    remarks: &mut Vec<Remark>,
) -> Result<Block, HydraConfError> {
    let mut stack: Vec<Block> = Vec::new();
    let mut here = Document::empty(path).root;
    for (at, piece) in pieces {
        let line = match piece {
            Piece::HereDocument { key, body } => {
                let text = unescape(unquote(body.trim()));
                here.assignments.push(Assignment { key, text, at });
                continue;
            }
            Piece::Line(line) => line,
        };
        let line = line.trim();
        if let Some(name) = line.strip_prefix("</").and_then(|l| l.strip_suffix('>')) {
            let name = name.trim();
            let Some(parent) = stack.pop() else {
                let name = name.to_owned();
                return Err(HydraConfError::StrayEnd { at, name });
            };
            if name != here.name && name.split_whitespace().next() != Some(here.name.as_str()) {
                remarks.push(Remark {
                    at,
                    text: format!("</{name}> closes <{}> of {}", here.name, here.at),
                });
            }
            let block = std::mem::replace(&mut here, parent);
            here.blocks.push(block);
        } else if let Some(inner) = line.strip_prefix('<').and_then(|l| l.strip_suffix('>')) {
            if stack.len() >= DEPTH_MAX {
                return Err(HydraConfError::BlockDepth { at });
            }
            // `<name/>` is an empty block.
            let (inner, empty) = match inner.strip_suffix('/') {
                Some(inner) => (inner, true),
                None => (inner, false),
            };
            let (name, argument) = block_head(inner);
            let block = Block::new(name, argument, at);
            if empty {
                here.blocks.push(block);
            } else {
                stack.push(std::mem::replace(&mut here, block));
            }
        } else {
            let (key, value) = split_assignment(line);
            here.assignments.push(Assignment {
                key: key.to_owned(),
                text: unescape(unquote(value)),
                at,
            });
        }
    }
    if !stack.is_empty() {
        return Err(HydraConfError::OpenBlock {
            at: here.at,
            name: here.name,
        });
    }
    Ok(here)
}

/// `name`, `name argument`, either of them in double quotes.
fn block_head(inner: &str) -> (String, Option<String>) {
    let inner = inner.trim();
    let (name, rest) = match inner.strip_prefix('"').and_then(|i| i.split_once('"')) {
        Some((name, rest)) => (name, rest.trim()),
        None => match inner.split_once(char::is_whitespace) {
            Some((name, rest)) => (name, rest.trim()),
            None => (inner, ""),
        },
    };
    let argument = (!rest.is_empty()).then(|| unquote(rest).to_owned());
    (name.to_owned(), argument)
}

/// At the first `=` (with blanks around it) or run of blanks, whichever comes first.
fn split_assignment(line: &str) -> (&str, &str) {
    let Some(end) = line.find(|c: char| c == '=' || c.is_whitespace()) else {
        return (line, "");
    };
    let (key, rest) = line.split_at(end);
    let rest = rest.trim_start();
    (key, rest.strip_prefix('=').unwrap_or(rest).trim_start())
}

fn unquote(text: &str) -> &str {
    if text.len() < 2 {
        return text;
    }
    quoted(text, '"').unwrap_or(text)
}

/// `\#`, `\"`, `\$` and `\\` lose their backslash; other backslashes stay.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(&next @ ('#' | '"' | '$' | '\\'))) => {
                out.push(next);
                chars.next();
            }
            _ => out.push(c),
        }
    }
    out
}

/// A value as Hydra's C++ programs read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlatValue {
    pub text: String,
    /// From 1, in the main file.
    pub line: u32,
}

/// The C++ reading of a file: per line cut at the first `#`, split at the first `=`, trimmed; the
/// last one wins; blocks, quotes, includes and continuation are unknown to it.
pub fn flat(text: &str) -> BTreeMap<String, FlatValue> {
    let mut values = BTreeMap::new();
    for (index, line) in text.split('\n').enumerate() {
        let line = line.split('#').next().unwrap_or("");
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let key = key.trim();
        if key.is_empty() {
            continue;
        }
        let value = FlatValue {
            text: value.trim().to_owned(),
            line: u32::try_from(index + 1).unwrap_or(u32::MAX),
        };
        values.insert(key.to_owned(), value);
    }
    values
}

/// A key that Hydra's C++ programs read otherwise than hydrad.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlatDifference {
    pub key: String,
    /// What the C++ programs took, `None` if they did not see the key.
    pub flat: Option<FlatValue>,
    /// What hydrad takes, `None` if the key is not at the top level.
    pub used: Option<Assignment>,
}

impl fmt::Display for FlatDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match (&self.flat, &self.used) {
            (Some(flat), Some(used)) => write!(
                f,
                "{}: `{key}` is now `{}`; Hydra's C++ programs took `{}` from line {}",
                used.at, used.text, flat.text, flat.line
            ),
            (Some(flat), None) => write!(
                f,
                "line {}: `{key}` stands inside a block, where Hydra's C++ programs took `{}` for \
                 the setting; it is not used any more: move it out of the block to keep it",
                flat.line, flat.text
            ),
            (None, Some(used)) => write!(
                f,
                "{}: `{key}` is now `{}`; Hydra's C++ programs did not see it \
                 (an include, a here-document or a line without `=`)",
                used.at, used.text
            ),
            (None, None) => write!(f, "`{key}` is read alike"),
        }
    }
}

/// Of `keys`, those the C++ programs read otherwise.
pub fn flat_differences(document: &Document, keys: &[&str]) -> Vec<FlatDifference> {
    keys.iter()
        .map(|key| FlatDifference {
            key: (*key).to_owned(),
            flat: document.flat.get(*key).cloned(),
            used: document.root.get(key).cloned(),
        })
        .filter(|d| match (&d.flat, &d.used) {
            (Some(flat), Some(used)) => flat.text != used.text,
            (None, None) => false,
            _ => true,
        })
        .collect()
}
