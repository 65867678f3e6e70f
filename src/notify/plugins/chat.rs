//! SlackNotification and CircleCINotification: one POST for each address, about builds that are worth it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{each, status_words, Call, Failure, Needs, Plugin};
use crate::config::notify::{CircleCi as CircleCiBlock, Slack as SlackBlock};
use crate::db::facts::BuildFacts;

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
        let mut by_url: BTreeMap<&str, Vec<BuildFacts>> = BTreeMap::new();
        for build in call.builds()? {
            let Some(status) = build.status.filter(|_| build.finished) else {
                continue;
            };
            let job = build.job_name();
            let mut previous = None;
            for block in self.blocks.iter().filter(|block| block.jobs.matches(&job)) {
                if !block.force {
                    if matches!(status, 3 | 4) {
                        continue;
                    }
                    if previous.is_none() {
                        previous = Some(call.previous(build.id)?.and_then(|p| p.status));
                    }
                    if previous == Some(Some(status)) {
                        continue;
                    }
                }
                let builds = by_url.entry(&block.url.0).or_default();
                if builds.iter().all(|known| known.id != build.id) {
                    builds.push(build.clone());
                }
            }
        }
        each(by_url, |(url, builds)| {
            let body = message(&builds[0], builds.len(), &call.around.base_uri);
            call.post_json(url, &[], &body).map(drop)
        })
    }
}

/// The message about a build and those that ended with it.
fn message(build: &BuildFacts, count: usize, base_uri: &str) -> serde_json::Value {
    let status = build.status.unwrap_or(3);
    let (image, color) = match status {
        0 => ("checkmark", "good"),
        2 => ("dependency", "danger"),
        4 => ("cancelled", "warning"),
        _ => ("error", "danger"),
    };
    let job = build.job_name();
    let words = status_words(status);
    let link = format!("{base_uri}/build/{}", build.id);
    let job_link = format!(
        "{base_uri}/job/{}/{}/{}",
        build.project, build.jobset, build.job
    );
    let others = match count {
        0 | 1 => String::new(),
        count => format!(" (and {} others)", count - 1),
    };
    let took = i64::from(build.stop_time.unwrap_or(0)) - i64::from(build.start_time.unwrap_or(0));
    let title = format!("Job {job} build number {}", build.id);
    json!({
        "attachments": [{
            "fallback": format!("{title}: {words}"),
            "text": format!("Job <{job_link}|{job}>{others}: <{link}|{words}> in {}", duration(took.max(0))),
            "thumb_url": format!("{base_uri}/static/images/{image}_256.png"),
            "title": title,
            "title_link": link,
            "color": color,
        }],
    })
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
