//! What Hydra shows of a build's outputs: the files in `nix-support` that say it, and the rules
//! for reading them (Hydra's `build-result.cc`).
//!
//! An output is looked at either while its NAR streams by ([`MemberScan`] is a visitor) or on
//! disk ([`scan_paths`]). Both end as a [`MemberScan`], and [`build_output`] cannot tell which it
//! was. Knows no store and no table.
//!
//! Which members are products is known only after the NAR has gone by, so a scan keeps a record
//! of every member: 16 bytes of the hash of its path instead of the path, size and SHA-256. That
//! is 64 bytes per member however long the paths are, for at most [`MEMBERS_MAX`] members. On
//! disk only what the products files name is looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::hash::{hex_encode, sha256, HashingWriter, Sha256Hash};
use super::nar::Visitor;
use super::store_path::{base_name, name_part};
use super::{Error, StoreDir};
use crate::model::{BuildMetric, BuildOutput, BuildProduct};

/// Members of one output that are remembered (128 MiB). Members after that can be no products.
pub const MEMBERS_MAX: usize = 2 << 20;
/// Bytes of one file in `nix-support` that are read.
pub const SUPPORT_FILE_BYTES_MAX: usize = 1 << 20;
/// Bytes of one field of a product or metric; what is longer is ignored like other bad input.
pub const FIELD_BYTES_MAX: usize = 4096;
/// Name of a metric and type of a product at most: Hydra's tables index them, and an entry of an
/// index has 2,704 bytes.
pub const NAME_BYTES_MAX: usize = 1024;
/// Products of one build.
pub const PRODUCTS_MAX: usize = 10_000;
/// Metrics of one build.
pub const METRICS_MAX: usize = 10_000;

const FAILED: &[u8] = b"nix-support/failed";
/// The files whose contents are kept.
const SUPPORT_FILES: [&[u8]; 3] = [
    b"nix-support/hydra-build-products",
    b"nix-support/hydra-release-name",
    b"nix-support/hydra-metrics",
];
const PRODUCTS: usize = 0;
const RELEASE_NAME: usize = 1;
const METRICS: usize = 2;

/// One file, directory or symlink of an output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Member {
    Directory,
    Symlink,
    Regular { size: u64, sha256: Sha256Hash },
}

/// The beginning of the SHA-256 of a member's path.
type PathKey = [u8; 16];

fn path_key(path: &[u8]) -> PathKey {
    let mut key = [0; 16];
    key.copy_from_slice(&sha256(path)[..16]);
    key
}

/// The members of one output.
#[derive(Clone, Default)]
pub struct MemberScan {
    members: Vec<(PathKey, Member)>,
    root_is_directory: bool,
    failed: bool,
    /// Contents of the regular ones among [`SUPPORT_FILES`].
    support: [Option<Vec<u8>>; 3],
    notes: Vec<String>,
    /// The file that is streaming by.
    current: Option<Current>,
}

#[derive(Clone)]
struct Current {
    key: PathKey,
    size: u64,
    hasher: Sha256,
    /// Which of [`SUPPORT_FILES`] it is, with what has arrived.
    support: Option<(usize, Vec<u8>)>,
}

impl MemberScan {
    pub fn new() -> MemberScan {
        MemberScan::default()
    }

    /// What an operator should hear about: files and members beyond the bounds.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether the output has `nix-support/failed`.
    pub fn failed(&self) -> bool {
        self.failed
    }

    fn add(&mut self, path: &[u8], key: PathKey, member: Member) {
        if path.is_empty() {
            self.root_is_directory = member == Member::Directory;
        }
        self.remember(key, member);
        self.failed |= path == FAILED;
    }

    fn remember(&mut self, key: PathKey, member: Member) {
        if self.members.len() < MEMBERS_MAX {
            self.members.push((key, member));
        } else if self.members.len() == MEMBERS_MAX && self.notes.is_empty() {
            self.notes.push(format!(
                "more than {MEMBERS_MAX} files: those after that cannot be build products"
            ));
        }
    }

    fn keep_support(&mut self, which: usize, contents: Vec<u8>, size: u64) {
        if size > SUPPORT_FILE_BYTES_MAX as u64 {
            let name = String::from_utf8_lossy(SUPPORT_FILES[which]);
            self.notes.push(format!(
                "{name} has {size} bytes and is ignored, the limit is {SUPPORT_FILE_BYTES_MAX}"
            ));
        }
        self.support[which] = Some(contents);
    }

    /// A support file that is regular, as text; empty if it was too large.
    fn support_text(&self, which: usize) -> Option<String> {
        let contents = self.support[which].as_ref()?;
        Some(String::from_utf8_lossy(contents).into_owned())
    }
}

impl Visitor for MemberScan {
    fn directory(&mut self, path: &[u8]) -> Result<(), Error> {
        self.add(path, path_key(path), Member::Directory);
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], _target: &[u8]) -> Result<(), Error> {
        self.add(path, path_key(path), Member::Symlink);
        Ok(())
    }

    fn file(&mut self, path: &[u8], size: u64, _executable: bool) -> Result<(), Error> {
        self.failed |= path == FAILED;
        let support = SUPPORT_FILES.iter().position(|name| *name == path);
        self.current = Some(Current {
            key: path_key(path),
            size,
            hasher: Sha256::new(),
            support: support.map(|which| (which, Vec::new())),
        });
        Ok(())
    }

    fn contents(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let Some(current) = &mut self.current else {
            unreachable!("BUG: contents without a file")
        };
        current.hasher.update(chunk);
        if let Some((_, contents)) = &mut current.support {
            if current.size <= SUPPORT_FILE_BYTES_MAX as u64 {
                contents.extend_from_slice(chunk);
            }
        }
        Ok(())
    }

    fn file_end(&mut self) -> Result<(), Error> {
        let Some(current) = self.current.take() else {
            unreachable!("BUG: the end of no file")
        };
        // The hash of an empty file is that of no bytes, where Hydra has none and then fails.
        let sha256 = current.hasher.finalize().into();
        let size = current.size;
        self.remember(current.key, Member::Regular { size, sha256 });
        if let Some((which, contents)) = current.support {
            self.keep_support(which, contents, size);
        }
        Ok(())
    }
}

/// Looks at one output on disk. `path` is its full store path, `physical` where it really is.
pub fn scan_path(store_dir: &StoreDir, path: &str, physical: &Path) -> Result<MemberScan, Error> {
    let mut scans = scan_paths(store_dir, &[(path, physical)])?;
    Ok(scans.pop().unwrap_or_default())
}

/// Looks at all outputs of a build on disk: at their support files, and at what the products
/// files among these name, in whichever output. `outputs` are full store paths and where they
/// really are; the answer is in the same order. Symlinks are not followed.
pub fn scan_paths(
    store_dir: &StoreDir,
    outputs: &[(&str, &Path)],
) -> Result<Vec<MemberScan>, Error> {
    let mut scans = Vec::with_capacity(outputs.len());
    for (_, physical) in outputs {
        let mut scan = MemberScan::new();
        let metadata =
            fs::symlink_metadata(physical).map_err(|e| Error::file("examine", physical, e))?;
        if metadata.is_dir() {
            scan.add(b"", path_key(b""), Member::Directory);
            scan.failed = lstat_below(physical, FAILED)?.is_some();
            for (which, name) in SUPPORT_FILES.iter().enumerate() {
                scan_support(&mut scan, which, physical, name)?;
            }
        }
        scans.push(scan);
    }
    // A set: a path may be named more than once.
    let named: BTreeSet<String> = scans
        .iter()
        .filter_map(|scan| scan.support_text(PRODUCTS))
        .flat_map(|text| product_lines(&text))
        .filter_map(|line| canonical(&line.path))
        .collect();
    for path in named {
        let Some((object, below)) = store_dir.split(&path) else {
            continue;
        };
        let below = below.trim_start_matches('/').as_bytes();
        for ((output, physical), scan) in outputs.iter().zip(&mut scans) {
            let is_known = below.is_empty() && scan.root_is_directory;
            if *output == object && !is_known {
                if let Some(member) = examine(physical, below)? {
                    scan.add(below, path_key(below), member);
                }
            }
        }
    }
    Ok(scans)
}

fn scan_support(
    scan: &mut MemberScan,
    which: usize,
    physical: &Path,
    name: &[u8],
) -> Result<(), Error> {
    let Some((path, metadata)) = lstat_below(physical, name)? else {
        return Ok(());
    };
    if !metadata.is_file() {
        return Ok(());
    }
    let mut contents = Vec::new();
    if metadata.len() <= SUPPORT_FILE_BYTES_MAX as u64 {
        fs::File::open(&path)
            .and_then(|file| {
                file.take(SUPPORT_FILE_BYTES_MAX as u64)
                    .read_to_end(&mut contents)
            })
            .map_err(|e| Error::file("read", &path, e))?;
    }
    scan.keep_support(which, contents, metadata.len());
    Ok(())
}

/// The member at a relative path on disk, hashed if it is regular.
fn examine(physical: &Path, below: &[u8]) -> Result<Option<Member>, Error> {
    let Some((path, metadata)) = lstat_below(physical, below)? else {
        return Ok(None);
    };
    if metadata.is_symlink() {
        return Ok(Some(Member::Symlink));
    }
    if metadata.is_dir() {
        return Ok(Some(Member::Directory));
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut hasher = HashingWriter::new(io::sink());
    fs::File::open(&path)
        .and_then(|mut file| io::copy(&mut file, &mut hasher))
        .map_err(|e| Error::file("read", &path, e))?;
    let (_, sha256, size) = hasher.finish();
    Ok(Some(Member::Regular { size, sha256 }))
}

/// The metadata of a path below `physical`; `None` if a component is missing or if one on the
/// way is no directory: a NAR has nothing below a symlink.
fn lstat_below(physical: &Path, below: &[u8]) -> Result<Option<(PathBuf, fs::Metadata)>, Error> {
    use std::os::unix::ffi::OsStrExt;
    let mut path = physical.to_owned();
    let mut metadata = match fs::symlink_metadata(&path) {
        Ok(metadata) => metadata,
        Err(e) if is_absent(&e) => return Ok(None),
        Err(e) => return Err(Error::file("examine", &path, e)),
    };
    for name in below.split(|&c| c == b'/').filter(|name| !name.is_empty()) {
        if !metadata.is_dir() {
            return Ok(None);
        }
        path.push(std::ffi::OsStr::from_bytes(name));
        metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if is_absent(&e) => return Ok(None),
            Err(e) => return Err(Error::file("examine", &path, e)),
        };
    }
    Ok(Some((path, metadata)))
}

/// A name from a products file may be one that no file can have: too long, or with a NUL.
fn is_absent(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidFilename
    )
}

/// One output of a build that succeeded.
#[derive(Clone)]
pub struct OutputScan {
    /// `out`, `dev`, ...
    pub name: String,
    /// Full store path.
    pub path: String,
    /// Bytes.
    pub nar_size: u64,
    pub scan: MemberScan,
}

/// Applies Hydra's rules to the outputs of a build. `closure_size` is the sum of the NAR sizes
/// of their closure, bytes. Bad lines are ignored, as Hydra does.
pub fn build_output(
    outputs: &[OutputScan],
    closure_size: u64,
    store_dir: &StoreDir,
) -> BuildOutput {
    let mut result = BuildOutput {
        closure_size,
        ..BuildOutput::default()
    };
    let mut metrics: BTreeMap<String, BuildMetric> = BTreeMap::new();
    let mut explicit_products = false;

    // Hydra goes through a set of paths: hash first.
    let mut ordered: Vec<&OutputScan> = outputs.iter().collect();
    ordered.sort_by_key(|output| base_name(&output.path));
    let named = Named::new(&ordered, store_dir);

    for output in &ordered {
        result.size = result.size.saturating_add(output.nar_size);
        result.failed |= output.scan.failed;
        if let Some(text) = output.scan.support_text(PRODUCTS) {
            explicit_products = true;
            let products =
                product_lines(&text).filter_map(|line| named.product(line, &output.path));
            let room = PRODUCTS_MAX - result.products.len();
            result.products.extend(products.take(room));
        }
        if let Some(text) = output.scan.support_text(RELEASE_NAME) {
            let name = text.trim_matches([' ', '\t', '\n', '\r']);
            if is_made_of(name, "._-:@") && name.len() <= FIELD_BYTES_MAX {
                result.release_name = Some(name.to_owned());
            }
        }
        if let Some(text) = output.scan.support_text(METRICS) {
            for metric in text.split('\n').filter_map(metric) {
                if metrics.len() < METRICS_MAX || metrics.contains_key(&metric.name) {
                    metrics.insert(metric.name.clone(), metric);
                }
            }
        }
    }
    if !explicit_products {
        result.products = ordered.iter().filter_map(|o| default_product(o)).collect();
    }
    result.metrics = metrics.into_values().collect();
    result.outputs = outputs
        .iter()
        .map(|output| (output.name.clone(), output.path.clone()))
        .collect();
    result.outputs.sort_unstable();
    result
}

/// What a build without a products file shows: its outputs, if they are directories.
fn default_product(output: &OutputScan) -> Option<BuildProduct> {
    output.scan.root_is_directory.then(|| BuildProduct {
        kind: "nix-build".to_owned(),
        subtype: match output.name.as_str() {
            "out" => String::new(),
            name => name.to_owned(),
        },
        path: output.path.clone(),
        name: name_part(&output.path).to_owned(),
        ..BuildProduct::default()
    })
}

/// The members that products files name, by their full canonical paths.
struct Named {
    members: BTreeMap<String, Member>,
}

impl Named {
    /// Goes through the members of each output once.
    fn new(outputs: &[&OutputScan], store_dir: &StoreDir) -> Named {
        let paths: BTreeSet<String> = outputs
            .iter()
            .filter_map(|output| output.scan.support_text(PRODUCTS))
            .flat_map(|text| product_lines(&text))
            .filter_map(|line| canonical(&line.path))
            .collect();
        let mut wanted: BTreeMap<&str, HashMap<PathKey, &str>> = BTreeMap::new();
        for path in &paths {
            if let Some((object, below)) = store_dir.split(path) {
                let key = path_key(below.trim_start_matches('/').as_bytes());
                wanted.entry(object).or_default().insert(key, path);
            }
        }
        let mut members = BTreeMap::new();
        for output in outputs {
            let Some(keys) = wanted.get(output.path.as_str()) else {
                continue;
            };
            for (key, member) in &output.scan.members {
                if let Some(path) = keys.get(key) {
                    members.insert((*path).to_owned(), *member);
                }
            }
        }
        Named { members }
    }

    /// The product that a line of `output`'s products file names, if it is one.
    fn product(&self, line: ProductLine, output: &str) -> Option<BuildProduct> {
        let path = canonical(&line.path)?;
        let member = *self.members.get(&path)?;
        let name = match path == output {
            true => "",
            false => base_name(&path),
        };
        let name = match is_made_of_or_empty(name, ".@:_ -") {
            true => name.to_owned(),
            false => String::new(),
        };
        let (file_size, sha256) = match member {
            Member::Regular { size, sha256 } => (Some(size), Some(hex_encode(&sha256))),
            Member::Directory | Member::Symlink => (None, None),
        };
        Some(BuildProduct {
            kind: line.kind,
            subtype: line.subtype,
            file_size,
            sha256,
            path,
            name,
            default_path: line.default_path,
        })
    }
}

/// A well-formed line of `hydra-build-products`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct ProductLine {
    kind: String,
    subtype: String,
    /// As written, without quotes.
    path: String,
    default_path: String,
}

fn product_lines(text: &str) -> impl Iterator<Item = ProductLine> + use<> {
    let lines: Vec<ProductLine> = text.split('\n').filter_map(product_line).collect();
    lines.into_iter()
}

/// The whole line has to be `<kind> <subtype> <path or "path"> [<default path>]`: no blanks at
/// either end, no angle brackets in what is not quoted.
fn product_line(line: &str) -> Option<ProductLine> {
    let (kind, rest) = word(line)?;
    let (subtype, rest) = word(blanks(rest)?)?;
    let rest = blanks(rest)?;
    let (path, rest) = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?,
        None => {
            let end = rest
                .find(|c| is_blank(c) || matches!(c, '<' | '>' | '"'))
                .unwrap_or(rest.len());
            rest.split_at(end)
        }
    };
    let default_path = match rest {
        "" => "",
        rest => blanks(rest)?,
    };
    let plain = |c: char| !is_blank(c) && !matches!(c, '<' | '>');
    let fits = |field: &str| field.len() <= FIELD_BYTES_MAX && !field.contains('\0');
    let valid = !path.is_empty()
        && default_path.chars().all(plain)
        && (rest.is_empty() || !default_path.is_empty())
        && kind.len() <= NAME_BYTES_MAX
        && [kind, subtype, path, default_path].into_iter().all(fits)
        // A byte that is no UTF-8 was replaced when the file was read.
        && !line.contains(char::REPLACEMENT_CHARACTER);
    valid.then(|| ProductLine {
        kind: kind.to_owned(),
        subtype: subtype.to_owned(),
        path: path.to_owned(),
        default_path: default_path.to_owned(),
    })
}

/// Splits off the letters, digits, `_` and `-` at the beginning; at least one.
fn word(text: &str) -> Option<(&str, &str)> {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// Skips the blanks at the beginning; at least one.
fn blanks(text: &str) -> Option<&str> {
    let rest = text.trim_start_matches(is_blank);
    (rest.len() < text.len()).then_some(rest)
}

/// The C locale's idea of a blank.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// An absolute path without empty components, `.` and `..`, by its text alone.
fn canonical(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.strip_prefix('/')?.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

fn is_made_of(text: &str, others: &str) -> bool {
    !text.is_empty() && is_made_of_or_empty(text, others)
}

/// Whether there is nothing but ASCII letters, digits and `others`.
fn is_made_of_or_empty(text: &str, others: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

/// One line of `hydra-metrics`: name, value and perhaps a unit.
fn metric(line: &str) -> Option<BuildMetric> {
    let mut fields = line
        .split([' ', '\t', '\r'])
        .filter(|field| !field.is_empty());
    let (name, value, unit) = (fields.next()?, fields.next()?, fields.next());
    if !is_made_of(name, "._-") || name.len() > NAME_BYTES_MAX {
        return None;
    }
    Some(BuildMetric {
        name: name.to_owned(),
        value: number_prefix(value)?,
        unit: unit
            .filter(|unit| is_made_of(unit, "._%-") && unit.len() <= FIELD_BYTES_MAX)
            .map(str::to_owned),
    })
}

/// The number at the beginning of a text, as C++'s `stod` finds it: `12abc` is 12; hexadecimal,
/// `inf` and `nan` count. `None` if there is none or it does not fit a double.
fn number_prefix(text: &str) -> Option<f64> {
    let text = text.trim_start_matches(is_blank);
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let magnitude = special_number(digits)
        .map(Some)
        .or_else(|| hexadecimal(digits))
        .unwrap_or_else(|| decimal(digits))?;
    Some(if negative { -magnitude } else { magnitude })
}

fn special_number(text: &str) -> Option<f64> {
    let begins = |word: &str| {
        text.get(..word.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(word))
    };
    match () {
        () if begins("inf") => Some(f64::INFINITY),
        () if begins("nan") => Some(f64::NAN),
        () => None,
    }
}

/// `Some(None)`: a number that does not fit.
fn hexadecimal(text: &str) -> Option<Option<f64>> {
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))?;
    let (mut mantissa, mut exponent, mut seen, mut point, mut used) = (0u64, 0i64, false, false, 0);
    for c in digits.chars() {
        match c.to_digit(16) {
            Some(digit) => {
                seen = true;
                // Digits beyond 60 bits only move the point.
                match mantissa >> 60 {
                    0 => {
                        mantissa = mantissa << 4 | u64::from(digit);
                        exponent -= if point { 4 } else { 0 };
                    }
                    _ => exponent += if point { 0 } else { 4 },
                }
            }
            None if c == '.' && !point => point = true,
            None => break,
        }
        used += 1;
    }
    if !seen {
        // "0x" alone is the number 0 and two more letters.
        return Some(Some(0.0));
    }
    if let Some(power) = exponent_of(&digits[used..], ['p', 'P']) {
        exponent = exponent.saturating_add(power);
    }
    // Two steps, so that neither power leaves the range too early.
    let exponent = exponent.clamp(-4000, 4000) as i32;
    let half = exponent / 2;
    let value = mantissa as f64 * 2f64.powi(half) * 2f64.powi(exponent - half);
    Some(in_range(value, mantissa == 0))
}

fn decimal(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        bytes[from..]
            .iter()
            .take_while(|c| c.is_ascii_digit())
            .count()
    };
    let whole = digits(0);
    let mut end = whole;
    let mut seen = whole;
    if bytes.get(end) == Some(&b'.') {
        let fraction = digits(end + 1);
        seen += fraction;
        end += 1 + fraction;
    }
    if seen == 0 {
        return None;
    }
    let mantissa = &text[..end];
    let is_zero = !mantissa.bytes().any(|c| (b'1'..=b'9').contains(&c));
    let exponent = exponent_of(&text[end..], ['e', 'E']).unwrap_or(0);
    let exponent = exponent.clamp(-100_000, 100_000);
    let value: f64 = format!("{mantissa}e{exponent}").parse().ok()?;
    in_range(value, is_zero)
}

/// The number after an exponent letter, if there is one.
fn exponent_of(text: &str, letters: [char; 2]) -> Option<i64> {
    let rest = text.strip_prefix(letters)?;
    let (negative, digits) = match rest.as_bytes().first()? {
        b'-' => (true, &rest[1..]),
        b'+' => (false, &rest[1..]),
        _ => (false, rest),
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    let power = digits[..end].parse::<i64>().unwrap_or(i64::MAX / 4);
    Some(if negative { -power } else { power })
}

/// `stod` refuses what is too large, and what is so small that it loses digits. (It takes the few
/// subnormal numbers that lose none; nobody measures those.)
fn in_range(value: f64, is_zero: bool) -> Option<f64> {
    (is_zero || value.is_normal()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::nar;
    use proptest::prelude::*;

    const A: &str = "/nix/store/0a000000000000000000000000000000-app-1";
    const B: &str = "/nix/store/0b000000000000000000000000000000-app-1-doc";

    /// Names and contents.
    type Files<'f> = &'f [(&'f str, &'f str)];

    /// Writes files (`path/`: a directory, `path -> target`: a symlink) and scans them in both
    /// ways, which have to agree.
    fn build(outputs: &[(&str, &str, Files)]) -> BuildOutput {
        let dir = tempfile::tempdir().unwrap();
        let store_dir = StoreDir::default();
        let mut physical = Vec::new();
        for (_, path, files) in outputs {
            let root = dir.path().join(base_name(path));
            for (name, contents) in *files {
                let file = match *name {
                    "" => root.clone(),
                    name => root.join(name),
                };
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                if name.ends_with('/') {
                    fs::create_dir_all(file).unwrap();
                } else if let Some(target) = contents.strip_prefix("-> ") {
                    std::os::unix::fs::symlink(target, file).unwrap();
                } else {
                    fs::write(file, contents).unwrap();
                }
            }
            physical.push(root);
        }
        let on_disk: Vec<(&str, &Path)> = outputs
            .iter()
            .zip(&physical)
            .map(|((_, path, _), physical)| (*path, physical.as_path()))
            .collect();
        let scanned = scan_paths(&store_dir, &on_disk).unwrap();
        let streamed = physical.iter().map(|physical| {
            let mut bytes = Vec::new();
            nar::dump_path(physical, &mut bytes).unwrap();
            let mut scan = MemberScan::new();
            nar::parse(bytes.as_slice(), &mut scan).unwrap();
            scan
        });
        let result = |scans: Vec<MemberScan>| {
            let scans: Vec<OutputScan> = outputs
                .iter()
                .zip(scans)
                .map(|((name, path, _), scan)| OutputScan {
                    name: (*name).to_owned(),
                    path: (*path).to_owned(),
                    nar_size: 100,
                    scan,
                })
                .collect();
            build_output(&scans, 1000, &store_dir)
        };
        let from_disk = result(scanned);
        assert_eq!(from_disk, result(streamed.collect()));
        from_disk
    }

    fn products(lines: &str, files: &[(&str, &str)]) -> Vec<BuildProduct> {
        let mut files = files.to_vec();
        files.push(("nix-support/hydra-build-products", lines));
        build(&[("out", A, &files)]).products
    }

    /// The paths of the products, relative to the output.
    fn product_paths(lines: &str) -> Vec<String> {
        let files = [
            ("a.txt", "text"),
            ("b c.txt", "text"),
            ("dir/x", "x"),
            ("link", "-> dir"),
        ];
        let paths = products(lines, &files).into_iter();
        paths.map(|p| p.path[A.len()..].to_owned()).collect()
    }

    fn metrics(text: &str) -> Vec<BuildMetric> {
        build(&[("out", A, &[("nix-support/hydra-metrics", text)])]).metrics
    }

    #[test]
    fn without_products_file_directories_are_products() {
        let result = build(&[
            ("doc", B, &[("index.html", "hi")]),
            ("out", A, &[("bin/app", "#!")]),
        ]);
        let product = |path: &str, subtype: &str, name: &str| BuildProduct {
            kind: "nix-build".to_owned(),
            subtype: subtype.to_owned(),
            path: path.to_owned(),
            name: name.to_owned(),
            ..BuildProduct::default()
        };
        assert_eq!(
            result.products,
            [product(A, "", "app-1"), product(B, "doc", "app-1-doc")]
        );
        assert_eq!((result.size, result.closure_size), (200, 1000));
        assert_eq!(
            result.outputs,
            [
                ("doc".to_owned(), B.to_owned()),
                ("out".to_owned(), A.to_owned())
            ]
        );
        assert!(!result.failed);
        assert_eq!(result.release_name, None);
    }

    #[test]
    fn a_file_or_link_is_no_default_product() {
        assert_eq!(build(&[("out", A, &[("", "just a file")])]).products, []);
        assert_eq!(build(&[("out", A, &[("", "-> /etc")])]).products, []);
    }

    #[test]
    fn an_empty_products_file_leaves_no_products() {
        assert_eq!(products("", &[]), []);
        // Any output's will do.
        let file = [("nix-support/hydra-build-products", "")];
        assert_eq!(
            build(&[("out", A, &[("x", "")]), ("doc", B, &file)]).products,
            []
        );
        // But it has to be a regular file.
        let link = [("nix-support/hydra-build-products", "-> /dev/null")];
        assert_eq!(build(&[("out", A, &link)]).products.len(), 1);
    }

    #[test]
    fn a_product_of_each_type() {
        let files = [
            ("a.txt", "text"),
            ("empty", ""),
            ("dir/x", "x"),
            ("link", "-> a.txt"),
        ];
        let lines = format!(
            "file txt {A}/a.txt\ndoc none {A}/dir index.html\nfile empty {A}/empty\nx y {A}/link\nnix-build all {A}\n"
        );
        let found = products(&lines, &files);
        let text = |sha256: &str, size| (Some(size), Some(sha256.to_owned()));
        let described: Vec<_> = found
            .into_iter()
            .map(|p| {
                (
                    p.kind,
                    p.subtype,
                    p.name,
                    p.default_path,
                    (p.file_size, p.sha256),
                )
            })
            .collect();
        let s = str::to_owned;
        assert_eq!(
            described,
            [
                // sha256sum of the file
                (
                    s("file"),
                    s("txt"),
                    s("a.txt"),
                    s(""),
                    text(
                        "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1",
                        4
                    )
                ),
                (s("doc"), s("none"), s("dir"), s("index.html"), (None, None)),
                (
                    s("file"),
                    s("empty"),
                    s("empty"),
                    s(""),
                    text(
                        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                        0
                    )
                ),
                (s("x"), s("y"), s("link"), s(""), (None, None)),
                (s("nix-build"), s("all"), s(""), s(""), (None, None)),
            ]
        );
    }

    #[test]
    fn lines_match_entirely_or_not_at_all() {
        for (line, expected) in [
            (format!("file x {A}/a.txt"), "/a.txt"),
            (format!("file\t  x \x0b {A}/a.txt"), "/a.txt"),
            (format!("file x \"{A}/b c.txt\""), "/b c.txt"),
            (format!("file x \"{A}/b c.txt\" default.html"), "/b c.txt"),
            (format!("file x {A}/a.txt \"quoted\""), "/a.txt"),
            (format!("file x {A}/./dir//../a.txt"), "/a.txt"),
            (format!("file x {A}/dir/"), "/dir"),
            (format!(" file x {A}/a.txt"), "-"),
            (format!("file x {A}/a.txt "), "-"),
            (format!("file x {A}/a.txt\r"), "-"),
            (format!("file x {A}/a.txt a b"), "-"),
            (format!("file x {A}/a.txt <b>"), "-"),
            (format!("file x {A}/<a.txt>"), "-"),
            (format!("file x {A}/\"a.txt\""), "-"),
            (format!("file x {A}/b c.txt d"), "-"),
            (format!("fi.le x {A}/a.txt"), "-"),
            (format!("file x.y {A}/a.txt"), "-"),
            (format!("file x \"{A}/a.txt"), "-"),
            (format!("file x \"{A}/a.txt\"tail"), "-"),
            ("file x \"\"".to_owned(), "-"),
            (format!("file {A}/a.txt"), "-"),
            ("file x a.txt".to_owned(), "-"),
            ("file x /etc/passwd".to_owned(), "-"),
            (format!("file x {A}/../../../etc/passwd"), "-"),
            (format!("file x {A}/missing"), "-"),
            (format!("file x {A}/a.txt/x"), "-"),
            (format!("file x {B}"), "-"),
            ("file x /nix/store".to_owned(), "-"),
            // Nothing is below a symlink.
            (format!("file x {A}/link/x"), "-"),
            (format!("file x {A}/{}", "n".repeat(5000)), "-"),
            (format!("file x {A}/{}", "n".repeat(300)), "-"),
            (format!("file x \"{A}/a\0.txt\""), "-"),
            (format!("file x {A}/a.txt d\0"), "-"),
            (format!("{} x {A}/a.txt", "n".repeat(1024)), "/a.txt"),
            (format!("{} x {A}/a.txt", "n".repeat(1025)), "-"),
        ] {
            let found = product_paths(&line);
            assert_eq!(found.first().map_or("-", |p| p), expected, "{line:?}");
        }
        let lines = format!("\nbad\nfile x {A}/a.txt\n\nfile y {A}/dir/x");
        assert_eq!(product_paths(&lines), ["/a.txt", "/dir/x"]);
    }

    #[test]
    fn a_product_may_lie_in_another_output() {
        let lines = format!("doc manual {B}/index.html\ndoc whole {B}");
        let result = build(&[
            ("out", A, &[("nix-support/hydra-build-products", &lines)]),
            ("doc", B, &[("index.html", "hi")]),
        ]);
        let names: Vec<_> = result.products.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["index.html", base_name(B)]);
        let lines = format!("file it {B}");
        let result = build(&[
            ("out", A, &[("nix-support/hydra-build-products", &lines)]),
            ("doc", B, &[("", "a file")]),
        ]);
        assert_eq!(result.products[0].file_size, Some(6));
    }

    #[test]
    fn odd_names_are_not_shown() {
        let lines = format!("file x \"{A}/a&b\"\nfile x {A}/é");
        let found = products(&lines, &[("a&b", ""), ("é", "")]);
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|p| p.name.is_empty()));
    }

    #[test]
    fn release_names() {
        let name = |text: &str| {
            build(&[("out", A, &[("nix-support/hydra-release-name", text)])]).release_name
        };
        assert_eq!(name(" app-1.2@x:y_z\n").as_deref(), Some("app-1.2@x:y_z"));
        assert_eq!(name("two words"), None);
        assert_eq!(name("\n"), None);
        assert_eq!(name("a/b"), None);
        let file = |text| [("nix-support/hydra-release-name", text)];
        let result = build(&[("doc", B, &file("second")), ("out", A, &file("first"))]);
        assert_eq!(result.release_name.as_deref(), Some("second"));
        let result = build(&[("doc", B, &file("not good")), ("out", A, &file("first"))]);
        assert_eq!(result.release_name.as_deref(), Some("first"));
    }

    #[test]
    fn metrics_by_name_the_last_wins() {
        let metric = |name: &str, value, unit: Option<&str>| BuildMetric {
            name: name.to_owned(),
            value,
            unit: unit.map(str::to_owned),
        };
        assert_eq!(
            metrics(
                "z.a-b_c 1 KiB\nsize 5 % more\n\nsize 6.5\nlonely\nb@d 1\nu 2 m/s\nw x\n\tt\t7 s\r"
            ),
            [
                metric("size", 6.5, None),
                metric("t", 7.0, Some("s")),
                metric("u", 2.0, None),
                metric("z.a-b_c", 1.0, Some("KiB")),
            ]
        );
        assert_eq!(metrics(&format!("{} 1", "n".repeat(1024))).len(), 1);
        assert_eq!(metrics(&format!("{} 1", "n".repeat(1025))), []);
    }

    // What C++'s `std::stod` says, tried one by one.
    #[test]
    fn numbers_by_their_prefix() {
        for (text, value) in [
            ("12", Some(12.0)),
            ("12abc", Some(12.0)),
            ("-1.5e3x", Some(-1500.0)),
            ("+.5", Some(0.5)),
            ("5.", Some(5.0)),
            ("1e", Some(1.0)),
            ("1e+", Some(1.0)),
            ("0x10", Some(16.0)),
            ("0x1.8p1", Some(3.0)),
            ("-0xA", Some(-10.0)),
            ("0xg", Some(0.0)),
            ("0x1p-2z", Some(0.25)),
            ("0x.8", Some(0.5)),
            ("0x.p1", Some(0.0)),
            (" 1", Some(1.0)),
            ("1,5", Some(1.0)),
            ("0x123456789abcdef01234", Some(8.596_805_828_370_696e22)),
            ("infinite", Some(f64::INFINITY)),
            ("-INF", Some(f64::NEG_INFINITY)),
            ("0e999999999999", Some(0.0)),
            ("1e400", None),
            ("1e99999999999999999999", None),
            ("1e-400", None),
            ("0x1p5000", None),
            ("1e-310", None),
            ("", None),
            (".", None),
            ("-", None),
            ("e5", None),
            ("abc", None),
            ("--1", None),
        ] {
            assert_eq!(number_prefix(text), value, "{text}");
        }
        assert!(number_prefix("nanometre").unwrap().is_nan());
    }

    #[test]
    fn the_failed_marker() {
        assert!(build(&[("out", A, &[("nix-support/failed", "")])]).failed);
        assert!(build(&[("out", A, &[("nix-support/failed/", "")])]).failed);
        assert!(build(&[("out", A, &[("nix-support/failed", "-> nowhere")])]).failed);
        assert!(!build(&[("out", A, &[("failed", "")])]).failed);
        assert!(
            !build(&[(
                "out",
                A,
                &[("nix-support", "-> other"), ("other/failed", "")]
            )])
            .failed
        );
    }

    #[test]
    fn support_files_have_a_bound() {
        let large = "x".repeat(SUPPORT_FILE_BYTES_MAX + 1);
        let file = [("nix-support/hydra-build-products", large.as_str())];
        let result = build(&[("out", A, &file)]);
        assert_eq!(result.products, []);
        let mut scan = MemberScan::new();
        scan.file(b"nix-support/hydra-metrics", u64::MAX, false)
            .unwrap();
        scan.contents(&[0; 100]).unwrap();
        scan.file_end().unwrap();
        assert!(scan.notes()[0].contains("nix-support/hydra-metrics has"));
        assert_eq!(scan.support[METRICS].as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_record_is_small() {
        assert_eq!(std::mem::size_of::<(PathKey, Member)>(), 64);
    }

    #[test]
    fn a_missing_output_is_an_error() {
        let missing = Path::new("/nonexistent/output");
        let error = scan_path(&StoreDir::default(), A, missing).err().unwrap();
        assert!(error.to_string().contains("/nonexistent/output"));
    }

    proptest! {
        #[test]
        fn any_line_is_answered(line: String, shaped in "[a-z\"<> \t]{0,40}") {
            for line in [&line, &shaped] {
                if let Some(product) = product_line(line) {
                    prop_assert!(!product.path.is_empty() && !product.path.contains('"'));
                    prop_assert!(!product.default_path.contains(['<', '>', ' ']));
                }
            }
        }

        #[test]
        fn any_number_is_answered(text: String, shaped in "[-+0-9a-fxpein.]{0,12}", number: f64) {
            let _ = (number_prefix(&text), number_prefix(&shaped));
            if number.is_normal() {
                prop_assert_eq!(number_prefix(&format!("{number:e}")), Some(number));
                prop_assert_eq!(number_prefix(&format!("{number}")), Some(number));
            }
        }

        #[test]
        fn a_canonical_path_stays(path in "[./a]{0,20}") {
            if let Some(path) = canonical(&path) {
                prop_assert_eq!(canonical(&path), Some(path.clone()));
                prop_assert!(!path.contains("//") && !path.split('/').any(|p| p == ".."));
            }
        }
    }
}
