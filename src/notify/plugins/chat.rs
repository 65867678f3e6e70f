//! SlackNotification, Matrix and CircleCINotification: one request for each address, about builds that are worth it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{each, status_words, Call, Failure, Needs, Plugin};
use crate::base::text::percent_encoded;
use crate::config::notify::{
    CircleCi as CircleCiBlock, Matrix as MatrixBlock, Slack as SlackBlock,
};
use crate::config::pattern::Pattern;
use crate::db::facts::BuildFacts;
use crate::notify::authors::{self, Committed};
use crate::notify::http::Verb;

/// SlackNotification.
pub struct Slack {
    blocks: Vec<SlackBlock>,
}

impl Slack {
    pub fn new(blocks: Vec<SlackBlock>) -> Slack {
        Slack { blocks }
    }
}

impl Plugin for Slack {
    fn target(&self) -> &str {
        "SlackNotification"
    }

    fn class(&self) -> Option<&'static str> {
        Some("Hydra::Plugin::SlackNotification")
    }

    fn channels(&self) -> &[&'static str] {
        &["build_finished"]
    }

    fn needs(&self) -> Needs<'_> {
        Needs {
            addresses: self.blocks.iter().map(|b| b.url.0.as_str()).collect(),
            ..Needs::default()
        }
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let builds = call.builds()?;
        let mut by_url: BTreeMap<&str, Vec<BuildFacts>> = BTreeMap::new();
        for build in &builds {
            for block in &self.blocks {
                if is_worth(call, build, &block.jobs, block.force)? {
                    let builds = by_url.entry(&block.url.0).or_default();
                    if builds.iter().all(|known| known.id != build.id) {
                        builds.push(build.clone());
                    }
                }
            }
        }
        let Some(top) = builds.first().filter(|_| !by_url.is_empty()) else {
            return Ok(());
        };
        let committed = authors::between(call, top.id, call.previous(top.id)?)?;
        each(by_url, |(url, builds)| {
            let body = message(&builds[0], builds.len(), &committed, &call.around.base_uri);
            call.post_json(url, &[], &body).map(drop)
        })
    }
}

/// Whether a chat hears of a build: of one that ended (not aborted or cancelled) otherwise than the one before, unless it wants all.
fn is_worth(
    call: &Call<'_>,
    build: &BuildFacts,
    jobs: &Pattern,
    force: bool,
) -> Result<bool, Failure> {
    let Some(status) = build.status.filter(|_| build.finished) else {
        return Ok(false);
    };
    if !jobs.matches(&build.job_name()) || !force && matches!(status, 3 | 4) {
        return Ok(false);
    }
    if force {
        return Ok(true);
    }
    let previous = call.previous(build.id)?;
    Ok(previous.is_none_or(|previous| previous.status != Some(status)))
}

/// What a chat says of a build, in the words of all chats.
struct Saying {
    job: String,
    job_link: String,
    link: String,
    status: &'static str,
    others: String,
    took: String,
}

impl Saying {
    fn of(build: &BuildFacts, count: usize, base_uri: &str) -> Saying {
        let took =
            i64::from(build.stop_time.unwrap_or(0)) - i64::from(build.start_time.unwrap_or(0));
        Saying {
            job: build.job_name(),
            job_link: format!(
                "{base_uri}/job/{}/{}/{}",
                build.project, build.jobset, build.job
            ),
            link: format!("{base_uri}/build/{}", build.id),
            status: status_words(build.status.unwrap_or(3)),
            others: match count {
                0 | 1 => String::new(),
                count => format!(" (and {} others)", count - 1),
            },
            took: duration(took.max(0)),
        }
    }
}

/// The message about a build and those that ended with it.
fn message(
    build: &BuildFacts,
    count: usize,
    committed: &Committed,
    base_uri: &str,
) -> serde_json::Value {
    let (image, color) = match build.status.unwrap_or(3) {
        0 => ("checkmark", "good"),
        2 => ("dependency", "danger"),
        4 => ("cancelled", "warning"),
        _ => ("error", "danger"),
    };
    let say = Saying::of(build, count, base_uri);
    let title = format!("Job {} build number {}", say.job, build.id);
    let due = committed.words("", |name, address| {
        format!("<mailto:{}|{}>", slack_text(address), slack_text(name))
    });
    let due = match due.is_empty() {
        true => due,
        false => format!(", likely due to {due}"),
    };
    let text = format!(
        "Job <{}|{}>{}: <{}|{}> in {}{due}",
        say.job_link, say.job, say.others, say.link, say.status, say.took
    );
    json!({
        "attachments": [{
            "fallback": format!("{title}: {}", say.status),
            "text": text,
            "thumb_url": format!("{base_uri}/static/images/{image}_256.png"),
            "title": title,
            "title_link": say.link,
            "color": color,
        }],
    })
}

/// Somebody's name as Slack wants it: it must not become a link, or call everybody in the channel.
fn slack_text(text: &str) -> String {
    escaped(text).replace('|', " ")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Matrix: a message in a room, by the client-server API. hydrad's own; Hydra has no such plugin.
pub struct Matrix {
    block: MatrixBlock,
    target: String,
}

impl Matrix {
    pub fn new(block: MatrixBlock) -> Matrix {
        Matrix {
            target: format!("Matrix {}", block.name),
            block,
        }
    }
}

impl Plugin for Matrix {
    fn target(&self) -> &str {
        &self.target
    }

    fn channels(&self) -> &[&'static str] {
        &["build_finished"]
    }

    fn needs(&self) -> Needs<'_> {
        Needs {
            addresses: vec![&self.block.homeserver],
            secrets: vec![&self.block.token_file],
            ..Needs::default()
        }
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let builds = call.builds()?;
        let mut told = Vec::new();
        for build in &builds {
            if is_worth(call, build, &self.block.jobs, self.block.force)? {
                told.push(build);
            }
        }
        let (Some(top), Some(build)) = (builds.first(), told.first()) else {
            return Ok(());
        };
        let committed = authors::between(call, top.id, call.previous(top.id)?)?;
        let token = super::secret(&self.block.token_file)?;
        // The same for each try, so that the server takes a message once; with the build, for a ledger that began anew.
        let transaction = format!(
            "hydrad-{}-{}-{}",
            call.event_id,
            build.id,
            build.stop_time.unwrap_or(0)
        );
        let url = format!(
            "{}/_matrix/client/v3/rooms/{}/send/m.room.message/{transaction}",
            self.block.homeserver,
            percent_encoded(&self.block.room, false)
        );
        let body = matrix_message(build, told.len(), &committed, &call.around.base_uri);
        let authorization = format!("Bearer {token}");
        let headers = [("Authorization", authorization.as_str())];
        call.send_json(Verb::Put, &url, &headers, &body).map(drop)
    }
}

fn matrix_message(
    build: &BuildFacts,
    count: usize,
    committed: &Committed,
    base_uri: &str,
) -> serde_json::Value {
    let say = Saying::of(build, count, base_uri);
    let due = |words: String| match words.is_empty() {
        true => words,
        false => format!(", likely due to {words}"),
    };
    let plain = due(committed.words("", |name, _| name.to_owned()));
    let html = due(committed.words("", |name, _| html_text(name)));
    json!({
        "msgtype": "m.notice",
        "body": format!(
            "Job {}{}: {} in {}{plain} {}",
            say.job, say.others, say.status, say.took, say.link
        ),
        "format": "org.matrix.custom.html",
        "formatted_body": format!(
            "Job <a href=\"{}\">{}</a>{}: <a href=\"{}\">{}</a> in {}{html}",
            html_text(&say.job_link), html_text(&say.job), say.others, html_text(&say.link), say.status, say.took
        ),
    })
}

fn html_text(text: &str) -> String {
    escaped(text).replace('"', "&quot;")
}

/// `1h 2m 3s`.
fn duration(secs: i64) -> String {
    let (hours, minutes, secs) = (secs / 3_600, secs / 60 % 60, secs % 60);
    match (hours, minutes) {
        (0, 0) => format!("{secs}s"),
        (0, minutes) => format!("{minutes}m {secs}s"),
        (hours, minutes) => format!("{hours}h {minutes}m {secs}s"),
    }
}

/// CircleCINotification.
pub struct CircleCi {
    blocks: Vec<CircleCiBlock>,
}

impl CircleCi {
    pub fn new(blocks: Vec<CircleCiBlock>) -> CircleCi {
        CircleCi { blocks }
    }
}

impl Plugin for CircleCi {
    fn target(&self) -> &str {
        "CircleCINotification"
    }

    fn class(&self) -> Option<&'static str> {
        Some("Hydra::Plugin::CircleCINotification")
    }

    fn channels(&self) -> &[&'static str] {
        &["build_finished"]
    }

    fn needs(&self) -> Needs<'_> {
        Needs {
            addresses: self.blocks.iter().map(|b| b.endpoint.as_str()).collect(),
            ..Needs::default()
        }
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let builds = call.builds()?;
        let mut urls = BTreeSet::new();
        for build in &builds {
            let job = build.job_name();
            for block in self.blocks.iter().filter(|block| block.jobs.matches(&job)) {
                if build.status == Some(0) || block.force {
                    urls.insert(format!(
                        "{}/api/v1.1/project/{}/{}/{}/tree/{}?circle-token={}",
                        block.endpoint,
                        block.vcstype,
                        block.username,
                        block.project,
                        block.branch,
                        block.token.0
                    ));
                }
            }
        }
        each(urls, |url| {
            let json = ("Content-Type".to_owned(), "application/json".to_owned());
            call.post(&url, &[json], b"", call.around.time_max)
                .map(drop)
        })
    }
}
