//! `path`: `PATH|URL [SECONDS]`, a file or folder of this host or something to download. The revision is when these contents were
//! first seen there, and their hash.

use std::path::Path;

use super::task::{Task, Trouble};
use super::value::{check_uri, plain, shown};
use crate::base::text::rfc3339;
use crate::config::settings::parse_seconds;
use crate::db::input_cache::{self, Cached};
use crate::eval::input::FetchedInput;
use crate::nix::hash::nix32_encode;
use crate::nix::store_path::base_name;
use crate::sys::clock::unix_now;

const SCHEMES: &[&str] = &["https", "http", "ftp", "file", "s3"];
const SECS_MAX: i64 = 100 * 366 * 86_400;

pub fn fetch(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let value = task.spec.value.trim();
    plain(value)?;
    let seconds = |word: &str| match word.bytes().all(|b| b.is_ascii_digit()) {
        true => parse_seconds(word),
        false => None,
    };
    // A path may have blanks; only a number at the end is none of it.
    let own = value
        .rsplit_once(' ')
        .and_then(|(path, word)| Some((path.trim_end(), seconds(word)?)));
    let (source, validity) = own.unwrap_or((value, task.fetcher.settings.path_validity));
    check_uri(source, SCHEMES, true)?;
    let now = unix_now();
    let since = now - i64::try_from(validity.as_secs()).unwrap_or(SECS_MAX);
    let recent = input_cache::recent_path(&mut *task.conn()?, source, since)?;
    let (cached, first_seen) = match recent {
        Some((cached, first_seen)) if task.hold(&cached.store_path)? => (cached, first_seen),
        _ => {
            log::info!(
                "copying input {} from {}",
                task.spec.name,
                shown(&task.spec.value)
            );
            let mut cached = match source.starts_with('/') {
                true => copy(task, Path::new(source))?,
                false => download(task, source)?,
            };
            cached.sha256 = format!("sha256:{}", cached.sha256);
            let seen = input_cache::see_path(&mut *task.conn()?, source, &cached, now)?;
            (cached, seen)
        }
    };
    Ok(FetchedInput {
        uri: Some(source.to_owned()),
        revision: Some(format!("{}:{}", compact(first_seen), cached.sha256)),
        ..task.fetched(&cached)
    })
}

fn copy(task: &Task<'_>, path: &Path) -> Result<Cached, Trouble> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    task.enter(path, &name)
}

/// Nix itself downloads, with its certificates, netrc and S3 credentials.
fn download(task: &Task<'_>, url: &str) -> Result<Cached, Trouble> {
    let mut command = task.program("nix-prefetch-url");
    command.env("PRINT_PATH", "1").args(["--type", "sha256"]);
    let said = task.run(command.arg(url), task.time_max())?;
    let path = said.lines().last().unwrap_or_default();
    let lost = || {
        Trouble::Failed(format!(
            "{} was downloaded to ‘{path}’, which is not in the store",
            base_name(url)
        ))
    };
    if !task.hold(path)? {
        return Err(lost());
    }
    let info = task.fetcher.store.query(path).map_err(Trouble::Failed)?;
    Ok(Cached {
        store_path: path.to_owned(),
        sha256: nix32_encode(&info.ok_or_else(lost)?.nar_hash),
        rev_count: None,
    })
}

/// Unix time as `YYYYMMDDhhmmss`, UTC.
pub fn compact(time: i64) -> String {
    let mut text = rfc3339(time);
    text.retain(|c| c.is_ascii_digit());
    text
}
