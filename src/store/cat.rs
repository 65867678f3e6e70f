//! A file of a store, as a whole: from where it lies, or through `nix store cat`.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::time::Duration;

use super::nix_copy::nix;
use crate::sys::child::{self, describe_status, plain_error};

/// Of the command's words so much is passed on, bytes.
const WORDS_MAX: usize = 1_000;

/// The bytes of a file in the store, or in the local file system if it is there too.
///
/// # Errors
/// A message that names the file, and the store if that was asked.
pub fn file(
    uri: Option<&str>,
    path: &str,
    bytes_max: u64,
    time_max: Duration,
    stopping: &dyn Fn() -> bool,
) -> Result<Vec<u8>, String> {
    let too_large = || format!("{path} has more than {bytes_max} bytes");
    match File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(bytes_max + 1)
                .read_to_end(&mut bytes)
                .map_err(|error| format!("cannot read {path}: {}", plain_error(&error)))?;
            return match bytes.len() as u64 > bytes_max {
                true => Err(too_large()),
                false => Ok(bytes),
            };
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(format!("cannot read {path}: {}", plain_error(&error))),
    }
    let mut command = nix();
    command.args(["store", "cat"]);
    if let Some(uri) = uri {
        command.args(["--store", uri]);
    }
    command.arg(path);
    let ended = child::capture(&mut command, time_max, stopping)
        .map_err(|error| format!("cannot start nix: {}", plain_error(&error)))?;
    match (ended.status, ended.late) {
        (_, true) => Err(format!(
            "`nix store cat` of {path} was ended after {} s",
            time_max.as_secs()
        )),
        (Some(status), false) if status.success() => match ended.output.len() as u64 > bytes_max {
            true => Err(too_large()),
            false => Ok(ended.output),
        },
        (status, false) => {
            let how = status.map_or("it does not end".to_owned(), describe_status);
            let words = crate::base::text::presentable(ended.words.as_bytes(), WORDS_MAX);
            Err(format!("`nix store cat` of {path}: {how}: {words}"))
        }
    }
}
