//! `hydrad init`: makes the tables of a new database, hashes passwords of the time before argon2 anew, and upgrades Hydra's
//! tables when asked to.
//!
//! Knows what to say and to ask beforehand. Does not know SQL or tables; see `db/schema.rs`.

use std::io::{self, Write};

use postgres::error::SqlState;
use postgres::Client;

use super::ask::{ask, Answer};
use super::password;
use crate::db::schema::{self, NewVersion, UpgradePlan, VERSION_MAX};
use crate::db::{users, DbError, DbTarget};

const APPLICATION: &str = "hydrad-init";

/// Make the tables of a new database, or upgrade Hydra's tables.
///
/// Without options: in an empty database Hydra's tables are made; in any database hydrad's own
/// tables are made, in a PostgreSQL schema called `hydrad`, or brought up to date. What else exists
/// is left alone, so it does no harm to run this again, also at each start. (As Hydra's own program does, passwords that old
/// Hydras kept as sha1 sums are hashed anew; who has one logs in as before.)
///
/// Which database: $HYDRA_DATABASE_URL, else $HYDRA_DBI, else `database` in hydra.conf, else
/// `hydra` on this host. `hydrad check` shows it.
#[derive(clap::Args, Clone, Debug)]
pub struct InitArgs {
    /// Version of Hydra's tables in a new database: 87, or 85 for a Hydra web server of the C++
    /// time (until 2025)
    #[arg(long, value_name = "VERSION", default_value = "87",
          value_parser = clap::builder::PossibleValuesParser::new(["85", "87"]))]
    pub schema: String,

    /// Bring Hydra's existing tables to this version (82 to 87); says what becomes of older
    /// programs and asks first (without a terminal it only says it). hydrad serves each of these
    /// versions, so this is only needed for another program that wants it. Make a backup before
    #[arg(long, value_name = "VERSION")]
    pub upgrade_to: Option<i32>,

    /// Do not ask before an upgrade
    #[arg(long, short)]
    pub yes: bool,

    /// Say what was done as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Why `hydrad init` failed.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The database; says itself what to do.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The answer to the question was not yes.
    #[error("nothing was changed: the upgrade was not confirmed; answer `yes`, or use --yes")]
    NotConfirmed,
    /// Nobody is there to be asked.
    #[error("nothing was changed: an upgrade asks first and there is no terminal; use --yes")]
    NobodyToAsk,
    /// A password cannot be hashed.
    #[error("cannot hash the password of user `{user}` anew: {cause:#}")]
    Password { user: String, cause: anyhow::Error },
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// Carries out `hydrad init`, asking on the terminal.
pub fn run(args: &InitArgs, target: &DbTarget, out: &mut dyn Write) -> Result<(), InitError> {
    let mut ask = |plan: &UpgradePlan| -> Result<(), InitError> {
        eprint!("{plan}");
        match ask("Is there a backup, and shall the tables be upgraded?")? {
            Answer::Yes => Ok(()),
            Answer::No => Err(InitError::NotConfirmed),
            Answer::NobodyThere => Err(InitError::NobodyToAsk),
        }
    };
    run_asking(args, target, out, &mut ask)
}

/// As [`run`]; `ask` shows a plan and returns an error to stop it.
pub fn run_asking(
    args: &InitArgs,
    target: &DbTarget,
    out: &mut dyn Write,
    ask: &mut dyn FnMut(&UpgradePlan) -> Result<(), InitError>,
) -> Result<(), InitError> {
    let mut client = target.connect(APPLICATION)?;
    let new = match args.schema.as_str() {
        "85" => NewVersion::V85,
        _ => NewVersion::V87,
    };
    let done = schema::init(&mut client, new)?;
    let rehashed = rehash_passwords(&mut client)?;
    let mut upgraded_from = None;
    if let Some(to) = args.upgrade_to {
        let plan = schema::plan_upgrade(&mut client, to)?;
        if !plan.steps.is_empty() {
            if args.yes {
                eprint!("{plan}");
            } else {
                ask(&plan)?;
            }
            schema::upgrade(&mut client, &plan, &mut |step| eprintln!("{step}"))?;
            upgraded_from = Some(plan.from);
        }
    }
    let version = match upgraded_from {
        Some(_) => args.upgrade_to.unwrap_or(done.version),
        None => done.version,
    };

    if args.json {
        let line = serde_json::json!({
            "database": target.dbname(),
            "hydra_tables_created": done.created.is_some(),
            "hydrad_tables_created": done.created_hydrad,
            "hydrad_tables_upgraded_from": done.upgraded_hydrad,
            "passwords_rehashed": rehashed,
            "upgraded_from": upgraded_from,
            "version": version,
        });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    writeln!(out, "{}", target.describe())?;
    match (done.created, upgraded_from) {
        (Some(version), None) => writeln!(out, "made Hydra's tables at version {version}")?,
        (_, Some(from)) => writeln!(
            out,
            "upgraded Hydra's tables from version {from} to {version}"
        )?,
        (None, None) => writeln!(
            out,
            "Hydra's tables are there, at version {version}; left alone"
        )?,
    }
    if args.upgrade_to.is_none() && version < VERSION_MAX {
        writeln!(
            out,
            "hydrad serves them as they are; what newer ones would mean is told by `hydrad init --upgrade-to {VERSION_MAX}`, \
             which asks before it changes anything"
        )?;
    }
    if rehashed > 0 {
        writeln!(
            out,
            "hashed {rehashed} passwords anew that were kept as sha1 sums"
        )?;
    }
    match (done.created_hydrad, done.upgraded_hydrad) {
        (true, _) => writeln!(out, "made hydrad's own tables")?,
        (false, Some(from)) => writeln!(
            out,
            "brought hydrad's own tables from version {from} to {}",
            schema::HYDRAD_VERSION
        )?,
        (false, None) => writeln!(out, "hydrad's own tables are there; left alone")?,
    }
    Ok(())
}

/// Hashes what is kept as a sha1 sum; how many passwords that were.
fn rehash_passwords(client: &mut Client) -> Result<u64, InitError> {
    let denied = |error: &DbError| matches!(error, DbError::Statement(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    let found = match users::sha1_passwords(client) {
        Ok(found) => found,
        // Whoever owns the table will do it.
        Err(error) if denied(&error) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let mut rehashed = 0;
    for (user, sum) in found {
        let hash = password::hash(&sum).map_err(|cause| InitError::Password {
            user: user.clone(),
            cause,
        })?;
        rehashed += u64::from(users::replace_password(client, &user, &sum, &hash)?);
    }
    Ok(rehashed)
}
