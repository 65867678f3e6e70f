//! NARs, Nix's archive format: parsing a stream, writing a path from disk, restoring one.
//!
//! Knows the format and plain files. Does not know stores, protocols or what the files mean:
//! a [`Visitor`] is told of every member.
//!
//! A NAR is `nix-archive-1` and a node; every token is a u64 length (little-endian), the bytes
//! and zero padding to 8. It delimits itself, so on a wire only parsing finds its end. The
//! parser takes nothing but what Nix itself writes: sorted names, zero padding, the fields in
//! order. Its memory is bounded by [`DEPTH_MAX`] and the lengths below, whatever is fed to it,
//! and it does not recurse.

use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::hash::Sha256Hash;
use super::{excerpt, Error};

pub use super::hash::{HashingReader, HashingWriter};

/// Directories inside each other.
pub const DEPTH_MAX: usize = 4096;
/// Bytes of one file name; Linux allows 255.
pub const NAME_BYTES_MAX: usize = 1024;
/// Bytes of a member's path inside the NAR.
pub const PATH_BYTES_MAX: usize = 64 << 10;
/// Bytes of a symlink's target; Linux allows 4095.
pub const TARGET_BYTES_MAX: usize = 8 << 10;

const MAGIC: &[u8] = b"nix-archive-1";
/// Bytes moved at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// Is told of the members of a NAR in the order of the stream: a directory before its entries,
/// entries sorted bytewise. Paths are relative to the root, which is the empty path; they have
/// no leading slash and no `.` or `..`. An error ends the parse and is passed on.
pub trait Visitor {
    /// A directory begins.
    fn directory(&mut self, path: &[u8]) -> Result<(), Error>;
    /// A symbolic link; the target is not empty and has no NUL.
    fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error>;
    /// Where in the NAR the contents of the file begin that is told of next.
    fn contents_at(&mut self, _at: u64) {}
    /// A regular file of `size` bytes begins; its contents follow.
    fn file(&mut self, path: &[u8], size: u64, executable: bool) -> Result<(), Error>;
    /// The next bytes of the file that began last. Never called for an empty file.
    fn contents(&mut self, chunk: &[u8]) -> Result<(), Error>;
    /// All contents of the file that began last have been given.
    fn file_end(&mut self) -> Result<(), Error>;
}

/// Looks at nothing.
impl Visitor for () {
    fn directory(&mut self, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    fn symlink(&mut self, _: &[u8], _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    fn file(&mut self, _: &[u8], _: u64, _: bool) -> Result<(), Error> {
        Ok(())
    }
    fn contents(&mut self, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    fn file_end(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl<V: Visitor + ?Sized> Visitor for &mut V {
    fn directory(&mut self, path: &[u8]) -> Result<(), Error> {
        (**self).directory(path)
    }
    fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
        (**self).symlink(path, target)
    }
    fn contents_at(&mut self, at: u64) {
        (**self).contents_at(at);
    }
    fn file(&mut self, path: &[u8], size: u64, executable: bool) -> Result<(), Error> {
        (**self).file(path, size, executable)
    }
    fn contents(&mut self, chunk: &[u8]) -> Result<(), Error> {
        (**self).contents(chunk)
    }
    fn file_end(&mut self) -> Result<(), Error> {
        (**self).file_end()
    }
}

/// Hash and length of a whole NAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NarDigest {
    pub sha256: Sha256Hash,
    /// Bytes.
    pub size: u64,
}

/// Parses one NAR from `reader`, which is left right behind it.
pub fn parse<R: BufRead>(reader: R, visitor: &mut dyn Visitor) -> Result<NarDigest, Error> {
    NarReader::new(reader, visitor).finish()
}

/// A `Read` that yields exactly the bytes of one NAR from a longer stream and parses them on the
/// way. A malformed NAR is an `io::Error` of kind `InvalidData` around an [`Error::Nar`], a
/// stream that ends inside of one is `UnexpectedEof`. Errors of the inner reader pass through,
/// after which reading may go on.
pub struct NarReader<R, V> {
    inner: R,
    visitor: V,
    parser: Parser,
    hasher: Sha256,
    size: u64,
    broken: bool,
}

impl<R: BufRead, V: Visitor> NarReader<R, V> {
    pub fn new(inner: R, visitor: V) -> Self {
        NarReader {
            inner,
            visitor,
            parser: Parser::new(),
            hasher: Sha256::new(),
            size: 0,
            broken: false,
        }
    }

    /// Whether the end of the NAR has been read.
    pub fn at_end(&self) -> bool {
        self.parser.finished()
    }

    /// Reads what is left of the NAR and gives its hash and length.
    pub fn finish(mut self) -> Result<NarDigest, Error> {
        self.drain()
    }

    /// Like [`NarReader::finish`], keeping the reader.
    pub(crate) fn drain(&mut self) -> Result<NarDigest, Error> {
        while !self.at_end() {
            self.advance(CHUNK_BYTES, None).map_err(Error::from_io)?;
        }
        Ok(NarDigest {
            sha256: self.hasher.clone().finalize().into(),
            size: self.size,
        })
    }

    /// Takes up to `max` bytes from the inner reader, copying them to `copy`.
    fn advance(&mut self, max: usize, copy: Option<&mut [u8]>) -> io::Result<usize> {
        if self.broken {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the NAR was malformed",
            ));
        }
        let available = loop {
            match self.inner.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if available.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the stream ended at byte {} of a NAR", self.size),
            ));
        }
        let chunk = &available[..available.len().min(max)];
        let used = match self.parser.feed(chunk, &mut self.visitor) {
            Ok(used) => used,
            Err(e) => {
                self.broken = true;
                return Err(e.into_io());
            }
        };
        self.hasher.update(&chunk[..used]);
        if let Some(copy) = copy {
            copy[..used].copy_from_slice(&chunk[..used]);
        }
        self.inner.consume(used);
        self.size += used as u64;
        Ok(used)
    }
}

impl<R: BufRead, V: Visitor> Read for NarReader<R, V> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at_end() || buf.is_empty() {
            return Ok(0);
        }
        let max = buf.len();
        self.advance(max, Some(buf))
    }
}

/// What the grammar wants next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Want {
    Magic,
    NodeOpen,
    TypeKey,
    Type,
    TargetKey,
    Target,
    /// `executable` or `contents`.
    FileKey,
    /// The empty string after `executable`.
    ExecutableMark,
    ContentsKey,
    /// The contents, which are streamed.
    Contents {
        executable: bool,
    },
    NodeClose,
    /// `entry` or the `)` of the directory.
    EntryOrClose,
    EntryOpen,
    NameKey,
    Name,
    NodeKey,
    EntryClose,
    Nothing,
}

impl Want {
    /// Bytes of the longest token that can be right here.
    fn bytes_max(self) -> usize {
        match self {
            Want::Name => NAME_BYTES_MAX,
            Want::Target => TARGET_BYTES_MAX,
            _ => 16,
        }
    }
}

/// Where in a token the next byte is.
#[derive(Clone, Copy, Debug)]
enum Lexer {
    /// `have` bytes of the length are there.
    Length { have: usize, bytes: [u8; 8] },
    /// This much of the token and its padding is missing; `len` is without padding.
    Token { len: usize, missing: usize },
    /// This much of the contents is missing.
    Contents { missing: u64, padding: usize },
    /// This much of the padding after the contents is missing.
    Padding { missing: usize },
}

const LENGTH: Lexer = Lexer::Length {
    have: 0,
    bytes: [0; 8],
};

/// A directory that has not ended.
struct OpenDirectory {
    /// Bytes of its path in `Parser::path`.
    path_len: usize,
    /// The entry that came last.
    last_name: Vec<u8>,
}

/// Parses a NAR that arrives in pieces of any size.
pub struct Parser {
    want: Want,
    lexer: Lexer,
    token: Vec<u8>,
    directories: Vec<OpenDirectory>,
    path: Vec<u8>,
    offset: u64,
}

impl Default for Parser {
    fn default() -> Self {
        Parser::new()
    }
}

impl Parser {
    pub fn new() -> Parser {
        Parser {
            want: Want::Magic,
            lexer: LENGTH,
            token: Vec::new(),
            directories: Vec::new(),
            path: Vec::new(),
            offset: 0,
        }
    }

    /// Whether the whole NAR has been fed.
    pub fn finished(&self) -> bool {
        self.want == Want::Nothing
    }

    /// Takes bytes up to the end of the NAR and says how many that were. After an error the
    /// parser is of no more use.
    pub fn feed(&mut self, input: &[u8], visitor: &mut dyn Visitor) -> Result<usize, Error> {
        let mut used = 0;
        while used < input.len() && !self.finished() {
            let n = self.step(&input[used..], visitor)?;
            used += n;
            self.offset += n as u64;
        }
        Ok(used)
    }

    fn bad<T>(&self, why: String) -> Result<T, Error> {
        Err(Error::Nar {
            at: self.offset,
            why,
        })
    }

    /// Takes at least one byte of a non-empty input.
    fn step(&mut self, input: &[u8], visitor: &mut dyn Visitor) -> Result<usize, Error> {
        match self.lexer {
            Lexer::Length { have, mut bytes } => {
                let n = input.len().min(8 - have);
                bytes[have..have + n].copy_from_slice(&input[..n]);
                self.lexer = Lexer::Length {
                    have: have + n,
                    bytes,
                };
                if have + n == 8 {
                    let end = self.offset + n as u64;
                    self.length(u64::from_le_bytes(bytes), end, visitor)?;
                }
                Ok(n)
            }
            Lexer::Token { len, missing } => {
                let n = input.len().min(missing);
                self.token.extend_from_slice(&input[..n]);
                self.lexer = Lexer::Token {
                    len,
                    missing: missing - n,
                };
                if missing == n {
                    self.end_of_token(len, visitor)?;
                }
                Ok(n)
            }
            Lexer::Contents { missing, padding } => {
                let n = usize::try_from(missing).map_or(input.len(), |m| m.min(input.len()));
                visitor.contents(&input[..n])?;
                let missing = missing - n as u64;
                self.lexer = Lexer::Contents { missing, padding };
                if missing == 0 {
                    self.end_of_contents(padding, visitor)?;
                }
                Ok(n)
            }
            Lexer::Padding { missing } => {
                let n = input.len().min(missing);
                self.check_padding(&input[..n])?;
                self.lexer = Lexer::Padding {
                    missing: missing - n,
                };
                if missing == n {
                    self.lexer = LENGTH;
                }
                Ok(n)
            }
        }
    }

    /// `end` is where the length ends.
    fn length(&mut self, len: u64, end: u64, visitor: &mut dyn Visitor) -> Result<(), Error> {
        let padding = len.wrapping_neg() as usize % 8;
        if let Want::Contents { executable } = self.want {
            // A file cannot be longer than a file's offset can say.
            if len > i64::MAX as u64 {
                return self.bad(format!("a file of {len} bytes"));
            }
            visitor.contents_at(end);
            visitor.file(&self.path, len, executable)?;
            self.want = Want::NodeClose;
            if len == 0 {
                self.end_of_contents(0, visitor)?;
            } else {
                self.lexer = Lexer::Contents {
                    missing: len,
                    padding,
                };
            }
            return Ok(());
        }
        let max = self.want.bytes_max();
        let len = match usize::try_from(len) {
            Ok(len) if len <= max => len,
            _ => return self.bad(format!("a token of {len} bytes where {max} are allowed")),
        };
        self.token.clear();
        if len == 0 {
            return self.end_of_token(0, visitor);
        }
        self.lexer = Lexer::Token {
            len,
            missing: len + padding,
        };
        Ok(())
    }

    fn check_padding(&self, padding: &[u8]) -> Result<(), Error> {
        match padding.iter().all(|&byte| byte == 0) {
            true => Ok(()),
            false => self.bad("padding that is not zero".to_owned()),
        }
    }

    fn end_of_contents(&mut self, padding: usize, visitor: &mut dyn Visitor) -> Result<(), Error> {
        visitor.file_end()?;
        self.lexer = match padding {
            0 => LENGTH,
            missing => Lexer::Padding { missing },
        };
        Ok(())
    }

    fn end_of_token(&mut self, len: usize, visitor: &mut dyn Visitor) -> Result<(), Error> {
        self.check_padding(&self.token[len..])?;
        self.token.truncate(len);
        self.lexer = LENGTH;
        // Taken out to be looked at while the rest changes, and given back for its capacity.
        let token = std::mem::take(&mut self.token);
        let result = self.accept(&token, visitor);
        self.token = token;
        self.want = result?;
        Ok(())
    }

    /// The grammar: what follows after this token.
    fn accept(&mut self, token: &[u8], visitor: &mut dyn Visitor) -> Result<Want, Error> {
        let keyword = |parser: &Parser, wanted: &[u8], next: Want| match token == wanted {
            true => Ok(next),
            false => parser.bad(format!(
                "expected '{}', found '{}'",
                wanted.escape_ascii(),
                excerpt(token)
            )),
        };
        match self.want {
            Want::Magic => keyword(self, MAGIC, Want::NodeOpen),
            Want::NodeOpen => keyword(self, b"(", Want::TypeKey),
            Want::TypeKey => keyword(self, b"type", Want::Type),
            Want::Type => match token {
                b"regular" => Ok(Want::FileKey),
                b"symlink" => Ok(Want::TargetKey),
                b"directory" => {
                    if self.directories.len() == DEPTH_MAX {
                        return self.bad(format!("directories more than {DEPTH_MAX} deep"));
                    }
                    visitor.directory(&self.path)?;
                    self.directories.push(OpenDirectory {
                        path_len: self.path.len(),
                        last_name: Vec::new(),
                    });
                    Ok(Want::EntryOrClose)
                }
                _ => self.bad(format!("a node of type '{}'", excerpt(token))),
            },
            Want::TargetKey => keyword(self, b"target", Want::Target),
            Want::Target => {
                if token.is_empty() || token.contains(&0) {
                    return self.bad(format!("a symlink to '{}'", excerpt(token)));
                }
                visitor.symlink(&self.path, token)?;
                Ok(Want::NodeClose)
            }
            Want::FileKey if token == b"executable" => Ok(Want::ExecutableMark),
            Want::FileKey => keyword(self, b"contents", Want::Contents { executable: false }),
            Want::ExecutableMark => keyword(self, b"", Want::ContentsKey),
            Want::ContentsKey => keyword(self, b"contents", Want::Contents { executable: true }),
            Want::NodeClose => {
                keyword(self, b")", Want::Nothing)?;
                Ok(self.after_node())
            }
            Want::EntryOrClose if token == b"entry" => Ok(Want::EntryOpen),
            Want::EntryOrClose => {
                keyword(self, b")", Want::Nothing)?;
                self.directories.pop();
                Ok(self.after_node())
            }
            Want::EntryOpen => keyword(self, b"(", Want::NameKey),
            Want::NameKey => keyword(self, b"name", Want::Name),
            Want::Name => {
                self.enter(token)?;
                Ok(Want::NodeKey)
            }
            Want::NodeKey => keyword(self, b"node", Want::NodeOpen),
            Want::EntryClose => keyword(self, b")", Want::EntryOrClose),
            Want::Contents { .. } | Want::Nothing => {
                unreachable!("BUG: no token is read in state {:?}", self.want)
            }
        }
    }

    fn enter(&mut self, name: &[u8]) -> Result<(), Error> {
        check_name(name).or_else(|why| self.bad(format!("{why}: '{}'", excerpt(name))))?;
        let Some(directory) = self.directories.last_mut() else {
            unreachable!("BUG: an entry outside of a directory")
        };
        if !directory.last_name.is_empty() && name <= directory.last_name.as_slice() {
            let last = excerpt(&directory.last_name);
            return self.bad(format!("entry '{}' after '{last}'", excerpt(name)));
        }
        directory.last_name.clear();
        directory.last_name.extend_from_slice(name);
        let path_len = directory.path_len;
        self.path.truncate(path_len);
        if path_len > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        match self.path.len() > PATH_BYTES_MAX {
            true => self.bad(format!("a path longer than {PATH_BYTES_MAX} bytes")),
            false => Ok(()),
        }
    }

    fn after_node(&self) -> Want {
        match self.directories.is_empty() {
            true => Want::Nothing,
            false => Want::EntryClose,
        }
    }
}

fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("an empty name"),
        b"." | b".." => Err("a name with a meaning"),
        name if name.contains(&b'/') => Err("a name with a slash"),
        name if name.contains(&0) => Err("a name with a NUL"),
        _ => Ok(()),
    }
}

/// Writes the NAR of a file, directory or symlink on disk. Only the owner's executable bit is
/// kept; entries are sorted bytewise; contents are streamed. Anything but these three types is
/// an error, and so is a file whose length changes meanwhile.
pub fn dump_path(physical: &Path, out: &mut dyn Write) -> Result<(), Error> {
    write_token(out, MAGIC)?;
    // Its own stack instead of recursion: what is left to write, the next thing last.
    let mut todo = vec![Todo::Node(physical.to_owned())];
    while let Some(next) = todo.pop() {
        match next {
            Todo::Node(path) => dump_node(&path, out, &mut todo)?,
            Todo::Entry(path) => {
                let name = path.file_name().unwrap_or_default().as_bytes();
                write_tokens(out, &[b"entry", b"(", b"name", name, b"node"])?;
                todo.push(Todo::Close);
                todo.push(Todo::Node(path));
            }
            Todo::Close => write_token(out, b")")?,
        }
    }
    Ok(())
}

enum Todo {
    Node(PathBuf),
    Entry(PathBuf),
    Close,
}

fn dump_node(path: &Path, out: &mut dyn Write, todo: &mut Vec<Todo>) -> Result<(), Error> {
    let failed = |doing| move |e| Error::file(doing, path, e);
    let metadata = fs::symlink_metadata(path).map_err(failed("examine"))?;
    write_tokens(out, &[b"(", b"type"])?;
    todo.push(Todo::Close);
    if metadata.is_symlink() {
        let target = fs::read_link(path).map_err(failed("read the link"))?;
        write_tokens(out, &[b"symlink", b"target", target.as_os_str().as_bytes()])?;
    } else if metadata.is_dir() {
        write_token(out, b"directory")?;
        let mut entries = fs::read_dir(path)
            .and_then(|entries| {
                entries
                    .map(|e| Ok(e?.path()))
                    .collect::<io::Result<Vec<_>>>()
            })
            .map_err(failed("list"))?;
        entries.sort_unstable_by(|a, b| b.file_name().cmp(&a.file_name()));
        todo.extend(entries.into_iter().map(Todo::Entry));
    } else if metadata.is_file() {
        write_token(out, b"regular")?;
        if metadata.permissions().mode() & 0o100 != 0 {
            write_tokens(out, &[b"executable", b""])?;
        }
        write_token(out, b"contents")?;
        dump_contents(path, metadata.len(), out)?;
    } else {
        return Err(failed("archive")(io::Error::other(
            "neither file, directory nor symlink",
        )));
    }
    Ok(())
}

fn dump_contents(path: &Path, len: u64, out: &mut dyn Write) -> Result<(), Error> {
    let failed = |doing| move |e| Error::file(doing, path, e);
    let mut file = fs::File::open(path).map_err(failed("open"))?;
    out.write_all(&len.to_le_bytes())?;
    let mut missing = len;
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(len).unwrap_or(CHUNK_BYTES) + 1)];
    loop {
        let n = match file.read(&mut chunk) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(failed("read"))?,
        };
        if n as u64 > missing || (n == 0 && missing > 0) {
            let changed = io::Error::other("its length changed while it was read");
            return Err(failed("read")(changed));
        }
        if n == 0 {
            break;
        }
        out.write_all(&chunk[..n])?;
        missing -= n as u64;
    }
    out.write_all(&[0; 8][..len.wrapping_neg() as usize % 8])?;
    Ok(())
}

fn write_tokens(out: &mut dyn Write, tokens: &[&[u8]]) -> Result<(), Error> {
    tokens.iter().try_for_each(|token| write_token(out, token))
}

fn write_token(out: &mut dyn Write, token: &[u8]) -> Result<(), Error> {
    out.write_all(&(token.len() as u64).to_le_bytes())?;
    out.write_all(token)?;
    out.write_all(&[0; 8][..token.len().wrapping_neg() % 8])?;
    Ok(())
}

/// Writes a NAR to disk at `target`, which must not exist; its parent must. Names are checked
/// and nothing is ever written through a symlink that the NAR contains, since a NAR names every
/// path once and symlinks have no entries.
pub fn restore<R: BufRead>(reader: R, target: &Path) -> Result<NarDigest, Error> {
    let mut visitor = Restore {
        target: target.to_owned(),
        file: None,
    };
    parse(reader, &mut visitor)
}

struct Restore {
    target: PathBuf,
    file: Option<(fs::File, PathBuf)>,
}

impl Restore {
    fn path(&self, path: &[u8]) -> PathBuf {
        match path {
            b"" => self.target.clone(),
            path => self
                .target
                .join(std::ffi::OsString::from_vec(path.to_owned())),
        }
    }
}

impl Visitor for Restore {
    fn directory(&mut self, path: &[u8]) -> Result<(), Error> {
        let path = self.path(path);
        fs::create_dir(&path).map_err(|e| Error::file("create", &path, e))
    }

    fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
        let path = self.path(path);
        let target = std::ffi::OsStr::from_bytes(target);
        std::os::unix::fs::symlink(target, &path).map_err(|e| Error::file("create", &path, e))
    }

    fn file(&mut self, path: &[u8], _size: u64, executable: bool) -> Result<(), Error> {
        let path = self.path(path);
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(if executable { 0o777 } else { 0o666 })
            .open(&path)
            .map_err(|e| Error::file("create", &path, e))?;
        self.file = Some((file, path));
        Ok(())
    }

    fn contents(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let Some((file, path)) = &mut self.file else {
            unreachable!("BUG: contents without a file")
        };
        file.write_all(chunk)
            .map_err(|e| Error::file("write", path, e))
    }

    fn file_end(&mut self) -> Result<(), Error> {
        self.file = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Node {
        File(Vec<u8>, bool),
        Symlink(Vec<u8>),
        Directory(BTreeMap<Vec<u8>, Node>),
    }

    /// Writes tokens by hand, right or wrong.
    fn tokens(list: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_tokens(&mut bytes, list).unwrap();
        bytes
    }

    fn nar_of(node: &Node) -> Vec<u8> {
        fn write(out: &mut Vec<u8>, node: &Node) {
            out.extend(tokens(&[b"(", b"type"]));
            match node {
                Node::File(contents, true) => out.extend(tokens(&[
                    b"regular",
                    b"executable",
                    b"",
                    b"contents",
                    contents,
                ])),
                Node::File(contents, false) => {
                    out.extend(tokens(&[b"regular", b"contents", contents]))
                }
                Node::Symlink(target) => out.extend(tokens(&[b"symlink", b"target", target])),
                Node::Directory(entries) => {
                    out.extend(tokens(&[b"directory"]));
                    for (name, node) in entries {
                        out.extend(tokens(&[b"entry", b"(", b"name", name, b"node"]));
                        write(out, node);
                        out.extend(tokens(&[b")"]));
                    }
                }
            }
            out.extend(tokens(&[b")"]));
        }
        let mut out = tokens(&[MAGIC]);
        write(&mut out, node);
        out
    }

    /// One line per member.
    #[derive(Default, Clone, PartialEq, Eq, Debug)]
    struct Transcript {
        lines: Vec<String>,
        missing: u64,
    }

    impl Visitor for Transcript {
        fn directory(&mut self, path: &[u8]) -> Result<(), Error> {
            self.lines.push(format!("{}/", path.escape_ascii()));
            Ok(())
        }
        fn symlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
            self.lines.push(format!(
                "{} -> {}",
                path.escape_ascii(),
                target.escape_ascii()
            ));
            Ok(())
        }
        fn file(&mut self, path: &[u8], size: u64, executable: bool) -> Result<(), Error> {
            let mark = if executable { "*" } else { "" };
            self.lines
                .push(format!("{}{mark} {size} ", path.escape_ascii()));
            self.missing = size;
            Ok(())
        }
        fn contents(&mut self, chunk: &[u8]) -> Result<(), Error> {
            assert!(!chunk.is_empty());
            self.missing -= chunk.len() as u64;
            let line = self.lines.last_mut().unwrap();
            line.push_str(&chunk.escape_ascii().to_string());
            Ok(())
        }
        fn file_end(&mut self) -> Result<(), Error> {
            assert_eq!(self.missing, 0);
            Ok(())
        }
    }

    fn transcript(nar: &[u8]) -> Result<Vec<String>, Error> {
        let mut visitor = Transcript::default();
        let digest = parse(nar, &mut visitor)?;
        assert_eq!(digest.size, nar.len() as u64);
        assert_eq!(digest.sha256, super::super::hash::sha256(nar));
        Ok(visitor.lines)
    }

    fn refused(nar: &[u8], why: &str) {
        let error = transcript(nar).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    fn entry(name: &[u8]) -> Vec<u8> {
        let mut bytes = tokens(&[b"entry", b"(", b"name", name, b"node", b"(", b"type"]);
        bytes.extend(tokens(&[b"regular", b"contents", b"", b")", b")"]));
        bytes
    }

    fn directory(entries: &[&[u8]]) -> Vec<u8> {
        let mut bytes = tokens(&[MAGIC, b"(", b"type", b"directory"]);
        entries.iter().for_each(|name| bytes.extend(entry(name)));
        bytes.extend(tokens(&[b")"]));
        bytes
    }

    #[test]
    fn one_file() {
        let nar = nar_of(&Node::File(b"hi\n".to_vec(), false));
        assert_eq!(nar.len(), 120);
        assert_eq!(transcript(&nar).unwrap(), [" 3 hi\\n"]);
    }

    #[test]
    fn entries_are_sorted_and_named_properly() {
        assert_eq!(
            transcript(&directory(&[b"A", b"a", b"a.b", b"\xff"])).unwrap(),
            ["/", "A 0 ", "a 0 ", "a.b 0 ", "\\xff 0 "]
        );
        refused(&directory(&[b"b", b"a"]), "entry 'a' after 'b'");
        refused(&directory(&[b"a", b"a"]), "entry 'a' after 'a'");
        refused(&directory(&[b""]), "an empty name");
        refused(&directory(&[b"."]), "a name with a meaning");
        refused(&directory(&[b".."]), "a name with a meaning");
        refused(&directory(&[b"a/b"]), "a name with a slash");
        refused(&directory(&[b"a\0"]), "a name with a NUL");
        refused(&directory(&[&[b'x'; 1025]]), "a token of 1025 bytes");
    }

    #[test]
    fn the_grammar_is_strict() {
        let start: &[&[u8]] = &[MAGIC, b"(", b"type"];
        let nar = |rest: &[&[u8]]| tokens(&[start, rest].concat());
        refused(&tokens(&[b"nix-archive-2"]), "expected 'nix-archive-1'");
        refused(&nar(&[b"fifo"]), "a node of type 'fifo'");
        refused(&nar(&[b"regular", b")"]), "expected 'contents', found ')'");
        refused(&nar(&[b"regular", b"executable", b"x"]), "expected ''");
        refused(&nar(&[b"symlink", b"contents"]), "expected 'target'");
        refused(&nar(&[b"symlink", b"target", b""]), "a symlink to ''");
        refused(&nar(&[b"symlink", b"target", b"a\0"]), "a symlink to");
        refused(&nar(&[b"directory", b"type"]), "expected ')', found 'type'");
        refused(&nar(&[b"regular", b"contents", b"x", b"("]), "expected ')'");
        let mut padded = nar(&[b"regular", b"contents", b"x", b")"]);
        let end = padded.len() - 16;
        padded[end - 1] = 1;
        refused(&padded, "padding that is not zero");
        let mut padded = tokens(&[MAGIC]);
        padded[23] = 1;
        refused(&padded, "byte 8: padding");
        let mut huge = nar(&[b"regular", b"contents"]);
        huge.extend(u64::MAX.to_le_bytes());
        refused(&huge, "a file of 18446744073709551615 bytes");
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| {
            let mut nar = tokens(&[MAGIC]);
            for _ in 0..depth {
                nar.extend(tokens(&[b"(", b"type", b"directory"]));
                nar.extend(tokens(&[b"entry", b"(", b"name", b"d", b"node"]));
            }
            nar.extend(tokens(&[b"(", b"type", b"symlink", b"target", b"t", b")"]));
            (0..depth).for_each(|_| nar.extend(tokens(&[b")", b")"])));
            nar
        };
        assert_eq!(transcript(&nested(DEPTH_MAX)).unwrap().len(), DEPTH_MAX + 1);
        refused(&nested(DEPTH_MAX + 1), "directories more than 4096 deep");
        let long = |depth: usize| {
            let mut nar = tokens(&[MAGIC]);
            for _ in 0..depth {
                nar.extend(tokens(&[b"(", b"type", b"directory"]));
                nar.extend(tokens(&[b"entry", b"(", b"name", &[b'd'; 1000], b"node"]));
            }
            nar
        };
        refused(&long(100), "a path longer than 65536 bytes");
    }

    #[test]
    fn the_reader_stops_at_the_end() {
        let mut stream = nar_of(&Node::File(b"x".to_vec(), true));
        let len = stream.len();
        stream.extend_from_slice(b"what follows");
        let mut rest = stream.as_slice();
        let mut copy = Vec::new();
        NarReader::new(&mut rest, ())
            .read_to_end(&mut copy)
            .unwrap();
        assert_eq!(
            (copy.as_slice(), rest),
            (&stream[..len], &b"what follows"[..])
        );
        // Cut short anywhere, it is an unexpected end and nothing else.
        for end in 0..len {
            let error = parse(&stream[..end], &mut ()).unwrap_err();
            assert!(
                matches!(&error, Error::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof),
                "{end}: {error}"
            );
        }
    }

    #[test]
    fn a_malformed_nar_stays_so() {
        let nar = directory(&[b"b", b"a"]);
        let mut reader = NarReader::new(nar.as_slice(), ());
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(matches!(Error::from_io(error), Error::Nar { .. }));
        assert!(reader.read(&mut [0; 8]).is_err());
    }

    #[test]
    fn restoring_what_was_dumped() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Node::Directory(BTreeMap::from([
            (b"a".to_vec(), Node::File(b"text".to_vec(), true)),
            (b"a.b".to_vec(), Node::File(vec![], false)),
            (
                b"dir".to_vec(),
                Node::Directory(BTreeMap::from([(
                    b"\xff\n".to_vec(),
                    Node::Symlink(b"../../etc".to_vec()),
                )])),
            ),
            (b"empty".to_vec(), Node::Directory(BTreeMap::new())),
            (
                b"large".to_vec(),
                Node::File(vec![7; 3 * CHUNK_BYTES + 1], false),
            ),
        ]));
        let nar = nar_of(&tree);
        let target = dir.path().join("restored");
        let digest = restore(nar.as_slice(), &target).unwrap();
        let mut again = HashingWriter::new(Vec::new());
        dump_path(&target, &mut again).unwrap();
        let (again, sha256, size) = again.finish();
        assert_eq!(again, nar);
        assert_eq!((sha256, size), (digest.sha256, digest.size));
        // It never writes over anything.
        let error = restore(nar.as_slice(), &target).unwrap_err();
        assert!(matches!(error, Error::File { .. }));
    }

    #[test]
    fn what_cannot_be_dumped() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = dump_path(dir.path(), &mut io::sink()).unwrap_err();
        assert!(matches!(error, Error::File { path, .. } if path == socket));
        let error = dump_path(&dir.path().join("missing"), &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("missing"));
    }

    fn any_name() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 1..6).prop_map(|name| {
            let mut name: Vec<u8> = name
                .into_iter()
                .map(|byte| {
                    if byte == b'/' || byte == 0 {
                        b'_'
                    } else {
                        byte
                    }
                })
                .collect();
            if name.iter().all(|&byte| byte == b'.') {
                name.push(b'x');
            }
            name
        })
    }

    fn any_node() -> impl Strategy<Value = Node> {
        let leaf = prop_oneof![
            (vec(any::<u8>(), 0..40), any::<bool>()).prop_map(|(c, x)| Node::File(c, x)),
            any_name().prop_map(Node::Symlink),
        ];
        leaf.prop_recursive(4, 20, 4, |node| {
            btree_map(any_name(), node, 0..4).prop_map(Node::Directory)
        })
    }

    /// Feeds in pieces whose lengths repeat.
    fn fed(nar: &[u8], pieces: &[usize]) -> Result<(Transcript, usize), Error> {
        let mut parser = Parser::new();
        let mut visitor = Transcript::default();
        let mut used = 0;
        for len in pieces.iter().cycle() {
            let piece = &nar[used..(used + len).min(nar.len())];
            let n = parser.feed(piece, &mut visitor)?;
            used += n;
            if n < piece.len() || used == nar.len() || parser.finished() {
                break;
            }
        }
        assert_eq!(parser.finished(), used == nar.len());
        Ok((visitor, used))
    }

    proptest! {
        #[test]
        fn pieces_of_any_size(node in any_node(), pieces in vec(1usize..30, 1..5)) {
            let nar = nar_of(&node);
            let whole = transcript(&nar).unwrap();
            let (visitor, used) = fed(&nar, &pieces).unwrap();
            prop_assert_eq!(used, nar.len());
            prop_assert_eq!(visitor.lines, whole);
        }

        #[test]
        fn disk_and_back(node in any_node()) {
            let nar = nar_of(&node);
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("x");
            restore(nar.as_slice(), &target).unwrap();
            let mut again = Vec::new();
            dump_path(&target, &mut again).unwrap();
            prop_assert_eq!(again, nar);
        }

        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            prop_assert!(parse(bytes.as_slice(), &mut ()).is_err());
        }

        // A damaged NAR is refused, or is another canonical one: it restores and dumps alike.
        #[test]
        fn damaged_nars_are_answered(node in any_node(), at: prop::sample::Index, byte: u8) {
            let mut nar = nar_of(&node);
            let at = at.index(nar.len());
            nar[at] = byte;
            let mut visitor = Transcript::default();
            let mut rest = nar.as_slice();
            if parse(&mut rest, &mut visitor).is_ok() {
                let used = nar.len() - rest.len();
                let dir = tempfile::tempdir().unwrap();
                let target = dir.path().join("x");
                restore(&nar[..used], &target).unwrap();
                let mut again = Vec::new();
                dump_path(&target, &mut again).unwrap();
                prop_assert_eq!(&again, &nar[..used]);
            }
        }
    }
}
