//! A file of a store, as a whole: from where it lies, or through `nix store cat`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use super::nix_copy::nix;
use crate::sys::child::{self, describe_status, plain_error};

/// Of the command's words so much is passed on, bytes.
const WORDS_MAX: usize = 1_000;

/// The bytes of a file that lies in a folder, also through links. A link that leads elsewhere is an error: what somebody built or
/// checked in must not show this host's files.
///
/// # Errors
/// Also for more than `bytes_max` bytes.
pub fn within(dir: &Path, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let path = path.canonicalize()?;
    if !path.starts_with(dir.canonicalize()?) {
        return Err(io::Error::other("it is a link out of the store"));
    }
    let mut bytes = Vec::new();
    File::open(&path)?
        .take(bytes_max + 1)
        .read_to_end(&mut bytes)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(too_large(bytes_max)),
        false => Ok(bytes),
    }
}

fn too_large(bytes_max: u64) -> io::Error {
    io::Error::other(format!("it has more than {} MiB", bytes_max >> 20))
}

/// The bytes of a file in a store: read where it lies if it is on this host too.
///
/// # Errors
/// A message that names the file.
pub fn file(
    uri: Option<&str>,
    path: &str,
    bytes_max: u64,
    time_max: Duration,
    stopping: &dyn Fn() -> bool,
) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| format!("cannot read {path}: {}", plain_error(&error));
    let here = Path::new(path);
    match within(here.parent().unwrap_or(here), here, bytes_max) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read.map_err(failed),
    }
    let mut command = nix();
    command.args(["store", "cat"]);
    if let Some(uri) = uri {
        command.args(["--store", uri]);
    }
    command.arg(path);
    let ended = child::capture(&mut command, time_max, stopping)
        .map_err(|error| child::describe_trouble("nix", &error))?;
    match (ended.status, ended.late) {
        (_, true) => Err(format!(
            "`nix store cat` of {path} was ended after {} s",
            time_max.as_secs()
        )),
        (Some(status), false) if status.success() => match ended.output.len() as u64 > bytes_max {
            true => Err(failed(too_large(bytes_max))),
            false => Ok(ended.output),
        },
        (status, false) => {
            let how = status.map_or("it does not end".to_owned(), describe_status);
            let words = crate::base::text::presentable(ended.words.as_bytes(), WORDS_MAX);
            Err(format!("`nix store cat` of {path}: {how}: {words}"))
        }
    }
}
