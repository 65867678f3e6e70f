//! A private PostgreSQL cluster, reached through a socket in its own directory, and fresh databases in it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use postgres::{Client, Config, NoTls};

use super::process::{eventually, output_of, Running};
use super::{Authority, Certificate, Listener, RunAs, TestDir};

/// A cluster. [`Pg::shared`] is one per test binary; [`Pg::start`] is for tests that stop and start PostgreSQL.
pub struct Pg {
    port: u16,
    settings: Vec<String>,
    /// Files it reads.
    keep: Mutex<Vec<TestDir>>,
    dir: TestDir,
    server: Mutex<Option<Running>>,
    templates: Mutex<HashMap<String, String>>,
    next_db: AtomicU32,
}

/// One database, owned by the role `hydra` as in an installation.
#[derive(Clone)]
pub struct Db {
    name: String,
    socket_dir: PathBuf,
    port: u16,
}

impl Pg {
    /// The cluster of this test binary, started by the first test that asks and ended with the process.
    pub fn shared() -> &'static Pg {
        static SHARED: OnceLock<Pg> = OnceLock::new();
        static FIRST: Mutex<()> = Mutex::new(());
        extern "C" fn at_exit() {
            if let Some(pg) = SHARED.get() {
                drop(pg.server().take());
                super::dir::remove_or_keep(pg.dir.path());
            }
        }
        let _first = FIRST.lock().unwrap_or_else(|e| e.into_inner());
        SHARED.get_or_init(|| {
            let pg = Pg::start();
            // SAFETY: the handler only uses a static that is never dropped.
            unsafe { libc::atexit(at_exit) };
            pg
        })
    }

    pub fn start() -> Pg {
        Self::start_with(&[], None)
    }

    /// One that is also reached at `127.0.0.1` and this port with TLS, by these rules of pg_hba.conf (after one that lets
    /// everybody in at the socket). `clients` is the authority of clients' certificates.
    pub fn start_tls(own: &Certificate, clients: &Authority, rules: &str) -> (Pg, u16) {
        let port = super::sshd::free_port();
        let dir = TestDir::new(RunAs::Unprivileged);
        let copy = |from: &Path, name: &str| {
            let text = std::fs::read_to_string(from).expect("a PEM file of our own");
            let path = dir.file(name, &text, RunAs::Unprivileged);
            path.display().to_string()
        };
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", copy(&own.certificate, "server.pem")),
            format!("ssl_key_file={}", copy(&own.key, "server.key")),
            format!(
                "ssl_ca_file={}",
                copy(&clients.certificate(), "clients.pem")
            ),
        ];
        let pg = Self::start_with(&settings, Some(format!("local all all trust\n{rules}")));
        pg.keep.lock().unwrap_or_else(|e| e.into_inner()).push(dir);
        (pg, port)
    }

    fn start_with(settings: &[String], rules: Option<String>) -> Pg {
        let dir = TestDir::new(RunAs::Unprivileged);
        output_of(
            RunAs::Unprivileged
                .command(program("initdb"))
                .args([
                    "-A",
                    "trust",
                    "-U",
                    "postgres",
                    "--no-sync",
                    "-E",
                    "UTF8",
                    "--no-locale",
                    "-D",
                ])
                .arg(dir.join("data")),
        );
        if let Some(rules) = rules {
            dir.file("data/pg_hba.conf", &rules, RunAs::Unprivileged);
        }
        let pg = Pg {
            port: settings
                .iter()
                .find_map(|setting| setting.strip_prefix("port=")?.parse().ok())
                .unwrap_or(5432),
            settings: settings.to_vec(),
            keep: Mutex::default(),
            dir,
            server: Mutex::new(None),
            templates: Mutex::default(),
            next_db: AtomicU32::new(0),
        };
        pg.start_server();
        let mut admin = pg.admin();
        admin
            .batch_execute("create role hydra login")
            .expect("create the role hydra");
        pg
    }

    /// Start the server (again) and wait until it answers.
    pub fn start_server(&self) {
        let mut server = self.server();
        assert!(server.is_none(), "the server is already running");
        let mut command = RunAs::Unprivileged.command(program("postgres"));
        command
            .arg("-D")
            .arg(self.dir.join("data"))
            .arg("-k")
            .arg(self.dir.path());
        // A test cluster need not survive a power cut; but what was committed must survive the server being stopped.
        for setting in [
            "listen_addresses=",
            "fsync=off",
            "full_page_writes=off",
            "max_connections=200",
            "timezone=UTC",
        ] {
            command.args(["-c", setting]);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let mut running = Running::start(
            command,
            "postgres",
            &self.dir.join("postgres.log"),
            libc::SIGQUIT,
        );
        let config = self.config("postgres", "postgres");
        running.eventually("PostgreSQL should answer", || config.connect(NoTls).ok());
        *server = Some(running);
    }

    /// Stop the server at once, as a crash or an administrator's restart would: every connection breaks.
    pub fn stop_server(&self) {
        drop(self.server().take().expect("the server is not running"));
    }

    /// A fresh database with Hydra's tables at the newest version and hydrad's own.
    pub fn db(&self) -> Db {
        let mut files = vec!["sql/schema/hydra-87.sql".to_owned()];
        files.extend(hydrads_own_tables());
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        self.db_with_sql(&files)
    }

    /// A fresh database in which these files of the checkout were executed in this order.
    pub fn db_with_sql(&self, files: &[&str]) -> Db {
        self.db_from(&files.join(" "), |db| {
            let mut client = db.client();
            for file in files {
                let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
                let text = std::fs::read_to_string(&path)
                    .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                client
                    .batch_execute(&text)
                    .unwrap_or_else(|e| panic!("{file}: {e:?}"));
            }
        })
    }

    /// A fresh, empty database.
    pub fn empty_db(&self) -> Db {
        self.create("template1")
    }

    /// A fresh database that is a copy of what `fill` put into one; `fill` runs once per `key` and cluster. It can run
    /// statements or the program itself, but must have closed its connections when it returns.
    pub fn db_from(&self, key: &str, fill: impl FnOnce(&Db)) -> Db {
        let template = {
            let mut templates = self.templates.lock().unwrap_or_else(|e| e.into_inner());
            if !templates.contains_key(key) {
                let db = self.create("template1");
                fill(&db);
                templates.insert(key.to_string(), db.name);
            }
            templates[key].clone()
        };
        self.create(&template)
    }

    /// A connection of the superuser to the maintenance database.
    pub fn admin(&self) -> Client {
        self.config("postgres", "postgres")
            .connect(NoTls)
            .expect("connect to the private PostgreSQL")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("postgres.log")).unwrap_or_default()
    }

    fn create(&self, template: &str) -> Db {
        let name = format!("t{}", self.next_db.fetch_add(1, Ordering::Relaxed));
        let mut admin = self.admin();
        // A template must have no sessions; the backend of a closed connection takes a moment to go.
        eventually("no session should be left in the template database", || {
            let sql = "select count(*) from pg_stat_activity where datname = $1";
            let sessions: i64 = admin
                .query_one(sql, &[&template])
                .expect("query pg_stat_activity")
                .get(0);
            (template == "template1" || sessions == 0).then_some(())
        });
        admin
            .batch_execute(&format!(
                "create database {name} owner hydra template {template}"
            ))
            .unwrap_or_else(|e| panic!("create database {name} from {template}: {e:?}"));
        Db {
            name,
            socket_dir: self.dir.path().into(),
            port: self.port,
        }
    }

    fn config(&self, user: &str, dbname: &str) -> Config {
        let mut config = Config::new();
        config
            .host_path(self.dir.path())
            .port(self.port)
            .user(user)
            .dbname(dbname);
        config
    }

    fn server(&self) -> MutexGuard<'_, Option<Running>> {
        self.server.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Db {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of the server's socket, as PGHOST.
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config
            .host_path(&self.socket_dir)
            .port(self.port)
            .user("hydra")
            .dbname(&self.name)
            .application_name("test");
        config
    }

    pub fn client(&self) -> Client {
        self.config()
            .connect(NoTls)
            .unwrap_or_else(|e| panic!("connect to database {}: {e:?}", self.name))
    }

    /// Make Hydra's tables, at the newest version, what they are at another one.
    pub fn at_version(&self, version: i32) {
        let mut client = self.client();
        if version < 87 {
            client
                .batch_execute(include_str!("../../sql/schema/hydra-85-from-87.sql"))
                .expect("back to version 85");
        }
        if version < 85 {
            client
                .batch_execute(
                    "alter table JobsetEvalInputs drop column shortRevLength;
                     alter table BuildOutputs alter column path set not null;
                     alter table BuildStepOutputs alter column path set not null;
                     update SchemaVersion set version = 82;",
                )
                .expect("back to version 82");
        }
    }

    /// A connection with the superuser's rights (to end sessions, to look at all of them).
    pub fn superuser(&self) -> Client {
        self.config()
            .user("postgres")
            .connect(NoTls)
            .unwrap_or_else(|e| panic!("connect to {}: {e:?}", self.name))
    }

    /// For HYDRA_DBI.
    pub fn dbi(&self) -> String {
        format!(
            "dbi:Pg:dbname={};host={};port={};user=hydra;",
            self.name,
            self.socket_dir.display(),
            self.port
        )
    }

    /// For HYDRA_DATABASE_URL.
    pub fn url(&self) -> String {
        let host = self.socket_dir.to_string_lossy().replace('/', "%2F");
        format!("postgres://hydra@{host}:{}/{}", self.port, self.name)
    }

    /// Listen on channels, as a program that knows nothing of hydrad would.
    pub fn listen(&self, channels: &[&str]) -> Listener {
        Listener::start(self, channels)
    }
}

/// PostgreSQL's programs are not in PATH on Debian; take the newest.
fn program(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("PG_BIN") {
        return PathBuf::from(dir).join(name);
    }
    let version = |dir: &Path| {
        dir.file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.parse::<u32>().ok())
    };
    let mut dirs: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .collect();
    dirs.retain(|dir| dir.join("bin").join(name).is_file());
    dirs.sort_by_key(|dir| version(dir));
    match dirs.pop() {
        Some(dir) => dir.join("bin").join(name),
        None if super::has_program(name) => name.into(),
        None => panic!(
            "PostgreSQL's {name} is not installed: run `make deps`, or set PG_BIN to its directory"
        ),
    }
}

/// The files that make hydrad's own tables and bring them up to date, in their order.
fn hydrads_own_tables() -> Vec<String> {
    let mut files = vec!["sql/schema/hydrad.sql".to_owned()];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let later = (2..).map(|version| format!("sql/schema/hydrad-{version}.sql"));
    files.extend(later.take_while(|file| root.join(file).exists()));
    files
}
