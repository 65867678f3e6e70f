//! GitlabStatus, GiteaStatus and BitBucketStatus: the state of builds beside the commits they were made from, where the inputs of
//! the evaluation say which repository that is.

use serde_json::{json, Value};

use super::{each, Call, Failure, Needs, Plugin};
use crate::config::notify::{BitBucket as BitBucketBlock, Tokens};
use crate::db::facts::{BuildFacts, Evaluation, Job};
use crate::nix::hash::base64_encode;
use crate::notify::event::Event;
use crate::notify::plan::Manner;

/// Which forge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Gitlab,
    Gitea,
}

/// GitlabStatus or GiteaStatus.
pub struct Forge {
    kind: Kind,
    tokens: Tokens,
}

impl Forge {
    pub fn new(kind: Kind, tokens: Tokens) -> Forge {
        Forge { kind, tokens }
    }

    /// Where an evaluation's status goes, and the header that lets us; `None`: nowhere.
    fn place(&self, evaluation: &Evaluation) -> Option<(String, (&'static str, String))> {
        let value = |name: &str| {
            let value = evaluation.input(name)?.value.as_deref()?;
            Some(value.trim().trim_matches('"')).filter(|value| !value.is_empty())
        };
        let (repository, owner) = match self.kind {
            Kind::Gitlab => ("gitlab_status_repo", "gitlab_project_id"),
            Kind::Gitea => ("gitea_status_repo", "gitea_repo_owner"),
        };
        let input = evaluation.input(value(repository)?)?;
        let (uri, revision) = (input.uri.as_deref()?, input.revision.as_deref()?);
        let owner = value(owner)?;
        let token = self.tokens.0.get(owner)?;
        Some(match self.kind {
            Kind::Gitlab => (
                format!("{}/api/v4/projects/{owner}/statuses/{revision}", site(uri)?),
                ("Private-Token", token.clone()),
            ),
            Kind::Gitea => {
                let site = match value("gitea_http_url") {
                    Some(url) => url.trim_end_matches('/').to_owned(),
                    None => site(uri)?,
                };
                let name = value("gitea_repo_name")?;
                (
                    format!("{site}/api/v1/repos/{owner}/{name}/statuses/{revision}"),
                    ("Authorization", format!("token {token}")),
                )
            }
        })
    }

    fn body(&self, call: &Call<'_>, build: &BuildFacts) -> Value {
        let ended = build.status.filter(|_| call.is_end());
        let target = format!("{}/build/{}", call.around.base_uri, build.id);
        let name = format!("Hydra {}", build.job);
        let description = super::description(build);
        match self.kind {
            Kind::Gitlab => {
                let state = match (ended, call.event) {
                    (Some(0), _) => "success",
                    (Some(3 | 4 | 8 | 10 | 11), _) => "canceled",
                    (Some(_), _) => "failed",
                    (None, Event::BuildStarted { .. }) => "running",
                    (None, _) => "pending",
                };
                json!({ "state": state, "target_url": target, "description": description, "name": name })
            }
            Kind::Gitea => json!({
                "state": super::github::state(ended), "target_url": target, "description": description, "context": name,
            }),
        }
    }
}

impl Plugin for Forge {
    fn target(&self) -> &str {
        match self.kind {
            Kind::Gitlab => "GitlabStatus",
            Kind::Gitea => "GiteaStatus",
        }
    }

    fn class(&self) -> Option<&'static str> {
        Some(match self.kind {
            Kind::Gitlab => "Hydra::Plugin::GitlabStatus",
            Kind::Gitea => "Hydra::Plugin::GiteaStatus",
        })
    }

    fn channels(&self) -> &[&'static str] {
        const ALL: [&str; 5] = [
            "build_queued",
            "build_started",
            "build_finished",
            "cached_build_queued",
            "cached_build_finished",
        ];
        match self.kind {
            Kind::Gitlab => &ALL,
            Kind::Gitea => &["build_queued", "build_started", "build_finished"],
        }
    }

    fn manner(&self) -> Manner {
        Manner { supersedes: true }
    }

    fn shares_statuses(&self) -> bool {
        true
    }

    /// The status of a commit is named after the job alone.
    fn statuses(&self, job: &Job) -> Vec<String> {
        vec![job.name()]
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let builds = call.builds()?;
        let Some(first) = builds.first() else {
            return Ok(());
        };
        let mut places: Vec<_> = call
            .evaluations(first.id)?
            .iter()
            .filter_map(|e| self.place(e))
            .collect();
        places.sort();
        places.dedup();
        let told = builds
            .iter()
            .filter(|build| call.is_end() || !build.finished);
        let posts = told.flat_map(|build| places.iter().map(move |place| (build, place)));
        each(posts, |(build, (url, (header, value)))| {
            call.post_json(url, &[(header, value)], &self.body(call, build))
                .map(drop)
        })
    }
}

/// Scheme and host of a repository's address: https, unless it is itself plain http.
fn site(uri: &str) -> Option<String> {
    let uri = uri.split_whitespace().next()?;
    let (scheme, host) = match uri.split_once("://") {
        Some(("http", rest)) => ("http", rest.split('/').next()?),
        Some(("https", rest)) => ("https", rest.split('/').next()?),
        // The port is ssh's.
        Some((_, rest)) => ("https", rest.split(['/', ':']).next()?),
        // git@host:owner/repository
        None => ("https", uri.split_once(':')?.0),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    (!host.is_empty()).then(|| format!("{scheme}://{host}"))
}

/// BitBucketStatus.
pub struct BitBucket {
    block: BitBucketBlock,
}

impl BitBucket {
    pub fn new(block: BitBucketBlock) -> BitBucket {
        BitBucket { block }
    }
}

impl Plugin for BitBucket {
    fn target(&self) -> &str {
        "BitBucketStatus"
    }

    fn class(&self) -> Option<&'static str> {
        Some("Hydra::Plugin::BitBucketStatus")
    }

    fn channels(&self) -> &[&'static str] {
        &["build_queued", "build_started", "build_finished"]
    }

    fn manner(&self) -> Manner {
        Manner { supersedes: true }
    }

    fn needs(&self) -> Needs<'_> {
        Needs {
            addresses: vec![&self.block.endpoint],
            ..Needs::default()
        }
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let builds = call.builds()?;
        let Some(first) = builds.first() else {
            return Ok(());
        };
        let evaluations = call.evaluations(first.id)?;
        let mut urls: Vec<String> = evaluations
            .iter()
            .flat_map(|evaluation| &evaluation.inputs)
            .filter(|input| input.email_responsible)
            .filter_map(|input| {
                let uri = input.uri.as_deref().filter(|uri| uri.contains("bitbucket"))?;
                let (owner, repository) = owner_and_repository(uri)?;
                let revision = input.revision.as_deref()?;
                let endpoint = &self.block.endpoint;
                Some(format!("{endpoint}/2.0/repositories/{owner}/{repository}/commit/{revision}/statuses/build"))
            })
            .collect();
        urls.sort();
        urls.dedup();
        let login = format!("{}:{}", self.block.username, self.block.password.0);
        let login = format!("Basic {}", base64_encode(login.as_bytes()));
        let told = builds
            .iter()
            .filter(|build| call.is_end() || !build.finished);
        let posts = told.flat_map(|build| urls.iter().map(move |url| (build, url)));
        each(posts, |(build, url)| {
            let state = match build.status.filter(|_| call.is_end()) {
                None => "INPROGRESS",
                Some(0) => "SUCCESSFUL",
                Some(_) => "FAILED",
            };
            let body = json!({
                "state": state, "url": format!("{}/build/{}", call.around.base_uri, build.id), "name": build.job_name(),
                "key": build.id, "description": super::description(build),
            });
            call.post_json(url, &[("Authorization", &login)], &body)
                .map(drop)
        })
    }
}

/// The last two parts of an address.
fn owner_and_repository(uri: &str) -> Option<(&str, &str)> {
    let uri = uri.split_whitespace().next()?;
    let uri = uri.trim_end_matches('/').trim_end_matches(".git");
    let (rest, repository) = uri.rsplit_once('/')?;
    let owner = rest.rsplit(['/', ':']).next()?;
    (!owner.is_empty() && !repository.is_empty()).then_some((owner, repository))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_repositories() {
        let sites = [
            (
                "https://git.example.org/o/r.git",
                Some("https://git.example.org"),
            ),
            (
                "http://git.example.org:3000/o/r main",
                Some("http://git.example.org:3000"),
            ),
            (
                "ssh://git@git.example.org:22/o/r",
                Some("https://git.example.org"),
            ),
            ("git@git.example.org:o/r", Some("https://git.example.org")),
            ("/local/path", None),
        ];
        for (uri, expected) in sites {
            assert_eq!(site(uri).as_deref(), expected, "{uri}");
        }
        assert_eq!(
            owner_and_repository("git@bitbucket.org:o/r.git"),
            Some(("o", "r"))
        );
        assert_eq!(
            owner_and_repository("https://bitbucket.org/o/r branch"),
            Some(("o", "r"))
        );
        assert_eq!(owner_and_repository("bitbucket"), None);
    }
}
