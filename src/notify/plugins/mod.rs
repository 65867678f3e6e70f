//! The plugins: who is told, and how. Each makes one call for one event; when to call again is not theirs to say.

pub mod chat;
pub mod compress_log;
pub mod declarative;
pub mod email;
pub mod forges;
pub mod github;
pub mod influx;
pub mod run_command;
pub mod webhook;

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::event::Event;
use super::http::{Client, Post, Turn, Verb};
use super::plan::{Ended, Manner, RETRY_AFTER_MS_MAX};
use crate::config::notify::Plugins;
use crate::db::facts::{self, BuildFacts, Evaluation, Job, Previous, Results};
use crate::db::pool::{Conn, Pool};
use crate::db::DbError;
use crate::sys::child::plain_error;

/// How long a plugin waits for a pooled connection.
const CONNECTION_MAX: Duration = Duration::from_secs(30);
/// Of a build in many evaluations the newest are told of.
const EVALUATIONS_MAX: usize = 100;
/// A file with a secret is not larger than this, bytes.
const SECRET_BYTES_MAX: usize = 64 << 10;

/// Why a call did not succeed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// For the log and the ledger; without secrets.
    pub text: String,
    pub ended: Ended,
}

impl Failure {
    /// Another try may help.
    pub fn again(text: impl Into<String>) -> Failure {
        Failure {
            text: text.into(),
            ended: Ended::Failed {
                retry_after_ms: None,
            },
        }
    }

    /// Another try may help, after this time.
    pub fn later(text: impl Into<String>, pause: Duration) -> Failure {
        let ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        Failure {
            text: text.into(),
            ended: Ended::Failed {
                retry_after_ms: Some(ms),
            },
        }
    }

    /// Nothing was tried; it may be after this time.
    pub fn postponed(text: impl Into<String>, pause: Duration) -> Failure {
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        Failure {
            text: text.into(),
            ended: Ended::Postponed {
                pause_ms: pause_ms.clamp(1, RETRY_AFTER_MS_MAX),
            },
        }
    }

    /// No other try will help.
    pub fn refused(text: impl Into<String>) -> Failure {
        Failure {
            text: text.into(),
            ended: Ended::Refused,
        }
    }
}

impl From<DbError> for Failure {
    fn from(error: DbError) -> Failure {
        Failure::again(format!("database: {error}"))
    }
}

/// What all plugins have at hand.
pub struct Surroundings {
    pub pool: Pool,
    pub http: Arc<Client>,
    /// Without a slash at its end.
    pub base_uri: String,
    pub data_dir: std::path::PathBuf,
    /// What a call to a server may take.
    pub time_max: Duration,
}

/// One call.
pub struct Call<'a> {
    pub event: &'a Event,
    /// The event's number in the ledger: with the target's name a key against duplicates.
    pub event_id: i64,
    pub around: &'a Surroundings,
    /// The service is being stopped and does not wait any longer.
    pub stopping: &'a dyn Fn() -> bool,
    /// A request was made.
    pub asked: Cell<bool>,
}

impl Call<'_> {
    pub fn conn(&self) -> Result<impl std::ops::DerefMut<Target = Conn>, Failure> {
        Ok(self.around.pool.get(CONNECTION_MAX)?)
    }

    /// `None` if it was deleted meanwhile: then there is nothing to tell.
    pub fn build(&self, id: i32) -> Result<Option<BuildFacts>, Failure> {
        Ok(facts::build(&mut *self.conn()?, id)?)
    }

    pub fn results(&self, id: i32) -> Result<Results, Failure> {
        Ok(facts::results(&mut *self.conn()?, id)?)
    }
}

impl Call<'_> {
    /// The build that the event is about, and those that ended with it, as far as they are still there.
    pub fn builds(&self) -> Result<Vec<BuildFacts>, Failure> {
        let mut builds = Vec::new();
        let (first, others): (i32, &[i32]) = match self.event {
            Event::BuildFinished { build, dependents } => (*build, dependents),
            Event::BuildQueued { build }
            | Event::BuildStarted { build }
            | Event::CachedBuildQueued { build, .. }
            | Event::CachedBuildFinished { build, .. }
            | Event::StepFinished { build, .. } => (*build, &[]),
            _ => return Ok(builds),
        };
        let mut conn = self.conn()?;
        for id in std::iter::once(&first).chain(others) {
            builds.extend(facts::build(&mut conn, *id)?);
        }
        Ok(builds)
    }

    /// The evaluations that the event is about: one for a cached build, else those of its first build.
    pub fn evaluations(&self, first: i32) -> Result<Vec<Evaluation>, Failure> {
        let mut conn = self.conn()?;
        Ok(match self.event {
            Event::CachedBuildQueued { eval, .. } | Event::CachedBuildFinished { eval, .. } => {
                facts::evaluation(&mut conn, *eval)?
            }
            _ => facts::evaluations(&mut conn, first, EVALUATIONS_MAX)?,
        })
    }

    pub fn previous(&self, build: i32) -> Result<Option<Previous>, Failure> {
        Ok(facts::previous(&mut *self.conn()?, build)?)
    }

    /// Whether the event says how a build ended.
    pub fn is_end(&self) -> bool {
        matches!(
            self.event,
            Event::BuildFinished { .. } | Event::CachedBuildFinished { .. }
        )
    }

    /// Posts, when it is the host's turn.
    pub fn post(
        &self,
        url: &str,
        headers: &[(String, String)],
        body: &[u8],
        time_max: Duration,
    ) -> Result<String, Failure> {
        self.send(Verb::Post, url, headers, body, time_max)
    }

    fn send(
        &self,
        verb: Verb,
        url: &str,
        headers: &[(String, String)],
        body: &[u8],
        time_max: Duration,
    ) -> Result<String, Failure> {
        let turn = match self.asked.replace(true) {
            false => Turn::First,
            true => Turn::Next,
        };
        self.around.http.post(&Post {
            verb,
            url,
            headers,
            body,
            time_max,
            turn,
        })
    }

    /// Posts JSON.
    pub fn post_json(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        body: &serde_json::Value,
    ) -> Result<String, Failure> {
        self.send_json(Verb::Post, url, headers, body)
    }

    /// Sends JSON.
    pub fn send_json(
        &self,
        verb: Verb,
        url: &str,
        headers: &[(&str, &str)],
        body: &serde_json::Value,
    ) -> Result<String, Failure> {
        let json = [("Content-Type", "application/json")];
        let headers: Vec<(String, String)> = json
            .iter()
            .chain(headers)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let time_max = self.around.time_max;
        self.send(verb, url, &headers, body.to_string().as_bytes(), time_max)
    }
}

/// Makes several calls of one delivery. Those that are refused do not keep the others from being made; one that may be tried again
/// ends them, since all of them will be made again.
pub fn each<T>(
    items: impl IntoIterator<Item = T>,
    mut tell: impl FnMut(T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut refused = Ok(());
    for item in items {
        match tell(item) {
            Err(failure) if failure.ended == Ended::Refused => refused = refused.and(Err(failure)),
            Err(failure) => return Err(failure),
            Ok(()) => {}
        }
    }
    refused
}

/// Hydra's words for a status.
pub fn status_words(status: i32) -> &'static str {
    match status {
        0 => "Success",
        2 => "Dependency failed",
        4 => "Cancelled",
        6 => "Failed with output",
        _ => "Failed",
    }
}

/// What a commit status says unless its block says otherwise.
fn description(build: &BuildFacts) -> String {
    format!("Hydra build #{} of {}", build.id, build.job_name())
}

/// What a plugin needs, as far as that can be looked at without telling anybody something.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs<'a> {
    /// Addresses of servers. They may be secrets but for their hosts.
    pub addresses: Vec<&'a str>,
    /// Files of secrets.
    pub secrets: Vec<&'a Path>,
    /// Folders in HYDRA_DATA that it writes to.
    pub folders: Vec<&'static str>,
}

/// Somebody who is told of events.
pub trait Plugin: Send + Sync {
    /// Its name in the ledger, unique among those configured.
    fn target(&self) -> &str;

    /// Its class in Hydra, if Hydra has it: then what failed goes into TaskRetries.
    fn class(&self) -> Option<&'static str> {
        None
    }

    /// The channels whose events it wants.
    fn channels(&self) -> &[&'static str];

    fn manner(&self) -> Manner {
        Manner::default()
    }

    /// For `hydrad check`.
    fn needs(&self) -> Needs<'_> {
        Needs::default()
    }

    /// Whether it wants of `build_finished` only the ends of builds that define jobsets.
    fn wants_declarations_alone(&self) -> bool {
        false
    }

    /// Whether builds may share a status: then [`Plugin::statuses`] says which.
    fn shares_statuses(&self) -> bool {
        false
    }

    /// Names of the statuses that a build of this job shares with others; the order of the events is kept for each.
    fn statuses(&self, _job: &Job) -> Vec<String> {
        Vec::new()
    }

    /// Looks, about once a minute, for what no event tells of. Only the database is asked.
    ///
    /// # Errors
    /// Of the database.
    fn sweep(&self, _pool: &Pool) -> Result<(), DbError> {
        Ok(())
    }

    /// Tells of an event. Must come back within a time of its own.
    ///
    /// # Errors
    /// When it was not told, or perhaps not.
    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure>;
}

/// All that is configured.
///
/// # Errors
/// A message about a block that cannot be served.
pub fn all(plugins: &Plugins) -> Result<Vec<Arc<dyn Plugin>>, String> {
    let mut all: Vec<Arc<dyn Plugin>> = Vec::new();
    if !plugins.run_commands.is_empty() || plugins.dynamic_commands.is_some() {
        let dynamic = plugins.dynamic_commands;
        let plugin = run_command::RunCommand::new(plugins.run_commands.clone(), dynamic);
        all.push(Arc::new(plugin));
    }
    if !plugins.github.is_empty() {
        let plugin =
            github::GithubStatus::new(plugins.github.clone(), plugins.github_tokens.clone());
        all.push(Arc::new(plugin));
    }
    for (tokens, kind) in [
        (&plugins.gitlab_tokens, forges::Kind::Gitlab),
        (&plugins.gitea_tokens, forges::Kind::Gitea),
    ] {
        if let Some(tokens) = tokens {
            all.push(Arc::new(forges::Forge::new(kind, tokens.clone())));
        }
    }
    if let Some(block) = &plugins.bitbucket {
        all.push(Arc::new(forges::BitBucket::new(block.clone())));
    }
    if !plugins.slack.is_empty() {
        all.push(Arc::new(chat::Slack::new(plugins.slack.clone())));
    }
    for block in &plugins.matrix {
        all.push(Arc::new(chat::Matrix::new(block.clone())));
    }
    if !plugins.circleci.is_empty() {
        all.push(Arc::new(chat::CircleCi::new(plugins.circleci.clone())));
    }
    if let Some(block) = &plugins.influx {
        all.push(Arc::new(influx::Influx::new(block.clone())));
    }
    if let Some(block) = &plugins.email {
        all.push(Arc::new(email::Email::new(block.clone(), &|name| {
            std::env::var(name).ok()
        })?));
    }
    if let Some(store_uri) = &plugins.declarative {
        let dynamic = plugins.dynamic_commands.is_some();
        let plugin = declarative::DeclarativeJobsets::new(store_uri.clone(), dynamic);
        all.push(Arc::new(plugin));
    }
    if let Some(method) = plugins.compress_logs {
        all.push(Arc::new(compress_log::CompressLog::new(method)));
    }
    for block in &plugins.webhooks {
        all.push(Arc::new(webhook::Webhook::new(block.clone())?));
    }
    Ok(all)
}

/// The first line of a file that holds a secret.
///
/// # Errors
/// When it cannot be read, and why.
pub fn secret(path: &Path) -> Result<String, Failure> {
    let failed = |why: String| Failure::again(format!("cannot read {}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| failed(plain_error(&error)))?;
    if bytes.len() > SECRET_BYTES_MAX {
        return Err(failed(format!(
            "it is larger than {SECRET_BYTES_MAX} bytes"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8".to_owned()))?;
    match text.lines().next().map(str::trim) {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(failed("its first line is empty".to_owned())),
    }
}
