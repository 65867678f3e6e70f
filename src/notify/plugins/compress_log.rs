//! CompressLog: the log of a step that has ended is compressed in place, by this program itself.
//!
//! Whoever is the notifier compresses; nobody else does. The queue runner may begin a new attempt at the same path at any time: only
//! the file that was compressed is removed, never one that took its place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Call, Failure, Needs, Plugin};
use crate::config::notify::LogCompression;
use crate::notify::event::Event;
use crate::store::compress::{Compressor, How, Method};
use crate::sys::child::plain_error;

pub struct CompressLog {
    method: Method,
}

impl CompressLog {
    pub fn new(method: LogCompression) -> CompressLog {
        CompressLog {
            method: match method {
                LogCompression::Bzip2 => Method::Bzip2,
                LogCompression::Zstd => Method::Zstd,
            },
        }
    }
}

impl Plugin for CompressLog {
    fn target(&self) -> &str {
        "CompressLog"
    }

    fn class(&self) -> Option<&'static str> {
        Some("Hydra::Plugin::CompressLog")
    }

    fn channels(&self) -> &[&'static str] {
        &["step_finished"]
    }

    fn needs(&self) -> Needs<'_> {
        Needs {
            folders: vec!["build-logs"],
            ..Needs::default()
        }
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let Event::StepFinished { log: Some(log), .. } = call.event else {
            return Ok(());
        };
        let log = Path::new(log);
        // The path comes from a notification, which anybody with the database's rights can send.
        let logs = call.around.data_dir.join("build-logs");
        let inside = log.strip_prefix(&logs).is_ok_and(|rest| {
            rest.components()
                .all(|part| matches!(part, std::path::Component::Normal(_)))
        });
        if !inside {
            return Err(Failure::refused(format!(
                "{} is not below {}",
                log.display(),
                logs.display()
            )));
        }
        compress(log, self.method).map_err(|error| {
            Failure::again(format!(
                "cannot compress {}: {}",
                log.display(),
                plain_error(&error)
            ))
        })
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A log that is not there needs no compressing: another attempt took its place, or somebody was faster.
fn compress(log: &Path, method: Method) -> io::Result<()> {
    let from = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(log)
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let before = from.metadata()?;
    if !before.is_file() {
        return Ok(());
    }
    let temporary = with_ending(log, ".hydrad-tmp");
    let made = write(&from, &temporary, method);
    let finished = made.and_then(|()| {
        let now = fs::symlink_metadata(log);
        let same = now.is_ok_and(|now| {
            (now.dev(), now.ino(), now.size()) == (before.dev(), before.ino(), before.size())
        });
        match same {
            true => {
                fs::rename(&temporary, with_ending(log, method.file_ending()))?;
                fs::remove_file(log)
            }
            // A new attempt writes there, or this log grew: it will be announced again.
            false => fs::remove_file(&temporary),
        }
    });
    if finished.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    finished
}

fn write(from: &File, to: &Path, method: Method) -> io::Result<()> {
    let out = File::create(to)?;
    out.set_permissions(from.metadata()?.permissions())?;
    let how = How {
        method,
        level: None,
        parallel: false,
    };
    let mut compressor = Compressor::new(how, BufWriter::new(out))?;
    io::copy(&mut BufReader::new(from), &mut compressor)?;
    let mut out = compressor.finish()?;
    out.flush()?;
    out.get_ref().sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::compress::decompress;
    use std::io::Read;

    #[test]
    fn a_log_is_replaced_by_its_compressed_form_and_a_missing_one_is_no_error() {
        for method in [Method::Bzip2, Method::Zstd] {
            let dir = tempfile::tempdir().expect("a folder");
            let log = dir.path().join("x.drv");
            fs::write(&log, "line\n".repeat(10_000)).expect("written");
            compress(&log, method).expect("compressed");
            assert!(!log.exists());
            let packed = File::open(with_ending(&log, method.file_ending())).expect("there");
            let mut text = String::new();
            let mut packed = decompress(method.name(), packed)
                .expect("read")
                .expect("known");
            packed.read_to_string(&mut text).expect("whole");
            assert_eq!(text, "line\n".repeat(10_000));
            assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1);
            compress(&log, method).expect("nothing to do");
        }
    }
}
