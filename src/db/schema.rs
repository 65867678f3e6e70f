//! Hydra's tables and ours: what is there, whether it can be served, making and upgrading it.
//!
//! Knows schema versions, which columns the queue runner needs, and what an upgrade means for
//! older programs. Does not ask anybody whether to upgrade (see `admin/init.rs`).
//!
//! Hydra's tables are served at versions 82 to 87. They are upgraded only on demand, never by a
//! running service. Our own tables live in PostgreSQL's schema `hydrad`; other programs do not see
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use postgres::{Client, GenericClient, Transaction};

use super::error::DbError;

/// The oldest version of Hydra's tables that is served.
pub const VERSION_MIN: i32 = 82;
/// The newest version of Hydra's tables that is known.
pub const VERSION_MAX: i32 = 87;
/// Version of our own tables.
pub const HYDRAD_VERSION: i32 = 5;

const HYDRA_87: &str = include_str!("../../sql/schema/hydra-87.sql");
const HYDRA_85_FROM_87: &str = include_str!("../../sql/schema/hydra-85-from-87.sql");
const HYDRAD: &str = include_str!("../../sql/schema/hydrad.sql");
/// From one version of our own tables to the next; each adds and sets the version.
const HYDRAD_STEPS: &[(i32, &str)] = &[
    (2, include_str!("../../sql/schema/hydrad-2.sql")),
    (3, include_str!("../../sql/schema/hydrad-3.sql")),
    (4, include_str!("../../sql/schema/hydrad-4.sql")),
    (5, include_str!("../../sql/schema/hydrad-5.sql")),
];
const FIND_COLUMNS: &str = include_str!("../../sql/schema/find_columns.sql");
const SHOW_VERSION: &str = include_str!("../../sql/schema/show_version.sql");
const SET_VERSION: &str = include_str!("../../sql/schema/set_version.sql");
const LOCK_SCHEMA: &str = include_str!("../../sql/schema/lock_schema.sql");
const LIMIT_LOCK_WAIT: &str = include_str!("../../sql/schema/limit_lock_wait.sql");
const FIND_TABLE: &str = include_str!("../../sql/schema/find_table.sql");
const FIND_HYDRAD_META: &str = include_str!("../../sql/schema/find_hydrad_meta.sql");
const SHOW_HYDRAD_VERSION: &str = include_str!("../../sql/schema/show_hydrad_version.sql");
const ESTIMATE_ROWS: &str = include_str!("../../sql/schema/estimate_rows.sql");
const FIND_RIGHTS: &str = include_str!("../../sql/schema/find_rights.sql");

/// The columns the queue runner uses, by table; all lower case, as in the catalogue.
const COLUMNS_USED: &[(&str, &[&str])] = &[
    ("schemaversion", &["version"]),
    ("projects", &["name", "enabled"]),
    (
        "jobsets",
        &["id", "project", "name", "schedulingshares", "enabled"],
    ),
    (
        "builds",
        &[
            "id",
            "finished",
            "timestamp",
            "jobset_id",
            "job",
            "nixname",
            "drvpath",
            "system",
            "maxsilent",
            "timeout",
            "ischannel",
            "iscurrent",
            "priority",
            "globalpriority",
            "starttime",
            "stoptime",
            "iscachedbuild",
            "buildstatus",
            "size",
            "closuresize",
            "releasename",
            "notificationpendingsince",
        ],
    ),
    ("buildoutputs", &["build", "name", "path"]),
    (
        "buildsteps",
        &[
            "build",
            "stepnr",
            "type",
            "drvpath",
            "busy",
            "status",
            "errormsg",
            "starttime",
            "stoptime",
            "machine",
            "system",
            "propagatedfrom",
            "overhead",
            "timesbuilt",
            "isnondeterministic",
        ],
    ),
    ("buildstepoutputs", &["build", "stepnr", "name", "path"]),
    (
        "buildproducts",
        &[
            "build",
            "productnr",
            "type",
            "subtype",
            "filesize",
            "sha256hash",
            "path",
            "name",
            "defaultpath",
        ],
    ),
    (
        "buildmetrics",
        &[
            "build",
            "name",
            "unit",
            "value",
            "project",
            "jobset",
            "job",
            "timestamp",
        ],
    ),
    ("failedpaths", &["path"]),
    ("systemstatus", &["what", "status"]),
];

/// What the queue runner does with each table.
const RIGHTS_USED: &[(&str, &[&str])] = &[
    ("projects", &["SELECT"]),
    ("jobsets", &["SELECT"]),
    ("builds", &["SELECT", "UPDATE"]),
    ("buildoutputs", &["SELECT", "UPDATE"]),
    ("buildsteps", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("buildstepoutputs", &["SELECT", "INSERT", "UPDATE"]),
    ("buildproducts", &["SELECT", "INSERT", "DELETE"]),
    ("buildmetrics", &["SELECT", "INSERT", "DELETE"]),
    ("failedpaths", &["SELECT", "INSERT"]),
    ("systemstatus", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("hydrad.questions", &["SELECT", "UPDATE", "DELETE"]),
    ("hydrad.machine_orders", &["SELECT"]),
    ("hydrad.left_busy", &["SELECT", "INSERT", "DELETE"]),
    ("hydrad.emergencies", &["SELECT"]),
    ("hydrad.notifier", &["SELECT"]),
    ("hydrad.events", &["INSERT"]),
];

/// What the evaluator and its evaluations do with each table.
const RIGHTS_OF_EVALUATOR: &[(&str, &[&str])] = &[
    ("projects", &["SELECT"]),
    ("jobsets", &["SELECT", "INSERT", "UPDATE"]),
    ("jobsetinputs", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("jobsetinputalts", &["SELECT", "INSERT", "DELETE"]),
    ("evaluationerrors", &["SELECT", "INSERT"]),
    ("jobsetevals", &["SELECT", "INSERT", "UPDATE"]),
    ("jobsetevalinputs", &["SELECT", "INSERT"]),
    ("jobsetevalmembers", &["SELECT", "INSERT"]),
    ("aggregateconstituents", &["SELECT", "INSERT"]),
    ("builds", &["SELECT", "INSERT", "UPDATE"]),
    ("buildoutputs", &["SELECT", "INSERT"]),
    ("cachedpathinputs", &["SELECT", "INSERT", "UPDATE"]),
    ("cachedgitinputs", &["SELECT", "INSERT"]),
    ("cachedhginputs", &["SELECT", "INSERT"]),
    ("cachedsubversioninputs", &["SELECT", "INSERT"]),
    ("cachedbazaarinputs", &["SELECT", "INSERT"]),
    ("cacheddarcsinputs", &["SELECT", "INSERT"]),
    ("systemstatus", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("jobsets_id_seq", &["USAGE"]),
    ("jobsetevals_id_seq", &["USAGE"]),
    ("evaluationerrors_id_seq", &["USAGE"]),
    ("builds_id_seq", &["USAGE"]),
    ("hydrad.notifier", &["SELECT"]),
    ("hydrad.events", &["INSERT"]),
    ("hydrad.evaluations", &["INSERT"]),
];

/// What the notifier does with each table.
const RIGHTS_OF_NOTIFIER: &[(&str, &[&str])] = &[
    ("users", &["SELECT"]),
    ("projects", &["SELECT"]),
    ("jobsets", &["SELECT", "INSERT", "UPDATE"]),
    ("jobsets_id_seq", &["USAGE"]),
    ("jobsetinputs", &["SELECT", "INSERT", "DELETE"]),
    ("jobsetinputalts", &["SELECT", "INSERT", "DELETE"]),
    ("jobsetevals", &["SELECT"]),
    ("jobsetevalmembers", &["SELECT"]),
    ("jobsetevalinputs", &["SELECT"]),
    ("builds", &["SELECT", "UPDATE"]),
    ("buildoutputs", &["SELECT"]),
    ("buildproducts", &["SELECT"]),
    ("buildmetrics", &["SELECT"]),
    ("taskretries", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("taskretries_id_seq", &["USAGE"]),
    ("runcommandlogs", &["SELECT", "INSERT", "UPDATE"]),
    ("runcommandlogs_id_seq", &["USAGE"]),
    ("hydrad.notifier", &["SELECT", "INSERT", "UPDATE"]),
    ("hydrad.events", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    (
        "hydrad.deliveries",
        &["SELECT", "INSERT", "UPDATE", "DELETE"],
    ),
];

/// Tables whose presence means that a database is not empty, though SchemaVersion is missing.
const TELLING_TABLES: &[&str] = &[
    "users",
    "projects",
    "jobsets",
    "builds",
    "buildoutputs",
    "buildsteps",
    "jobsetevals",
    "failedpaths",
    "systemstatus",
    "nrbuilds",
];

/// What the tables of this database are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SchemaState {
    /// No table of Hydra's.
    Empty,
    /// A version that is served.
    Served { version: i32 },
    /// Newer than we know. Served with a warning if `missing` (`table.column`) is empty.
    Newer { version: i32, missing: Vec<String> },
    /// Too old to be served or upgraded here.
    Older { version: i32 },
    /// Not what any version of Hydra looks like; says why.
    Damaged { reason: String },
}

/// Our own tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HydradState {
    Missing,
    /// They exist, but this role may not read them.
    Unreadable,
    At(i32),
}

/// What differs between the versions served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// `BuildOutputs.path` and `BuildStepOutputs.path` may be null (84).
    pub nullable_output_paths: bool,
    /// `BuildSteps.drvPath` may not be null (86).
    pub drv_path_required: bool,
    /// `JobsetEvalInputs.shortRevLength` exists (85).
    pub short_rev_length: bool,
    /// `BuildSteps.resolvedDrvPath` exists, so status 13 can be written (87).
    pub resolved_drv_path: bool,
}

/// Everything about the tables of a database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schema {
    pub state: SchemaState,
    pub hydrad: HydradState,
    pub features: Features,
}

impl Schema {
    /// Whether who only reads Hydra's tables can work here: warnings, or why not and what to do.
    pub fn serve_reader(&self) -> Result<Vec<String>, DbError> {
        let refuse = |text: String| Err(DbError::Schema(text));
        let mut warnings = Vec::new();
        match &self.state {
            SchemaState::Empty => {
                return refuse("the database has no tables; run `hydrad init`".to_owned());
            }
            SchemaState::Served { .. } => {}
            SchemaState::Newer { version, missing } if missing.is_empty() => {
                warnings.push(format!(
                    "the tables are at version {version}, newer than the {VERSION_MAX} this hydrad \
                     knows; every column it uses exists, so it goes on; look for a newer hydrad"
                ));
            }
            SchemaState::Newer { version, missing } => {
                return refuse(format!(
                    "the tables are at version {version}, newer than the {VERSION_MAX} this hydrad \
                     knows, and lack {}; install a newer hydrad",
                    missing.join(", ")
                ));
            }
            SchemaState::Older { version } => return refuse(older(*version)),
            SchemaState::Damaged { reason } => return refuse(reason.clone()),
        }
        Ok(warnings)
    }

    /// Whether the queue runner can work here: warnings, or why not and what to do.
    pub fn serve(&self) -> Result<Vec<String>, DbError> {
        let refuse = |text: String| Err(DbError::Schema(text));
        let warnings = self.serve_reader()?;
        match self.hydrad {
            HydradState::At(version) if version == HYDRAD_VERSION => Ok(warnings),
            HydradState::At(version) if version > HYDRAD_VERSION => refuse(format!(
                "hydrad's own tables are at version {version}, made by a newer hydrad; this one \
                 knows version {HYDRAD_VERSION}"
            )),
            HydradState::At(version) => refuse(format!(
                "hydrad's own tables are at version {version}, this hydrad needs {HYDRAD_VERSION}; \
                 run `hydrad init`"
            )),
            HydradState::Missing => refuse(
                "hydrad's own tables (PostgreSQL schema `hydrad`) are missing; run `hydrad init`"
                    .to_owned(),
            ),
            HydradState::Unreadable => refuse(
                "this database user may not read hydrad's own tables; run `hydrad init` as the \
                 same user, or `grant usage on schema hydrad` and on its tables to this one"
                    .to_owned(),
            ),
        }
    }
}

/// Why an old version is refused and which Hydra takes it further.
fn older(version: i32) -> String {
    let mut text = format!(
        "the tables are at version {version}, older than the {VERSION_MIN} hydrad serves; stop \
         Hydra and run the `hydra-init` of a Hydra from between May 2022 and 2025 (NixOS 22.05 to \
         25.11)"
    );
    if version < 62 {
        text.push_str(
            "; versions up to 61 must first reach 62 with a Hydra of 2020 or 2021, whose \
             `hydra-backfill-ids` has to be run by hand before it goes on (NixOS 20.09)",
        );
    }
    text
}

/// Looks at the tables. Writes nothing.
pub fn check_schema(client: &mut Client) -> Result<Schema, DbError> {
    let tables = COLUMNS_USED.iter().map(|(table, _)| *table);
    let columns = columns(client, tables.chain(["jobsetevalinputs"]))?;
    let hydrad = hydrad_state(client)?;
    let mut missing = Vec::new();
    for (table, names) in COLUMNS_USED {
        for name in *names {
            if !columns.contains_key(&((*table).to_owned(), (*name).to_owned())) {
                missing.push(format!("{table}.{name}"));
            }
        }
    }
    let not_null = |table: &str, name: &str| {
        columns
            .get(&(table.to_owned(), name.to_owned()))
            .copied()
            .unwrap_or(false)
    };
    let has_version = columns.keys().any(|(table, _)| table == "schemaversion");
    let features = Features {
        nullable_output_paths: has_version
            && !not_null("buildoutputs", "path")
            && !not_null("buildstepoutputs", "path"),
        drv_path_required: not_null("buildsteps", "drvpath"),
        short_rev_length: columns
            .contains_key(&("jobsetevalinputs".to_owned(), "shortrevlength".to_owned())),
        resolved_drv_path: columns
            .contains_key(&("buildsteps".to_owned(), "resolveddrvpath".to_owned())),
    };
    let state = if has_version {
        let rows = client.query(SHOW_VERSION, &[])?;
        match rows.as_slice() {
            [row] => state(row.get(0), missing),
            rows => SchemaState::Damaged {
                reason: format!(
                    "table SchemaVersion has {} rows instead of one; restore it from a backup, or \
                     insert the version by hand if you know it",
                    rows.len()
                ),
            },
        }
    } else {
        match telling_tables(client)? {
            found if found.is_empty() => SchemaState::Empty,
            found => SchemaState::Damaged {
                reason: format!(
                    "there is no table SchemaVersion, but {}; this is another program's database, \
                     or half of Hydra's: name an empty database, or restore this one",
                    found.join(", ")
                ),
            },
        }
    };
    Ok(Schema {
        state,
        hydrad,
        features,
    })
}

fn state(version: i32, missing: Vec<String>) -> SchemaState {
    if version < VERSION_MIN {
        SchemaState::Older { version }
    } else if version > VERSION_MAX {
        SchemaState::Newer { version, missing }
    } else if missing.is_empty() {
        SchemaState::Served { version }
    } else {
        SchemaState::Damaged {
            reason: format!(
                "the tables call themselves version {version} but lack {}; restore them from a \
                 backup, or check that the user's search_path finds Hydra's tables",
                missing.join(", ")
            ),
        }
    }
}

/// (table, column) to whether it is `not null`.
type Columns = BTreeMap<(String, String), bool>;

fn columns<'a>(
    client: &mut Client,
    tables: impl Iterator<Item = &'a str>,
) -> Result<Columns, DbError> {
    let tables: Vec<&str> = tables.collect();
    let rows = client.query(FIND_COLUMNS, &[&tables])?;
    Ok(rows
        .iter()
        .map(|r| ((r.get(0), r.get(1)), r.get(2)))
        .collect())
}

fn telling_tables(client: &mut Client) -> Result<Vec<String>, DbError> {
    let columns = columns(client, TELLING_TABLES.iter().copied())?;
    let tables: BTreeSet<String> = columns.into_keys().map(|(table, _)| table).collect();
    Ok(tables.into_iter().collect())
}

fn hydrad_state(client: &mut impl GenericClient) -> Result<HydradState, DbError> {
    let row = client.query_one(FIND_HYDRAD_META, &[])?;
    if !row.get::<_, bool>(0) {
        return Ok(HydradState::Missing);
    }
    if !row.get::<_, bool>(1) {
        return Ok(HydradState::Unreadable);
    }
    match client.query_opt(SHOW_HYDRAD_VERSION, &[])? {
        Some(row) => Ok(HydradState::At(row.get(0))),
        None => Err(DbError::Schema(
            "table hydrad.meta is empty; `drop schema hydrad cascade` and run `hydrad init`"
                .to_owned(),
        )),
    }
}

/// The rights on tables that this role lacks for the queue runner, as `UPDATE on builds`.
pub fn missing_rights(client: &mut Client) -> Result<Vec<String>, DbError> {
    missing_of(client, RIGHTS_USED)
}

/// The same for the evaluator, and for what it starts.
pub fn missing_rights_of_evaluator(client: &mut Client) -> Result<Vec<String>, DbError> {
    missing_of(client, RIGHTS_OF_EVALUATOR)
}

/// The same for the notifier.
pub fn missing_rights_of_notifier(client: &mut Client) -> Result<Vec<String>, DbError> {
    missing_of(client, RIGHTS_OF_NOTIFIER)
}

fn missing_of(client: &mut Client, wanted: &[(&str, &[&str])]) -> Result<Vec<String>, DbError> {
    let mut tables = Vec::new();
    let mut rights = Vec::new();
    for (table, wanted) in wanted {
        for right in *wanted {
            tables.push(*table);
            rights.push(*right);
        }
    }
    let rows = client.query(FIND_RIGHTS, &[&tables, &rights])?;
    Ok(rows
        .iter()
        .filter(|r| r.get::<_, Option<bool>>(2) == Some(false))
        .map(|r| format!("{} on {}", r.get::<_, String>(1), r.get::<_, String>(0)))
        .collect())
}

/// What [`init`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Initialised {
    /// The version Hydra's tables were created at; `None` if they were there.
    pub created: Option<i32>,
    /// Whether our own tables were created.
    pub created_hydrad: bool,
    /// The older version that our own tables were brought up from.
    pub upgraded_hydrad: Option<i32>,
    /// The version of Hydra's tables now.
    pub version: i32,
}

/// The version a new database gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewVersion {
    /// For web servers of the C++ time.
    V85,
    V87,
}

impl NewVersion {
    pub fn number(self) -> i32 {
        match self {
            NewVersion::V85 => 85,
            NewVersion::V87 => 87,
        }
    }
}

/// Makes what is missing: Hydra's tables in an empty database, and our own. Changes no existing
/// table, can be repeated, and is safe against another `init` at the same time.
pub fn init(client: &mut Client, new: NewVersion) -> Result<Initialised, DbError> {
    let schema = check_schema(client)?;
    let created = match &schema.state {
        SchemaState::Empty => create(client, new)?,
        SchemaState::Served { .. } => None,
        SchemaState::Newer { missing, .. } if missing.is_empty() => None,
        // Says what is wrong; our own tables do not matter here.
        _ => {
            let with_hydrad = Schema {
                hydrad: HydradState::At(HYDRAD_VERSION),
                ..schema
            };
            with_hydrad.serve()?;
            None
        }
    };
    let found_hydrad = init_hydrad(client)?;
    let version = client.query_one(SHOW_VERSION, &[])?.get(0);
    Ok(Initialised {
        created,
        created_hydrad: found_hydrad.is_none(),
        upgraded_hydrad: found_hydrad.filter(|&found| found < HYDRAD_VERSION),
        version,
    })
}

fn create(client: &mut Client, new: NewVersion) -> Result<Option<i32>, DbError> {
    let mut transaction = locked(client)?;
    // Another `init` may have been faster.
    if exists(&mut transaction, "schemaversion")? {
        transaction.rollback()?;
        return Ok(None);
    }
    transaction.batch_execute(HYDRA_87)?;
    if new == NewVersion::V85 {
        transaction.batch_execute(HYDRA_85_FROM_87)?;
    }
    transaction.commit()?;
    Ok(Some(new.number()))
}

/// Makes our own tables or brings them up to date; the version that was there, `None` if there was none.
fn init_hydrad(client: &mut Client) -> Result<Option<i32>, DbError> {
    if let HydradState::At(HYDRAD_VERSION) = hydrad_state(client)? {
        return Ok(Some(HYDRAD_VERSION));
    }
    // Another `init` may have been faster: what is there counts once we are alone.
    let mut transaction = locked(client)?;
    let found = match hydrad_state(&mut transaction)? {
        HydradState::At(version) if version > HYDRAD_VERSION => {
            return Err(DbError::Schema(format!(
                "hydrad's own tables are at version {version}, and this hydrad knows \
                 {HYDRAD_VERSION}; use the hydrad that made them"
            )));
        }
        HydradState::Unreadable => {
            return Err(DbError::Schema(
                "hydrad's own tables belong to another database user, who does not let this one \
                 read them; run `hydrad init` as that user"
                    .to_owned(),
            ));
        }
        HydradState::At(version) => Some(version),
        HydradState::Missing => None,
    };
    if found.is_none() {
        transaction.batch_execute(HYDRAD).map_err(|e| {
            let denied = e.code() == Some(&postgres::error::SqlState::INSUFFICIENT_PRIVILEGE);
            match denied {
                true => DbError::Schema(
                    "this database user may not create the PostgreSQL schema `hydrad`; run \
                     `grant create on database DATABASE to USER` as the owner of the database"
                        .to_owned(),
                ),
                false => DbError::Statement(e),
            }
        })?;
    }
    for (to, sql) in HYDRAD_STEPS
        .iter()
        .filter(|step| found.is_none_or(|v| v < step.0))
    {
        transaction.batch_execute(sql).map_err(|e| {
            let denied = e.code() == Some(&postgres::error::SqlState::INSUFFICIENT_PRIVILEGE);
            match denied {
                true => DbError::Schema(format!(
                    "this database user may not bring hydrad's own tables to version {to}; run \
                     `hydrad init` as the user that made them (the owner of the schema `hydrad`)"
                )),
                false => DbError::Statement(e),
            }
        })?;
    }
    transaction.commit()?;
    Ok(found)
}

fn exists(transaction: &mut Transaction<'_>, table: &str) -> Result<bool, DbError> {
    Ok(transaction.query_one(FIND_TABLE, &[&table])?.get(0))
}

fn locked(client: &mut Client) -> Result<Transaction<'_>, DbError> {
    let mut transaction = client.transaction()?;
    transaction.query(LOCK_SCHEMA, &[])?;
    Ok(transaction)
}

/// One step from a version to the next.
struct Step {
    to: i32,
    sql: &'static str,
    what: &'static str,
    /// What becomes of programs that were written before it.
    older_programs: &'static str,
    /// The table that is read through, while nobody else can use it.
    reads: Option<&'static str>,
}

const STEPS: &[Step] = &[
    Step {
        to: 83,
        sql: include_str!("../../sql/upgrades/hydra-83.sql"),
        what: "drop a duplicate index on BuildOutputs.path, if there",
        older_programs: "nothing changes for them",
        reads: None,
    },
    Step {
        to: 84,
        sql: include_str!("../../sql/upgrades/hydra-84.sql"),
        what: "allow outputs whose path is not known yet",
        older_programs:
            "programs from before 2024 stop at the first such output; there is none as \
                         long as nobody builds content-addressed derivations",
        reads: None,
    },
    Step {
        to: 85,
        sql: include_str!("../../sql/upgrades/hydra-85.sql"),
        what: "add JobsetEvalInputs.shortRevLength",
        older_programs: "nothing changes for them",
        reads: None,
    },
    Step {
        to: 86,
        sql: include_str!("../../sql/upgrades/hydra-86.sql"),
        what: "require BuildSteps.drvPath; old substitutions get a stand-in",
        older_programs: "Hydra's C++ queue runner can no longer record a substitution: with \
                         use-substitutes it fails; there is no way back but a backup",
        reads: Some("buildsteps"),
    },
    Step {
        to: 87,
        sql: include_str!("../../sql/upgrades/hydra-87.sql"),
        what: "add BuildSteps.resolvedDrvPath",
        older_programs: "those that cannot write status 13 go on as before",
        reads: Some("buildsteps"),
    },
];

/// How often an upgrade tries to get at a table that others use.
const LOCK_TRIES_MAX: u32 = 5;
/// The pause between two such tries, in which the others go on.
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// What an upgrade would do, to be shown before it is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpgradePlan {
    pub from: i32,
    pub to: i32,
    pub steps: Vec<UpgradeStep>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpgradeStep {
    pub to: i32,
    pub what: &'static str,
    pub older_programs: &'static str,
    /// A table that is read through under an exclusive lock.
    pub reads: Option<TableSize>,
}

/// PostgreSQL's own estimate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableSize {
    pub table: &'static str,
    /// `None` if the table was never analysed.
    pub rows: Option<u64>,
    pub bytes: u64,
}

impl UpgradeStep {
    /// A rough time for reading the table twice at 100 MB/s.
    pub fn secs_estimated(&self) -> u64 {
        const BYTES_PER_SEC: u64 = 100 << 20;
        self.reads
            .as_ref()
            .map_or(0, |size| size.bytes.saturating_mul(2) / BYTES_PER_SEC)
            .max(1)
    }
}

impl fmt::Display for UpgradePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Hydra's tables go from version {} to {}:",
            self.from, self.to
        )?;
        for step in &self.steps {
            writeln!(f, "  {}: {}", step.to, step.what)?;
            writeln!(f, "      older programs: {}", step.older_programs)?;
            if let Some(size) = &step.reads {
                let rows = match size.rows {
                    Some(rows) => format!("about {rows} rows"),
                    None => "rows never counted".to_owned(),
                };
                writeln!(
                    f,
                    "      {} is locked for about {} s ({rows}, {} MiB)",
                    size.table,
                    step.secs_estimated(),
                    size.bytes >> 20
                )?;
            }
        }
        writeln!(
            f,
            "  hydrad goes on as before; what is new it uses once it is restarted"
        )
    }
}

/// What it takes to bring Hydra's tables to version `to`. Writes nothing. No steps if they are
/// there already.
pub fn plan_upgrade(client: &mut Client, to: i32) -> Result<UpgradePlan, DbError> {
    let schema = check_schema(client)?;
    let from = match schema.state {
        SchemaState::Served { version } => version,
        SchemaState::Newer { version, .. } => version,
        SchemaState::Older { version } => return Err(DbError::Schema(older(version))),
        SchemaState::Damaged { reason } => return Err(DbError::Schema(reason)),
        SchemaState::Empty => {
            return Err(DbError::Schema(
                "the database has no tables to upgrade; `hydrad init` makes new ones".to_owned(),
            ));
        }
    };
    if !(VERSION_MIN..=VERSION_MAX).contains(&to) {
        return Err(DbError::Schema(format!(
            "cannot upgrade to version {to}: this hydrad knows {VERSION_MIN} to {VERSION_MAX}"
        )));
    }
    if to < from {
        return Err(DbError::Schema(format!(
            "the tables are at version {from}; there is no way back to {to} but a backup"
        )));
    }
    let mut steps = Vec::new();
    for step in STEPS.iter().filter(|s| s.to > from && s.to <= to) {
        let reads = match step.reads {
            None => None,
            Some(table) => {
                let row = client.query_one(ESTIMATE_ROWS, &[&table])?;
                Some(TableSize {
                    table,
                    rows: u64::try_from(row.get::<_, i64>(0)).ok(),
                    bytes: u64::try_from(row.get::<_, i64>(1)).unwrap_or(0),
                })
            }
        };
        steps.push(UpgradeStep {
            to: step.to,
            what: step.what,
            older_programs: step.older_programs,
            reads,
        });
    }
    Ok(UpgradePlan { from, to, steps })
}

/// Carries out a plan, one transaction per step; `tell` hears of each step before it starts. After
/// an error the steps before it stay done, and the upgrade can be repeated.
///
/// Others may be using the tables. Whoever waits for one makes everybody else wait behind him, so
/// an upgrade waits shortly, lets them pass, and comes again, a few times.
pub fn upgrade(
    client: &mut Client,
    plan: &UpgradePlan,
    tell: &mut dyn FnMut(&str),
) -> Result<(), DbError> {
    for planned in &plan.steps {
        let step = STEPS
            .iter()
            .find(|s| s.to == planned.to)
            .expect("BUG: a planned step that does not exist");
        tell(&format!("upgrading to {}: {}", step.to, step.what));
        let mut tries = 1;
        while !take_step(client, step)? {
            if tries == LOCK_TRIES_MAX {
                return Err(DbError::Schema(format!(
                    "upgrading to {}: other programs use the tables all the time; stop Hydra's \
                     programs and repeat the upgrade",
                    step.to
                )));
            }
            tries += 1;
            tell("other programs use the tables; they go first");
            std::thread::sleep(LOCK_PAUSE);
        }
    }
    Ok(())
}

/// One step in one transaction; `false` if others use the tables: nothing has changed then.
fn take_step(client: &mut Client, step: &Step) -> Result<bool, DbError> {
    let mut transaction = locked(client)?;
    transaction.batch_execute(LIMIT_LOCK_WAIT)?;
    let moved = transaction.execute(SET_VERSION, &[&step.to, &(step.to - 1)])?;
    if moved != 1 {
        return Err(DbError::Schema(format!(
            "the tables are no longer at version {}: somebody else upgrades them; look again \
             with `hydrad check`",
            step.to - 1
        )));
    }
    match transaction.batch_execute(step.sql) {
        Ok(()) => {}
        Err(e) if e.code() == Some(&postgres::error::SqlState::LOCK_NOT_AVAILABLE) => {
            return Ok(false);
        }
        Err(e) => return Err(DbError::Statement(e)),
    }
    transaction.commit()?;
    Ok(true)
}
