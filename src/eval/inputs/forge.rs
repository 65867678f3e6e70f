//! Lists that forges keep: open pull requests, branches and tags, as one JSON file by number or name.
//!
//! The revision is when this list was first seen, so it changes if and only if the list does.

use std::fs;
use std::time::Instant;

use serde_json::{Map, Value};

use super::path::compact;
use super::task::{file, Task, Trouble};
use super::value::{any_words, check_uri, words, wrong};
use crate::db::input_cache;
use crate::eval::input::FetchedInput;
use crate::sys::clock::unix_now;
use crate::web::client::{self, Get, Got};

/// Pages of one list.
const PAGES_MAX: u32 = 200;
const PAGE_BYTES_MAX: u64 = 64 << 20;
const HTTP: &[&str] = &["https", "http"];

/// What one server is asked with.
struct Forge<'a> {
    task: &'a Task<'a>,
    headers: Vec<(&'a str, String)>,
    until: Instant,
}

/// How a list becomes a file.
struct File {
    name: &'static str,
    text: String,
}

pub fn github_pulls(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let words = words(&task.spec.value)?;
    let [owner, repository] = words[..] else {
        return Err(wrong("expected `OWNER REPOSITORY`"));
    };
    check_names(&[owner, repository])?;
    let endpoint = &task.fetcher.settings.github_endpoint;
    let url = format!("{endpoint}/repos/{owner}/{repository}/pulls?per_page=100");
    let pulls = github(task, owner).list(url, |pull| key(pull, "number"))?;
    let file = File {
        name: "github-pulls.json",
        text: Value::Object(pulls).to_string(),
    };
    enter(task, &format!("githubpulls {owner} {repository}"), file)
}

pub fn github_refs(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let refs = wanted_refs(&task.spec.value)?;
    let endpoint = &task.fetcher.settings.github_endpoint;
    let kind = if refs.kind == "." { "" } else { refs.kind };
    let url = format!(
        "{endpoint}/repos/{}/{}/git/matching-refs/{kind}/{}?per_page=100",
        refs.owner, refs.repository, refs.prefix
    )
    .replace("matching-refs//", "matching-refs/");
    let list = github(task, refs.owner).list(url, ref_key)?;
    enter(
        task,
        &format!("github_refs {}", refs.source()),
        sorted("github-refs-sorted.json", list),
    )
}

fn github<'a>(task: &'a Task<'a>, owner: &str) -> Forge<'a> {
    let token = task.fetcher.settings.github_tokens.0.get(owner);
    let accept = ("Accept", "application/vnd.github.v3+json".to_owned());
    let token = token.map(|token| ("Authorization", token.clone()));
    Forge::new(task, [accept].into_iter().chain(token))
}

pub fn gitlab_pulls(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let words = words(&task.spec.value)?;
    let [base, project] = words[..] else {
        return Err(wrong("expected `BASE-URL PROJECT-ID`"));
    };
    check_uri(base, HTTP, false)?;
    check_names(&[project])?;
    let token = task.fetcher.settings.gitlab_tokens.0.get(project);
    let token = token.map(|token| ("Private-Token", token.clone()));
    let forge = Forge::new(task, token);
    let base = base.trim_end_matches('/');
    let url = format!("{base}/api/v4/projects/{project}");
    let repository = json(&url, &forge.get(&url)?)?;
    let target = &repository["http_url_to_repo"];
    let requests = format!("{url}/merge_requests?per_page=100&state=opened");
    let mut pulls = forge.list(requests, |pull| key(pull, "iid"))?;
    for pull in pulls.values_mut() {
        pull["target_repo_url"] = target.clone();
    }
    enter(
        task,
        &format!("gitlabpulls {base} {project}"),
        sorted("gitlab-pulls-sorted.json", pulls),
    )
}

pub fn bitbucket_pulls(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let words = words(&task.spec.value)?;
    let [owner, repository] = words[..] else {
        return Err(wrong("expected `OWNER REPOSITORY`"));
    };
    check_names(&[owner, repository])?;
    let settings = &task.fetcher.settings;
    let token = settings.bitbucket_tokens.0.get(owner);
    let forge = Forge::new(task, token.map(|token| ("Authorization", token.clone())));
    let endpoint = &settings.bitbucket_endpoint;
    let mut url =
        format!("{endpoint}/2.0/repositories/{owner}/{repository}/pullrequests?state=OPEN");
    let mut pulls = Map::new();
    for _ in 0..PAGES_MAX {
        let page = json(&url, &forge.get(&url)?)?;
        collect(&url, &page["values"], &mut pulls, &|pull| key(pull, "id"))?;
        match page["next"].as_str() {
            Some(next) if !next.is_empty() => url = same_server(&url, next)?,
            _ => {
                let source = format!("bitbucketpulls {owner} {repository}");
                return enter(task, &source, sorted("bitbucket-pulls-sorted.json", pulls));
            }
        }
    }
    Err(too_many(&url))
}

pub fn gitea_pulls(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let words = words(&task.spec.value)?;
    let (base, owner, repository) = match words[..] {
        [base, owner, repository] => (gitea_base(base, "https")?, owner, repository),
        [base, owner, repository, scheme] => (gitea_base(base, scheme)?, owner, repository),
        _ => return Err(wrong("expected `BASE-URL OWNER REPOSITORY`")),
    };
    check_names(&[owner, repository])?;
    let url = format!("{base}/api/v1/repos/{owner}/{repository}/pulls?state=open&limit=50");
    let pulls = gitea(task, owner).pages(&url, |pull| key(pull, "number"))?;
    let source = format!("giteapulls {base} {owner} {repository}");
    enter(task, &source, sorted("gitea-pulls-sorted.json", pulls))
}

pub fn gitea_refs(task: &Task<'_>) -> Result<FetchedInput, Trouble> {
    let (base, refs) = match task.spec.value.trim_start().split_once(' ') {
        Some((base, rest)) => (gitea_base(base, "https")?, wanted_refs(rest)?),
        None => {
            return Err(wrong(
                "expected `BASE-URL OWNER REPOSITORY heads|tags - PREFIX`",
            ))
        }
    };
    // A prefix that nothing begins with would be an error of the server's, so it is looked at here.
    let kind = if refs.kind == "." { "" } else { refs.kind };
    let url = format!(
        "{base}/api/v1/repos/{}/{}/git/refs/{kind}?limit=50",
        refs.owner, refs.repository
    );
    let mut list = gitea(task, refs.owner).pages(&url, ref_key)?;
    let prefix = match refs.kind {
        "." => format!("refs/{}", refs.prefix),
        kind => format!("refs/{kind}/{}", refs.prefix),
    };
    list.retain(|_, one| {
        one["ref"]
            .as_str()
            .is_some_and(|name| name.starts_with(&prefix))
    });
    let source = format!("gitea_refs {base} {}", refs.source());
    enter(task, &source, sorted("gitea-refs-sorted.json", list))
}

fn gitea<'a>(task: &'a Task<'a>, owner: &str) -> Forge<'a> {
    let token = task.fetcher.settings.gitea_tokens.0.get(owner);
    Forge::new(
        task,
        token.map(|token| ("Authorization", format!("token {token}"))),
    )
}

/// A host alone is reached by https.
fn gitea_base(base: &str, scheme: &str) -> Result<String, Trouble> {
    let base = match base.contains("://") {
        true => base.to_owned(),
        false => format!("{scheme}://{base}"),
    };
    check_uri(&base, HTTP, false)?;
    Ok(base.trim_end_matches('/').to_owned())
}

/// `OWNER REPOSITORY heads|tags|. - PREFIX`, as Hydra has it. (What the dash is for nobody has said.)
struct Refs<'a> {
    owner: &'a str,
    repository: &'a str,
    kind: &'a str,
    prefix: &'a str,
}

impl Refs<'_> {
    fn source(&self) -> String {
        let Refs {
            owner,
            repository,
            kind,
            prefix,
        } = self;
        format!("{owner} {repository} {kind} {prefix}")
    }
}

fn wanted_refs(value: &str) -> Result<Refs<'_>, Trouble> {
    let words = any_words(value)?;
    let (owner, repository, kind, prefix) = match words[..] {
        [owner, repository, kind] | [owner, repository, kind, "-"] => (owner, repository, kind, ""),
        [owner, repository, kind, "-", prefix] => (owner, repository, kind, prefix),
        _ => {
            return Err(wrong(
                "expected `OWNER REPOSITORY heads|tags - PREFIX`, the dash literally",
            ))
        }
    };
    check_names(&[owner, repository])?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/+".contains(c);
    if kind != "."
        && !kind
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    {
        return Err(wrong(format!(
            "`{kind}`: expected heads, tags or `.` for all"
        )));
    }
    if !prefix.chars().all(allowed) || prefix.contains("..") {
        return Err(wrong(format!(
            "`{prefix}` is no beginning of a name of a branch"
        )));
    }
    Ok(Refs {
        owner,
        repository,
        kind,
        prefix: if prefix == "." { "" } else { prefix },
    })
}

/// Parts of an address that must not change its meaning.
fn check_names(names: &[&str]) -> Result<(), Trouble> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-%~".contains(c);
    match names.iter().find(|name| {
        name.is_empty() || **name == "." || **name == ".." || !name.chars().all(allowed)
    }) {
        Some(name) => Err(wrong(format!(
            "`{name}` is no name of an owner or repository"
        ))),
        None => Ok(()),
    }
}

impl<'a> Forge<'a> {
    fn new(task: &'a Task<'a>, headers: impl IntoIterator<Item = (&'a str, String)>) -> Forge<'a> {
        Forge {
            task,
            headers: headers.into_iter().collect(),
            until: Instant::now() + task.time_max(),
        }
    }

    fn get(&self, url: &str) -> Result<Got, Trouble> {
        if self.task.is_stopping() {
            return Err(Trouble::Stopped);
        }
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Trouble::Failed(format!(
                "{}: the whole list did not come within {} s (`input_timeout`)",
                client::host(url),
                self.task.time_max().as_secs()
            )));
        }
        let get = Get {
            url,
            headers: &self.headers,
            time_max: left,
            bytes_max: PAGE_BYTES_MAX,
        };
        client::get(&self.task.fetcher.agent, &get).map_err(Trouble::Failed)
    }

    /// A list whose pages name the next one.
    fn list(
        &self,
        mut url: String,
        key: impl Fn(&Value) -> Option<String>,
    ) -> Result<Map<String, Value>, Trouble> {
        let mut list = Map::new();
        for _ in 0..PAGES_MAX {
            let got = self.get(&url)?;
            collect(&url, &json(&url, &got)?, &mut list, &key)?;
            match next_link(&got) {
                Some(next) => url = same_server(&url, &next)?,
                None => return Ok(list),
            }
        }
        Err(too_many(&url))
    }

    /// A list whose pages have numbers. (A server behind another one may not know its own address, so its links are not used.)
    fn pages(
        &self,
        url: &str,
        key: impl Fn(&Value) -> Option<String>,
    ) -> Result<Map<String, Value>, Trouble> {
        let mut list = Map::new();
        for page in 1..=PAGES_MAX {
            let got = self.get(&format!("{url}&page={page}"))?;
            collect(url, &json(url, &got)?, &mut list, &key)?;
            if next_link(&got).is_none() {
                return Ok(list);
            }
        }
        Err(too_many(url))
    }
}

fn json(url: &str, got: &Got) -> Result<Value, Trouble> {
    serde_json::from_slice(&got.body)
        .map_err(|error| Trouble::Failed(format!("{} answers no JSON: {error}", client::host(url))))
}

fn collect(
    url: &str,
    page: &Value,
    list: &mut Map<String, Value>,
    key: &dyn Fn(&Value) -> Option<String>,
) -> Result<(), Trouble> {
    let odd = || {
        Trouble::Failed(format!(
            "{} answers with something else than a list",
            client::host(url)
        ))
    };
    for one in page.as_array().ok_or_else(odd)? {
        list.insert(key(one).ok_or_else(odd)?, one.clone());
    }
    Ok(())
}

/// A number that is a key.
fn key(one: &Value, field: &str) -> Option<String> {
    Some(one.get(field)?.as_u64()?.to_string())
}

fn ref_key(one: &Value) -> Option<String> {
    let name = one.get("ref")?.as_str()?;
    let short = name
        .strip_prefix("refs/heads/")
        .or_else(|| name.strip_prefix("refs/tags/"));
    Some(short.unwrap_or(name).to_owned())
}

/// `Link: <URL>; rel="next"`.
fn next_link(got: &Got) -> Option<String> {
    let links = got.headers.get("link")?.to_str().ok()?;
    links.split(',').find_map(|link| {
        let (url, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = |word: &str| matches!(word.trim(), "rel=\"next\"" | "rel=next");
        rest.split(';').any(next).then(|| url.to_owned())
    })
}

/// The next page; the token is for one server alone.
fn same_server(url: &str, next: &str) -> Result<String, Trouble> {
    client::same_server(url, next).ok_or_else(|| {
        Trouble::Failed(format!(
            "{} names a next page on another server, {}",
            client::host(url),
            client::host(next)
        ))
    })
}

fn too_many(url: &str) -> Trouble {
    Trouble::Failed(format!(
        "{} has more than {PAGES_MAX} pages of this list",
        client::host(url)
    ))
}

/// As `jq -S` writes it, so that a path in the store is what Hydra's would be.
fn sorted(name: &'static str, list: Map<String, Value>) -> File {
    let text = serde_json::to_string_pretty(&Value::Object(list));
    File {
        name,
        text: text.expect("BUG: JSON that cannot be written") + "\n",
    }
}

fn enter(task: &Task<'_>, source: &str, list: File) -> Result<FetchedInput, Trouble> {
    let scratch = task.scratch()?;
    let path = scratch.join(list.name);
    fs::write(&path, list.text).map_err(|error| file("write", &path, &error))?;
    let cached = task.enter(&path, list.name)?;
    // `source` begins with the type and a blank, so no input of type `path` has it.
    let first_seen = input_cache::see_path(&mut *task.conn()?, source, &cached, unix_now())?;
    Ok(FetchedInput {
        revision: Some(compact(first_seen)),
        sha256: None,
        ..task.fetched(&cached)
    })
}
