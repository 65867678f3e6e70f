//! The plugins' blocks of hydra.conf, typed. Knows their keys and defaults; does not know what a plugin does with them.
//!
//! A secret is named by its file and read when it is used, so that a changed one counts at once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::hydra_conf::{Assignment, Block, Document, Origin};
use super::pattern::Pattern;
use super::settings::parse_seconds;

/// Why a plugin's block cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{at}: {what}")]
pub struct PluginError {
    pub at: Origin,
    pub what: String,
}

pub(super) fn wrong(at: &Origin, what: impl Into<String>) -> PluginError {
    PluginError {
        at: at.clone(),
        what: what.into(),
    }
}

/// All plugins that are configured.
#[derive(Clone, Debug, Default)]
pub struct Plugins {
    pub run_commands: Vec<RunCommand>,
    pub webhooks: Vec<Webhook>,
    pub github: Vec<GithubStatus>,
    pub github_tokens: Tokens,
    /// `None`: not wanted.
    pub gitlab_tokens: Option<Tokens>,
    pub gitea_tokens: Option<Tokens>,
    pub bitbucket: Option<BitBucket>,
    pub slack: Vec<Slack>,
    pub circleci: Vec<CircleCi>,
    pub influx: Option<Influx>,
    pub matrix: Vec<Matrix>,
    /// For how long an output that is run may; `None`: none is run.
    pub dynamic_commands: Option<Duration>,
    /// Builds define jobsets; the store that they are read from, `None` for the local one.
    pub declarative: Option<Option<String>>,
    /// `None`: no mails.
    pub email: Option<Email>,
    /// `None`: logs stay as they are.
    pub compress_logs: Option<LogCompression>,
    /// Where the notifier's metrics are served: `HOST:PORT`.
    pub metrics: Option<String>,
}

/// Secrets by owner or project. Not to be printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Tokens(pub BTreeMap<String, String>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A secret of hydra.conf. Not to be printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// `<githubstatus>`.
#[derive(Clone, Debug)]
pub struct GithubStatus {
    pub jobs: Pattern,
    pub inputs: Vec<String>,
    pub context: Option<String>,
    pub description: Option<String>,
    pub use_short_context: bool,
    pub exclude_build: bool,
    pub authorization: Option<Secret>,
    /// hydrad's own key; without a slash at its end.
    pub endpoint: String,
}

/// `<bitbucket>`, if `enable_bitbucket_status` is 1.
#[derive(Clone, Debug)]
pub struct BitBucket {
    pub username: String,
    pub password: Secret,
    pub endpoint: String,
}

/// `<slack>`.
#[derive(Clone, Debug)]
pub struct Slack {
    pub jobs: Pattern,
    pub url: Secret,
    pub force: bool,
}

/// `<matrix>`.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub name: String,
    /// Without a slash at its end.
    pub homeserver: String,
    pub room: String,
    pub token_file: PathBuf,
    pub jobs: Pattern,
    pub force: bool,
}

/// `<circleci>`.
#[derive(Clone, Debug)]
pub struct CircleCi {
    pub jobs: Pattern,
    pub vcstype: String,
    pub username: String,
    pub project: String,
    pub branch: String,
    pub token: Secret,
    pub force: bool,
    pub endpoint: String,
}

/// `<influxdb>`.
#[derive(Clone, Debug)]
pub struct Influx {
    pub url: String,
    pub db: String,
}

/// `email_notification = 1`, with what says how.
#[derive(Clone, Debug)]
pub struct Email {
    /// `notification_sender`.
    pub sender: Option<String>,
    /// `base_uri`, if it is set; without a slash at its end.
    pub base_uri: Option<String>,
    /// Of `<email>`; `None`: as the environment says.
    pub transport: Option<MailTransport>,
    /// One mail for each evaluation and recipient.
    pub digest: bool,
}

/// Who takes mails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MailTransport {
    /// The program.
    Sendmail(PathBuf),
    Smtp(Smtp),
}

/// A mail server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Smtp {
    pub host: String,
    pub port: u16,
    pub tls: MailTls,
    pub login: Option<MailLogin>,
    /// What we call ourselves; `None`: this host's name.
    pub hello: Option<String>,
}

/// How a mail server lets us in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MailLogin {
    pub user: String,
    pub password: Password,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Password {
    Of(Secret),
    /// The first line of a file.
    File(PathBuf),
}

/// TLS to a mail server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MailTls {
    Never,
    /// Begun within the conversation; without it nothing is sent.
    Start,
    /// From the first byte.
    Always,
}

impl MailTls {
    /// Where servers usually listen for it.
    pub fn port(self) -> u16 {
        match self {
            MailTls::Never => 25,
            MailTls::Start => 587,
            MailTls::Always => 465,
        }
    }
}

/// How logs are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogCompression {
    Bzip2,
    Zstd,
}

/// `<runcommand>`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunCommand {
    /// As written; it goes into RunCommandLogs.
    pub job: String,
    pub command: String,
    pub events: Vec<String>,
    pub time_max: Duration,
}

/// `<webhook>`.
#[derive(Clone, Debug)]
pub struct Webhook {
    pub name: String,
    pub url: String,
    /// `None`: all jobs.
    pub jobs: Option<Pattern>,
    /// Names of Hydra's hooks.
    pub events: Vec<String>,
    pub secret_file: Option<PathBuf>,
    pub headers: Vec<(String, HeaderValue)>,
    /// JSON with `{{...}}` in its texts; `None`: the whole document.
    pub template: Option<serde_json::Value>,
    pub time_max: Option<Duration>,
}

/// What a header says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HeaderValue {
    Text(String),
    /// The first line of a file.
    File(PathBuf),
}

/// A command of RunCommand may take this long unless its block says otherwise.
const COMMAND_TIME: Duration = Duration::from_secs(3_600);

/// Reads all plugins' blocks.
///
/// # Errors
/// Everything that is wrong with them.
pub fn plugins(document: &Document) -> Result<Plugins, Vec<PluginError>> {
    let root = &document.root;
    let mut errors = Vec::new();
    let mut plugins = Plugins {
        run_commands: all(root, "runcommand", run_command, &mut errors),
        webhooks: all(root, "webhook", webhook, &mut errors),
        github: all(root, "githubstatus", github_status, &mut errors),
        github_tokens: tokens(root, "github_authorization").unwrap_or_default(),
        gitlab_tokens: tokens(root, "gitlab_authorization"),
        gitea_tokens: tokens(root, "gitea_authorization"),
        bitbucket: None,
        slack: all(root, "slack", slack, &mut errors),
        circleci: all(root, "circleci", circleci, &mut errors),
        influx: all(root, "influxdb", influx, &mut errors).pop(),
        matrix: all(root, "matrix", matrix, &mut errors),
        dynamic_commands: None,
        declarative: Some(
            text(root, "server_store_uri")
                .or_else(|| text(root, "store_uri"))
                .filter(|uri| !uri.is_empty()),
        ),
        email: None,
        compress_logs: None,
        metrics: None,
    };
    match metrics(root) {
        Ok(place) => plugins.metrics = place,
        Err(error) => errors.push(error),
    }
    match dynamic(root) {
        Ok(time) => plugins.dynamic_commands = time,
        Err(error) => errors.push(error),
    }
    match email(root) {
        // Exactly 1, as in Hydra.
        Ok(email) if text(root, "email_notification").as_deref() == Some("1") => {
            plugins.email = Some(email);
        }
        Ok(_) => {}
        Err(error) => errors.push(error),
    }
    if text(root, "enable_bitbucket_status").as_deref() == Some("1") {
        plugins.bitbucket = all(root, "bitbucket", bitbucket, &mut errors).pop();
        if let (None, Some(a)) = (&plugins.bitbucket, root.get("enable_bitbucket_status")) {
            errors.push(wrong(
                &a.at,
                "`enable_bitbucket_status = 1` needs a block <bitbucket>",
            ));
        }
    }
    // Exactly 1 switches it on, as in Hydra.
    if text(root, "compress_build_logs").is_none_or(|text| text == "1") {
        match root
            .get("compress_build_logs_compression")
            .map(|a| (a, a.text.trim()))
        {
            None | Some((_, "bzip2" | "")) => plugins.compress_logs = Some(LogCompression::Bzip2),
            Some((_, "zstd")) => plugins.compress_logs = Some(LogCompression::Zstd),
            Some((a, other)) => {
                let what =
                    format!("`compress_build_logs_compression = {other}`: expected bzip2 or zstd");
                errors.push(wrong(&a.at, what));
            }
        }
    }
    plugins.run_commands.retain(|run| !run.command.is_empty());
    let webhooks = plugins.webhooks.iter().map(|w| w.name.as_str());
    twice(root, "webhook", webhooks, &mut errors);
    let rooms = plugins.matrix.iter().map(|m| m.name.as_str());
    twice(root, "matrix", rooms, &mut errors);
    match errors.is_empty() {
        true => Ok(plugins),
        false => Err(errors),
    }
}

/// Names stand for a target in the ledger: each once.
fn twice<'a>(
    root: &Block,
    kind: &str,
    names: impl Iterator<Item = &'a str>,
    errors: &mut Vec<PluginError>,
) {
    let mut known: Vec<&str> = Vec::new();
    for (name, block) in names.zip(root.blocks_named(kind)) {
        if known.contains(&name) {
            let what =
                format!("there are two blocks <{kind}> `{name}`; give this one another `name`");
            errors.push(wrong(&block.at, what));
        }
        known.push(name);
    }
}

fn all<T>(
    root: &Block,
    name: &str,
    read: impl Fn(&Block) -> Result<T, PluginError>,
    errors: &mut Vec<PluginError>,
) -> Vec<T> {
    let mut read_all = Vec::new();
    for block in root.blocks_named(name) {
        match read(block) {
            Ok(one) => read_all.push(one),
            Err(error) => errors.push(error),
        }
    }
    read_all
}

fn text(block: &Block, key: &str) -> Option<String> {
    block.get(key).map(|a| a.text.trim().to_owned())
}

fn required(block: &Block, key: &str) -> Result<String, PluginError> {
    text(block, key)
        .filter(|text| !text.is_empty())
        .ok_or_else(|| wrong(&block.at, format!("<{}> needs `{key} = ...`", block.name)))
}

fn words(block: &Block, key: &str) -> Option<Vec<String>> {
    text(block, key).map(|text| text.split_whitespace().map(str::to_owned).collect())
}

/// `<hydra_notify><prometheus>`.
fn metrics(root: &Block) -> Result<Option<String>, PluginError> {
    if let Some(a) = root.get("hydra_notify") {
        return Err(wrong(&a.at, "hydra_notify should be a block."));
    }
    let Some(block) = root.blocks_named("hydra_notify").last() else {
        return Ok(None);
    };
    if let Some(a) = block.get("prometheus") {
        return Err(wrong(&a.at, "hydra_notify.prometheus should be a block."));
    }
    let Some(block) = block.blocks_named("prometheus").last() else {
        return Ok(None);
    };
    match (
        text(block, "listen_address"),
        text(block, "port").map(|port| port.parse::<u16>()),
    ) {
        (Some(host), Some(Ok(port))) if host.contains(':') => Ok(Some(format!("[{host}]:{port}"))),
        (Some(host), Some(Ok(port))) => Ok(Some(format!("{host}:{port}"))),
        _ => Err(wrong(
            &block.at,
            "hydra_notify.prometheus should include listen_address and port.",
        )),
    }
}

/// What Perl takes for true.
fn truth(block: &Block, key: &str) -> bool {
    text(block, key).is_some_and(|text| !text.is_empty() && text != "0")
}

/// A pattern; without one a block of Hydra's matches nothing.
fn jobs(block: &Block) -> Result<Pattern, PluginError> {
    let (text, at) = match block.get("jobs") {
        None => {
            log::warn!(
                "{}: <{}> without `jobs`: it matches nothing",
                block.at,
                block.name
            );
            ("", &block.at)
        }
        Some(a) => (a.text.as_str(), &a.at),
    };
    Pattern::new(text).map_err(|why| wrong(at, format!("`jobs = {text}`: {why}")))
}

pub(super) fn tokens(root: &Block, name: &str) -> Option<Tokens> {
    let mut blocks = root.blocks_named(name).peekable();
    blocks.peek()?;
    let tokens = blocks
        .flat_map(|block| &block.assignments)
        .map(|a| (a.key.clone(), a.text.trim().to_owned()));
    Some(Tokens(tokens.collect()))
}

/// An address to post below, without a slash at its end.
fn address(block: &Block, key: &str, default: Option<&str>) -> Result<String, PluginError> {
    let url = match default {
        None => required(block, key)?,
        Some(default) => text(block, key).unwrap_or_else(|| default.to_owned()),
    };
    let (scheme, host) = url.split_once("://").unwrap_or(("", ""));
    match matches!(scheme, "http" | "https") && !host.is_empty() && !host.starts_with('/') {
        true => Ok(url.trim_end_matches('/').to_owned()),
        // It may be a secret: not repeated.
        false => Err(wrong(
            &block.at,
            format!("`{key}`: expected http://HOST/... or https://HOST/..."),
        )),
    }
}

fn github_status(block: &Block) -> Result<GithubStatus, PluginError> {
    Ok(GithubStatus {
        jobs: jobs(block)?,
        inputs: block
            .all("inputs")
            .map(|a| a.text.trim().to_owned())
            .collect(),
        context: text(block, "context"),
        description: text(block, "description"),
        use_short_context: truth(block, "useShortContext"),
        exclude_build: truth(block, "excludeBuildFromContext"),
        authorization: text(block, "authorization").map(Secret),
        endpoint: address(block, "endpoint", Some("https://api.github.com"))?,
    })
}

fn bitbucket(block: &Block) -> Result<BitBucket, PluginError> {
    Ok(BitBucket {
        username: required(block, "username")?,
        password: Secret(required(block, "password")?),
        endpoint: address(block, "endpoint", Some("https://api.bitbucket.org"))?,
    })
}

fn slack(block: &Block) -> Result<Slack, PluginError> {
    Ok(Slack {
        jobs: jobs(block)?,
        url: Secret(address(block, "url", None)?),
        force: truth(block, "force"),
    })
}

fn matrix(block: &Block) -> Result<Matrix, PluginError> {
    const KEYS: [&str; 6] = ["name", "homeserver", "room", "token_file", "jobs", "force"];
    known_keys(block, &KEYS)?;
    let room = required(block, "room")?;
    if !room.starts_with('!') {
        let what = format!(
            "`room = {room}`: expected the room's id, such as !abc:example.org (not an alias: those may move)"
        );
        return Err(wrong(&block.at, what));
    }
    required(block, "token_file")?;
    let token = block.get("token_file").expect("BUG: it is there");
    Ok(Matrix {
        name: text(block, "name")
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| room.clone()),
        homeserver: address(block, "homeserver", None)?,
        token_file: file(token, &token.text)?,
        jobs: match block.get("jobs") {
            None => Pattern::new(".*").expect("BUG: a pattern"),
            Some(_) => jobs(block)?,
        },
        force: truth(block, "force"),
        room,
    })
}

/// `<dynamicruncommand>`: with `enable` outputs may be run.
fn dynamic(root: &Block) -> Result<Option<Duration>, PluginError> {
    let Some(block) = root.blocks_named("dynamicruncommand").last() else {
        return Ok(None);
    };
    let time = seconds(block, "timeout")?.unwrap_or(COMMAND_TIME);
    Ok(truth(block, "enable").then_some(time))
}

fn circleci(block: &Block) -> Result<CircleCi, PluginError> {
    Ok(CircleCi {
        jobs: jobs(block)?,
        vcstype: required(block, "vcstype")?,
        username: required(block, "username")?,
        project: required(block, "project")?,
        branch: required(block, "branch")?,
        token: Secret(required(block, "token")?),
        force: truth(block, "force"),
        endpoint: address(block, "endpoint", Some("https://circleci.com"))?,
    })
}

fn influx(block: &Block) -> Result<Influx, PluginError> {
    Ok(Influx {
        url: address(block, "url", None)?,
        db: required(block, "db")?,
    })
}

fn email(root: &Block) -> Result<Email, PluginError> {
    let some = |key: &str| text(root, key).filter(|text| !text.is_empty());
    let mut email = Email {
        sender: some("notification_sender"),
        base_uri: some("base_uri").map(|uri| uri.trim_end_matches('/').to_owned()),
        transport: None,
        digest: false,
    };
    let Some(block) = root.blocks_named("email").last() else {
        return Ok(email);
    };
    const KEYS: [&str; 9] = [
        "transport",
        "sendmail",
        "host",
        "port",
        "tls",
        "username",
        "password_file",
        "hello",
        "digest",
    ];
    known_keys(block, &KEYS)?;
    email.digest = truth(block, "digest");
    let some = |key: &str| text(block, key).filter(|text| !text.is_empty());
    let transport = match (some("transport").as_deref(), some("host")) {
        (Some("sendmail"), _) => Some(false),
        (Some("smtp"), _) | (None, Some(_)) => Some(true),
        (None, None) => some("sendmail").map(|_| false),
        (Some(other), _) => {
            let what = format!("`transport = {other}`: expected smtp or sendmail");
            return Err(wrong(&block.at, what));
        }
    };
    email.transport = match transport {
        None => None,
        Some(false) => Some(MailTransport::Sendmail(
            some("sendmail")
                .unwrap_or_else(|| "sendmail".to_owned())
                .into(),
        )),
        Some(true) => Some(MailTransport::Smtp(smtp(block)?)),
    };
    Ok(email)
}

fn smtp(block: &Block) -> Result<Smtp, PluginError> {
    let some = |key: &str| text(block, key).filter(|text| !text.is_empty());
    let tls = match some("tls").as_deref() {
        None | Some("none") => MailTls::Never,
        Some("starttls") => MailTls::Start,
        Some("tls") => MailTls::Always,
        Some(other) => {
            let what = format!("`tls = {other}`: expected none, starttls or tls");
            return Err(wrong(&block.at, what));
        }
    };
    let port = match some("port") {
        None => tls.port(),
        Some(port) => port
            .parse()
            .map_err(|_| wrong(&block.at, format!("`port = {port}`: expected a number")))?,
    };
    let login = match (some("username"), block.get("password_file")) {
        (None, None) => None,
        (Some(user), Some(a)) => Some(MailLogin {
            user,
            password: Password::File(file(a, &a.text)?),
        }),
        _ => {
            let what = "<email> needs both `username` and `password_file`, or neither";
            return Err(wrong(&block.at, what));
        }
    };
    let smtp = Smtp {
        host: some("host").unwrap_or_else(|| "localhost".to_owned()),
        port,
        tls,
        login,
        hello: some("hello"),
    };
    smtp.check().map_err(|what| wrong(&block.at, what))?;
    Ok(smtp)
}

impl Smtp {
    /// # Errors
    /// When the password would go over a network as it is.
    pub fn check(&self) -> Result<(), String> {
        let is_local = matches!(self.host.as_str(), "localhost" | "127.0.0.1" | "::1");
        match self.login.is_some() && self.tls == MailTls::Never && !is_local {
            true => Err(
                "a password for mails is sent with TLS alone: `tls = starttls` or `tls = tls`"
                    .to_owned(),
            ),
            false => Ok(()),
        }
    }
}

fn known_keys(block: &Block, keys: &[&str]) -> Result<(), PluginError> {
    let unknown = block
        .assignments
        .iter()
        .find(|a| !keys.contains(&a.key.as_str()));
    match unknown {
        None => Ok(()),
        Some(a) => Err(wrong(
            &a.at,
            format!(
                "<{}> has no `{}`; it has {}",
                block.name,
                a.key,
                keys.join(", ")
            ),
        )),
    }
}

fn seconds(block: &Block, key: &str) -> Result<Option<Duration>, PluginError> {
    let Some(a) = block.get(key) else {
        return Ok(None);
    };
    match parse_seconds(&a.text).filter(|time| !time.is_zero()) {
        Some(time) => Ok(Some(time)),
        None => Err(wrong(
            &a.at,
            format!(
                "`{key} = {}`: expected a number of seconds, such as 600 or 10m",
                a.text
            ),
        )),
    }
}

fn file(a: &Assignment, path: &str) -> Result<PathBuf, PluginError> {
    let path = PathBuf::from(path.trim());
    match path.is_absolute() {
        true => Ok(path),
        false => Err(wrong(
            &a.at,
            format!("`{}`: expected an absolute path", a.key),
        )),
    }
}

fn run_command(block: &Block) -> Result<RunCommand, PluginError> {
    let job = text(block, "job").unwrap_or_else(|| "*:*:*".to_owned());
    if job.split(':').count() > 3 {
        let what = format!("`job = {job}`: expected PROJECT:JOBSET:JOB, each a name or *");
        return Err(wrong(&block.at, what));
    }
    let command = text(block, "command").unwrap_or_default();
    if command.is_empty() {
        log::warn!(
            "{}: <runcommand> without `command`: it does nothing",
            block.at
        );
    }
    Ok(RunCommand {
        job,
        command,
        events: words(block, "events").unwrap_or_else(|| vec!["buildFinished".to_owned()]),
        time_max: seconds(block, "timeout")?.unwrap_or(COMMAND_TIME),
    })
}

/// Headers that are ours to set.
const OUR_HEADERS: [&str; 4] = ["content-length", "host", "transfer-encoding", "connection"];

fn webhook(block: &Block) -> Result<Webhook, PluginError> {
    const KEYS: [&str; 9] = [
        "name",
        "url",
        "jobs",
        "events",
        "secret_file",
        "header",
        "header_file",
        "template",
        "timeout",
    ];
    known_keys(block, &KEYS)?;
    let url = required(block, "url")?;
    let host = match url.split_once("://") {
        Some(("http" | "https", rest)) => rest.split(['/', '?']).next().unwrap_or(""),
        _ => "",
    };
    if host.is_empty() || host.contains('@') {
        // It may be a secret: not repeated.
        let what = "`url`: expected http://HOST/... or https://HOST/..., without a password";
        return Err(wrong(&block.at, what));
    }
    let jobs = match block.get("jobs") {
        None => None,
        Some(a) => {
            let of = |why| wrong(&a.at, format!("`jobs = {}`: {why}", a.text));
            Some(Pattern::new(&a.text).map_err(of)?)
        }
    };
    let template = match block.get("template") {
        None => None,
        Some(a) => {
            let of = |error| wrong(&a.at, format!("`template` is not JSON: {error}"));
            Some(serde_json::from_str(&a.text).map_err(of)?)
        }
    };
    let mut headers = Vec::new();
    for (key, is_file) in [("header", false), ("header_file", true)] {
        for a in block.all(key) {
            let Some((name, value)) = a.text.split_once(':') else {
                return Err(wrong(&a.at, format!("`{key}`: expected NAME: VALUE")));
            };
            let (name, value) = (name.trim(), value.trim());
            let is_name = !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            if !is_name || OUR_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
                return Err(wrong(&a.at, format!("`{key}`: `{name}` cannot be set")));
            }
            let value = match is_file {
                true => HeaderValue::File(file(a, value)?),
                false => HeaderValue::Text(value.to_owned()),
            };
            headers.push((name.to_owned(), value));
        }
    }
    Ok(Webhook {
        name: text(block, "name")
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| host.to_owned()),
        jobs,
        events: words(block, "events").unwrap_or_else(|| vec!["buildFinished".to_owned()]),
        secret_file: match block.get("secret_file") {
            None => None,
            Some(a) => Some(file(a, &a.text)?),
        },
        headers,
        template,
        time_max: seconds(block, "timeout")?,
        url,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::hydra_conf;
    use std::path::Path;

    fn read(text: &str) -> Result<Plugins, String> {
        let none = |_: &Path| Err(std::io::Error::other("no includes"));
        let document =
            hydra_conf::parse(Path::new("/hydra.conf"), text.as_bytes(), &none).expect("syntax");
        plugins(&document).map_err(|errors| errors.iter().map(|e| format!("{e}\n")).collect())
    }

    #[test]
    fn blocks_are_typed_and_what_is_wrong_names_its_line_and_no_secret() {
        let plugins = read(
            "<runcommand>\n command = cat $HYDRA_JSON\n</runcommand>\n\
             <runcommand>\n job = a:*\n</runcommand>\n\
             <webhook>\n url = https://example.org/x\n header = X-A: b\n header_file = Authorization: /s\n\
             jobs = a:.*\n template = {\"text\": \"{{build.job}}\"}\n</webhook>\n",
        )
        .expect("good blocks");
        assert_eq!(plugins.run_commands.len(), 1);
        assert_eq!(plugins.run_commands[0].job, "*:*:*");
        let webhook = &plugins.webhooks[0];
        assert_eq!(webhook.name, "example.org");
        assert_eq!(webhook.events, ["buildFinished"]);
        let file = HeaderValue::File(PathBuf::from("/s"));
        assert_eq!(webhook.headers[1], ("Authorization".to_owned(), file));

        for (block, error) in [
            ("url = ftp://u:secret@x/", "`url`: expected http"),
            ("url = https://u:secret@x/", "`url`: expected http"),
            ("url = https://x/\njobs = (?!a)", "jobs = (?!a)"),
            ("url = https://x/\nsecret_file = s", "absolute path"),
            ("url = https://x/\nheader = Host: s", "`Host` cannot be set"),
            ("url = https://x/\ntemplate = {{x}}", "not JSON"),
            ("url = https://x/\ntimeout = soon", "number of seconds"),
            ("url = https://x/\nurls = 1", "has no `urls`"),
            ("name = a", "needs `url"),
        ] {
            let refused = read(&format!("<webhook>\n{block}\n</webhook>\n")).expect_err(block);
            assert!(
                refused.contains(error) && !refused.contains("secret@"),
                "{refused}"
            );
            assert!(refused.starts_with("/hydra.conf:"), "{refused}");
        }
        let twice = "<webhook>\nurl = http://x/\n</webhook>\n".repeat(2);
        assert!(read(&twice)
            .expect_err("twice")
            .contains("two blocks <webhook> `x`"));
    }
}
