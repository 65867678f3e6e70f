//! What hydra.conf says of the inputs of evaluations, typed. Knows the blocks' keys; does not know how an input is fetched.

use std::collections::BTreeMap;
use std::time::Duration;

use super::hydra_conf::{Block, Document};
use super::notify::{tokens, wrong, PluginError, Tokens};
use super::settings::parse_seconds;

/// How inputs are fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InputSettings {
    /// Of a program or of all requests for one input, unless `<git-input>` says otherwise.
    pub time_max: Duration,
    /// For how long a path that was looked at is not looked at again.
    pub path_validity: Duration,
    /// Where builds are fetched from that are not in the local store.
    pub eval_substituter: Option<String>,
    /// Without a slash at its end.
    pub github_endpoint: String,
    /// The same.
    pub bitbucket_endpoint: String,
    /// `<git-input>` for all.
    pub git: GitSettings,
    /// Its blocks by `PROJECT:JOBSET:INPUT`.
    pub git_of: BTreeMap<String, GitSettings>,
    pub github_tokens: Tokens,
    pub gitlab_tokens: Tokens,
    pub bitbucket_tokens: Tokens,
    pub gitea_tokens: Tokens,
    /// What is wrong in the blocks. It counts where inputs are fetched, and stops nobody else.
    pub errors: Vec<PluginError>,
}

/// What may be said of git inputs: in `<git-input>`, in a block of one input, or in the input's value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GitSettings {
    pub timeout: Option<Duration>,
    /// Taken where neither the value nor the repository names a branch.
    pub fallback_branch: Option<String>,
    pub submodules: Option<bool>,
}

impl GitSettings {
    /// Takes one setting.
    ///
    /// # Errors
    /// What is expected instead.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), String> {
        let text = text.trim();
        match key {
            "timeout" => match parse_seconds(text).filter(|time| !time.is_zero()) {
                Some(time) => self.timeout = Some(time),
                None => return Err(format!("`timeout = {text}`: expected seconds, such as 600")),
            },
            "fallback_branch" if !text.is_empty() => self.fallback_branch = Some(text.to_owned()),
            "fallback_branch" => return Err("`fallback_branch`: expected a branch".to_owned()),
            "submodules" => match text {
                "true" | "1" => self.submodules = Some(true),
                "false" | "0" => self.submodules = Some(false),
                _ => return Err(format!("`submodules = {text}`: expected true or false")),
            },
            _ => {
                return Err(format!(
                    "unknown key `{key}`; git inputs know timeout, fallback_branch and submodules"
                ))
            }
        }
        Ok(())
    }

    /// What `other` says goes first.
    pub fn or(&self, other: &GitSettings) -> GitSettings {
        GitSettings {
            timeout: other.timeout.or(self.timeout),
            fallback_branch: other
                .fallback_branch
                .clone()
                .or_else(|| self.fallback_branch.clone()),
            submodules: other.submodules.or(self.submodules),
        }
    }
}

impl InputSettings {
    /// Reads the blocks; the rest are settings of their own.
    pub fn of(
        document: &Document,
        time_max: Duration,
        path_validity: Duration,
        eval_substituter: Option<String>,
        [github_endpoint, bitbucket_endpoint]: [String; 2],
    ) -> InputSettings {
        let root = &document.root;
        let tokens_of = |name| tokens(root, name).unwrap_or_default();
        let mut settings = InputSettings {
            time_max,
            path_validity,
            eval_substituter,
            github_endpoint: github_endpoint.trim_end_matches('/').to_owned(),
            bitbucket_endpoint: bitbucket_endpoint.trim_end_matches('/').to_owned(),
            git: GitSettings::default(),
            git_of: BTreeMap::new(),
            github_tokens: tokens_of("github_authorization"),
            gitlab_tokens: tokens_of("gitlab_authorization"),
            bitbucket_tokens: tokens_of("bitbucket_authorization"),
            gitea_tokens: tokens_of("gitea_authorization"),
            errors: Vec::new(),
        };
        for block in root.blocks_named("git-input") {
            let all = read(block, &mut settings.errors);
            settings.git = settings.git.or(&all);
            for one in &block.blocks {
                let name = match &one.argument {
                    Some(rest) => format!("{} {rest}", one.name),
                    None => one.name.clone(),
                };
                let said = read(one, &mut settings.errors);
                let known = settings.git_of.entry(name).or_default();
                *known = known.or(&said);
            }
        }
        settings
    }

    /// What hydra.conf says of one git input.
    pub fn git_input(&self, project: &str, jobset: &str, input: &str) -> GitSettings {
        match self.git_of.get(&format!("{project}:{jobset}:{input}")) {
            Some(one) => self.git.or(one),
            None => self.git.clone(),
        }
    }
}

fn read(block: &Block, errors: &mut Vec<PluginError>) -> GitSettings {
    let mut settings = GitSettings::default();
    for a in &block.assignments {
        if let Err(what) = settings.set(&a.key, &a.text) {
            errors.push(wrong(&a.at, format!("<{}>: {what}", block.name)));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::hydra_conf;
    use std::path::Path;

    #[test]
    fn a_block_of_one_input_goes_before_the_one_for_all() {
        let text = "\
<git-input>
  timeout = 400
  <p:j:src>
    timeout = 10m
    submodules = 1
  </p:j:src>
  <p:j:bad>
    depth = 1
  </p:j:bad>
</git-input>
<github_authorization>
  owner = Bearer secret-word
</github_authorization>
";
        let none = |_: &Path| Err(std::io::Error::other("no includes"));
        let document =
            hydra_conf::parse(Path::new("/hydra.conf"), text.as_bytes(), &none).expect("syntax");
        let second = Duration::from_secs(1);
        let settings = InputSettings::of(
            &document,
            second,
            second,
            None,
            ["https://h/".to_owned(), "https://b".to_owned()],
        );
        assert_eq!(settings.github_endpoint, "https://h");
        let of = |input| settings.git_input("p", "j", input);
        assert_eq!(of("src").timeout, Some(Duration::from_secs(600)));
        assert_eq!(of("src").submodules, Some(true));
        assert_eq!(of("other").timeout, Some(Duration::from_secs(400)));
        let said: Vec<String> = settings.errors.iter().map(|e| e.to_string()).collect();
        assert_eq!(
            said,
            ["/hydra.conf:8: <p:j:bad>: unknown key `depth`; git inputs know timeout, fallback_branch and submodules"]
        );
        assert!(!format!("{settings:?}").contains("secret-word"));
    }
}
