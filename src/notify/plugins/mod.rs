//! The plugins: who is told, and how. Each makes one call for one event; when to call again is not theirs to say.

pub mod run_command;
pub mod webhook;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::event::Event;
use super::http::Client;
use super::plan::{Ended, Manner};
use crate::config::notify::Plugins;
use crate::db::facts::{self, BuildFacts, Results};
use crate::db::pool::{Conn, Pool};
use crate::db::DbError;
use crate::sys::child::plain_error;

/// How long a plugin waits for a pooled connection.
const CONNECTION_MAX: Duration = Duration::from_secs(30);
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
    pub http: Client,
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
    if !plugins.run_commands.is_empty() {
        let plugin = run_command::RunCommand::new(plugins.run_commands.clone());
        all.push(Arc::new(plugin));
    }
    for block in &plugins.webhooks {
        all.push(Arc::new(webhook::Webhook::new(block.clone())?));
    }
    Ok(all)
}

/// The first line of a file that holds a secret.
fn secret(path: &Path) -> Result<String, Failure> {
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
