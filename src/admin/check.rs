//! `hydrad check`: what is in effect, and what will not work. Writes nothing, not even to the
//! database, whose session is made read-only.
//!
//! Knows how to ask the other rooms and how to show answers. Does not know stores: the rows about
//! them are handed in.
//!
//! Exit code: 0 all is well, 1 there are problems, 2 something could not be checked.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{check_evaluator, check_notifier};
use crate::config::machines::{LocalHost, MachineLine, MachinesFiles, MachinesFromEnv};
use crate::config::settings::{self, EvaluatorProgram, Override, Service, Settings, Verdict};
use crate::db::locks::{self, CONNECTIONS_BESIDE_POOL};
use crate::db::schema::{self, SchemaState};
use crate::db::{DbError, DbTarget};
use crate::sys::access;

const APPLICATION: &str = "hydrad-check";

/// Check settings, machines, database, folders and programs, without changing anything.
///
/// Each line says what is in effect and where it comes from; lines marked `problem` will keep
/// hydrad from working, lines marked `warning` may surprise you. Run it as the user hydrad runs
/// as, with the same environment.
///
/// Exit code: 0 all is well, 1 there are problems, 2 something could not be checked.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct CheckArgs {
    /// Write JSON: {"exit_code": N, "rows": [{"section", "what", "value", "mark", "note"}]}
    #[arg(long)]
    pub json: bool,
}

/// How good a row is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    Ok,
    /// Worth knowing.
    Note,
    /// May surprise.
    Warning,
    /// Keeps hydrad from working as wished.
    Problem,
    /// Could not be found out.
    Unknown,
}

impl Mark {
    pub fn word(self) -> &'static str {
        match self {
            Mark::Ok => "ok",
            Mark::Note => "note",
            Mark::Warning => "warning",
            Mark::Problem => "problem",
            Mark::Unknown => "cannot check",
        }
    }
}

/// One thing checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckRow {
    pub section: &'static str,
    pub what: String,
    pub value: String,
    pub mark: Mark,
    /// Where it comes from, what is wrong, what to try; may be empty.
    pub note: String,
}

impl CheckRow {
    pub fn new(
        section: &'static str,
        what: impl Into<String>,
        value: impl Into<String>,
        mark: Mark,
        note: impl Into<String>,
    ) -> CheckRow {
        CheckRow {
            section,
            what: what.into(),
            value: value.into(),
            mark,
            note: note.into(),
        }
    }
}

/// What is checked.
pub struct CheckInput<'a> {
    pub env: &'a dyn Fn(&str) -> Option<String>,
    pub overrides: &'a [Override],
    /// The database of `--state`; `None` takes the one that is configured.
    pub target: Option<DbTarget>,
    /// What this host offers if there is no machines file.
    pub local: LocalHost,
    /// Usually `/etc/nix/machines`.
    pub machines_path: &'a Path,
    /// Rows about the stores.
    pub store_rows: &'a dyn Fn() -> Vec<CheckRow>,
}

/// Checks and writes the report; returns the exit code. `colour`: the output is a terminal.
pub fn run(
    args: &CheckArgs,
    input: &CheckInput<'_>,
    out: &mut dyn Write,
    colour: bool,
) -> io::Result<u8> {
    let rows = rows(input);
    let code = exit_code(&rows);
    if args.json {
        write_json(out, &rows, code)?;
    } else {
        write_text(out, &rows, code, colour)?;
    }
    Ok(code)
}

/// 1 for a problem, else 2 for something unknown, else 0.
pub fn exit_code(rows: &[CheckRow]) -> u8 {
    let any = |mark| rows.iter().any(|r| r.mark == mark);
    if any(Mark::Problem) {
        1
    } else if any(Mark::Unknown) {
        2
    } else {
        0
    }
}

/// Everything checked, section by section.
pub fn rows(input: &CheckInput<'_>) -> Vec<CheckRow> {
    let mut rows = Vec::new();
    let settings = match settings::survey(input.env, input.overrides) {
        Ok(survey) => {
            settings_rows(&survey, &mut rows);
            survey.settings
        }
        Err(e) => {
            rows.push(CheckRow::new(
                "settings",
                "hydra.conf",
                "",
                Mark::Problem,
                e.to_string(),
            ));
            // The rest depends on the settings; defaults would mislead.
            return rows;
        }
    };
    machines_rows(input, &mut rows);
    database_rows(input, &settings, &mut rows);
    folder_rows(&settings, &mut rows);
    program_rows(input.env, &settings, &mut rows);
    rows.extend((input.store_rows)());
    rows.extend(check_evaluator::rows(&settings));
    rows.extend(check_notifier::rows(&settings));
    rows
}

fn settings_rows(survey: &settings::Survey, rows: &mut Vec<CheckRow>) {
    const SECTION: &str = "settings";
    let settings = &survey.settings;
    let exists = !survey.files.is_empty();
    rows.push(CheckRow::new(
        SECTION,
        "hydra.conf",
        settings.config_path.display().to_string(),
        Mark::Ok,
        match exists {
            true => format!("from {}", settings.config_path_source),
            false => "does not exist: everything is at its default".to_owned(),
        },
    ));
    for row in &survey.rows {
        let mark = match row.verdict {
            Verdict::Used | Verdict::Ignored => Mark::Ok,
            Verdict::NotYetUsed => Mark::Note,
            Verdict::Deprecated | Verdict::Unknown => Mark::Warning,
            // Told in full below.
            Verdict::Unsupported => Mark::Note,
        };
        let mut note = format!("{}; {}", row.verdict.word(), row.source);
        if !row.note.is_empty() {
            note.push_str("; ");
            note.push_str(&row.note);
        }
        rows.push(CheckRow::new(SECTION, &row.key, &row.value, mark, note));
    }
    for error in &survey.errors {
        let text = error.to_string();
        rows.push(CheckRow::new(SECTION, "wrong", "", Mark::Problem, text));
    }
    for remark in &survey.remarks {
        rows.push(CheckRow::new(SECTION, "remark", "", Mark::Warning, remark));
    }
}

fn machines_rows(input: &CheckInput<'_>, rows: &mut Vec<CheckRow>) {
    const SECTION: &str = "machines";
    let named = (input.env)("NIX_REMOTE_SYSTEMS");
    let mut files =
        MachinesFiles::from_env(named.as_deref(), input.machines_path, input.local.clone());
    let origin = match &files.from {
        MachinesFromEnv::ThisHost(_) => format!(
            "only this host: NIX_REMOTE_SYSTEMS is not set and {} does not exist",
            input.machines_path.display()
        ),
        MachinesFromEnv::Files(paths) => {
            let paths: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
            paths.join(", ")
        }
    };
    rows.push(CheckRow::new(SECTION, "list", origin, Mark::Ok, ""));
    let machines = match files.read() {
        Ok(machines) => machines,
        Err(e) => {
            let text = e.to_string();
            rows.push(CheckRow::new(SECTION, "list", "", Mark::Problem, text));
            return;
        }
    };
    for machine in &machines.machines {
        rows.push(CheckRow::new(
            SECTION,
            &machine.name,
            can_run(machine),
            Mark::Ok,
            reached(machine),
        ));
    }
    if machines.machines.is_empty() {
        let text = "no machine is listed: nothing can be built";
        rows.push(CheckRow::new(SECTION, "list", "", Mark::Problem, text));
    }
    for error in &machines.errors {
        let text = format!("{error}; the line is left out");
        rows.push(CheckRow::new(SECTION, "wrong", "", Mark::Problem, text));
    }
    for warning in &machines.warnings {
        let text = warning.to_string();
        rows.push(CheckRow::new(SECTION, "remark", "", Mark::Warning, text));
    }
    for path in &machines.unfinished {
        let text = format!(
            "{}: the last line has no end; is the file complete?",
            path.display()
        );
        rows.push(CheckRow::new(SECTION, "remark", "", Mark::Warning, text));
    }
}

fn can_run(machine: &MachineLine) -> String {
    let list = |words: &std::collections::BTreeSet<String>| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.join(",")
    };
    let mut text = format!(
        "{}; {} slots, speed {}",
        list(&machine.systems),
        machine.slots,
        machine.speed_factor
    );
    if !machine.supported.is_empty() {
        text.push_str(&format!("; features {}", list(&machine.supported)));
    }
    if !machine.mandatory.is_empty() {
        text.push_str(&format!(
            "; only for steps with {}",
            list(&machine.mandatory)
        ));
    }
    text
}

fn reached(machine: &MachineLine) -> String {
    if machine.is_localhost {
        return "this host, without ssh".to_owned();
    }
    let mut text = format!("ssh {}", machine.ssh_target());
    if let Some(port) = machine.port {
        text.push_str(&format!(" port {port}"));
    }
    if let Some(key) = &machine.ssh_key {
        text.push_str(&format!(", key {}", key.display()));
    }
    if machine.host_key.is_some() {
        text.push_str(", host key given");
    }
    text
}

fn database_rows(input: &CheckInput<'_>, settings: &Settings, rows: &mut Vec<CheckRow>) {
    const SECTION: &str = "database";
    let target = match &input.target {
        Some(target) => Ok(target.clone()),
        None => DbTarget::from_env(input.env, settings),
    };
    let target = match target {
        Ok(target) => target,
        Err(e) => {
            let text = e.to_string();
            rows.push(CheckRow::new(SECTION, "setting", "", Mark::Problem, text));
            return;
        }
    };
    for row in target.rows() {
        rows.push(CheckRow::new(
            SECTION,
            row.key,
            row.value,
            Mark::Ok,
            row.origin,
        ));
    }
    for remark in target.remarks() {
        rows.push(CheckRow::new(SECTION, "remark", "", Mark::Warning, remark));
    }
    let connected = target.connect(APPLICATION).and_then(|mut client| {
        locks::read_only(&mut client)?;
        Ok(client)
    });
    let mut client = match connected {
        Ok(client) => client,
        Err(e) => {
            let mark = if e.is_lost() {
                Mark::Unknown
            } else {
                Mark::Problem
            };
            rows.push(CheckRow::new(
                SECTION,
                "connection",
                "",
                mark,
                e.to_string(),
            ));
            return;
        }
    };
    if let Err(e) = reached_database_rows(&target, &mut client, settings, rows) {
        let text = e.to_string();
        rows.push(CheckRow::new(
            SECTION,
            "connection",
            "",
            Mark::Unknown,
            text,
        ));
    }
}

fn reached_database_rows(
    target: &DbTarget,
    client: &mut postgres::Client,
    settings: &Settings,
    rows: &mut Vec<CheckRow>,
) -> Result<(), DbError> {
    const SECTION: &str = "database";
    let mut push = |what: &str, value: String, mark: Mark, note: String| {
        rows.push(CheckRow::new(SECTION, what, value, mark, note));
    };
    match locks::refuse_transaction_pooler(target) {
        Ok(()) => {}
        Err(e) if e.is_lost() => return Err(e),
        Err(e) => push("proxy", String::new(), Mark::Problem, e.to_string()),
    }

    let connections = locks::connections(client)?;
    let wanted = settings.max_db_connections + CONNECTIONS_BESIDE_POOL;
    let (room, others) = (connections.room(), connections.others());
    let fits = connections.fit(settings.max_db_connections);
    push(
        "connections",
        format!(
            "{others} of {room} in use; hydrad takes up to {wanted} (PostgreSQL {})",
            connections.server_version
        ),
        if fits { Mark::Ok } else { Mark::Warning },
        match fits {
            true => format!(
                "max_db_connections = {}, and {CONNECTIONS_BESIDE_POOL} beside the pool",
                settings.max_db_connections
            ),
            false => "they may run out: lower max_db_connections, or raise max_connections in \
                      postgresql.conf"
                .to_owned(),
        },
    );

    let found = schema::check_schema(client)?;
    let version = match &found.state {
        SchemaState::Served { version }
        | SchemaState::Newer { version, .. }
        | SchemaState::Older { version } => version.to_string(),
        SchemaState::Empty => "empty".to_owned(),
        SchemaState::Damaged { .. } => "?".to_owned(),
    };
    match found.serve() {
        Ok(warnings) if warnings.is_empty() => {
            let note = "every column hydrad uses exists".to_owned();
            push("schema version", version, Mark::Ok, note);
        }
        Ok(warnings) => push(
            "schema version",
            version,
            Mark::Warning,
            warnings.join("; "),
        ),
        Err(e) => push("schema version", version, Mark::Problem, e.to_string()),
    }
    if found.state != SchemaState::Empty {
        let mut missing = schema::missing_rights(client)?;
        if settings.services.contains(&Service::Notify) {
            missing.extend(schema::missing_rights_of_notifier(client)?);
        }
        if settings.services.contains(&Service::Evaluator) {
            missing.extend(schema::missing_rights_of_evaluator(client)?);
        }
        missing.sort();
        missing.dedup();
        match missing.is_empty() {
            true => push(
                "rights",
                "sufficient".to_owned(),
                Mark::Ok,
                format!("user {}", target.user()),
            ),
            false => push(
                "rights",
                format!("missing: {}", missing.join(", ")),
                Mark::Problem,
                format!(
                    "connect as the owner of the tables, or grant them to {}",
                    target.user()
                ),
            ),
        }
    }

    for service in [Service::QueueRunner, Service::Evaluator, Service::Notify] {
        for session in locks::holders(client, service)? {
            push(
                "running",
                format!("{}: {session}", service.name()),
                Mark::Note,
                "holds the lock of the service".to_owned(),
            );
        }
    }
    for (service, name) in [
        (Service::QueueRunner, "queue runner"),
        (Service::Evaluator, "evaluator"),
        (Service::Notify, "notifier"),
    ] {
        if service != Service::QueueRunner && !settings.services.contains(&service) {
            continue;
        }
        for session in locks::foreign_sessions(client, service)? {
            push(
                "running",
                session.to_string(),
                Mark::Warning,
                format!("Hydra's own {name} is at work here; hydrad's refuses to start beside it"),
            );
        }
    }
    Ok(())
}

fn folder_rows(settings: &Settings, rows: &mut Vec<CheckRow>) {
    const SECTION: &str = "folders";
    let data = &settings.data_dir;
    let source = settings.data_dir_source.to_string();
    let folders = [
        ("HYDRA_DATA", data.clone(), source),
        ("build logs", data.join("build-logs"), String::new()),
        ("lock files", data.join("queue-runner"), String::new()),
        ("gc_roots_dir", settings.gc_roots_dir.clone(), String::new()),
    ];
    for (what, path, origin) in folders {
        let shown = path.display().to_string();
        let (mark, note) = folder_mark(&path, origin);
        rows.push(CheckRow::new(SECTION, what, shown, mark, note));
    }
}

/// Whether a folder can be used; `origin` is the note of one that can.
pub fn folder_mark(path: &Path, origin: String) -> (Mark, String) {
    match folder_state(path) {
        Folder::Writable => (Mark::Ok, origin),
        Folder::CanBeMade => (Mark::Ok, "does not exist yet; hydrad makes it".to_owned()),
        Folder::SomethingElse => (Mark::Problem, "is not a folder".to_owned()),
        Folder::NotWritable(at) => (
            Mark::Problem,
            format!(
                "this user may not write to {}; check its owner, or run this as hydrad's user",
                at.display()
            ),
        ),
    }
}

enum Folder {
    Writable,
    /// Missing, and its nearest existing parent is writable.
    CanBeMade,
    SomethingElse,
    NotWritable(PathBuf),
}

/// Asks the kernel instead of trying.
fn folder_state(path: &Path) -> Folder {
    let nearest = path.ancestors().find(|p| p.exists()).unwrap_or(path);
    if !nearest.is_dir() {
        return Folder::SomethingElse;
    }
    match (access::may_fill(nearest), nearest == path) {
        (false, _) => Folder::NotWritable(nearest.to_owned()),
        (true, true) => Folder::Writable,
        (true, false) => Folder::CanBeMade,
    }
}

fn program_rows(
    env: &dyn Fn(&str) -> Option<String>,
    settings: &Settings,
    rows: &mut Vec<CheckRow>,
) {
    const SECTION: &str = "programs";
    let path = env("PATH").unwrap_or_default();
    for (key, program) in [
        ("ssh_program", &settings.ssh_program),
        ("nix_store_program", &settings.nix_store_program),
        ("nix_daemon_program", &settings.nix_daemon_program),
    ] {
        let (value, mark, note) = match find_program(program, &path) {
            Some(found) => (found.display().to_string(), Mark::Ok, String::new()),
            None => (
                program.clone(),
                Mark::Problem,
                format!("not found in PATH ({path}); install it, or set {key} to its full path"),
            ),
        };
        rows.push(CheckRow::new(SECTION, key, value, mark, note));
    }
    for (program, missing, lost) in programs_of_evaluator(settings) {
        let (value, mark, note) = match find_program(program, &path) {
            Some(found) => (found.display().to_string(), Mark::Ok, String::new()),
            None => (
                program.to_owned(),
                missing,
                format!("not found in PATH ({path}); install it: without it {lost}"),
            ),
        };
        rows.push(CheckRow::new(SECTION, program, value, mark, note));
    }
}

/// What evaluations start: the program, how bad it is if it is missing, and what is lost then. Nothing where `services` has no
/// evaluator, or another program makes evaluations.
fn programs_of_evaluator(settings: &Settings) -> Vec<(&'static str, Mark, &'static str)> {
    let is_ours =
        settings.services.contains(&Service::Evaluator) && settings.eval_jobset_program.is_none();
    if !is_ours {
        return Vec::new();
    }
    let no_jobs = "no jobset can be evaluated";
    let git = (
        "git",
        Mark::Warning,
        "no input of a Git repository can be fetched",
    );
    match settings.evaluator.program {
        EvaluatorProgram::Builtin => vec![("nix", Mark::Problem, no_jobs), git],
        EvaluatorProgram::NixEvalJobs => vec![
            ("nix-eval-jobs", Mark::Problem, no_jobs),
            ("nix", Mark::Warning, "no flake can be evaluated"),
            git,
        ],
    }
}

fn find_program(program: &str, path: &str) -> Option<PathBuf> {
    let candidates: Vec<PathBuf> = match program.contains('/') {
        true => vec![PathBuf::from(program)],
        false => std::env::split_paths(path)
            .map(|d| d.join(program))
            .collect(),
    };
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file() && access::may_execute(candidate))
}

fn write_json(out: &mut dyn Write, rows: &[CheckRow], code: u8) -> io::Result<()> {
    let rows: Vec<serde_json::Value> = rows
        .iter()
        .map(|r| {
            serde_json::json!({
                "section": r.section,
                "what": r.what,
                "value": r.value,
                "mark": r.mark.word(),
                "note": r.note,
            })
        })
        .collect();
    let report = serde_json::json!({ "exit_code": code, "rows": rows });
    writeln!(out, "{report}")
}

fn write_text(out: &mut dyn Write, rows: &[CheckRow], code: u8, colour: bool) -> io::Result<()> {
    const WHAT_WIDTH_MAX: usize = 32;
    const VALUE_WIDTH_MAX: usize = 44;
    let width = |text: &str| text.chars().count();
    let widest = |limit: usize, of: &dyn Fn(&CheckRow) -> usize| {
        rows.iter()
            .map(of)
            .filter(|w| *w <= limit)
            .max()
            .unwrap_or(0)
    };
    let what_width = widest(WHAT_WIDTH_MAX, &|r| width(&r.what));
    let value_width = widest(VALUE_WIDTH_MAX, &|r| width(&r.value));
    let mut section = "";
    for row in rows {
        if row.section != section {
            if !section.is_empty() {
                writeln!(out)?;
            }
            section = row.section;
            writeln!(out, "{section}")?;
        }
        let mark = row.mark.word();
        let (on, off) = match (colour, row.mark) {
            (false, _) | (_, Mark::Note) => ("", ""),
            (true, Mark::Ok) => ("\x1b[32m", "\x1b[0m"),
            (true, Mark::Warning | Mark::Unknown) => ("\x1b[33m", "\x1b[0m"),
            (true, Mark::Problem) => ("\x1b[31m", "\x1b[0m"),
        };
        let line = format!(
            "  {on}{mark:<12}{off}  {:<what_width$}  {:<value_width$}  {}",
            row.what, row.value, row.note
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    let count = |mark| rows.iter().filter(|r| r.mark == mark).count();
    writeln!(
        out,
        "\n{}: {} problems, {} warnings, {} not checked",
        match code {
            0 => "all is well",
            1 => "there are problems",
            _ => "not everything could be checked",
        },
        count(Mark::Problem),
        count(Mark::Warning),
        count(Mark::Unknown)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_the_evaluator_are_looked_for_where_it_is_a_service() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("hydra.conf");
        let missing = |conf: &str| {
            std::fs::write(&file, conf).expect("written");
            let env = |name: &str| match name {
                "HYDRA_CONFIG" => Some(file.display().to_string()),
                "PATH" => Some(dir.path().display().to_string()),
                _ => None,
            };
            let settings = Settings::load(&env, &[]).expect("settings");
            let mut rows = Vec::new();
            program_rows(&env, &settings, &mut rows);
            let rows = rows
                .into_iter()
                .filter(|row| !row.what.contains("_program"));
            let rows = rows.map(|row| format!("{} {}", row.what, row.mark.word()));
            rows.collect::<Vec<String>>()
        };
        assert!(missing("services = queue-runner\n").is_empty());
        assert_eq!(
            missing("services = evaluator\n"),
            ["nix problem", "git warning"]
        );
        assert_eq!(
            missing("services = evaluator\nevaluator_program = nix-eval-jobs\n"),
            ["nix-eval-jobs problem", "nix warning", "git warning"]
        );
    }
}
