//! The specification of a declarative project, read from the input that has it.

use std::path::{Component, Path};

use crate::config::declarative::SPECIFICATION_BYTES_MAX;
use crate::nix::StoreDir;
use crate::store::cat;
use crate::sys::child::plain_error;

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
    let path = Path::new(input).join(file);
    let bytes = cat::within(Path::new(store.as_str()), &path, SPECIFICATION_BYTES_MAX)
        .map_err(|error| failed(plain_error(&error)))?;
    String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8".to_owned()))
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
