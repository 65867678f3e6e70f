//! `hydrad machines test`: everything that building on a machine needs, tried one after the other with the code that
//! builds there.
//!
//! Knows what to try and what to do about each failure. What is put on the machine, a file of a few bytes and what is
//! built from it, is deleted at the end.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{free_bytes, Asked, Connection, Trouble};
use super::machine::Machine;
use super::trust::{self, Trust};
use crate::base::text::{bytes_text, clip};
use crate::nix::derivation::{Derivation, Output};
use crate::nix::hash::sha256;
use crate::nix::nar;
use crate::nix::store_path::{output_path, source_path, text_path, StoreDir};
use crate::nix::ValidPathInfo;
use crate::sys::clock::unix_now;
use crate::sys::kill::KillSwitch;
use crate::sys::pipes::{BuildLimits, ReplyWait};
use crate::wire::{version_text, BuildOptions, Error as WireError, ResultStatus};

/// A short question is answered within this time.
pub const ASK_MAX: Duration = Duration::from_secs(30);
/// A trivial build ends within this time.
const BUILD_MAX: Duration = Duration::from_secs(120);
/// Of what a trivial build makes.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;
/// Of a message of Nix's.
const MESSAGE_BYTES_MAX: usize = 1_000;
/// The names of what is put there begin with this.
const NAME: &str = "hydrad-machine-test";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Ok,
    Failed,
    Skipped,
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Failed => "failed",
            Verdict::Skipped => "skipped",
        }
    }
}

/// One thing that was tried.
#[derive(Clone, PartialEq, Debug)]
pub struct Check {
    pub what: String,
    pub verdict: Verdict,
    pub text: String,
    /// What to do about it; empty unless it failed.
    pub advice: String,
    pub took: Duration,
}

/// Tries everything; `tell` hears of each result at once. `scratch` is a folder of ours for a few bytes.
pub fn run(
    machine: &Machine,
    store_dir: &StoreDir,
    scratch: &Path,
    tell: &mut dyn FnMut(&Check),
) -> Vec<Check> {
    let mut trial = Trial {
        machine,
        store_dir,
        tell,
        checks: Vec::new(),
        began: Instant::now(),
        left_there: Vec::new(),
    };
    match KillSwitch::new() {
        Ok(kill) => trial.try_all(&Arc::new(kill), scratch),
        Err(error) => trial.failed("connection", error.to_string(), "close other programs"),
    }
    trial.checks
}

struct Trial<'a> {
    machine: &'a Machine,
    store_dir: &'a StoreDir,
    tell: &'a mut dyn FnMut(&Check),
    checks: Vec<Check>,
    began: Instant,
    /// Paths that we have put on the machine, referrers first.
    left_there: Vec<String>,
}

/// What has to be done before something else, and failed.
struct Missing(&'static str);

impl Trial<'_> {
    fn note(&mut self, what: &str, verdict: Verdict, text: String, advice: &str) {
        let check = Check {
            what: what.to_owned(),
            verdict,
            text,
            advice: advice.to_owned(),
            took: std::mem::replace(&mut self.began, Instant::now()).elapsed(),
        };
        (self.tell)(&check);
        self.checks.push(check);
    }

    fn ok(&mut self, what: &str, text: String) {
        self.note(what, Verdict::Ok, text, "");
    }

    fn failed(&mut self, what: &str, text: String, advice: &str) {
        self.note(what, Verdict::Failed, text, advice);
    }

    fn skipped(&mut self, what: &str, text: String) {
        self.note(what, Verdict::Skipped, text, "");
    }

    fn try_all(&mut self, kill: &Arc<KillSwitch>, scratch: &Path) {
        if let Err(Missing(why)) = self.try_in_order(kill, scratch) {
            for what in [
                "version", "disk", "trust", "send", "build", "features", "receive",
            ] {
                if !self.checks.iter().any(|check| check.what.starts_with(what)) {
                    self.skipped(what, why.to_owned());
                }
            }
        }
        self.machine.close_all();
        self.clean_up(kill);
    }

    fn try_in_order(&mut self, kill: &Arc<KillSwitch>, scratch: &Path) -> Result<(), Missing> {
        let line = self.machine.line();
        let mut connection = match self.machine.build_connection(kill) {
            Ok(connection) => connection,
            Err(trouble) => {
                let text = told(trouble);
                let advice = connection_advice(&text, &line.ssh_target(), line.is_localhost);
                self.failed("connection", text, &advice);
                return Err(Missing("there is no connection"));
            }
        };
        let by = match line.is_localhost {
            true => "by nix-store, without ssh".to_owned(),
            false => format!("by ssh {}", line.ssh_target()),
        };
        self.ok("connection", by);
        let version = version_text(connection.client.server_version());
        self.ok("protocol", format!("nix-store --serve {version}"));
        self.ask_version(kill);
        self.ask_disk(kill);
        self.try_trust(&mut connection)?;

        let nonce = format!("{}-{}", std::process::id(), self.nonce());
        let sent = match line.is_localhost {
            true => {
                self.skipped(
                    "send",
                    "inputs are in the store of this host already".into(),
                );
                None
            }
            false => {
                let advice = "its store may be full, read-only or damaged: as root there, `nix-store --verify`";
                match self.send(&mut connection, scratch, &nonce) {
                    Ok(path) => {
                        self.ok("send", format!("{path}, and it says that it is valid"));
                        Some(path)
                    }
                    Err(text) => {
                        self.failed("send", text, advice);
                        return Err(Missing("nothing can be sent"));
                    }
                }
            }
        };
        let mut built = None;
        let systems: Vec<String> = line.systems.iter().cloned().collect();
        if systems.is_empty() {
            let advice = "write the system types into its second column";
            self.failed("build", "its line names no system type".into(), advice);
        }
        for system in systems.iter().filter(|system| *system != "builtin") {
            let what = format!("build {system}");
            // A failed build leaves the connection as it is; a broken one is opened again.
            if !connection.client.usable() {
                connection = self.again(kill)?;
            }
            match self.build(&mut connection, system, &[], sent.as_deref(), &nonce) {
                Ok(path) => {
                    self.ok(&what, format!("{path} was built"));
                    built.get_or_insert(path);
                }
                Err(text) if text.contains("executing '/bin/sh'") => self.skipped(
                    &what,
                    "the sandbox there has no /bin/sh, which this trial needs and builds need not"
                        .into(),
                ),
                Err(text) => {
                    let advice = build_advice(&text, &format!("system type {system}"));
                    self.failed(&what, text, &advice);
                }
            }
        }
        let features: Vec<&str> = line.supported.iter().map(String::as_str).collect();
        match systems.first() {
            _ if features.is_empty() => self.skipped("features", "its line names none".into()),
            None => {}
            Some(system) => {
                if !connection.client.usable() {
                    connection = self.again(kill)?;
                }
                match self.build(&mut connection, system, &features, sent.as_deref(), &nonce) {
                    Ok(_) => self.ok(
                        "features",
                        format!("it builds what requires {}", features.join(", ")),
                    ),
                    Err(text) if text.contains("executing '/bin/sh'") => {
                        self.ok(
                            "features",
                            format!("it takes what requires {}", features.join(", ")),
                        );
                    }
                    Err(text) => {
                        let advice =
                            build_advice(&text, &format!("features {}", features.join(", ")));
                        self.failed("features", text, &advice);
                    }
                }
            }
        }
        match built {
            None => return Err(Missing("nothing was built")),
            Some(path) => {
                if !connection.client.usable() {
                    connection = self.again(kill)?;
                }
                match receive(&mut connection, self.machine, &path, &nonce) {
                    Ok(size) => self.ok("receive", format!("{size} bytes came back as they should")),
                    Err(text) => self.failed(
                        "receive",
                        text,
                        "as root there, `nix-store --verify --check-contents`; a disk or a line may be bad",
                    ),
                }
            }
        }
        Ok(())
    }

    /// Not the same twice: what is built must not be there already.
    fn nonce(&self) -> u128 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos())
    }

    fn again(&mut self, kill: &Arc<KillSwitch>) -> Result<Connection, Missing> {
        self.machine.build_connection(kill).map_err(|trouble| {
            let text = told(trouble);
            self.failed("connection again", text, "it worked before: try once more");
            Missing("the connection is lost")
        })
    }

    fn ask_version(&mut self, kill: &Arc<KillSwitch>) {
        match self.machine.ask(kill, ASK_MAX, Asked::NixVersion) {
            Ok(said) if !said.trim().is_empty() => self.ok("version", said.trim().to_owned()),
            Ok(_) => self.skipped("version", "it says nothing".into()),
            Err(trouble) => {
                self.skipped("version", format!("it cannot be asked: {}", told(trouble)))
            }
        }
    }

    fn ask_disk(&mut self, kill: &Arc<KillSwitch>) {
        let Some(folder) = self.machine.line().store_folder(self.store_dir.0.as_str()) else {
            return self.skipped(
                "disk",
                "where its store lies cannot be told from its line".into(),
            );
        };
        match self.machine.ask(kill, ASK_MAX, Asked::FreeSpace(&folder)) {
            Ok(said) => match free_bytes(&said) {
                Some(bytes) => self.ok("disk", format!("{} free in {folder}", bytes_text(bytes))),
                None => self.skipped("disk", format!("df says something else: {}", said.trim())),
            },
            Err(trouble) => self.skipped("disk", format!("it cannot be asked: {}", told(trouble))),
        }
    }

    fn try_trust(&mut self, connection: &mut Connection) -> Result<(), Missing> {
        match trust::probe_over(connection, self.store_dir.0.as_str(), ASK_MAX) {
            Trust::Trusted => {
                self.ok(
                    "trust",
                    "the account may build and add paths without signatures".into(),
                );
                Ok(())
            }
            Trust::Refused(text) => {
                let advice = match self.machine.line().is_localhost {
                    true => trust::advice(),
                    false => "put that account into `trusted-users` of /etc/nix/nix.conf there, and restart its nix-daemon".into(),
                };
                self.failed("trust", text, &advice);
                Err(Missing("the account is not trusted there"))
            }
            Trust::Unknown(text) => {
                let advice =
                    "the words are Nix's; as the same user: `ssh HOST nix-store --serve --write`";
                self.failed("trust", text, advice);
                Err(Missing("it hung up when it was asked to build"))
            }
        }
    }

    /// Puts a small file into its store.
    fn send(
        &mut self,
        connection: &mut Connection,
        scratch: &Path,
        nonce: &str,
    ) -> Result<String, String> {
        let file = scratch.join(format!("sent-{nonce}"));
        let mut bytes = Vec::new();
        let dumped = std::fs::write(&file, format!("{nonce}\n"))
            .map_err(|error| error.to_string())
            .and_then(|()| nar::dump_path(&file, &mut bytes).map_err(|error| error.to_string()));
        // Of a scratch folder that is removed as a whole anyway.
        let _ = std::fs::remove_file(&file);
        dumped.map_err(|error| format!("cannot make {}: {error}", file.display()))?;
        let hash = sha256(&bytes);
        let path = source_path(self.store_dir, &format!("{NAME}-input"), &hash, &[]);
        let info = ValidPathInfo {
            path: path.clone(),
            deriver: None,
            nar_hash: hash,
            references: Vec::new(),
            registration_time: u64::try_from(unix_now()).unwrap_or(0),
            nar_size: bytes.len() as u64,
            ultimate: false,
            sigs: Vec::new(),
            ca: None,
        };
        let doing = "sending a test path";
        connection.pipes.enter(doing, self.machine.deadlines().send);
        self.left_there.push(path.clone());
        connection
            .client
            .add_to_store_nar(&info, &mut bytes.as_slice())
            .map_err(|error| told(connection.trouble(&error, doing)))?;
        let doing = "asking whether it has the test path";
        connection
            .pipes
            .enter(doing, self.machine.deadlines().query);
        // Locked, so that its garbage collector leaves it alone for now.
        let valid = connection
            .client
            .query_valid_paths(&[&path], true, false)
            .map_err(|error| told(connection.trouble(&error, doing)))?;
        match valid.is_empty() {
            true => Err(format!("it took {path} and does not have it")),
            false => Ok(path),
        }
    }

    /// A build of a line of text, from the file that was sent if there is one.
    fn build(
        &mut self,
        connection: &mut Connection,
        system: &str,
        features: &[&str],
        input: Option<&str>,
        nonce: &str,
    ) -> Result<String, String> {
        let (drv_path, drv, output) = derivation(self.store_dir, system, features, input, nonce);
        let doing = "sending the build request";
        connection
            .pipes
            .enter(doing, self.machine.deadlines().query);
        self.left_there.insert(0, output.clone());
        let options = BuildOptions {
            max_silent: BUILD_MAX.as_secs(),
            timeout: BUILD_MAX.as_secs(),
            ..BuildOptions::default()
        };
        connection
            .client
            .build_derivation_start::<&str>(&drv_path, &drv, &[], &options)
            .map_err(|error| told(connection.trouble(&error, doing)))?;
        let limits = BuildLimits {
            total: Some(BUILD_MAX),
            silence: None,
            log_bytes_max: 0,
        };
        match connection
            .pipes
            .wait_for_reply(connection.client.get_ref(), &limits)
        {
            Ok(ReplyWait::Ready) => {}
            Ok(_) => return Err(format!("no answer within {} s", BUILD_MAX.as_secs())),
            Err(error) => return Err(format!("cannot wait for the answer: {error}")),
        }
        connection
            .pipes
            .enter("reading the build's result", self.machine.deadlines().query);
        let result = connection
            .client
            .build_derivation_finish()
            .map_err(|error| told(connection.trouble(&error, "building")))?;
        match result.status {
            ResultStatus::Built | ResultStatus::Substituted | ResultStatus::AlreadyValid => {
                Ok(output)
            }
            status => {
                let words = connection.pipes.stderr_tail();
                let text = match (result.message.trim(), words.is_empty()) {
                    ("", true) => format!("{status:?}"),
                    ("", false) => words,
                    (message, _) => message.to_owned(),
                };
                Err(clip(&text, MESSAGE_BYTES_MAX))
            }
        }
    }

    /// Deletes what we have put there. Its connections are closed, so nothing keeps the paths.
    fn clean_up(&mut self, kill: &Arc<KillSwitch>) {
        if self.left_there.is_empty() {
            return;
        }
        self.began = Instant::now();
        match self
            .machine
            .ask(kill, ASK_MAX, Asked::Delete(&self.left_there))
        {
            Ok(_) => self.ok("clean-up", "what was put there is deleted".into()),
            Err(trouble) => self.skipped(
                "clean-up",
                format!(
                    "its garbage collector will have to remove {} small paths ({NAME}-*): {}",
                    self.left_there.len(),
                    told(trouble)
                ),
            ),
        }
    }
}

/// A derivation that writes one line, its path and its output's.
fn derivation(
    store_dir: &StoreDir,
    system: &str,
    features: &[&str],
    input: Option<&str>,
    nonce: &str,
) -> (String, Derivation, String) {
    // Builtins of the shell alone: nothing else is there.
    let script = match input {
        Some(_) => "read -r line < \"$input\" && echo \"$line\" > \"$out\"",
        None => "echo \"$nonce\" > \"$out\"",
    };
    let mut env: BTreeMap<Vec<u8>, Vec<u8>> = [
        ("builder", "/bin/sh"),
        ("name", NAME),
        ("nonce", nonce),
        ("out", ""),
        ("system", system),
    ]
    .into_iter()
    .map(|(name, value)| (name.into(), value.into()))
    .collect();
    if !features.is_empty() {
        env.insert(
            "requiredSystemFeatures".into(),
            features.join(" ").into_bytes(),
        );
    }
    if let Some(input) = input {
        env.insert("input".into(), input.into());
    }
    let mut drv = Derivation {
        outputs: BTreeMap::from([(
            "out".to_owned(),
            Output {
                path: None,
                hash_algo: String::new(),
                hash: String::new(),
            },
        )]),
        input_drvs: BTreeMap::new(),
        input_srcs: input.map(str::to_owned).into_iter().collect(),
        platform: system.to_owned(),
        builder: b"/bin/sh".to_vec(),
        args: vec![b"-c".to_vec(), script.as_bytes().to_vec()],
        env,
    };
    // The output's path comes from the derivation without it.
    let output = output_path(store_dir, NAME, "out", &sha256(&drv.to_aterm()));
    if let Some(out) = drv.outputs.get_mut("out") {
        out.path = Some(output.clone());
    }
    drv.env.insert("out".into(), output.clone().into_bytes());
    let hash = sha256(&drv.to_aterm());
    let path = text_path(store_dir, &format!("{NAME}.drv"), &hash, &drv.input_srcs);
    (path, drv, output)
}

/// Reads an output back and compares it with what the machine says of it.
fn receive(
    connection: &mut Connection,
    machine: &Machine,
    path: &str,
    nonce: &str,
) -> Result<u64, String> {
    let doing = "asking for the output";
    connection.pipes.enter(doing, machine.deadlines().query);
    let infos = connection
        .client
        .query_path_infos(&[path])
        .map_err(|error| told(connection.trouble(&error, doing)))?;
    let Some(info) = infos.first() else {
        return Err(format!(
            "it says that it built {path}, but does not have it"
        ));
    };
    if info.nar_size > OUTPUT_BYTES_MAX {
        return Err(format!(
            "{path} has {} bytes instead of a line",
            info.nar_size
        ));
    }
    let doing = "receiving the output";
    connection.pipes.enter(doing, machine.deadlines().receive);
    let mut bytes = Vec::new();
    let read = match connection.client.dump_store_path(path, ()) {
        Err(error) => Err(error),
        Ok(mut nar) => (&mut nar)
            .take(OUTPUT_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(WireError::Io)
            .and_then(|_| match bytes.len() as u64 == info.nar_size {
                true => nar.finish(),
                // What has another size than it said may also have no end.
                false => Err(WireError::Unsupported(format!(
                    "{path} has another size than it says"
                ))),
            }),
    };
    if let Err(error) = read {
        return Err(told(connection.trouble(&error, doing)));
    }
    if sha256(&bytes) != info.nar_hash {
        return Err(format!(
            "{path} came back with another hash than the machine says"
        ));
    }
    let line = nonce.as_bytes();
    match bytes.windows(line.len()).any(|part| part == line) {
        true => Ok(bytes.len() as u64),
        false => Err(format!("{path} does not have the text that was sent")),
    }
}

fn told(trouble: Trouble) -> String {
    match trouble {
        Trouble::Machine(text) | Trouble::Ours(text) => text,
        Trouble::Killed => "it was interrupted".into(),
    }
}

/// What to do when there is no connection: the first words that fit.
fn connection_advice(text: &str, target: &str, is_localhost: bool) -> String {
    let by_hand = format!("as this user: `ssh {target} nix-store --version`");
    if is_localhost {
        return "is nix-store in the PATH, or nix_store_program right? As this user: `nix-store --version`".into();
    }
    let table: [(&str, &str); 10] = [
        ("cannot start", "install ssh, or set ssh_program"),
        ("Permission denied", "is the key of column 3 (or of ssh's configuration) readable for this user, and its public half in authorized_keys there?"),
        ("Host key verification failed", "put the host's key into known_hosts of this user or into column 8; if it changed, find out why"),
        ("Could not resolve", "is the host's name right, does DNS work here?"),
        ("Connection refused", "does sshd run there, is the port right (`ssh://host:port`)?"),
        ("timed out", "is the host up, does a firewall let ssh through?"),
        ("No route to host", "is the host up, is the network?"),
        ("not found", "Nix is not in the PATH of a login without a terminal there: `?remote-program=/path/to/nix-store` behind the name"),
        ("expected", "something prints at login there (a start-up file of the shell, a banner): make it silent when there is no terminal"),
        ("protocol version", "a newer Nix there"),
    ];
    match table.iter().find(|(words, _)| text.contains(words)) {
        Some((_, advice)) => format!("{advice}; {by_hand}"),
        None => by_hand,
    }
}

/// What to do when a build that writes one line fails.
fn build_advice(text: &str, wanted: &str) -> String {
    if text.contains("is required to build") {
        return format!(
            "its Nix does not have the {wanted}: take that off its line in the machines file, or set \
             `system-features` or `extra-platforms` in nix.conf there"
        );
    }
    match crate::plan::signature::classify(text) {
        Some(signature) => signature.advice().to_owned(),
        None => "the words are Nix's: build anything by hand there, as the same user".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::derivation_hash::verify_output_paths;

    #[test]
    fn the_derivation_is_one_that_nix_would_make() {
        let dir = StoreDir("/nix/store".into());
        for input in [None, Some("/nix/store/00000000000000000000000000000000-x")] {
            let (path, drv, output) = derivation(&dir, "x86_64-linux", &["kvm"], input, "n");
            verify_output_paths(&dir, &path, &drv, &mut |_| {
                unreachable!("no input derivations")
            })
            .expect("the output's path is right");
            assert!(output.ends_with(NAME), "{output}");
            assert_eq!(drv.env_var("requiredSystemFeatures"), Some(&b"kvm"[..]));
        }
    }

    #[test]
    fn each_way_of_failing_has_an_advice() {
        for (text, advice) in [
            (
                "cannot connect to 'h': cannot start ssh: No such file or directory",
                "install ssh",
            ),
            (
                "cannot connect to 'h': Host key verification failed.",
                "known_hosts",
            ),
            (
                "cannot connect to 'h': bash: line 1: nix-store: command not found",
                "remote-program",
            ),
            (
                "cannot connect to 'h': what?",
                "`ssh u@h nix-store --version`",
            ),
        ] {
            assert!(
                connection_advice(text, "u@h", false).contains(advice),
                "{text}"
            );
        }
        let lacks =
            "a 'x' with features {kvm} is required to build 'y', but I am a 'x' with features {}";
        assert!(build_advice(lacks, "features kvm").contains("features kvm"));
    }
}
