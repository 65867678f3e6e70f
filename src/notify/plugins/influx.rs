//! InfluxDBNotification: a point for each build that ended.

use super::{Call, Failure, Needs, Plugin};
use crate::config::notify::Influx as Block;
use crate::db::facts::BuildFacts;
use crate::notify::document::status_word;
use crate::sys::host::host_name;

pub struct Influx {
    block: Block,
}

impl Influx {
    pub fn new(block: Block) -> Influx {
        Influx { block }
    }
}

impl Plugin for Influx {
    fn target(&self) -> &str {
        "InfluxDBNotification"
    }

    fn class(&self) -> Option<&'static str> {
        Some("Hydra::Plugin::InfluxDBNotification")
    }

    fn channels(&self) -> &[&'static str] {
        &["build_finished"]
    }

    fn needs(&self) -> Needs<'_> {
        Needs {
            addresses: vec![&self.block.url],
            ..Needs::default()
        }
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let builds = call.builds()?;
        let Some(main) = builds.first() else {
            return Ok(());
        };
        let host = host_name();
        let lines: Vec<String> = builds
            .iter()
            .filter(|build| build.finished)
            .map(|build| line(build, main.id, &host))
            .collect();
        if lines.is_empty() {
            return Ok(());
        }
        let form = (
            "Content-Type".to_owned(),
            "application/x-www-form-urlencoded".to_owned(),
        );
        let url = format!("{}/write?db={}&precision=s", self.block.url, self.block.db);
        let body = lines.join("\n");
        call.post(&url, &[form], body.as_bytes(), call.around.time_max)
            .map(drop)
    }
}

fn line(build: &BuildFacts, main: i32, host: &str) -> String {
    let status = build.status.unwrap_or(3);
    let word = match status {
        0 => "success",
        3 | 4 | 8 | 10 | 11 => "canceled",
        _ => "failed",
    };
    let repository = build.jobset.split(".pr-").next().unwrap_or("");
    let cached = build.is_cached.to_string();
    let tags = [
        ("cached", cached.as_str()),
        ("job", &build.job),
        ("jobset", &build.jobset),
        ("project", &build.project),
        ("repo", repository),
        ("result", status_word(status)),
        ("status", word),
        ("system", &build.system),
        ("host", host),
    ];
    let tags: String = tags
        .iter()
        .map(|(name, value)| format!(",{name}={}", escaped(value)))
        .collect();
    let (start, stop) = (build.start_time.unwrap_or(0), build.stop_time.unwrap_or(0));
    format!(
        "hydra_build_status{tags} build_id=\"{}\",build_status={status}i,closure_size={}i,duration={}i,main_build_id=\"{main}\",\
         queued={}i,size={}i {stop}",
        build.id,
        build.closure_size.unwrap_or(0),
        i64::from(stop) - i64::from(start),
        i64::from(start) - i64::from(build.timestamp),
        build.size.unwrap_or(0),
    )
}

/// A tag's value as the line protocol wants it.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| *c != '\n') {
        if matches!(c, ',' | '=' | ' ') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
