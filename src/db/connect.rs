//! Which database, and how to connect to it.
//!
//! Knows everything that libpq would supply and the `postgres` crate does not: Hydra's two
//! variables, the PG* environment, default socket folders, password files. Does not know pools,
//! tables or services.
//!
//! Each parameter comes from, in this order: HYDRA_DATABASE_URL, else HYDRA_DBI, else `database` of
//! hydra.conf, else nothing (database `hydra`); what those leave open from the PG* environment;
//! the rest as libpq would guess it. `describe` says which it was.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use postgres::config::{SslMode, TargetSessionAttrs};
use postgres::{Client, NoTls};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;

use super::error::{words, DbError};
use super::locks;
use super::os_user;
use super::tls::{self, Tls};
use crate::base::text::percent_decoded;
use crate::config::Settings;

/// What we call ourselves in `pg_stat_activity`; Hydra's own programs are called `hydra-...`.
pub const QUEUE_RUNNER_APPLICATION: &str = "hydrad-queue-runner";

/// Where distributions put the server's socket.
const SOCKET_DIRS: &[&str] = &["/run/postgresql", "/var/run/postgresql", "/tmp"];

const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
const KEEPALIVES_IDLE_DEFAULT: Duration = Duration::from_secs(30);
const KEEPALIVES_INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
const KEEPALIVES_COUNT_DEFAULT: u32 = 3;
const TCP_USER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// One server to try.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Server {
    /// A name, an address or the absolute path of a socket folder.
    host: String,
    /// Where to connect to if that is not to be looked up: `hostaddr`.
    address: Option<IpAddr>,
    port: u16,
}

impl Server {
    fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_socket() {
            write!(f, "{}/.s.PGSQL.{}", self.host, self.port)
        } else if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A parameter and where it was set.
#[derive(Clone, PartialEq, Eq)]
struct Parameter {
    key: String,
    value: String,
    origin: String,
}

/// A database and how to reach it. Cheap to clone; holds no connection.
#[derive(Clone)]
pub struct DbTarget {
    servers: Vec<Server>,
    servers_origin: String,
    dbname: (String, String),
    user: (String, String),
    password: Option<(String, String)>,
    passfile: Option<(PathBuf, String)>,
    options: Option<String>,
    tls: Tls,
    connect_timeout: Duration,
    keepalives: bool,
    keepalives_idle: Duration,
    keepalives_interval: Duration,
    keepalives_count: u32,
    tcp_user_timeout: Duration,
    session_attrs: TargetSessionAttrs,
    remarks: Vec<String>,
    /// Its sessions can write nothing.
    read_only: bool,
}

/// The password stays out.
impl fmt::Debug for DbTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DbTarget({})", self.describe())
    }
}

/// A line of `hydrad check` about the database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetRow {
    pub key: &'static str,
    pub value: String,
    pub origin: String,
}

impl DbTarget {
    /// The target that the environment and hydra.conf name. Touches no network; looks for the
    /// server's socket folder if no host is named.
    pub fn from_env(
        env: &dyn Fn(&str) -> Option<String>,
        settings: &Settings,
    ) -> Result<DbTarget, DbError> {
        let database = settings.database.as_ref();
        Self::from_parts(
            env,
            database.map(|(text, at)| (text.as_str(), at.to_string())),
        )
    }

    /// As [`DbTarget::from_env`], with `database` of hydra.conf and its place given.
    pub fn from_parts(
        env: &dyn Fn(&str) -> Option<String>,
        conf: Option<(&str, String)>,
    ) -> Result<DbTarget, DbError> {
        let set = |name: &str| env(name).filter(|v| !v.is_empty());
        let mut remarks = Vec::new();
        let url = set("HYDRA_DATABASE_URL");
        let dbi = set("HYDRA_DBI");
        if url.is_some() && dbi.is_some() {
            remarks.push(
                "HYDRA_DATABASE_URL and HYDRA_DBI are both set; HYDRA_DBI is not used".to_owned(),
            );
        }
        let (text, origin) = match (url, dbi, conf) {
            (Some(url), _, _) => (url, "HYDRA_DATABASE_URL".to_owned()),
            (None, Some(dbi), _) => (dbi, "HYDRA_DBI".to_owned()),
            (None, None, Some((text, at))) => (text.to_owned(), at),
            (None, None, None) => (String::new(), String::new()),
        };
        let parameters = if text.is_empty() {
            Vec::new()
        } else {
            let parsed = parse_database(&text).map_err(|reason| DbError::BadTarget {
                origin: origin.clone(),
                reason,
            })?;
            parsed
                .into_iter()
                .map(|(key, value)| Parameter {
                    key,
                    value,
                    origin: origin.clone(),
                })
                .collect()
        };
        assemble(env, parameters, !text.is_empty(), remarks)
    }

    /// A server in a socket folder, as the private PostgreSQL of `--state` has one.
    pub fn socket(dir: &Path, port: u16, dbname: &str, user: &str, origin: &str) -> DbTarget {
        DbTarget {
            servers: vec![Server {
                host: dir.to_string_lossy().into_owned(),
                address: None,
                port,
            }],
            servers_origin: origin.to_owned(),
            dbname: (dbname.to_owned(), origin.to_owned()),
            user: (user.to_owned(), origin.to_owned()),
            password: None,
            passfile: None,
            options: None,
            tls: Tls::none(origin),
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            keepalives: true,
            keepalives_idle: KEEPALIVES_IDLE_DEFAULT,
            keepalives_interval: KEEPALIVES_INTERVAL_DEFAULT,
            keepalives_count: KEEPALIVES_COUNT_DEFAULT,
            tcp_user_timeout: TCP_USER_TIMEOUT_DEFAULT,
            session_attrs: TargetSessionAttrs::Any,
            remarks: Vec::new(),
            read_only: false,
        }
    }

    /// Another database of the same server.
    pub fn with_dbname(&self, dbname: &str) -> DbTarget {
        let mut other = self.clone();
        other.dbname.0 = dbname.to_owned();
        other
    }

    /// The same database, for sessions that cannot write, whatever they are sent. They can listen.
    pub fn read_only(mut self) -> DbTarget {
        self.read_only = true;
        self
    }

    pub fn dbname(&self) -> &str {
        &self.dbname.0
    }

    pub fn user(&self) -> &str {
        &self.user.0
    }

    /// Doubts about the settings, for the log and `hydrad check`.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Connects, trying each server in turn. `application_name` is what others see; one in
    /// HYDRA_DBI is overridden, since there it names Hydra's own program. Waits at most
    /// `connect_timeout` (10 s unless set) per address. Password files are read anew each time.
    pub fn connect(&self, application_name: &str) -> Result<Client, DbError> {
        let mut last = None;
        for server in &self.servers {
            match self.connect_to(server, application_name) {
                Ok(mut client) => {
                    if self.read_only {
                        locks::read_only(&mut client)?;
                    }
                    return Ok(client);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| DbError::BadTarget {
            origin: self.servers_origin.clone(),
            reason: "no host is named".to_owned(),
        }))
    }

    fn connect_to(&self, server: &Server, application_name: &str) -> Result<Client, DbError> {
        let attempts = match server.is_socket() {
            true => &[SslMode::Disable],
            false => self.tls.attempts(),
        };
        let mut first = None;
        for mode in attempts {
            let mut config = self.config(server, application_name);
            config.ssl_mode(*mode);
            let connected = match mode {
                SslMode::Disable => PostgresConnectionManager::new(config, NoTls).connect(),
                _ => {
                    let connector = self.tls.connector().map_err(|reason| DbError::Tls {
                        target: self.describe_at(server),
                        reason,
                    })?;
                    PostgresConnectionManager::new(config, connector).connect()
                }
            };
            let cause = match connected {
                Ok(client) => return Ok(client),
                Err(cause) => cause,
            };
            // With or without TLS makes a difference to the handshake and to pg_hba.conf alone.
            let other_way = cause.code().map_or_else(
                || words(&cause).contains("TLS"),
                |code| code.code() == "28000",
            );
            // If the other way does not help, the error of the preferred one says more.
            first.get_or_insert(cause);
            if !other_way {
                break;
            }
        }
        let cause = first.expect("BUG: no way to connect was tried");
        Err(DbError::Connect {
            target: self.describe_at(server),
            hint: self.hint(&cause),
            cause,
        })
    }

    fn config(&self, server: &Server, application_name: &str) -> postgres::Config {
        let mut config = postgres::Config::new();
        config
            .host(&server.host)
            .port(server.port)
            .dbname(&self.dbname.0)
            .user(&self.user.0)
            .application_name(application_name)
            .channel_binding(self.tls.channel_binding())
            .connect_timeout(self.connect_timeout)
            .keepalives(self.keepalives)
            .keepalives_idle(self.keepalives_idle)
            .keepalives_interval(self.keepalives_interval)
            .keepalives_retries(self.keepalives_count)
            .tcp_user_timeout(self.tcp_user_timeout)
            .target_session_attrs(self.session_attrs);
        if let Some(address) = server.address {
            config.hostaddr(address);
        }
        if let Some(options) = &self.options {
            config.options(options);
        }
        if let Some(password) = self.password_for(server) {
            config.password(password);
        }
        config
    }

    fn password_for(&self, server: &Server) -> Option<String> {
        if let Some((password, _)) = &self.password {
            return Some(password.clone());
        }
        let (path, _) = self.passfile.as_ref()?;
        passfile_problem(path).is_none().then_some(())?;
        let text = fs::read_to_string(path).ok()?;
        let host = match server.host.as_str() {
            dir if SOCKET_DIRS.contains(&dir) => "localhost",
            host => host,
        };
        password_in(&text, host, server.port, &self.dbname.0, &self.user.0)
    }

    /// What to try after a failed connection; starts with `; ` or is empty.
    fn hint(&self, cause: &postgres::Error) -> String {
        let Some(code) = cause.code() else {
            let hint = self.tls.hint(&words(cause));
            if !hint.is_empty() {
                return hint;
            }
            return "; is PostgreSQL running there? `hydrad check` shows where each part comes from; \
                    or --state DIR, if hydrad runs with that"
                .to_owned();
        };
        let mut hint = match code.code() {
            "28000" if words(cause).contains("no encryption") => {
                "; the server may want TLS: set sslmode=require or stricter; or allow this host \
                 without TLS in pg_hba.conf"
            }
            "28P01" => "; check the password (PGPASSWORD, PGPASSFILE)",
            "28000" => "; check the user (PGUSER, user=) against pg_hba.conf and pg_ident.conf",
            "3D000" => "; create it with `createdb -O hydra hydra`, then run `hydrad init`",
            "53300" => "; raise max_connections in postgresql.conf or lower max_db_connections",
            _ => "",
        }
        .to_owned();
        if let Some((path, _)) = &self.passfile {
            if let Some(problem) = passfile_problem(path) {
                if code.code().starts_with("28") {
                    hint.push_str(&format!("; {problem}"));
                }
            }
        }
        hint
    }

    /// One line, without the password: server, database and user, and where each comes from.
    pub fn describe(&self) -> String {
        let rows = self.rows();
        let parts: Vec<String> = rows
            .iter()
            .filter(|r| matches!(r.key, "server" | "database" | "user"))
            .map(|r| format!("{} {} ({})", r.key, r.value, r.origin))
            .collect();
        parts.join(", ")
    }

    fn describe_at(&self, server: &Server) -> String {
        format!(
            "{server} ({}), database {} ({}), user {} ({})",
            self.servers_origin, self.dbname.0, self.dbname.1, self.user.0, self.user.1
        )
    }

    /// The same, a row per parameter.
    pub fn rows(&self) -> Vec<TargetRow> {
        let row = |key, value: String, origin: &str| TargetRow {
            key,
            value,
            origin: origin.to_owned(),
        };
        let servers: Vec<String> = self.servers.iter().map(Server::to_string).collect();
        let mut rows = vec![
            row("server", servers.join(" or "), &self.servers_origin),
            row("database", self.dbname.0.clone(), &self.dbname.1),
            row("user", self.user.0.clone(), &self.user.1),
        ];
        if let Some((_, origin)) = &self.password {
            rows.push(row("password", "(not shown)".to_owned(), origin));
        } else if let Some((path, origin)) = &self.passfile {
            let found = self.servers.iter().any(|s| self.password_for(s).is_some());
            let value = match passfile_problem(path) {
                Some(problem) => problem,
                None if found => format!("(from {})", path.display()),
                None => format!("none for this database in {}", path.display()),
            };
            rows.push(row("password", value, origin));
        }
        let (tls, origin) = self.tls.describe();
        rows.push(row("sslmode", tls, origin));
        rows
    }
}

/// The environment variables that name a database; `--state` is an error with any of them.
pub const DATABASE_VARIABLES: &[&str] = &[
    "HYDRA_DBI",
    "HYDRA_DATABASE_URL",
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGSERVICE",
];

/// Where a database is configured, if anywhere: a variable's name or a place in hydra.conf.
pub fn configured_by(env: &dyn Fn(&str) -> Option<String>, settings: &Settings) -> Option<String> {
    let variable = DATABASE_VARIABLES
        .iter()
        .find(|name| env(name).is_some_and(|v| !v.is_empty()));
    match variable {
        Some(name) => Some(format!("environment variable {name}")),
        None => settings
            .database
            .as_ref()
            .map(|(_, at)| format!("`database` ({at})")),
    }
}

/// D2: the embedded database exists only where no other is named.
pub fn refuse_two_databases(
    env: &dyn Fn(&str) -> Option<String>,
    settings: &Settings,
) -> Result<(), DbError> {
    match configured_by(env, settings) {
        None => Ok(()),
        Some(origin) => Err(DbError::BadTarget {
            origin,
            reason: "names a database, and --state means a private one; remove one of the two"
                .to_owned(),
        }),
    }
}

/// Keys of a conninfo string that we know and that have no effect here.
const KEYS_WITHOUT_EFFECT: &[&str] = &[
    "application_name",
    "fallback_application_name",
    "client_encoding",
    "gssencmode",
    "gsslib",
    "krbsrvname",
    "sslcompression",
];

const KEYS: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "passfile",
    "options",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "target_session_attrs",
    "service",
];

/// The PG* variable that stands for a key.
fn variable(key: &str) -> Option<&'static str> {
    Some(match key {
        "host" => "PGHOST",
        "hostaddr" => "PGHOSTADDR",
        "port" => "PGPORT",
        "dbname" => "PGDATABASE",
        "user" => "PGUSER",
        "password" => "PGPASSWORD",
        "passfile" => "PGPASSFILE",
        "options" => "PGOPTIONS",
        "connect_timeout" => "PGCONNECT_TIMEOUT",
        "target_session_attrs" => "PGTARGETSESSIONATTRS",
        "service" => "PGSERVICE",
        _ => return tls_variable(key),
    })
}

fn tls_variable(key: &str) -> Option<&'static str> {
    let (_, variable) = tls::KEYS.iter().find(|(known, _)| *known == key)?;
    (!variable.is_empty()).then_some(*variable)
}

fn is_known(key: &str) -> bool {
    KEYS.contains(&key)
        || KEYS_WITHOUT_EFFECT.contains(&key)
        || tls::KEYS.iter().any(|(known, _)| *known == key)
}

fn assemble(
    env: &dyn Fn(&str) -> Option<String>,
    parameters: Vec<Parameter>,
    database_named: bool,
    remarks: Vec<String>,
) -> Result<DbTarget, DbError> {
    for p in &parameters {
        let key = p.key.as_str();
        if !is_known(key) {
            return Err(DbError::BadTarget {
                origin: p.origin.clone(),
                reason: format!("`{key}` is not a connection parameter that hydrad knows"),
            });
        }
    }
    let find = |key: &str| -> Option<(String, String)> {
        let own = parameters
            .iter()
            .rev()
            .find(|p| p.key == key && !p.value.is_empty());
        if let Some(p) = own {
            return Some((p.value.clone(), p.origin.clone()));
        }
        let name = variable(key)?;
        let value = env(name).filter(|v| !v.is_empty())?;
        Some((value, name.to_owned()))
    };

    if let Some((service, origin)) = find("service") {
        return Err(DbError::BadTarget {
            origin,
            reason: format!(
                "service files (`{service}`) are not supported; write host, port, dbname and user \
                 into HYDRA_DBI or HYDRA_DATABASE_URL instead"
            ),
        });
    }

    let user = match find("user") {
        Some(user) => user,
        None => match os_user::current() {
            Some(user) => (user.name, "the user hydrad runs as".to_owned()),
            None => {
                return Err(DbError::BadTarget {
                    origin: "user".to_owned(),
                    reason: format!(
                        "uid {} has no name; set PGUSER or user= in HYDRA_DBI",
                        os_user::effective_uid()
                    ),
                });
            }
        },
    };
    let dbname = match find("dbname") {
        Some(dbname) => dbname,
        // As libpq does it for a DSN without dbname.
        None if database_named => (user.0.clone(), "the user's name".to_owned()),
        None => ("hydra".to_owned(), "default".to_owned()),
    };

    let (servers, servers_origin) = servers(&find)?;
    let password = find("password");
    let home = env("HOME")
        .filter(|h| !h.is_empty())
        .or_else(|| os_user::current().map(|u| u.home))
        .map(PathBuf::from);
    let passfile = match find("passfile") {
        Some((path, origin)) => Some((PathBuf::from(path), origin)),
        None => home
            .as_ref()
            .map(|home| home.join(".pgpass"))
            .filter(|p| p.exists())
            .map(|p| (p, "~/.pgpass".to_owned())),
    };

    let mut remarks = remarks;
    if let (None, Some((path, _))) = (&password, &passfile) {
        // Hydra's units name a file that need not exist.
        if path.exists() {
            remarks.extend(passfile_problem(path));
        }
    }

    let tls = Tls::from_parameters(&find, home.as_deref())?;
    let session_attrs = match find("target_session_attrs") {
        None => TargetSessionAttrs::Any,
        Some((value, origin)) => match value.as_str() {
            "any" => TargetSessionAttrs::Any,
            "read-write" | "primary" => TargetSessionAttrs::ReadWrite,
            _ => {
                return Err(DbError::BadTarget {
                    origin,
                    reason: format!(
                        "target_session_attrs={value}: hydrad writes, so only any, read-write and \
                         primary make sense"
                    ),
                });
            }
        },
    };

    let number = |key: &str, default: u64| -> Result<u64, DbError> {
        match find(key) {
            None => Ok(default),
            Some((value, origin)) => {
                value
                    .trim()
                    .parse::<u32>()
                    .map(u64::from)
                    .map_err(|_| DbError::BadTarget {
                        origin,
                        reason: format!("{key}={value}: expected a whole number"),
                    })
            }
        }
    };
    let seconds = |key: &str, default: Duration| -> Result<Duration, DbError> {
        number(key, default.as_secs()).map(Duration::from_secs)
    };

    let connect_timeout = seconds("connect_timeout", CONNECT_TIMEOUT_DEFAULT)?;
    Ok(DbTarget {
        servers,
        servers_origin,
        dbname,
        user,
        password,
        passfile,
        options: find("options").map(|(o, _)| o),
        tls,
        // libpq takes 0 for "for ever", which no thread of ours may do.
        connect_timeout: if connect_timeout.is_zero() {
            CONNECT_TIMEOUT_DEFAULT
        } else {
            connect_timeout
        },
        keepalives: number("keepalives", 1)? != 0,
        keepalives_idle: seconds("keepalives_idle", KEEPALIVES_IDLE_DEFAULT)?,
        keepalives_interval: seconds("keepalives_interval", KEEPALIVES_INTERVAL_DEFAULT)?,
        keepalives_count: number("keepalives_count", u64::from(KEEPALIVES_COUNT_DEFAULT))?.min(127)
            as u32,
        tcp_user_timeout: Duration::from_millis(number(
            "tcp_user_timeout",
            TCP_USER_TIMEOUT_DEFAULT.as_millis() as u64,
        )?),
        session_attrs,
        remarks,
        read_only: false,
    })
}

type Find<'a> = dyn Fn(&str) -> Option<(String, String)> + 'a;

/// The servers to try and where they are named. With `host` and `hostaddr`, as in libpq, the one is the name (of a
/// password's line, of a certificate) and the other says where to connect to.
fn servers(find: &Find<'_>) -> Result<(Vec<Server>, String), DbError> {
    let list =
        |text: &str| -> Vec<String> { text.split(',').map(|h| h.trim().to_owned()).collect() };
    let addresses = find("hostaddr");
    let (hosts, origin) = match find("host") {
        Some((hosts, origin)) => (list(&hosts), origin),
        None => match &addresses {
            Some((addresses, origin)) => (list(addresses), origin.clone()),
            None => (vec![String::new()], "default".to_owned()),
        },
    };
    let addresses = match addresses {
        None => vec![None; hosts.len()],
        Some((text, origin)) => {
            let wrong = |reason: String| DbError::BadTarget {
                origin: origin.clone(),
                reason,
            };
            let texts = list(&text);
            let parsed = texts.iter().map(|address| match &**address {
                "" => Ok(None),
                address => address
                    .parse()
                    .map(Some)
                    .map_err(|_| wrong(format!("hostaddr={address}: expected an IP address"))),
            });
            let addresses: Vec<Option<IpAddr>> = parsed.collect::<Result<_, _>>()?;
            if addresses.len() != hosts.len() {
                return Err(wrong(format!(
                    "{} hosts but {} addresses in hostaddr",
                    hosts.len(),
                    addresses.len()
                )));
            }
            addresses
        }
    };
    let ports = match find("port") {
        None => vec![5432],
        Some((text, origin)) => {
            text.split(',')
                .map(|p| match p.trim() {
                    "" => Ok(5432),
                    p => u16::from_str(p).ok().filter(|p| *p != 0).ok_or_else(|| {
                        DbError::BadTarget {
                            origin: origin.clone(),
                            reason: format!("port={text}: expected a number from 1 to 65535"),
                        }
                    }),
                })
                .collect::<Result<Vec<u16>, DbError>>()?
        }
    };
    if ports.len() != 1 && ports.len() != hosts.len() {
        return Err(DbError::BadTarget {
            origin,
            reason: format!(
                "{} hosts but {} ports; give one port, or one per host",
                hosts.len(),
                ports.len()
            ),
        });
    }
    let servers = hosts
        .into_iter()
        .zip(addresses)
        .enumerate()
        .map(|(i, (host, address))| {
            let port = ports[if ports.len() == 1 { 0 } else { i }];
            let (host, address) = match address {
                // Where to connect to is said, and the name is no name.
                Some(address) if host.is_empty() || host.starts_with('/') => {
                    (address.to_string(), None)
                }
                None if host.is_empty() => (default_socket_dir(port), None),
                address => (host, address),
            };
            Server {
                host,
                address,
                port,
            }
        })
        .collect();
    Ok((servers, origin))
}

/// The first usual folder that holds the server's socket, else the first that exists.
fn default_socket_dir(port: u16) -> String {
    let with_socket = SOCKET_DIRS
        .iter()
        .find(|d| Path::new(d).join(format!(".s.PGSQL.{port}")).exists());
    let existing = || SOCKET_DIRS.iter().find(|d| Path::new(d).is_dir());
    with_socket
        .or_else(existing)
        .map_or("/tmp", |d| *d)
        .to_owned()
}

/// Why a password file is not used, as libpq would see it; `None` if it may be.
fn passfile_problem(path: &Path) -> Option<String> {
    let path_text = path.display();
    match fs::metadata(path) {
        Err(e) => Some(format!("the password file {path_text} cannot be read: {e}")),
        Ok(m) if !m.is_file() => Some(format!("the password file {path_text} is not a file")),
        Ok(m) if m.permissions().mode() & 0o077 != 0 => Some(format!(
            "the password file {path_text} is not used, because others may read it; run \
             `chmod 600 {path_text}`"
        )),
        Ok(_) => fs::File::open(path)
            .err()
            .map(|e| format!("the password file {path_text} cannot be read: {e}")),
    }
}

/// The password of the first line `host:port:database:user:password` that fits.
fn password_in(text: &str, host: &str, port: u16, dbname: &str, user: &str) -> Option<String> {
    let port = port.to_string();
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        let fields = passfile_fields(line);
        let [h, p, d, u, password] = match <[String; 5]>::try_from(fields) {
            Ok(fields) => fields,
            Err(_) => continue,
        };
        let fits = |field: &str, value: &str| field == "*" || field == value;
        if fits(&h, host) && fits(&p, &port) && fits(&d, dbname) && fits(&u, user) {
            return Some(password);
        }
    }
    None
}

/// Splits at `:`; `\:` and `\\` stand for the character itself. The fifth field is the rest of
/// the line, as in libpq.
fn passfile_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let fields_count = fields.len();
        let field = &mut fields[fields_count - 1];
        match c {
            '\\' => field.push(chars.next().unwrap_or('\\')),
            ':' if fields_count < 5 => fields.push(String::new()),
            c => field.push(c),
        }
    }
    fields
}

/// `dbi:Pg:...`, `postgres://...`, `postgresql://...` or a plain conninfo string, as pairs.
fn parse_database(text: &str) -> Result<Vec<(String, String)>, String> {
    let text = text.trim();
    for scheme in ["postgres://", "postgresql://"] {
        if let Some(rest) = text.strip_prefix(scheme) {
            return parse_url(rest);
        }
    }
    for prefix in ["dbi:Pg:", "DBI:Pg:"] {
        if let Some(rest) = text.strip_prefix(prefix) {
            let parts: Vec<&str> = rest.split(';').filter(|p| !p.trim().is_empty()).collect();
            return parse_conninfo(&parts.join(" "));
        }
    }
    Err(
        "does not denote a PostgreSQL database; expected dbi:Pg:dbname=... or postgres://..."
            .to_owned(),
    )
}

/// libpq's `key=value key='quoted value'`; `db` and `database` are DBD::Pg's names of `dbname`.
fn parse_conninfo(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            key.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            // Anything unknown may be a piece of a password with blanks in it.
            return Err(match is_known(&key) {
                true => format!("no `=` after `{key}`"),
                false => "a word without `=`; put values with blanks in single quotes".to_owned(),
            });
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        let quoted = chars.next_if_eq(&'\'').is_some();
        loop {
            match chars.peek() {
                None if quoted => return Err(format!("the quote after `{key}=` is not closed")),
                None => break,
                Some('\'') if quoted => {
                    chars.next();
                    break;
                }
                Some(c) if !quoted && c.is_whitespace() => break,
                Some('\\') => {
                    chars.next();
                    value.extend(chars.next());
                }
                Some(_) => value.extend(chars.next()),
            }
        }
        let key = match key.as_str() {
            "" => return Err("a `=` without a name before it".to_owned()),
            "db" | "database" => "dbname".to_owned(),
            _ => key,
        };
        pairs.push((key, value));
    }
}

/// `[user[:password]@][host[:port],...][/dbname][?key=value&...]`.
fn parse_url(rest: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    let mut push = |key: &str, value: &str| -> Result<(), String> {
        let value = percent_decoded(value)?;
        if !value.is_empty() {
            pairs.push((key.to_owned(), value));
        }
        Ok(())
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = match authority.rsplit_once('@') {
        None => authority,
        Some((login, hosts)) => {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            push("user", user)?;
            push("password", password)?;
            hosts
        }
    };
    if !hosts.is_empty() {
        let mut names = Vec::new();
        let mut ports = Vec::new();
        for host in hosts.split(',') {
            let (name, port) = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
                Some((name, port)) => (name, port.strip_prefix(':').unwrap_or(port)),
                None => host.split_once(':').unwrap_or((host, "")),
            };
            names.push(name);
            ports.push(port);
        }
        push("host", &names.join(","))?;
        if ports.iter().any(|p| !p.is_empty()) {
            push("port", &ports.join(","))?;
        }
    }
    push("dbname", dbname)?;
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| "a parameter after `?` has no `=`".to_owned())?;
        push(&percent_decoded(key)?, value)?;
    }
    Ok(pairs)
}
