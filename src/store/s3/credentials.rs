//! Who we are to S3: the places where AWS's own programs look for credentials.
//!
//! In this order: a profile that the store's URI names; `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`; the profile
//! `AWS_PROFILE` (else `default`) of the shared files; the role of this EC2 instance. Roles to assume, single sign-on
//! and programs that print credentials are not supported and are named as such where they are found.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::model::UnixSecs;
use crate::sys::child::plain_error;

/// The shared files are read up to this size.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a request is signed with. The secret is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
    /// When they stop working, if that is known.
    pub expires: Option<UnixSecs>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.access_key_id)
    }
}

impl Credentials {
    pub fn fixed(id: &str, secret: &str, token: Option<String>) -> Credentials {
        Credentials {
            access_key_id: id.to_owned(),
            secret_access_key: secret.to_owned(),
            session_token: token,
            expires: None,
        }
    }
}

/// Where credentials come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The environment, which does not change while we run.
    Environment(Credentials),
    /// A profile of the shared files, read again when the server says that credentials have expired.
    Profile { name: String, files: Files },
    /// The instance's role, through the metadata service.
    Instance,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Environment(credentials) => {
                write!(f, "AWS_ACCESS_KEY_ID ({})", credentials.access_key_id)
            }
            Source::Profile { name, files } => {
                write!(f, "profile '{name}' of {}", files.credentials.display())
            }
            Source::Instance => f.write_str("the role of this EC2 instance"),
        }
    }
}

/// The two files that AWS's programs share.
#[derive(Clone, Debug)]
pub struct Files {
    credentials: PathBuf,
    config: PathBuf,
}

impl Files {
    /// As `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE` say, else in `~/.aws`.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Files {
        let home = PathBuf::from(env("HOME").unwrap_or_else(|| "/".to_owned())).join(".aws");
        let file = |variable: &str, name: &str| {
            env(variable)
                .filter(|path| !path.is_empty())
                .map_or_else(|| home.join(name), PathBuf::from)
        };
        Files {
            credentials: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: file("AWS_CONFIG_FILE", "config"),
        }
    }

    /// A setting of a profile in the config file, such as `region`.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn setting(&self, profile: &str, key: &str) -> Result<Option<String>, String> {
        let text = read(&self.config)?;
        Ok(section(&text, &config_section(profile)).and_then(|pairs| value(&pairs, key)))
    }

    /// The credentials of a profile, from the credentials file, else from the config file.
    ///
    /// # Errors
    /// When a file cannot be read, or the profile has no credentials that we understand; `Ok(None)` if there is no such
    /// profile.
    pub fn credentials(&self, profile: &str) -> Result<Option<Credentials>, String> {
        let mut found = false;
        for (file, name) in [
            (&self.credentials, profile.to_owned()),
            (&self.config, config_section(profile)),
        ] {
            let text = read(file)?;
            let Some(pairs) = section(&text, &name) else {
                continue;
            };
            found = true;
            let id = value(&pairs, "aws_access_key_id");
            let secret = value(&pairs, "aws_secret_access_key");
            match (id, secret) {
                (Some(id), Some(secret)) => {
                    let token = value(&pairs, "aws_session_token");
                    return Ok(Some(Credentials::fixed(&id, &secret, token)));
                }
                (None, None) => {}
                _ => {
                    return Err(format!(
                        "profile '{profile}' in {} has only one of aws_access_key_id and aws_secret_access_key",
                        file.display()
                    ));
                }
            }
            let foreign = [
                "role_arn",
                "sso_session",
                "sso_start_url",
                "credential_process",
            ]
            .into_iter()
            .find(|key| value(&pairs, key).is_some());
            if let Some(key) = foreign {
                return Err(format!(
                    "profile '{profile}' in {} uses {key}, which hydrad does not understand; let AWS's own tools make \
                     credentials (aws configure export-credentials) and give it those",
                    file.display()
                ));
            }
        }
        if found && profile != "default" {
            return Err(format!(
                "profile '{profile}' has no aws_access_key_id in {} or {}",
                self.credentials.display(),
                self.config.display()
            ));
        }
        Ok(None)
    }
}

impl Source {
    /// Chooses once, at the start. `profile` is what the store's URI names.
    ///
    /// # Errors
    /// With where was looked and what is missing.
    pub fn choose(
        env: &dyn Fn(&str) -> Option<String>,
        profile: Option<&str>,
    ) -> Result<Source, String> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let files = Files::from_env(env);
        let of_profile = |name: &str| -> Result<Option<Source>, String> {
            Ok(files.credentials(name)?.map(|_| Source::Profile {
                name: name.to_owned(),
                files: files.clone(),
            }))
        };
        let absent = |name: &str, named_by: &str| {
            format!(
                "{named_by} names the profile '{name}', which is neither in {} nor in {}",
                files.credentials.display(),
                files.config.display()
            )
        };
        if let Some(name) = profile {
            return of_profile(name)?.ok_or_else(|| absent(name, "store_uri"));
        }
        match (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => {
                return Ok(Source::Environment(Credentials::fixed(
                    &id,
                    &secret,
                    set("AWS_SESSION_TOKEN"),
                )));
            }
            (None, None) => {}
            (Some(_), None) => {
                return Err("AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not".to_owned())
            }
            (None, Some(_)) => {
                return Err("AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not".to_owned())
            }
        }
        if let Some(name) = set("AWS_PROFILE") {
            return of_profile(&name)?.ok_or_else(|| absent(&name, "AWS_PROFILE"));
        }
        if let Some(source) = of_profile("default")? {
            return Ok(source);
        }
        if set("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value == "true") {
            return Err(format!(
                "no credentials: neither AWS_ACCESS_KEY_ID nor a profile in {} is there, and \
                 AWS_EC2_METADATA_DISABLED forbids to ask for those of an EC2 instance",
                files.credentials.display()
            ));
        }
        Ok(Source::Instance)
    }
}

/// In the config file all sections but `default` are called `profile NAME`.
fn config_section(profile: &str) -> String {
    match profile {
        "default" => "default".to_owned(),
        name => format!("profile {name}"),
    }
}

/// The text of a file; empty if there is none.
fn read(path: &Path) -> Result<String, String> {
    let cannot = |why: String| format!("cannot read {}: {why}", path.display());
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        // A home folder that the service may not see, as systemd's ProtectHome= makes it.
        Err(error) => return Err(cannot(plain_error(&error))),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return Err(cannot(format!("it is larger than {FILE_BYTES_MAX} bytes")))
        }
        Ok(_) => {}
    }
    fs::read_to_string(path).map_err(|error| cannot(plain_error(&error)))
}

/// The `key = value` pairs of a section; `None` if there is no such section. Indented lines belong to nested settings.
fn section<'a>(text: &'a str, name: &str) -> Option<Vec<(&'a str, &'a str)>> {
    let mut pairs = None;
    let mut inside = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(header) = trimmed
            .strip_prefix('[')
            .and_then(|rest| rest.split_once(']'))
        {
            let words: Vec<&str> = header.0.split_whitespace().collect();
            inside = words.join(" ") == name;
            if inside {
                pairs.get_or_insert_with(Vec::new);
            }
            continue;
        }
        if !inside || line.starts_with([' ', '\t']) {
            continue;
        }
        if let (Some(pairs), Some((key, value))) = (pairs.as_mut(), trimmed.split_once('=')) {
            pairs.push((key.trim(), value.trim()));
        }
    }
    pairs
}

fn value(pairs: &[(&str, &str)], key: &str) -> Option<String> {
    pairs
        .iter()
        .rev()
        .find(|(name, value)| name.eq_ignore_ascii_case(key) && !value.is_empty())
        .map(|(_, value)| (*value).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn choose(dir: &Path, env: &[(&str, &str)], profile: Option<&str>) -> Result<Source, String> {
        let mut env: HashMap<String, String> = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        env.insert("HOME".to_owned(), dir.display().to_string());
        Source::choose(&|name| env.get(name).cloned(), profile)
    }

    #[test]
    fn credentials_are_found_where_the_tools_of_aws_find_them() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join(".aws")).expect("made");
        fs::write(
            dir.path().join(".aws/credentials"),
            "# of the farm\n[default]\naws_access_key_id = D\naws_secret_access_key=ds\n\
             [farm]\naws_access_key_id=F\naws_secret_access_key = f=s\naws_session_token = ft\n[half]\naws_access_key_id=H\n",
        )
        .expect("written");
        fs::write(
            dir.path().join(".aws/config"),
            "[profile farm]\nregion = eu-west-1\ns3 =\n  region = nested\n[profile other]\naws_access_key_id=O\n\
             aws_secret_access_key=os\n[profile role]\nrole_arn = arn:aws:iam::1:role/x\n",
        )
        .expect("written");
        let both = [("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "es")];
        let id =
            |env: &[(&str, &str)], profile: Option<&str>| match choose(dir.path(), env, profile)? {
                Source::Environment(credentials) => Ok(credentials),
                Source::Profile { name, files } => files
                    .credentials(&name)
                    .map(|credentials| credentials.expect("was there")),
                Source::Instance => Err("instance".to_owned()),
            };
        assert_eq!(id(&both, None), Ok(Credentials::fixed("E", "es", None)));
        assert_eq!(id(&[], None), Ok(Credentials::fixed("D", "ds", None)));
        let farm = Credentials::fixed("F", "f=s", Some("ft".to_owned()));
        assert_eq!(
            id(&both, Some("farm")),
            Ok(farm.clone()),
            "the URI goes first"
        );
        assert_eq!(id(&[("AWS_PROFILE", "farm")], None), Ok(farm));
        assert_eq!(
            id(&[], Some("other")),
            Ok(Credentials::fixed("O", "os", None))
        );

        let files =
            Files::from_env(&|name| (name == "HOME").then(|| dir.path().display().to_string()));
        assert_eq!(
            files.setting("farm", "region"),
            Ok(Some("eu-west-1".to_owned()))
        );
        assert_eq!(files.setting("default", "region"), Ok(None));

        for (env, profile, words) in [
            (&both[..1], None, "AWS_SECRET_ACCESS_KEY is not"),
            (
                &[],
                Some("none"),
                "store_uri names the profile 'none', which is neither in",
            ),
            (
                &[("AWS_PROFILE", "nobody")],
                None,
                "AWS_PROFILE names the profile 'nobody'",
            ),
            (&[], Some("half"), "only one of"),
            (&[], Some("role"), "uses role_arn"),
        ] {
            let error = id(env, profile).expect_err("must fail");
            assert!(error.contains(words), "{error}");
        }
        let nowhere = tempfile::tempdir().expect("a folder");
        assert!(matches!(
            choose(nowhere.path(), &[], None),
            Ok(Source::Instance)
        ));
        let error = choose(
            nowhere.path(),
            &[("AWS_EC2_METADATA_DISABLED", "true")],
            None,
        );
        assert!(error
            .expect_err("must fail")
            .starts_with("no credentials: "));
    }
}
