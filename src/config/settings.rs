//! The settings: what may be written in hydra.conf, what it means, and where each value came from.
//!
//! Knows every key of Hydra's and of hydrad's, its kind, default, meaning and who uses it, all in
//! one table ([`DEFINITIONS`], [`BLOCKS`]): parsing, `hydrad check` and the commented example file
//! ([`commented_conf`]) come from it. Does not know how a setting is carried out.
//!
//! A value comes from the command line, else the environment, else hydra.conf, else its default.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::hydra_conf::{self, Document, HydraConfError, Origin};
use super::inputs::InputSettings;
use super::notify::{self, PluginError};

/// One of the programs that Hydra's backend consists of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Service {
    QueueRunner,
    Evaluator,
    Notify,
}

impl Service {
    /// As written in `services`.
    pub fn name(self) -> &'static str {
        match self {
            Service::QueueRunner => "queue-runner",
            Service::Evaluator => "evaluator",
            Service::Notify => "notify",
        }
    }

    /// Hydra's own program that does the same job.
    pub fn hydra_program(self) -> &'static str {
        match self {
            Service::QueueRunner => "hydra-queue-runner",
            Service::Evaluator => "hydra-evaluator",
            Service::Notify => "hydra-notify",
        }
    }
}

/// What the text of a value has to look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A whole number within these bounds.
    Count { min: u64, max: u64 },
    /// A number of bytes; K, M, G and T (powers of 1024) may follow.
    Bytes,
    /// A number of seconds; s, m, h and d may follow.
    Seconds,
    /// `true` or `1`, `false` or `0`.
    Bool,
    /// Any text.
    Text,
    /// An absolute path.
    Path,
    /// `HOST:PORT`, `[IPV6]:PORT` or `none`.
    Address,
    /// Words separated by blanks.
    Words,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `project:N` or `project:jobset:N`, separated by blanks.
    StepCaps,
    /// `project:jobset:N`, separated by blanks.
    JobsetRepeats,
    /// `HOST:N`, `HOST:PORT:N` or `*:N`, separated by blanks.
    HostRates,
}

/// Who uses a setting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// hydrad's queue runner.
    Used,
    /// hydrad's service of this kind, which reads it by itself.
    UsedBy(Service),
    /// A service that hydrad does not have yet: accepted, without effect on hydrad.
    NotYetUsed(Service),
    /// Hydra's web server; no business of hydrad's.
    WebServer,
    /// Part of this service in Hydra and missing here: an error where hydrad is to be that
    /// service, unless listed in `ignore_settings`.
    NotImplemented(Service, &'static str),
    /// Without effect in Hydra too; the text says what to do instead.
    Deprecated(&'static str),
    /// Hydra's queue runner refuses to start with it; the text is Hydra's.
    Fatal(&'static str),
}

/// A key at the top level of hydra.conf.
#[derive(Debug)]
pub struct Definition {
    pub key: &'static str,
    pub kind: Kind,
    /// As one would write it; empty if the default is "not set" or comes from the environment.
    pub default: &'static str,
    pub role: Role,
    pub help: &'static str,
}

/// A block at the top level of hydra.conf.
#[derive(Debug)]
pub struct BlockDefinition {
    pub name: &'static str,
    pub role: Role,
}

const fn used(
    key: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Definition {
    Definition {
        key,
        kind,
        default,
        role: Role::Used,
        help,
    }
}

const fn other(key: &'static str, role: Role) -> Definition {
    Definition {
        key,
        kind: Kind::Text,
        default: "",
        role,
        help: "",
    }
}

const fn block(name: &'static str, role: Role) -> BlockDefinition {
    BlockDefinition { name, role }
}

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

use Role::{Deprecated, Fatal, NotImplemented, UsedBy, WebServer};
use Service::{Evaluator, Notify, QueueRunner};

/// Every key that Hydra or hydrad knows. Order: that of the commented example file.
pub const DEFINITIONS: &[Definition] = &[
    used("services", Kind::Words, "queue-runner",
        "The services `hydrad run` starts: queue-runner, evaluator, notify. With --state, where nobody else \
         does their work, all three if this is not set; with a database of yours the queue runner alone, so \
         that Hydra's own programs for the others go on beside it."),
    used("ignore_settings", Kind::Words, "",
        "Keys and blocks of Hydra's that hydrad does not implement and that are to be ignored \
         here. Without this such a setting is an error, because something you rely on (a backup, \
         say) would stop without a word."),
    used("database", Kind::Text, "",
        "The PostgreSQL database, as `dbi:Pg:dbname=hydra;host=...` or `postgres://...`. The \
         environment (HYDRA_DATABASE_URL, HYDRA_DBI) goes first. Not set: database `hydra` on \
         this host. Passwords belong into a PGPASSFILE."),
    used("max_db_connections", count(2, 10_000), "16",
        "At most this many pooled database connections, however many machines and cores there \
         are. Two more, one to listen and one for locks, are kept apart. (Hydra: 128, because a \
         running step held one there.)"),
    used("max_output_size", Kind::Bytes, "2147483648",
        "The outputs of a step may have this many bytes together (as NARs); more ends the build \
         with `output limit exceeded`."),
    used("max_log_size", Kind::Bytes, "67108864",
        "A step may write this many bytes of log; more ends it with `log limit exceeded`."),
    used("max_unsupported_time", Kind::Seconds, "0",
        "A build whose system type or features no machine has is given up after this time. 0: at \
         once. A system type that some machine had within the last hour stays supported."),
    used("max_running_steps", Kind::StepCaps, "",
        "How many steps of a project or jobset may run at the same time: words project:N (all its jobsets \
         together) or project:jobset:N, separated by blanks. Not set: no limit. A step that several \
         jobsets want may run as long as one of them has room."),
    used("min_free_space", Kind::Bytes, "1073741824",
        "When less than this is free where the store, the logs and hydrad's own files are, no step and no \
         evaluation is started until there is more; running ones go on. 0: it is not looked."),
    used("machine_min_free_space", Kind::Bytes, "1073741824",
        "When less than this is free where a machine's store is, nothing is started on that machine \
         until there is more. Machines in use are asked with `df` over ssh. 0: none is asked."),
    used("free_space_interval", Kind::Seconds, "60",
        "How often free space is looked at, here and on machines in use. At least one second."),
    used("xxx-jobset-repeats", Kind::JobsetRepeats, "",
        "Steps of these jobsets are built N times more, to see whether their outputs are the same each \
         time: words project:jobset:N, separated by blanks, N up to 100. Nix from 2.13 on refuses that: \
         a machine that has it builds once."),
    used("machine_types_hook", Kind::Text, "",
        "A command (for /bin/sh) that gets the report's machineTypes as JSON on standard input when \
         the number of runnable or running steps of a system type has changed; at most every 10 s, \
         ended after 60 s. For starting and stopping machines by demand."),
    used("max_local_worker_threads", count(0, 1024), "0",
        "How many steps may receive outputs (and compress them, for a binary cache) at the same time. 0: the number of CPUs less two, at \
         least two."),
    used("gc_roots_dir", Kind::Path, "",
        "The folder of Hydra's garbage collector roots. Not set: \
         $NIX_STATE_DIR/gcroots/per-user/$LOGNAME/hydra-roots, as in Hydra."),
    used("gc_roots_max_deletion", count(0, 100), "50",
        "The largest share of all GC roots, in percent, that one run of `hydrad update-gc-roots` removes \
         without being told to; up to 100 roots are always removed."),
    used("store_uri", Kind::Text, "",
        "The destination store, into which outputs go. Not set: the local store. `file:///DIR` is a \
         binary cache in a folder; its parameters (`?secret-key=FILE&compression=zstd`) are in the \
         manual. Whatever else it names (`ssh://HOST`, ...) is written through `nix copy`."),
    used("narinfo-cache-positive-ttl", Kind::Seconds, "3600",
        "For how long a path that was found in the binary cache of store_uri is believed to be \
         there. What is missed on use is forgotten at once."),
    used("narinfo-cache-negative-ttl", Kind::Seconds, "60",
        "For how long a path that was not found in the binary cache of store_uri is believed not to \
         be there, unless hydrad itself puts it there."),
    used("use-substitutes", Kind::Bool, "false",
        "Whether missing outputs are taken from the substituters of the local store's nix.conf instead \
         of being built. A derivation of which they do not have all that is missing is built."),
    used("upload_logs_to_binary_cache", Kind::Bool, "false",
        "Whether the logs of finished steps are put into the binary cache of store_uri as well, where \
         `nix log` finds them. The local files stay."),
    used("queue_runner_metrics_address", Kind::Address, "127.0.0.1:9198",
        "Where /metrics (Prometheus) and /healthz are served. none: nowhere."),
    used("status_address", Kind::Address, "127.0.0.1:9199",
        "Where the status pages and their JSON are served. none: nowhere."),
    used("stall_warning", Kind::Seconds, "300",
        "When nothing has begun to build for this long although steps are ready and slots are free, the \
         log says so, and why. 0: never."),
    used("watchdog_patience", Kind::Seconds, "60",
        "A thread that stands still for this long in something that has no deadline of its own (a hung \
         file system, say) is named in the log. 0: none is."),
    used("stop_timeout", Kind::Seconds, "60",
        "When hydrad is told to stop, it starts nothing new and gives running steps this long."),
    used("queue_poll_interval", Kind::Seconds, "60",
        "How often the queue, and by the evaluator the list of jobsets, is read without a notification, as a \
         safety net. 0: never."),
    used("max_tries", count(1, 100), "5",
        "How often a step is tried that fails for a reason which another try may cure."),
    used("retry_interval", Kind::Seconds, "60",
        "The pause before a step's second try; each further one is three times as long, up to 30 \
         minutes. At least one second."),
    used("probe_interval", Kind::Seconds, "60",
        "The last machine that could run a waiting step is tried at least this often, however long \
         it is set aside. At least one second."),
    used("fault_burst", Kind::Seconds, "30",
        "Faults of a machine within this time count as one, as when it reboots under many steps."),
    used("connect_timeout", Kind::Seconds, "60",
        "A machine must accept the ssh connection within this time."),
    used("handshake_timeout", Kind::Seconds, "60",
        "A machine must finish the greeting of the Nix protocol within this time."),
    used("query_timeout", Kind::Seconds, "600",
        "A machine must say which paths it has within this time."),
    used("substitute_timeout", Kind::Seconds, "7200",
        "A machine, or the local store, may be silent for this long while it substitutes paths by itself."),
    used("send_timeout", Kind::Seconds, "600",
        "Sending inputs to a machine may stand still for this long."),
    used("receive_timeout", Kind::Seconds, "600",
        "Receiving outputs from a machine may stand still for this long."),
    used("register_timeout", Kind::Seconds, "600",
        "The destination store must register a received path within this time."),
    used("row_timeout", Kind::Seconds, "600",
        "A step gives its slot back when its row in BuildSteps cannot be written for this long, for \
         instance since an evaluation holds its build's row; it is tried again later."),
    used("shutdown_timeout", Kind::Seconds, "10",
        "A connection to a machine must close within this time; then its process is ended."),
    used("connection_idle", Kind::Seconds, "60",
        "A connection to a machine is closed after this time without a step, so that the \
         machine's garbage collector can free paths."),
    used("connection_age", Kind::Seconds, "900",
        "A connection to a machine is not used for another step when it is older than this."),
    used("ssh_options", Kind::Words, "",
        "Further arguments for ssh. Those of NIX_SSHOPTS come before them, and for ssh the first value \
         of an option wins; the user's ssh config applies as always."),
    used("ssh_program", Kind::Text, "ssh",
        "The program that connects to machines."),
    used("nix_store_program", Kind::Text, "nix-store",
        "The program that builds on localhost."),
    used("nix_daemon_program", Kind::Text, "nix-daemon",
        "The program that answers questions about the local store and registers paths in it."),
    used("max-concurrent-notifications", count(1, 1024), "2",
        "How many notifications are delivered at the same time, by the notifier."),
    used("base_uri", Kind::Text, "http://localhost:3000",
        "Where people find Hydra's web server; notifications link to it."),
    used("notification_timeout", Kind::Seconds, "60",
        "A server that is told something must have answered within this time. (A command of RunCommand \
         has an hour, or what `timeout` in its block says.)"),
    used("notification_max_age", Kind::Seconds, "86400",
        "What could not be delivered is given up at this age, and shown. What is older than this when a \
         notifier starts is held until an operator decides."),
    used("notification_history", Kind::Seconds, "604800",
        "For how long the ledger keeps what was delivered; what was given up is kept ten times as long."),
    used("notification_rates", Kind::HostRates, "",
        "How many requests a minute hosts get at most from the notifier: words HOST:N, HOST:PORT:N, or *:N for each \
         of the others, separated by blanks, for example api.github.com:80. What ten seconds allow may come at once. Not \
         set: no limit but what a host itself asks for."),
    used("prune_attempt_logs", Kind::Seconds, "2592000",
        "`hydrad prune` removes logs of earlier attempts that are older than this. 0: none. The last log of a derivation \
         always stays."),
    used("prune_steps", Kind::Seconds, "0",
        "`hydrad prune` deletes the steps of builds that ended longer ago than this. 0: none. The builds stay, with \
         outputs, products, metrics and logs; what is kept, current or recorded as failed keeps its steps."),
    used("max_concurrent_evals", count(0, 1024), "4",
        "How many evaluations may be under way at the same time; 0 counts as 1. evaluator_memory_budget may \
         allow fewer."),
    used("evaluator_memory_budget", Kind::Bytes, "0",
        "How much memory all evaluations together may use. Each is counted with evaluator_workers times \
         evaluator_max_memory_size; one may always run. Where a control group of its own can be had, no \
         evaluation gets more than this. 0: three quarters of this host's memory."),
    used("evaluator_timeout", Kind::Seconds, "21600",
        "An evaluation is ended after this time, with everything it has started, and that is its error. \
         0: never."),
    used("evaluator_backoff_max", Kind::Seconds, "3600",
        "A jobset whose evaluation failed twice or more in a row is checked ever more rarely: after twice its \
         check interval, four times, and so on, up to this. When it is triggered it is evaluated at once. \
         0: always after its check interval."),
    used("evaluator_address", Kind::Address, "127.0.0.1:9197",
        "Where the evaluator serves /metrics (Prometheus), /healthz and /status. none: nowhere."),
    used("eval_jobset_program", Kind::Text, "",
        "The program that makes one evaluation, called with a project and a jobset. Not set: hydrad itself \
         (`hydrad eval-jobset`). `hydra-eval-jobset` of Hydra's own works too, as long as a jobset needs \
         something that hydrad lacks."),
    used("evaluator_program", Kind::Choice(&["builtin", "nix-eval-jobs"]), "builtin",
        "What evaluates the jobs of a jobset: hydrad itself, in processes of the installed Nix, or the \
         program nix-eval-jobs. Installing that program alone changes nothing."),
    used("evaluator_workers", count(1, 256), "1",
        "How many processes evaluate the jobs of one jobset at the same time. Each has its own copy of \
         what the jobs share, nixpkgs say."),
    used("evaluator_max_memory_size", count(64, 16_777_216), "4096",
        "How much memory an evaluating process may have, in MiB. One that has more is replaced by a new \
         one, and the job it was at is tried once more, alone; if that takes more too, it is that job's \
         error."),
    used("evaluator_job_timeout", Kind::Seconds, "3600",
        "Evaluating one job may take this long, building what it imports included; then it is that job's \
         error. 0: no limit. nix-eval-jobs knows no such limit."),
    used("evaluator_pure_eval", Kind::Bool, "",
        "Whether jobs are evaluated without access to anything outside the store, the time or the host's \
         system type. Not set: flakes are, others are not."),
    used("allow_import_from_derivation", Kind::Text, "false",
        "Whether an expression may import what a derivation makes, which is built while evaluating, on \
         this host alone. Only the exact word true allows it, as in Hydra since 2025."),
    used("evaluator_initial_heap_size", Kind::Text, "",
        "The heap that an evaluating process has from the beginning, in bytes or as 512M: more of it saves \
         time, since garbage is collected less often. The processes that evaluate jobs get it as \
         GC_INITIAL_HEAP_SIZE, no other. Not set: as Nix does."),
    used("input_timeout", Kind::Seconds, "600",
        "Each program that fetches an input of an evaluation (git, hg, ...), and all requests for one together, must \
         have ended within this time; then its process group is ended. For git, `timeout` in <git-input> goes first."),
    used("path_input_cache_validity_seconds", Kind::Seconds, "30",
        "For how long an input of type `path` is not looked at again. A second word of its value goes first."),
    used("eval_substituter", Kind::Text, "",
        "The store from which builds are fetched (by `nix copy --from`) that inputs of type `build` and `sysbuild` name \
         and the local store lacks, such as https://cache.example.org. Not set: they count as not there."),
    used("github_endpoint", Kind::Text, "https://api.github.com",
        "Where inputs of type `githubpulls` and `github_refs` ask, for a GitHub of your own."),
    used("bitbucket_endpoint", Kind::Text, "https://api.bitbucket.org",
        "Where inputs of type `bitbucketpulls` ask."),
    // Hydra's queue runner, not here.
    other("store_mode", Fatal("store_mode in hydra.conf is deprecated, please use store_uri")),
    other("binary_cache_dir", Deprecated("it has no effect; write store_uri = file://DIR")),
    other("binary_cache_s3_bucket", Deprecated("it has no effect; write store_uri = s3://BUCKET")),
    other("binary_cache_secret_key_file", Deprecated(
        "the queue runner ignores it (the web server still signs with it); write \
         store_uri = ...?secret-key=FILE")),
    other("nar_buffer_size", Deprecated("it has no effect since 2020; remove it")),
    // The evaluator's.
    other("evaluator_max_heap_size", Deprecated(
        "it has no effect since 2020; evaluator_max_memory_size bounds the memory of an evaluating process")),
    // The notifier's.
    other("email_notification", UsedBy(Notify)),
    other("notification_sender", UsedBy(Notify)),
    other("enable_bitbucket_status", UsedBy(Notify)),
    other("compress_build_logs", UsedBy(Notify)),
    other("compress_build_logs_compression", UsedBy(Notify)),
    other("compress_build_logs_silent", UsedBy(Notify)),
    // The web server's.
    other("server_store_uri", WebServer),
    other("queue_runner_endpoint", WebServer),
    other("using_frontend_proxy", WebServer),
    other("max_servers", WebServer),
    other("compress_num_threads", WebServer),
    other("hydra_logo", WebServer),
    other("tracker", WebServer),
    other("private", WebServer),
    other("readonly_ips", WebServer),
    other("log_prefix", WebServer),
    other("binary_cache_public_uri", WebServer),
    other("allowed_domains", WebServer),
    other("persona_allowed_domains", WebServer),
    other("enable_persona", WebServer),
    other("enable_google_login", WebServer),
    other("google_client_id", WebServer),
    other("github_client_id", WebServer),
    other("github_client_secret", WebServer),
    other("github_client_secret_file", WebServer),
];

/// Every block that Hydra knows.
pub const BLOCKS: &[BlockDefinition] = &[
    block("git-input", Role::Used),
    block("statsd", Role::Used),
    block("hydra_notify", UsedBy(Notify)),
    block("github_authorization", Role::Used),
    block("gitlab_authorization", Role::Used),
    block("bitbucket_authorization", Role::Used),
    block("gitea_authorization", Role::Used),
    block("bitbucket", UsedBy(Notify)),
    block("githubstatus", UsedBy(Notify)),
    block("slack", UsedBy(Notify)),
    block("circleci", UsedBy(Notify)),
    block("influxdb", UsedBy(Notify)),
    block("runcommand", UsedBy(Notify)),
    block("webhook", UsedBy(Notify)),
    block("email", UsedBy(Notify)),
    block("matrix", UsedBy(Notify)),
    block("dynamicruncommand", UsedBy(Notify)),
    block(
        "hipchat",
        NotImplemented(Notify, "HipChat no longer exists"),
    ),
    block(
        "coverityscan",
        NotImplemented(Notify, "uploads to Coverity would stop"),
    ),
    block(
        "s3backup",
        NotImplemented(Notify, "the backup to S3 would stop"),
    ),
    block(
        "sotest",
        NotImplemented(Notify, "submissions to SoTest would stop"),
    ),
    block("ldap", WebServer),
    block("hydra-ldap", WebServer),
    block("webhooks", WebServer),
];

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    Default,
    File(Origin),
    Environment(&'static str),
    /// The option, as typed.
    CommandLine(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(origin) => origin.fmt(f),
            Source::Environment(name) => write!(f, "environment variable {name}"),
            Source::CommandLine(option) => write!(f, "option {option}"),
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// hydra.conf cannot be read or has a syntax error.
    #[error(transparent)]
    File(#[from] HydraConfError),
    /// A value is not of its kind.
    #[error("{at}: `{key} = {value}`: expected {expected}")]
    BadValue {
        key: String,
        value: String,
        at: Source,
        expected: String,
    },
    /// A setting with which Hydra's queue runner refuses to start.
    #[error("{at}: {text}")]
    Refused { at: Source, text: &'static str },
    /// A setting or block that hydrad lacks and whose loss would go unnoticed.
    #[error(
        "{at}: hydrad does not implement {what} ({why}); remove it, or add `{what}` to \
         ignore_settings if you can do without"
    )]
    NotImplemented {
        at: Source,
        what: String,
        why: &'static str,
    },
    /// A block that nobody knows, where plugins of Hydra's notifier are replaced.
    #[error(
        "{at}: neither Hydra nor hydrad knows {what}{hint}: if a plugin of your own reads it, nothing of it happens here; \
         remove it, or add `{what}` to ignore_settings if you can do without"
    )]
    UnknownBlock {
        at: Source,
        what: String,
        hint: String,
    },
    /// A plugin's block of the notifier.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A path from the environment is not absolute.
    #[error("{name} is `{value}`: expected an absolute path")]
    BadEnvironment { name: &'static str, value: String },
    /// More than one of the above.
    #[error("{} settings are wrong:\n{}", .0.len(), list(.0))]
    Several(Vec<ConfigError>),
}

fn list(errors: &[ConfigError]) -> String {
    let lines: Vec<String> = errors.iter().map(|e| format!("  {e}")).collect();
    lines.join("\n")
}

/// A setting given on the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Override {
    /// A key of [`DEFINITIONS`] with [`Role::Used`], or `data_dir`.
    pub key: &'static str,
    pub value: String,
    /// As typed, for instance `--prometheus-address`.
    pub option: String,
}

/// `HOST:PORT` to listen on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Of a project (`jobset` is `None`: all its jobsets together) or of one jobset at most so many steps run at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StepCap {
    pub project: String,
    pub jobset: Option<String>,
    pub steps: u32,
}

/// A host gets at most so many requests a minute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostRate {
    /// With its port or without; `*`: each of the others.
    pub host: String,
    pub per_minute: u32,
}

/// How often the steps of a jobset are built again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobsetRepeats {
    pub project: String,
    pub jobset: String,
    pub times: u32,
}

/// How long each phase of talking to a machine may take. The `*_idle` ones are reset by progress.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deadlines {
    pub connect: Duration,
    pub handshake: Duration,
    pub query: Duration,
    pub substitute_idle: Duration,
    pub send_idle: Duration,
    pub receive_idle: Duration,
    pub register: Duration,
    pub row: Duration,
    pub shutdown: Duration,
}

/// What evaluates jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EvaluatorProgram {
    /// Processes of the installed Nix, led by hydrad.
    Builtin,
    NixEvalJobs,
}

/// How the jobs of a jobset are evaluated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EvaluatorSettings {
    pub program: EvaluatorProgram,
    pub workers: u32,
    /// Of each process.
    pub memory_max_bytes: u64,
    /// `None`: no limit.
    pub job_timeout: Option<Duration>,
    /// `None`: flakes purely, others not.
    pub pure_eval: Option<bool>,
    pub import_from_derivation: bool,
    pub initial_heap_size: Option<String>,
}

/// The settings of the queue runner, typed and complete. See [`DEFINITIONS`] for meanings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    pub services: Vec<Service>,
    pub ignore_settings: Vec<String>,
    /// `database` of hydra.conf and where it stands; the environment is not in here.
    pub database: Option<(String, Source)>,
    pub max_db_connections: u32,
    pub max_output_size_bytes: u64,
    pub max_log_size_bytes: u64,
    pub max_unsupported_time: Duration,
    pub max_running_steps: Vec<StepCap>,
    /// 0: free space is not looked at.
    pub min_free_space_bytes: u64,
    /// 0: machines are not asked.
    pub machine_min_free_space_bytes: u64,
    pub free_space_interval: Duration,
    pub jobset_repeats: Vec<JobsetRepeats>,
    pub machine_types_hook: Option<String>,
    /// 0 in the file is replaced by what the host has.
    pub max_local_worker_threads: u32,
    pub gc_roots_dir: PathBuf,
    /// Percent.
    pub gc_roots_max_deletion: u32,
    /// `None`: the local store.
    pub store_uri: Option<String>,
    pub narinfo_positive_ttl: Duration,
    pub narinfo_negative_ttl: Duration,
    pub use_substitutes: bool,
    pub upload_logs_to_binary_cache: bool,
    pub queue_runner_metrics_address: Option<Address>,
    pub status_address: Option<Address>,
    /// `None`: a queue that does not move says nothing.
    pub stall_warning: Option<Duration>,
    /// `None`: no thread that stands still is named.
    pub watchdog_patience: Option<Duration>,
    pub stop_timeout: Duration,
    /// `None`: the queue is read on notifications only.
    pub queue_poll_interval: Option<Duration>,
    pub max_tries: u32,
    pub retry_interval: Duration,
    pub probe_interval: Duration,
    pub fault_burst: Duration,
    pub deadlines: Deadlines,
    pub connection_idle: Duration,
    pub connection_age: Duration,
    pub ssh_options: Vec<String>,
    pub ssh_program: String,
    pub nix_store_program: String,
    pub nix_daemon_program: String,
    pub max_concurrent_notifications: u32,
    pub base_uri: String,
    pub notification_timeout: Duration,
    pub notification_max_age: Duration,
    pub notification_history: Duration,
    pub notification_rates: Vec<HostRate>,
    /// `None`: logs of earlier attempts stay.
    pub prune_attempt_logs: Option<Duration>,
    /// `None`: steps stay.
    pub prune_steps: Option<Duration>,
    /// Where the evaluator and `send-stats` send metrics: `host` and `port` of the block `<statsd>`.
    pub statsd: Address,
    pub evaluator: EvaluatorSettings,
    pub inputs: InputSettings,
    /// Whether the block `<dynamicruncommand>` has `enable`.
    pub dynamic_run_command: bool,
    pub max_concurrent_evals: u32,
    /// 0: a share of this host's memory.
    pub evaluator_memory_budget_bytes: u64,
    /// `None`: an evaluation may take for ever.
    pub evaluator_timeout: Option<Duration>,
    pub evaluator_backoff_max: Duration,
    pub evaluator_address: Option<Address>,
    /// `None`: hydrad itself.
    pub eval_jobset_program: Option<String>,
    /// HYDRA_DATA.
    pub data_dir: PathBuf,
    pub data_dir_source: Source,
    /// Where hydra.conf is looked for; it need not exist.
    pub config_path: PathBuf,
    pub config_path_source: Source,
}

impl Settings {
    /// Reads `$HYDRA_CONFIG`, else `$HYDRA_DATA/hydra.conf`; a missing file means defaults. Any
    /// value that is wrong is an error; several come together.
    pub fn load(
        env: &dyn Fn(&str) -> Option<String>,
        overrides: &[Override],
    ) -> Result<Settings, ConfigError> {
        let mut survey = survey(env, overrides)?;
        match survey.errors.len() {
            0 => Ok(survey.settings),
            1 => Err(survey.errors.remove(0)),
            _ => Err(ConfigError::Several(survey.errors)),
        }
    }
}

/// What becomes of something written in hydra.conf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Used,
    /// Belongs to a service that hydrad does not have yet.
    NotYetUsed,
    /// Belongs to the web server, or to nobody, or is listed in `ignore_settings`.
    Ignored,
    /// Has no effect any more.
    Deprecated,
    /// Of Hydra's, missing here.
    Unsupported,
    /// Unknown to Hydra and to hydrad.
    Unknown,
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Used => "used",
            Verdict::NotYetUsed => "not yet used",
            Verdict::Ignored => "ignored",
            Verdict::Deprecated => "deprecated",
            Verdict::Unsupported => "unsupported",
            Verdict::Unknown => "unknown",
        }
    }
}

/// One line of `hydrad check` about a setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The key, or `<block>`.
    pub key: String,
    /// What is in effect; secrets are not settings of the queue runner, so it may be shown.
    pub value: String,
    pub source: Source,
    pub verdict: Verdict,
    /// Why, and what to do; may be empty.
    pub note: String,
}

/// All that can be said about the settings, right or wrong.
#[derive(Debug)]
pub struct Survey {
    /// With defaults in the place of wrong values.
    pub settings: Settings,
    pub rows: Vec<Row>,
    pub errors: Vec<ConfigError>,
    /// Things read, but perhaps not as meant; differences to what Hydra's C++ programs read.
    pub remarks: Vec<String>,
    /// Files read; empty if there is no hydra.conf.
    pub files: Vec<PathBuf>,
}

/// Reads the settings and says what becomes of each. Only an unreadable file is an `Err`; what is
/// wrong within is in [`Survey::errors`].
pub fn survey(
    env: &dyn Fn(&str) -> Option<String>,
    overrides: &[Override],
) -> Result<Survey, ConfigError> {
    let set = |name: &str| env(name).filter(|v| !v.is_empty());
    let mut errors = Vec::new();

    let (data_dir, data_dir_source) = match overrides.iter().rev().find(|o| o.key == "data_dir") {
        Some(o) => (o.value.clone(), Source::CommandLine(o.option.clone())),
        None => match set("HYDRA_DATA") {
            Some(dir) => (dir, Source::Environment("HYDRA_DATA")),
            None => ("/var/lib/hydra".to_owned(), Source::Default),
        },
    };
    if !Path::new(&data_dir).is_absolute() {
        errors.push(match &data_dir_source {
            Source::Environment(name) => ConfigError::BadEnvironment {
                name,
                value: data_dir.clone(),
            },
            at => ConfigError::BadValue {
                key: "data_dir".to_owned(),
                value: data_dir.clone(),
                at: at.clone(),
                expected: expected(Kind::Path),
            },
        });
    }
    let data_dir = PathBuf::from(data_dir);
    let (config_path, config_path_source) = match set("HYDRA_CONFIG") {
        Some(path) => (PathBuf::from(path), Source::Environment("HYDRA_CONFIG")),
        None => (data_dir.join("hydra.conf"), data_dir_source.clone()),
    };

    let document = hydra_conf::read(&config_path)?;
    let exists = document.is_some();
    let document = document.unwrap_or_else(|| Document::empty(&config_path));

    let mut values = Values {
        document: &document,
        overrides,
        rows: Vec::new(),
        errors,
    };
    let gc_roots_default = format!(
        "{}/gcroots/per-user/{}/hydra-roots",
        set("NIX_STATE_DIR").unwrap_or_else(|| "/nix/var/nix".to_owned()),
        set("LOGNAME")
            .or_else(|| set("USER"))
            .unwrap_or_else(|| "hydra".to_owned())
    );

    let ignore_settings = values.words("ignore_settings");
    let services = values.services();
    let settings = Settings {
        database: values.optional("database"),
        max_db_connections: values.count("max_db_connections"),
        max_output_size_bytes: values.bytes("max_output_size"),
        max_log_size_bytes: values.bytes("max_log_size"),
        max_unsupported_time: values.seconds("max_unsupported_time"),
        max_running_steps: values.step_caps("max_running_steps"),
        min_free_space_bytes: values.bytes("min_free_space"),
        machine_min_free_space_bytes: values.bytes("machine_min_free_space"),
        free_space_interval: values.seconds("free_space_interval"),
        jobset_repeats: values.jobset_repeats("xxx-jobset-repeats"),
        machine_types_hook: values
            .optional("machine_types_hook")
            .map(|(command, _)| command),
        max_local_worker_threads: match values.count("max_local_worker_threads") {
            0 => local_workers_default(),
            n => n,
        },
        gc_roots_dir: values.path("gc_roots_dir", &gc_roots_default),
        gc_roots_max_deletion: values.count("gc_roots_max_deletion"),
        store_uri: values.optional("store_uri").map(|(uri, _)| uri),
        narinfo_positive_ttl: values.seconds("narinfo-cache-positive-ttl"),
        narinfo_negative_ttl: values.seconds("narinfo-cache-negative-ttl"),
        use_substitutes: values.bool("use-substitutes"),
        upload_logs_to_binary_cache: values.bool("upload_logs_to_binary_cache"),
        queue_runner_metrics_address: values.address("queue_runner_metrics_address"),
        status_address: values.address("status_address"),
        stall_warning: values.seconds_or_off("stall_warning"),
        watchdog_patience: values.seconds_or_off("watchdog_patience"),
        stop_timeout: values.seconds("stop_timeout"),
        queue_poll_interval: values.seconds_or_off("queue_poll_interval"),
        max_tries: values.count("max_tries"),
        retry_interval: values.seconds("retry_interval"),
        probe_interval: values.seconds("probe_interval"),
        fault_burst: values.seconds("fault_burst"),
        deadlines: Deadlines {
            connect: values.seconds("connect_timeout"),
            handshake: values.seconds("handshake_timeout"),
            query: values.seconds("query_timeout"),
            substitute_idle: values.seconds("substitute_timeout"),
            send_idle: values.seconds("send_timeout"),
            receive_idle: values.seconds("receive_timeout"),
            register: values.seconds("register_timeout"),
            row: values.seconds("row_timeout"),
            shutdown: values.seconds("shutdown_timeout"),
        },
        connection_idle: values.seconds("connection_idle"),
        connection_age: values.seconds("connection_age"),
        ssh_options: values.words("ssh_options"),
        ssh_program: values.text("ssh_program"),
        nix_store_program: values.text("nix_store_program"),
        nix_daemon_program: values.text("nix_daemon_program"),
        max_concurrent_notifications: values.count("max-concurrent-notifications"),
        base_uri: values.text("base_uri"),
        notification_timeout: values.seconds("notification_timeout"),
        notification_max_age: values.seconds("notification_max_age"),
        notification_history: values.seconds("notification_history"),
        notification_rates: values.host_rates("notification_rates"),
        prune_attempt_logs: values.seconds_or_off("prune_attempt_logs"),
        prune_steps: values.seconds_or_off("prune_steps"),
        statsd: values.statsd(),
        evaluator: EvaluatorSettings {
            program: match values.choice("evaluator_program") {
                "nix-eval-jobs" => EvaluatorProgram::NixEvalJobs,
                _ => EvaluatorProgram::Builtin,
            },
            workers: values.count("evaluator_workers"),
            memory_max_bytes: u64::from(values.count("evaluator_max_memory_size")) << 20,
            job_timeout: values.seconds_or_off("evaluator_job_timeout"),
            pure_eval: values.bool_if_set("evaluator_pure_eval"),
            import_from_derivation: values.text("allow_import_from_derivation") == "true",
            initial_heap_size: values
                .optional("evaluator_initial_heap_size")
                .map(|(size, _)| size),
        },
        inputs: InputSettings::of(
            &document,
            values.seconds("input_timeout"),
            values.seconds("path_input_cache_validity_seconds"),
            values.optional("eval_substituter").map(|(uri, _)| uri),
            [
                values.text("github_endpoint"),
                values.text("bitbucket_endpoint"),
            ],
        ),
        dynamic_run_command: values.block_says("dynamicruncommand", "enable"),
        max_concurrent_evals: values.count("max_concurrent_evals"),
        evaluator_memory_budget_bytes: values.bytes("evaluator_memory_budget"),
        evaluator_timeout: values.seconds_or_off("evaluator_timeout"),
        evaluator_backoff_max: values.seconds("evaluator_backoff_max"),
        evaluator_address: values.address("evaluator_address"),
        eval_jobset_program: values.optional("eval_jobset_program").map(|(path, _)| path),
        ignore_settings,
        services,
        data_dir,
        data_dir_source,
        config_path,
        config_path_source,
    };
    let Values {
        mut rows,
        mut errors,
        ..
    } = values;
    // Rows are asked for in the order of the struct; show them in that of the table.
    rows.sort_by_key(|row| DEFINITIONS.iter().position(|d| d.key == row.key));
    judge_the_rest(&document, &settings, &mut rows, &mut errors);
    if settings.services.contains(&Evaluator) {
        let wrong = settings.inputs.errors.iter().cloned();
        errors.extend(wrong.map(ConfigError::Plugin));
    }
    if settings.services.contains(&Notify) {
        let wrong = notify::plugins(&document).err().unwrap_or_default();
        errors.extend(wrong.into_iter().map(ConfigError::Plugin));
    }

    let mut remarks: Vec<String> = document.remarks.iter().map(|r| r.to_string()).collect();
    remarks.extend(repeated(&document));
    if exists {
        let keys: Vec<&str> = read_by_cpp().collect();
        let differences = hydra_conf::flat_differences(&document, &keys);
        remarks.extend(differences.iter().map(|d| d.to_string()));
        if set("HYDRA_CONFIG").is_none() {
            remarks.push(format!(
                "{} is read because HYDRA_CONFIG is not set; Hydra's C++ programs read no file then",
                settings.config_path.display()
            ));
        }
    }
    Ok(Survey {
        settings,
        rows,
        errors,
        remarks,
        files: document.files,
    })
}

/// The keys that Hydra's C++ queue runner reads.
fn read_by_cpp() -> impl Iterator<Item = &'static str> {
    const OURS: &[&str] = &[
        "max_db_connections",
        "max_output_size",
        "max_log_size",
        "max_unsupported_time",
        "max_local_worker_threads",
        "gc_roots_dir",
        "store_uri",
        "use-substitutes",
        "upload_logs_to_binary_cache",
        "queue_runner_metrics_address",
        "store_mode",
        "xxx-jobset-repeats",
    ];
    OURS.iter().copied()
}

fn local_workers_default() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    u32::try_from(cpus.max(4) - 2).unwrap_or(1024).min(1024)
}

fn definition(key: &str) -> Option<&'static Definition> {
    DEFINITIONS.iter().find(|d| d.key == key)
}

/// Settings given twice: Hydra's Perl programs would see a list, its C++ programs the last.
fn repeated(document: &Document) -> Vec<String> {
    let mut remarks = Vec::new();
    for definition in DEFINITIONS.iter().filter(|d| d.role == Role::Used) {
        let all: Vec<String> = document
            .root
            .all(definition.key)
            .map(|a| a.at.to_string())
            .collect();
        if all.len() > 1 {
            remarks.push(format!(
                "`{}` is set {} times ({}); the last one counts",
                definition.key,
                all.len(),
                all.join(", ")
            ));
        }
    }
    remarks
}

/// Something written in hydra.conf that the queue runner does not use.
struct Foreign<'a> {
    /// The key, or `<block>`.
    what: String,
    value: String,
    at: &'a Origin,
    /// `None` if nobody knows it.
    role: Option<Role>,
    /// A known name that resembles it.
    nearest: Option<&'static str>,
}

/// Rows and errors for whatever the queue runner does not use.
fn judge_the_rest(
    document: &Document,
    settings: &Settings,
    rows: &mut Vec<Row>,
    errors: &mut Vec<ConfigError>,
) {
    let mut seen: Vec<&str> = Vec::new();
    for a in &document.root.assignments {
        let role = definition(&a.key).map(|d| d.role);
        if role == Some(Role::Used) || seen.contains(&a.key.as_str()) {
            continue;
        }
        seen.push(&a.key);
        let last = document.root.get(&a.key).unwrap_or(a);
        // What another program uses may be a secret.
        let value = match role {
            Some(Role::Deprecated(_) | Role::NotImplemented(..) | Role::Fatal(_)) => {
                last.text.clone()
            }
            _ => "(not shown)".to_owned(),
        };
        let foreign = Foreign {
            what: a.key.clone(),
            value,
            at: &last.at,
            role,
            nearest: nearest_key(&a.key),
        };
        let (row, error) = judge(foreign, settings);
        rows.push(row);
        errors.extend(error);
    }
    for b in &document.root.blocks {
        let known = BLOCKS.iter().find(|d| d.name == b.name);
        let alike = BLOCKS.iter().find(|d| d.name.eq_ignore_ascii_case(&b.name));
        let foreign = Foreign {
            what: format!("<{}>", b.name),
            value: "(block)".to_owned(),
            at: &b.at,
            role: known.map(|d| d.role),
            nearest: alike.map(|d| d.name),
        };
        let (row, error) = judge(foreign, settings);
        rows.push(row);
        errors.extend(error);
    }
}

fn judge(foreign: Foreign<'_>, settings: &Settings) -> (Row, Option<ConfigError>) {
    let source = Source::File(foreign.at.clone());
    let what = foreign.what;
    let bare = what.trim_start_matches('<').trim_end_matches('>');
    let ignored = settings
        .ignore_settings
        .iter()
        .any(|i| *i == what || i == bare);
    let mut error = None;
    let (verdict, note) = match foreign.role {
        None if !ignored => {
            let hint = foreign
                .nearest
                .map(|name| format!("; did you mean `{name}`?"));
            let hint = hint.unwrap_or_default();
            if what.starts_with('<') && settings.services.contains(&Notify) {
                error = Some(ConfigError::UnknownBlock {
                    at: source.clone(),
                    what: what.clone(),
                    hint: hint.trim_end_matches('?').to_owned(),
                });
            }
            let verdict = match error.is_some() {
                true => Verdict::Unsupported,
                false => Verdict::Unknown,
            };
            (verdict, format!("unknown to Hydra and hydrad{hint}"))
        }
        _ if ignored => (Verdict::Ignored, "listed in ignore_settings".to_owned()),
        None => unreachable!("BUG: dealt with above"),
        Some(Role::Used) => (Verdict::Used, String::new()),
        Some(Role::NotYetUsed(service)) => (
            Verdict::NotYetUsed,
            format!(
                "used by {}, not by the queue runner; hydrad does not use it yet",
                service.hydra_program()
            ),
        ),
        Some(Role::UsedBy(service)) if settings.services.contains(&service) => (
            Verdict::Used,
            format!("used by the service `{}`", service.name()),
        ),
        Some(Role::UsedBy(service)) => (
            Verdict::Ignored,
            format!(
                "used by {}, or by hydrad where `services` has `{}`",
                service.hydra_program(),
                service.name()
            ),
        ),
        Some(Role::WebServer) => (Verdict::Ignored, "used by the web server".to_owned()),
        Some(Role::Deprecated(advice)) => (Verdict::Deprecated, advice.to_owned()),
        Some(Role::NotImplemented(service, why)) if settings.services.contains(&service) => {
            error = Some(ConfigError::NotImplemented {
                at: source.clone(),
                what: what.clone(),
                why,
            });
            (Verdict::Unsupported, format!("not implemented: {why}"))
        }
        Some(Role::NotImplemented(service, why)) => (
            Verdict::NotYetUsed,
            format!(
                "not implemented ({why}); leave Hydra's own {} running",
                service.hydra_program()
            ),
        ),
        Some(Role::Fatal(text)) => {
            let at = source.clone();
            error = Some(ConfigError::Refused { at, text });
            (Verdict::Unsupported, text.to_owned())
        }
    };
    let row = Row {
        key: what,
        value: foreign.value,
        source,
        verdict,
        note,
    };
    (row, error)
}

/// The known key that a misspelt one most likely stands for.
fn nearest_key(key: &str) -> Option<&'static str> {
    let plain = |s: &str| s.to_ascii_lowercase().replace('-', "_");
    let key = plain(key);
    if key.len() > 64 {
        return None;
    }
    DEFINITIONS
        .iter()
        .map(|d| (distance(&key, &plain(d.key)), d.key))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, key)| key)
}

/// Edits between two short texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Looks values up, notes a row for each and an error for each that is wrong.
struct Values<'a> {
    document: &'a Document,
    overrides: &'a [Override],
    rows: Vec<Row>,
    errors: Vec<ConfigError>,
}

impl Values<'_> {
    /// The text of a setting that is set.
    fn written(&self, key: &str) -> Option<(String, Source)> {
        if let Some(o) = self.overrides.iter().rev().find(|o| o.key == key) {
            return Some((o.value.clone(), Source::CommandLine(o.option.clone())));
        }
        let a = self.document.root.get(key)?;
        Some((a.text.clone(), Source::File(a.at.clone())))
    }

    fn value<T>(
        &mut self,
        key: &'static str,
        default: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> (T, Source) {
        let definition = definition(key).expect("BUG: a setting that is not in the table");
        let mut note = "";
        let mut verdict = Verdict::Used;
        let written = self.written(key);
        let (text, source, value) = match written {
            Some((text, source)) => match parse(&text) {
                Some(value) => (text, source, Some(value)),
                None => {
                    self.errors.push(ConfigError::BadValue {
                        key: key.to_owned(),
                        value: text.clone(),
                        at: source.clone(),
                        expected: expected(definition.kind),
                    });
                    verdict = Verdict::Unsupported;
                    note = "wrong value";
                    (text, source, None)
                }
            },
            None => (default.to_owned(), Source::Default, None),
        };
        // It may hold a password; the report on the database shows the rest.
        let shown = match (key, text.as_str()) {
            ("database", "") => String::new(),
            ("database", _) => "(not shown)".to_owned(),
            _ => text,
        };
        self.rows.push(Row {
            key: key.to_owned(),
            value: shown,
            source: source.clone(),
            verdict,
            note: note.to_owned(),
        });
        let value = value.unwrap_or_else(|| {
            parse(default).unwrap_or_else(|| panic!("BUG: the default of {key} is not of its kind"))
        });
        (value, source)
    }

    /// The last value of a key in a block at the top level.
    fn in_block(&self, name: &str, key: &str) -> Option<&hydra_conf::Assignment> {
        let blocks = self.document.root.blocks.iter();
        let named = blocks.rev().filter(|block| block.name == name);
        named.filter_map(|block| block.get(key)).next()
    }

    /// Whether a block has this key with a value that is true to Perl.
    fn block_says(&self, block: &str, key: &str) -> bool {
        self.in_block(block, key)
            .is_some_and(|a| !matches!(a.text.as_str(), "" | "0"))
    }

    fn statsd(&mut self) -> Address {
        let host = self.in_block("statsd", "host").map(|a| a.text.clone());
        let port = self.in_block("statsd", "port").cloned();
        let number = port.as_ref().map(|a| a.text.parse().ok());
        if let (Some(a), Some(None)) = (port, number) {
            self.errors.push(ConfigError::BadValue {
                key: "port".to_owned(),
                value: a.text,
                at: Source::File(a.at),
                expected: "the port of <statsd>, a number up to 65535".to_owned(),
            });
        }
        Address {
            host: host.unwrap_or_else(|| "localhost".to_owned()),
            port: number.flatten().unwrap_or(8125),
        }
    }

    fn default_of(key: &str) -> &'static str {
        definition(key).map_or("", |d| d.default)
    }

    fn count(&mut self, key: &'static str) -> u32 {
        let Some(Kind::Count { min, max }) = definition(key).map(|d| d.kind) else {
            panic!("BUG: {key} is not a count");
        };
        let parse = |text: &str| {
            let n: u64 = text.trim().parse().ok()?;
            (min..=max).contains(&n).then_some(n)
        };
        let n = self.value(key, Self::default_of(key), parse).0;
        u32::try_from(n).unwrap_or(u32::MAX)
    }

    fn bytes(&mut self, key: &'static str) -> u64 {
        self.value(key, Self::default_of(key), parse_bytes).0
    }

    fn seconds(&mut self, key: &'static str) -> Duration {
        self.value(key, Self::default_of(key), parse_seconds).0
    }

    fn step_caps(&mut self, key: &'static str) -> Vec<StepCap> {
        let parse = |text: &str| text.split_whitespace().map(parse_step_cap).collect();
        self.value(key, Self::default_of(key), parse).0
    }

    fn jobset_repeats(&mut self, key: &'static str) -> Vec<JobsetRepeats> {
        let parse = |text: &str| text.split_whitespace().map(parse_repeats).collect();
        self.value(key, Self::default_of(key), parse).0
    }

    fn host_rates(&mut self, key: &'static str) -> Vec<HostRate> {
        let parse = |text: &str| text.split_whitespace().map(parse_host_rate).collect();
        self.value(key, Self::default_of(key), parse).0
    }

    /// 0 switches it off.
    fn seconds_or_off(&mut self, key: &'static str) -> Option<Duration> {
        Some(self.seconds(key)).filter(|duration| !duration.is_zero())
    }

    fn bool(&mut self, key: &'static str) -> bool {
        let parse = |text: &str| match text.trim() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        };
        self.value(key, Self::default_of(key), parse).0
    }

    /// `None` if it is not set.
    fn bool_if_set(&mut self, key: &'static str) -> Option<bool> {
        let parse = |text: &str| match text.trim() {
            "" => Some(None),
            "true" | "1" => Some(Some(true)),
            "false" | "0" => Some(Some(false)),
            _ => None,
        };
        self.value(key, Self::default_of(key), parse).0
    }

    fn choice(&mut self, key: &'static str) -> &'static str {
        let Some(Kind::Choice(words)) = definition(key).map(|d| d.kind) else {
            panic!("BUG: {key} is not a choice");
        };
        let parse = |text: &str| words.iter().find(|word| **word == text.trim()).copied();
        self.value(key, Self::default_of(key), parse).0
    }

    fn text(&mut self, key: &'static str) -> String {
        let parse = |text: &str| {
            let text = text.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        self.value(key, Self::default_of(key), parse).0
    }

    fn optional(&mut self, key: &'static str) -> Option<(String, Source)> {
        let (text, source) = self.value(key, Self::default_of(key), |text| {
            Some(text.trim().to_owned())
        });
        (!text.is_empty()).then_some((text, source))
    }

    /// `default` comes from the environment, where it need not be absolute; it is taken as it is.
    fn path(&mut self, key: &'static str, default: &str) -> PathBuf {
        let parse = |text: &str| {
            let path = PathBuf::from(text.trim());
            (path.is_absolute() || text == default).then_some(path)
        };
        self.value(key, default, parse).0
    }

    fn words(&mut self, key: &'static str) -> Vec<String> {
        self.value(key, Self::default_of(key), |text| {
            Some(text.split_whitespace().map(str::to_owned).collect())
        })
        .0
    }

    fn address(&mut self, key: &'static str) -> Option<Address> {
        self.value(key, Self::default_of(key), parse_address).0
    }

    fn services(&mut self) -> Vec<Service> {
        let parse = |text: &str| {
            let mut services = Vec::new();
            for word in text.split_whitespace() {
                let service = match word {
                    "queue-runner" => QueueRunner,
                    "evaluator" => Evaluator,
                    "notify" => Notify,
                    _ => return None,
                };
                if !services.contains(&service) {
                    services.push(service);
                }
            }
            (!services.is_empty()).then_some(services)
        };
        // Beside a database of its own there is nobody else to do their work.
        let default = match self.overrides.iter().any(|o| o.key == "data_dir") {
            true => "queue-runner evaluator notify",
            false => Self::default_of("services"),
        };
        self.value("services", default, parse).0
    }
}

fn expected(kind: Kind) -> String {
    match kind {
        Kind::Count { min, max } => return format!("a whole number from {min} to {max}"),
        Kind::Choice(words) => return words.join(" or "),
        Kind::Bytes => "a number of bytes, such as 67108864 or 64M",
        Kind::Seconds => "a number of seconds, such as 600 or 10m",
        Kind::Bool => "true, 1, false or 0",
        Kind::Text => "some text",
        Kind::Path => "an absolute path",
        Kind::Address => "HOST:PORT, [IPV6]:PORT or none",
        Kind::StepCaps => "project:N or project:jobset:N with N from 1, separated by blanks",
        Kind::JobsetRepeats => "project:jobset:N with N up to 100, separated by blanks",
        Kind::HostRates => "HOST:N, HOST:PORT:N or *:N with N from 1 to 1000000 (requests a minute), separated by blanks",
        Kind::Words => "one or more of the words: queue-runner, evaluator, notify",
    }
    .to_owned()
}

/// `64M` and the like; `None` on anything else or above `i64::MAX`.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "K" | "KiB" | "k" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    let bytes = number.checked_mul(1 << shift)?;
    i64::try_from(bytes).is_ok().then_some(bytes)
}

fn parse_step_cap(word: &str) -> Option<StepCap> {
    let parts: Vec<&str> = word.split(':').collect();
    let (project, jobset, steps) = match parts[..] {
        [project, steps] => (project, None, steps),
        [project, jobset, steps] if !jobset.is_empty() => (project, Some(jobset), steps),
        _ => return None,
    };
    let steps = steps.parse().ok().filter(|steps| *steps > 0)?;
    (!project.is_empty()).then(|| StepCap {
        project: project.to_owned(),
        jobset: jobset.map(str::to_owned),
        steps,
    })
}

fn parse_repeats(word: &str) -> Option<JobsetRepeats> {
    const TIMES_MAX: u32 = 100;
    let parts: Vec<&str> = word.split(':').collect();
    let [project, jobset, times] = parts[..] else {
        return None;
    };
    let times = times.parse().ok().filter(|times| *times <= TIMES_MAX)?;
    (!project.is_empty() && !jobset.is_empty()).then(|| JobsetRepeats {
        project: project.to_owned(),
        jobset: jobset.to_owned(),
        times,
    })
}

fn parse_host_rate(word: &str) -> Option<HostRate> {
    const PER_MINUTE_MAX: u32 = 1_000_000;
    let (host, rate) = word.rsplit_once(':')?;
    let per_minute = rate.parse().ok()?;
    let is_right = !host.is_empty() && !host.contains('/');
    (is_right && (1..=PER_MINUTE_MAX).contains(&per_minute)).then(|| HostRate {
        host: host.to_owned(),
        per_minute,
    })
}

/// `10m` and the like; at most 100 years, so that adding it to a clock is safe.
pub fn parse_seconds(text: &str) -> Option<Duration> {
    const SECS_MAX: u64 = 100 * 366 * 86_400;
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let secs = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (secs <= SECS_MAX).then(|| Duration::from_secs(secs))
}

/// The outer `None` is a wrong text, the inner one `none`.
fn parse_address(text: &str) -> Option<Option<Address>> {
    let text = text.trim();
    if text == "none" {
        return Some(None);
    }
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let host = host.to_owned();
    (!host.is_empty() && !host.contains(char::is_whitespace))
        .then_some(Some(Address { host, port }))
}

/// A hydra.conf in which every setting of hydrad stands with its default, commented out.
pub fn commented_conf() -> String {
    let mut out = String::from(
        "# hydra.conf, as hydrad reads it. Every setting is shown with its default; remove the `#`\n\
         # to change one. Settings of Hydra's web server, evaluator and notifier may stand here too.\n\
         # `hydrad check` shows what is in effect, and from where.\n",
    );
    for definition in DEFINITIONS.iter().filter(|d| d.role == Role::Used) {
        out.push('\n');
        for line in wrap(definition.help, 96) {
            out.push_str("# ");
            out.push_str(&line);
            out.push('\n');
        }
        let default = definition.default;
        let line = format!("#{} = {default}", definition.key);
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
