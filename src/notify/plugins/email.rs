//! EmailNotification: mails about builds that ended otherwise than before, to maintainers and committers, and about errors of
//! evaluations, to the owner of the project.
//!
//! A mail for each event and recipient, as Hydra; with `digest` one for each evaluation and recipient, when the last of its new
//! builds has ended. What was handed over is remembered, so that another try for the same event goes to the others alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use lettre::address::Envelope;
use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Body, Mailbox, SinglePart};
use lettre::{Address, Message};

use super::{secret, status_words, Call, Failure, Needs, Plugin};
use crate::base::lock::lock;
use crate::base::text;
use crate::config::notify::{
    Email as Block, MailLogin, MailTls, MailTransport, Password, Secret, Smtp,
};
use crate::db::facts::{self, BuildFacts};
use crate::db::pool::Pool;
use crate::db::DbError;
use crate::nix::hash::{hex_encode, sha256};
use crate::notify::authors::{self, Committed};
use crate::notify::event::{Event, EVAL_ERROR_CHANGED, EVAL_FINISHED};
use crate::notify::plan::Ended;
use crate::notify::smtp;
use crate::sys::child::{self, plain_error};
use crate::sys::host::full_host_name;

/// A mail names so many builds; the rest is counted.
const LISTED_MAX: usize = 500;
/// Of an evaluation so many changed builds are looked at.
const CHANGES_MAX: usize = 5_000;
/// An event has not more recipients than this.
const RECIPIENTS_MAX: usize = 1_000;
/// Of an evaluation's error so much is quoted, bytes.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Events with some recipients told, and evaluations not yet finished, that are remembered.
const REMEMBERED_MAX: usize = 10_000;
/// The end of a build is an occasion to look at so many evaluations beside its own: nothing is announced of a cancelled build, which may
/// have been the last.
const LOOKED_AT_MAX: usize = 8;
/// How long the sweep waits for a pooled connection.
const CONNECTION_MAX: Duration = Duration::from_secs(30);

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

pub struct Email {
    sender: Mailbox,
    base_uri: String,
    transport: MailTransport,
    digest: bool,
    hello: String,
    /// HYDRA_MAIL_SINK: mails are appended to this file.
    sink: Option<String>,
    /// HYDRA_MAIL_TEST: mails are printed.
    printed: bool,
    /// HYDRA_FORCE_SEND_MAIL: whatever the status was and is.
    forced: bool,
}

/// Recipients that were told, by event that was not told to all. The process's, so that reading hydra.conf again forgets nothing.
static TOLD: Mutex<BTreeMap<i64, BTreeSet<String>>> = Mutex::new(BTreeMap::new());

/// Evaluations of which something had not ended when it was looked at; `None`: it was not looked for them yet.
static OPEN: Mutex<Option<BTreeSet<i32>>> = Mutex::new(None);

/// A mail before it is one.
struct Letter {
    to: String,
    subject: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Email {
    /// # Errors
    /// When the sender is no address, or the environment names what we do not have.
    pub fn new(block: Block, env: Env<'_>) -> Result<Email, String> {
        let host = full_host_name();
        let sender = block.sender.unwrap_or_else(|| {
            let user = env("USER").filter(|user| !user.is_empty());
            format!("{}@{host}", user.as_deref().unwrap_or("hydra"))
        });
        let address = sender.parse::<Address>().map_err(|error| {
            format!("notification_sender: `{sender}` is not an address for mails: {error}")
        })?;
        let transport = match block.transport {
            Some(transport) => transport,
            None => transport_of(env)?,
        };
        let set = |name: &str| env(name).filter(|text| !text.is_empty());
        let true_in_perl = |name: &str| set(name).is_some_and(|text| text != "0");
        Ok(Email {
            sender: Mailbox::new(Some("Hydra Build Daemon".to_owned()), address),
            base_uri: block
                .base_uri
                .unwrap_or_else(|| format!("http://{host}:3000")),
            transport,
            digest: block.digest,
            hello: host,
            sink: set("HYDRA_MAIL_SINK"),
            printed: true_in_perl("HYDRA_MAIL_TEST"),
            forced: true_in_perl("HYDRA_FORCE_SEND_MAIL"),
        })
    }

    /// Whether those who asked for mails about a build want one about this end of it.
    fn is_worth(&self, call: &Call<'_>, build: &BuildFacts) -> Result<bool, Failure> {
        let Some(status) = build.status.filter(|_| build.finished) else {
            return Ok(false);
        };
        if self.forced {
            return Ok(true);
        }
        if !build.enable_email || matches!(status, 3 | 4) {
            return Ok(false);
        }
        let previous = call.previous(build.id)?;
        Ok(previous.is_none_or(|previous| previous.status != Some(status)))
    }

    /// Of the builds of an event; with `digest` only of those that no evaluation made.
    fn about_builds(&self, call: &Call<'_>) -> Result<Vec<Letter>, Failure> {
        let mut builds = call.builds()?;
        if self.digest {
            let ids: Vec<i32> = builds.iter().map(|build| build.id).collect();
            let made = facts::made_by_evaluations(&mut *call.conn()?, &ids)?;
            self.announce_finished(&call.around.pool, &ids)?;
            builds.retain(|build| !made.contains(&build.id));
        }
        let Some(top) = builds.first().cloned() else {
            return Ok(Vec::new());
        };
        let mut to: BTreeMap<String, Vec<BuildFacts>> = BTreeMap::new();
        for build in builds {
            if self.is_worth(call, &build)? {
                for address in recipients(&build) {
                    to.entry(address).or_default().push(build.clone());
                }
            }
        }
        // As in Hydra, committers are told of the build itself alone, and also where the jobset has mails switched off.
        let previous = call.previous(top.id)?;
        let mut committed = Committed::default();
        if top.finished && previous.is_none_or(|previous| previous.status != top.status) {
            committed = authors::between(call, top.id, previous)?;
            for address in &committed.responsible {
                to.insert(address.clone(), vec![top.clone()]);
            }
        }
        let mut letters = Vec::new();
        for (address, builds) in to {
            letters.push(self.letter_about_builds(call, address, &builds, &committed)?);
        }
        Ok(letters)
    }

    fn letter_about_builds(
        &self,
        call: &Call<'_>,
        to: String,
        builds: &[BuildFacts],
        committed: &Committed,
    ) -> Result<Letter, Failure> {
        let (build, others) = builds.split_first().expect("BUG: a mail about nothing");
        let status = build.status.unwrap_or(3);
        let words = status_words(status);
        let job = build.job_name();
        let on = match build.job.contains(&build.system) {
            true => String::new(),
            false => format!(" on {}", build.system),
        };
        let and = match others.len() {
            0 => String::new(),
            count => format!(" (and {count} others)"),
        };
        let before = call
            .previous(build.id)?
            .and_then(|previous| previous.status)
            .filter(|before| *before != status);
        let mut body = "Hi,\n\nthe status of Hydra job ".to_owned();
        body += &match before {
            Some(before) => format!(
                "{job}{on} has changed from \"{}\" to \"{words}\".",
                status_words(before)
            ),
            None => format!("{job}{on} is \"{words}\"."),
        };
        body += &format!(" Details are at\n\n  {}\n", self.link(build));
        let failed: Vec<&BuildFacts> = others.iter().filter(|b| b.status != Some(0)).collect();
        if !failed.is_empty() {
            body += "\nThese jobs that depend on it failed as well:\n\n";
            for build in failed.iter().take(LISTED_MAX) {
                body += &format!("* {} ({})\n", build.job_name(), self.link(build));
            }
            if failed.len() > LISTED_MAX {
                body += &format!("* and {} more\n", failed.len() - LISTED_MAX);
            }
        }
        body += &due_to(committed);
        body += match (status, failed.is_empty()) {
            (0, _) => "\nYay!\n",
            (_, true) => "\nGo forth and fix it.\n",
            (_, false) => "\nGo forth and fix them.\n",
        };
        body += SIGNATURE;
        Ok(Letter {
            to,
            subject: format!("{words}: Hydra job {job}{on}{and}"),
            headers: vec![
                ("X-Hydra-Instance", self.base_uri.clone()),
                ("X-Hydra-Project", build.project.clone()),
                ("X-Hydra-Jobset", build.jobset.clone()),
                ("X-Hydra-Job", build.job.clone()),
                ("X-Hydra-System", build.system.clone()),
            ],
            body,
        })
    }

    /// Evaluations that have ended become events of their own, once for each last end.
    fn announce_finished(&self, pool: &Pool, builds: &[i32]) -> Result<(), DbError> {
        // Held until the event is written: two builds that end at the same time announce once.
        let mut open = lock(&OPEN);
        let mut conn = pool.get(CONNECTION_MAX)?;
        let open = match open.as_mut() {
            Some(open) => open,
            None => {
                let found = facts::open_evaluations(&mut conn, REMEMBERED_MAX)?;
                open.insert(found.into_iter().collect())
            }
        };
        let count = match builds.is_empty() {
            true => REMEMBERED_MAX,
            false => LOOKED_AT_MAX,
        };
        let known: Vec<i32> = open.iter().copied().take(count).collect();
        let mut payloads = Vec::new();
        for progress in facts::progress(&mut conn, builds, &known)? {
            if !progress.finished {
                open.insert(progress.eval);
                if open.len() > REMEMBERED_MAX {
                    open.pop_first();
                }
                continue;
            }
            open.remove(&progress.eval);
            if progress.upto > progress.since {
                let (eval, since, upto) = (progress.eval, progress.since, progress.upto);
                payloads.push(format!("{eval}\t{since}\t{upto}"));
            }
        }
        match payloads.is_empty() {
            true => Ok(()),
            false => facts::announce(&mut conn, EVAL_FINISHED, &payloads),
        }
    }

    fn about_evaluation(
        &self,
        call: &Call<'_>,
        eval: i32,
        since: i32,
    ) -> Result<Vec<Letter>, Failure> {
        let changes = facts::evaluation_changes(&mut *call.conn()?, eval, since, CHANGES_MAX)?;
        let mut to: BTreeMap<String, Vec<BuildFacts>> = BTreeMap::new();
        let mut worst: Option<BuildFacts> = None;
        for id in changes {
            let Some(build) = call.build(id)? else {
                continue;
            };
            if worst.is_none() || build.status != Some(0) && worst_is_good(&worst) {
                worst = Some(build.clone());
            }
            if build.enable_email || self.forced {
                for address in recipients(&build) {
                    to.entry(address).or_default().push(build.clone());
                }
            }
        }
        let Some(worst) = worst else {
            return Ok(Vec::new());
        };
        let previous = call.previous(worst.id)?;
        let committed = authors::between(call, worst.id, previous)?;
        for address in &committed.responsible {
            to.entry(address.clone())
                .or_insert_with(|| vec![worst.clone()]);
        }
        let mut letters = Vec::new();
        for (address, builds) in to {
            letters.push(self.letter_about_evaluation(call, address, eval, &builds, &committed)?);
        }
        Ok(letters)
    }

    fn letter_about_evaluation(
        &self,
        call: &Call<'_>,
        to: String,
        eval: i32,
        builds: &[BuildFacts],
        committed: &Committed,
    ) -> Result<Letter, Failure> {
        let first = &builds[0];
        let jobset = format!("{}:{}", first.project, first.jobset);
        let good = builds
            .iter()
            .filter(|build| build.status == Some(0))
            .count();
        let bad = builds.len() - good;
        let counts = match (bad, good) {
            (bad, 0) => format!("{bad} failed"),
            (0, good) => format!("{good} succeed again"),
            (bad, good) => format!("{bad} failed, {good} succeed again"),
        };
        let mut body = format!(
            "Hi,\n\nevaluation {eval} of the Hydra jobset {jobset} is built. Of the jobs whose status has changed {counts}:\n\n  {}/eval/{eval}\n\n",
            self.base_uri
        );
        for build in builds.iter().take(LISTED_MAX) {
            let status = status_words(build.status.unwrap_or(3));
            let before = call.previous(build.id)?.and_then(|p| p.status);
            let before = match before {
                Some(before) => format!(", was \"{}\"", status_words(before)),
                None => String::new(),
            };
            let (job, system) = (&build.job, &build.system);
            let link = self.link(build);
            body += &format!("* {job} on {system}: \"{status}\"{before}\n  {link}\n");
        }
        if builds.len() > LISTED_MAX {
            body += &format!("* and {} more\n", builds.len() - LISTED_MAX);
        }
        body += &due_to(committed);
        body += SIGNATURE;
        Ok(Letter {
            to,
            subject: format!("Hydra jobset {jobset}: {counts} in evaluation {eval}"),
            headers: vec![
                ("X-Hydra-Instance", self.base_uri.clone()),
                ("X-Hydra-Project", first.project.clone()),
                ("X-Hydra-Jobset", first.jobset.clone()),
                ("X-Hydra-Evaluation", eval.to_string()),
            ],
            body,
        })
    }

    fn about_error(&self, call: &Call<'_>, jobset: i32) -> Result<Vec<Letter>, Failure> {
        let Some(error) = facts::jobset_error(&mut *call.conn()?, jobset)? else {
            return Ok(Vec::new());
        };
        // It may be gone again by now.
        if !error.owner_is_told || error.text.trim().is_empty() || error.owner.is_empty() {
            return Ok(Vec::new());
        }
        let name = format!("{}:{}", error.project, error.jobset);
        let quoted = text::clip(error.text.trim_end(), ERROR_BYTES_MAX);
        Ok(vec![Letter {
            to: error.owner,
            subject: format!("Hydra {name} evaluation error"),
            headers: vec![
                ("X-Hydra-Instance", self.base_uri.clone()),
                ("X-Hydra-Project", error.project),
                ("X-Hydra-Jobset", error.jobset),
            ],
            body: format!(
                "Hi,\n\nthe evaluation of the Hydra jobset {name} ended with this error:\n\n{quoted}\n{SIGNATURE}"
            ),
        }])
    }

    fn link(&self, build: &BuildFacts) -> String {
        format!("{}/build/{}", self.base_uri, build.id)
    }

    /// Hands over what was not yet; the failures that may be cured by another try come first.
    fn hand_over(&self, call: &Call<'_>, letters: Vec<Letter>) -> Result<(), Failure> {
        let told = |to: &str| {
            lock(&TOLD)
                .get(&call.event_id)
                .is_some_and(|told| told.contains(to))
        };
        let mut refused = None;
        let mut failed = None;
        if letters.len() > RECIPIENTS_MAX {
            log::warn!(
                "{}: {} recipients; only the first {RECIPIENTS_MAX} get a mail",
                call.event,
                letters.len()
            );
        }
        for letter in letters.into_iter().take(RECIPIENTS_MAX) {
            if told(&letter.to) {
                continue;
            }
            match self.send(call, &letter) {
                Ok(()) => {
                    let mut told = lock(&TOLD);
                    told.entry(call.event_id).or_default().insert(letter.to);
                    if told.len() > REMEMBERED_MAX {
                        told.pop_first();
                    }
                }
                Err(failure) if failure.ended == Ended::Refused => {
                    log::warn!("no mail for {}: {}", letter.to, failure.text);
                    lock(&TOLD)
                        .entry(call.event_id)
                        .or_default()
                        .insert(letter.to);
                    refused = Some(failure);
                }
                Err(failure) => {
                    // The server is not there for the others either.
                    failed = Some(failure);
                    break;
                }
            }
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
        lock(&TOLD).remove(&call.event_id);
        refused.map_or(Ok(()), Err)
    }

    fn send(&self, call: &Call<'_>, letter: &Letter) -> Result<(), Failure> {
        let wrong = |why: String| Failure::refused(format!("`{}`: {why}", letter.to));
        let to: Mailbox = letter
            .to
            .parse()
            .map_err(|error| wrong(format!("not an address for mails: {error}")))?;
        let message = self.message(call, letter, to).map_err(wrong)?;
        let bytes = message.formatted();
        if self.printed {
            eprintln!("{}", String::from_utf8_lossy(&bytes));
        }
        if let Some(path) = &self.sink {
            return append(Path::new(path), &bytes)
                .map_err(|error| Failure::again(format!("{path}: {}", plain_error(&error))));
        }
        match &self.transport {
            MailTransport::Sendmail(program) => sendmail(call, program, message.envelope(), &bytes),
            MailTransport::Smtp(place) => smtp::send(
                &smtp::Server {
                    host: &place.host,
                    port: place.port,
                    tls: place.tls,
                    login: match &place.login {
                        None => None,
                        Some(login) => Some((
                            login.user.clone(),
                            match &login.password {
                                Password::Of(Secret(text)) => text.clone(),
                                Password::File(path) => secret(path)?,
                            },
                        )),
                    },
                    hello: place.hello.as_deref().unwrap_or(&self.hello),
                    time_max: call.around.time_max,
                },
                message.envelope(),
                &bytes,
            ),
        }
    }

    fn message(&self, call: &Call<'_>, letter: &Letter, to: Mailbox) -> Result<Message, String> {
        // The same for each try, so that a mail that comes twice can be known as one.
        let who = hex_encode(&sha256(letter.to.as_bytes())[..8]);
        let domain = self.sender.email.domain();
        let mut builder = Message::builder()
            .from(self.sender.clone())
            .to(to)
            .subject(letter.subject.clone())
            .message_id(Some(format!("<hydrad-{}-{who}@{domain}>", call.event_id)))
            .date_now();
        for (name, value) in &letter.headers {
            let name = HeaderName::new_from_ascii_str(name);
            let value = text::plain(value);
            builder = builder.raw_header(HeaderValue::new(name, value));
        }
        let lines = letter.body.lines().map(str::trim_end);
        let lines: Vec<&str> = lines.collect();
        let body =
            Body::new_with_encoding(lines.join("\r\n"), ContentTransferEncoding::QuotedPrintable)
                .map_err(|_| "the text cannot be encoded".to_owned())?;
        let part = SinglePart::builder()
            .header(ContentType::TEXT_PLAIN)
            .body(body);
        builder.singlepart(part).map_err(|error| error.to_string())
    }
}

const SIGNATURE: &str = "\nRegards,\n\nThe Hydra build daemon.\n";

fn worst_is_good(worst: &Option<BuildFacts>) -> bool {
    worst.as_ref().is_some_and(|build| build.status == Some(0))
}

fn due_to(committed: &Committed) -> String {
    let words = committed.words("a commit by ", |name, address| {
        format!("{name} <{address}>")
    });
    match words.is_empty() {
        true => words,
        false => format!("\nThis may be due to {words}.\n"),
    }
}

/// Who is told of a build: whom the jobset names, else its maintainers.
fn recipients(build: &BuildFacts) -> BTreeSet<String> {
    let list = match build.email_override.is_empty() {
        false => build.email_override.as_str(),
        true => build.maintainers.as_deref().unwrap_or(""),
    };
    list.split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty())
        .map(str::to_owned)
        .collect()
}

/// As Perl's Email::Sender reads the environment.
fn transport_of(env: Env<'_>) -> Result<MailTransport, String> {
    let set =
        |name: &str| env(&format!("EMAIL_SENDER_TRANSPORT{name}")).filter(|text| !text.is_empty());
    match set("").as_deref() {
        None | Some("Sendmail") => Ok(MailTransport::Sendmail(
            set("_sendmail")
                .unwrap_or_else(|| "sendmail".to_owned())
                .into(),
        )),
        Some("SMTP") => {
            let tls = match set("_ssl").as_deref() {
                None | Some("0") => MailTls::Never,
                Some("starttls") => MailTls::Start,
                Some(_) => MailTls::Always,
            };
            let port = match set("_port") {
                None => tls.port(),
                Some(port) => port.parse().map_err(|_| {
                    format!("EMAIL_SENDER_TRANSPORT_port is `{port}`: expected a number")
                })?,
            };
            let login = set("_sasl_username").map(|user| MailLogin {
                user,
                password: Password::Of(Secret(set("_sasl_password").unwrap_or_default())),
            });
            let smtp = Smtp {
                host: set("_host").unwrap_or_else(|| "localhost".to_owned()),
                port,
                tls,
                login,
                hello: set("_helo"),
            };
            smtp.check()?;
            Ok(MailTransport::Smtp(smtp))
        }
        Some(other) => Err(format!(
            "EMAIL_SENDER_TRANSPORT is `{other}`: hydrad has SMTP and Sendmail"
        )),
    }
}

fn append(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    file.write_all(bytes)?;
    file.write_all(b"\n")
}

fn sendmail(
    call: &Call<'_>,
    program: &Path,
    envelope: &Envelope,
    message: &[u8],
) -> Result<(), Failure> {
    let name = program.display();
    let mut command = Command::new(program);
    command.arg("-i");
    if let Some(from) = envelope.from() {
        command.arg("-f").arg(from);
    }
    command
        .arg("--")
        .args(envelope.to().iter().map(ToString::to_string));
    // Programs of that name want the lines of this system.
    let text = String::from_utf8_lossy(message).replace("\r\n", "\n");
    let ended = child::run_with_input(&mut command, text.as_bytes(), call.around.time_max)
        .map_err(|error| Failure::again(format!("cannot start {name}: {}", plain_error(&error))))?;
    match (ended.status, ended.late) {
        (Some(status), false) if status.success() => Ok(()),
        (_, true) => Err(Failure::again(format!(
            "{name} was ended after {} s",
            call.around.time_max.as_secs()
        ))),
        (status, false) => {
            let how = status.map_or("does not end".to_owned(), child::describe_status);
            let words = text::presentable(ended.words.as_bytes(), 300);
            Err(Failure::again(format!("{name}: {how} {words}")))
        }
    }
}

impl Plugin for Email {
    fn target(&self) -> &str {
        "EmailNotification"
    }

    fn class(&self) -> Option<&'static str> {
        Some("Hydra::Plugin::EmailNotification")
    }

    fn channels(&self) -> &[&'static str] {
        match self.digest {
            true => &["build_finished", EVAL_ERROR_CHANGED, EVAL_FINISHED],
            false => &["build_finished", EVAL_ERROR_CHANGED],
        }
    }

    fn needs(&self) -> Needs<'_> {
        let file = match &self.transport {
            MailTransport::Smtp(smtp) => {
                smtp.login.as_ref().and_then(|login| match &login.password {
                    Password::File(path) => Some(path.as_path()),
                    Password::Of(_) => None,
                })
            }
            MailTransport::Sendmail(_) => None,
        };
        Needs {
            secrets: file.into_iter().collect(),
            ..Needs::default()
        }
    }

    fn sweep(&self, pool: &Pool) -> Result<(), DbError> {
        let is_idle = lock(&OPEN).as_ref().is_some_and(BTreeSet::is_empty);
        match is_idle || !self.digest {
            true => Ok(()),
            false => self.announce_finished(pool, &[]),
        }
    }

    fn deliver(&self, call: &Call<'_>) -> Result<(), Failure> {
        let letters = match call.event {
            Event::BuildFinished { .. } => self.about_builds(call)?,
            Event::EvalFinished { eval, since, .. } => {
                self.about_evaluation(call, *eval, *since)?
            }
            Event::EvalErrorChanged { jobset, .. } => self.about_error(call, *jobset)?,
            _ => Vec::new(),
        };
        self.hand_over(call, letters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_as_perls_sender_does() {
        let of = |vars: &[(&str, &str)]| {
            transport_of(&|name| {
                let found = vars
                    .iter()
                    .find(|(key, _)| name == format!("EMAIL_SENDER_TRANSPORT{key}"));
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(of(&[]), Ok(MailTransport::Sendmail("sendmail".into())));
        let Ok(MailTransport::Smtp(smtp)) = of(&[
            ("", "SMTP"),
            ("_host", "mail"),
            ("_ssl", "starttls"),
            ("_sasl_username", "u"),
            ("_sasl_password", "p"),
        ]) else {
            panic!("SMTP");
        };
        assert_eq!(
            (smtp.host.as_str(), smtp.port, smtp.tls),
            ("mail", 587, MailTls::Start)
        );
        assert!(!format!("{smtp:?}").contains("\"p\""));
        assert!(of(&[("", "Maildir")]).is_err_and(|why| why.contains("SMTP and Sendmail")));
        let bare = [("", "SMTP"), ("_host", "mail"), ("_sasl_username", "u")];
        assert!(of(&bare).is_err_and(|why| why.contains("TLS alone")));
    }
}
