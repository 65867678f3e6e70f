//! The specification of a declarative project, read from the input that has it.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use crate::config::declarative::SPECIFICATION_BYTES_MAX;
use crate::nix::StoreDir;

/// The text of the file in the input's files.
///
/// # Errors
/// When it cannot be read, or lies outside the store: a link in somebody's repository must not show this host's files.
pub fn read(store: &StoreDir, input: &str, file: &str) -> Result<String, String> {
    let failed = |why: String| format!("cannot read the project's specification ‘{file}’: {why}");
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(file).components().all(plain) {
        return Err(failed("it has to be a path inside the input".to_owned()));
    }
    let io = |error: std::io::Error| failed(crate::sys::child::plain_error(&error));
    let path = std::fs::canonicalize(Path::new(input).join(file)).map_err(io)?;
    let dir = std::fs::canonicalize(store.as_str()).map_err(io)?;
    if !path.starts_with(&dir) {
        return Err(failed("it is a link out of the store".to_owned()));
    }
    let mut text = String::new();
    let mut limited = File::open(&path)
        .map_err(io)?
        .take(SPECIFICATION_BYTES_MAX + 1);
    limited.read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > SPECIFICATION_BYTES_MAX {
        let megabytes = SPECIFICATION_BYTES_MAX >> 20;
        return Err(failed(format!("it has more than {megabytes} MiB")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specification_lies_in_its_input() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = StoreDir(dir.path().join("store").display().to_string());
        let input = dir.path().join("store/x-source");
        std::fs::create_dir_all(&input).expect("an input");
        std::fs::write(dir.path().join("secret"), "{}").expect("a file");
        std::fs::write(input.join("spec.json"), "{}").expect("a file");
        std::os::unix::fs::symlink("../../secret", input.join("link.json")).expect("a link");
        let read = |file: &str| read(&store, &input.display().to_string(), file);
        assert_eq!(read("spec.json").as_deref(), Ok("{}"));
        assert_eq!(read("./spec.json").as_deref(), Ok("{}"));
        for (file, why) in [
            ("../../secret", "a path inside the input"),
            ("/etc/passwd", "a path inside the input"),
            ("link.json", "a link out of the store"),
            ("none.json", "No such file or directory"),
        ] {
            let error = read(file).expect_err(file);
            assert!(error.contains(why), "{file}: {error}");
        }
    }
}
