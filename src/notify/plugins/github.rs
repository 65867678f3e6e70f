//! GithubStatus: the state of builds beside the commits they were made from.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::json;

use super::{each, Call, Failure, Needs, Plugin};
use crate::config::notify::{GithubStatus as Block, Secret, Tokens};
use crate::db::facts::{BuildFacts, Evaluation, Job};
use crate::notify::plan::Manner;

static FLAKE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^github:([^/]+)/([^/]+)/([0-9a-f]{40})(?:\?narHash=[^&]*)?$")
        .expect("BUG: a pattern")
});
static FLAKE_SSH: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^git\+ssh://git@github\.com/([^/]+)/([^/?]+)\?(?:.*&)?rev=([0-9a-f]{40})(?:&.*)?$")
        .expect("BUG: a pattern")
});
static URI: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[:/]([^/]+)/([^/]+?)(?:.git)?$").expect("BUG: a pattern"));
static PULL_REQUEST: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"-pr-\d+").expect("BUG: a pattern"));

pub struct GithubStatus {
    blocks: Vec<Block>,
    tokens: Tokens,
}

/// A commit that gets a status.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Commit {
    input: String,
    owner: String,
    repository: String,
    revision: String,
}

impl GithubStatus {
    pub fn new(blocks: Vec<Block>, tokens: Tokens) -> GithubStatus {
        GithubStatus { blocks, tokens }
    }
}

impl Plugin for GithubStatus {
    fn target(&self) -> &str {
        "GithubStatus"
    }

    fn class(&self) -> Option<&'static str> {
        Some("Hydra::Plugin::GithubStatus")
    }

    fn channels(&self) -> &[&'static str] {
        &[
            "build_queued",
            "build_started",
            "build_finished",
            "cached_build_queued",
            "cached_build_finished",
        ]
    }

    fn manner(&self) -> Manner {
        Manner { supersedes: true }
    }

    fn needs(&self) -> Needs<'_> {
        Needs {
            addresses: self.blocks.iter().map(|b| b.endpoint.as_str()).collect(),
            ..Needs::default()
        }
    }

    fn shares_statuses(&self) -> bool {
        let shared = |block: &Block| block.exclude_build || block.context.is_some();
        self.blocks.iter().any(shared)
    }

    /// Whichever commit it is: that is not known before the evaluation is read, and other commits only wait their turn.
    fn statuses(&self, job: &Job) -> Vec<String> {
        let name = job.name();
        let blocks = self.blocks.iter().filter(|block| block.jobs.matches(&name));
        blocks
            .filter_map(|block| match (&block.context, block.exclude_build) {
                (Some(context), _) => Some(format!("{}:{}:={context}", job.project, job.jobset)),
                (None, true) => Some(name.clone()),
                (None, false) => None,
            })
            .collect()
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let builds = call.builds()?;
        let Some(first) = builds.first() else {
            return Ok(());
        };
        let mut evaluations = None;
        let mut posts = Vec::new();
        for build in &builds {
            // The end has been told, or will be.
            if !call.is_end() && build.finished {
                continue;
            }
            let job = build.job_name();
            for block in self.blocks.iter().filter(|block| block.jobs.matches(&job)) {
                if evaluations.is_none() {
                    evaluations = Some(call.evaluations(first.id)?);
                }
                let evaluations: &[Evaluation] = evaluations.as_deref().unwrap_or_default();
                let commits: BTreeSet<Commit> = evaluations
                    .iter()
                    .flat_map(|e| commits(e, &block.inputs))
                    .collect();
                posts.extend(commits.into_iter().map(|commit| (build, block, commit)));
            }
        }
        each(posts, |(build, block, commit)| {
            self.post(call, build, block, &commit)
        })
    }
}

impl GithubStatus {
    fn post(
        &self,
        call: &Call<'_>,
        build: &BuildFacts,
        block: &Block,
        commit: &Commit,
    ) -> Result<(), Failure> {
        let token = self.tokens.0.get(&commit.owner).cloned();
        let token = token.or_else(|| {
            block
                .authorization
                .as_ref()
                .map(|Secret(text)| text.clone())
        });
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Err(Failure::refused(format!(
                "no authorization for {}; put it into <github_authorization>",
                commit.owner
            )));
        };
        let body = json!({
            "state": state(build.status.filter(|_| call.is_end())),
            "target_url": format!("{}/build/{}", call.around.base_uri, build.id),
            "description": block.description.clone().unwrap_or_else(|| super::description(build)),
            "context": context(block, build),
        });
        let url = format!(
            "{}/repos/{}/{}/statuses/{}",
            block.endpoint, commit.owner, commit.repository, commit.revision
        );
        let headers = [
            ("Accept", "application/vnd.github.v3+json"),
            ("Authorization", token.as_str()),
        ];
        call.post_json(&url, &headers, &body).map(drop)
    }
}

/// `None`: it has not ended.
pub fn state(status: Option<i32>) -> &'static str {
    match status {
        None => "pending",
        Some(0) => "success",
        Some(3 | 4 | 8 | 10 | 11) => "error",
        Some(_) => "failure",
    }
}

fn context(block: &Block, build: &BuildFacts) -> String {
    if let Some(context) = &block.context {
        return context.clone();
    }
    let job = build.job_name();
    let name = match block.use_short_context {
        true => format!("ci/hydra:{}", PULL_REQUEST.replace(&job, "")),
        false => format!("continuous-integration/hydra:{job}"),
    };
    match block.exclude_build {
        true => name,
        false => format!("{name}:{}", build.id),
    }
}

/// The commits of an evaluation: that of its flake, and those of the inputs that are asked for.
fn commits(evaluation: &Evaluation, inputs: &[String]) -> Vec<Commit> {
    let commit = |input: &str, owner: &str, repository: &str, revision: &str| Commit {
        input: input.to_owned(),
        owner: owner.to_owned(),
        repository: repository.trim_end_matches(".git").to_owned(),
        revision: revision.to_owned(),
    };
    if let Some(flake) = &evaluation.flake {
        let found = FLAKE.captures(flake).or_else(|| FLAKE_SSH.captures(flake));
        return found
            .map(|found| commit("src", &found[1], &found[2], &found[3]))
            .into_iter()
            .collect();
    }
    let mut commits = Vec::new();
    for name in inputs {
        let Some(input) = evaluation.input(name) else {
            continue;
        };
        if let (Some(uri), Some(revision)) = (&input.uri, &input.revision) {
            // What is behind the address (a branch, say) is not part of it.
            let uri = uri.split_whitespace().next().unwrap_or("");
            if let Some(found) = URI.captures(uri) {
                commits.push(commit(name, &found[1], &found[2], revision));
            }
        }
    }
    commits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::facts::Input;

    #[test]
    fn commits_come_from_flakes_and_inputs() {
        let of = |flake: &str| {
            let evaluation = Evaluation {
                flake: Some(flake.to_owned()),
                ..Evaluation::default()
            };
            commits(&evaluation, &[])
                .pop()
                .map(|c| format!("{}/{}", c.owner, c.repository))
        };
        let rev = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(of(&format!("github:o/r/{rev}")).as_deref(), Some("o/r"));
        assert_eq!(
            of(&format!("github:o/r/{rev}?narHash=sha256-x")).as_deref(),
            Some("o/r")
        );
        assert_eq!(
            of(&format!(
                "git+ssh://git@github.com/o/r.git?ref=main&rev={rev}"
            ))
            .as_deref(),
            Some("o/r")
        );
        assert_eq!(of("github:o/r/main"), None);
        for uri in [
            "git@github.com:o/r.git",
            "https://github.com/o/r",
            "https://github.com/o/r.git main",
        ] {
            let input = Input {
                name: "src".into(),
                uri: Some(uri.into()),
                revision: Some(rev.into()),
                ..Input::default()
            };
            let evaluation = Evaluation {
                inputs: vec![input],
                ..Evaluation::default()
            };
            let found = commits(&evaluation, &["src".to_owned(), "none".to_owned()]);
            assert_eq!(found.len(), 1, "{uri}");
            assert_eq!(
                (found[0].owner.as_str(), found[0].repository.as_str()),
                ("o", "r")
            );
        }
    }

    #[test]
    fn contexts_are_hydras() {
        let mut block = Block {
            jobs: crate::config::pattern::Pattern::new("").expect("a pattern"),
            inputs: Vec::new(),
            context: None,
            description: None,
            use_short_context: false,
            exclude_build: false,
            authorization: None,
            endpoint: String::new(),
        };
        let build = BuildFacts {
            id: 7,
            project: "p".into(),
            jobset: "s-pr-12".into(),
            job: "j-pr-3".into(),
            ..BuildFacts::default()
        };
        assert_eq!(
            context(&block, &build),
            "continuous-integration/hydra:p:s-pr-12:j-pr-3:7"
        );
        block.use_short_context = true;
        assert_eq!(context(&block, &build), "ci/hydra:p:s:j-pr-3:7");
        block.exclude_build = true;
        assert_eq!(context(&block, &build), "ci/hydra:p:s:j-pr-3");
        block.context = Some("mine".into());
        assert_eq!(context(&block, &build), "mine");
    }
}
