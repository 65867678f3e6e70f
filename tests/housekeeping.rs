//! Keeping house: accounts, old tables, numbers for statsd, what nobody needs any more; with a real PostgreSQL.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{eventually, output_of, patience, said, Db, Hydrad, Pg, Said, Site};

fn hydrad(db: &Db, args: &[&str]) -> Said {
    said(&mut Hydrad::run(args).db(db).command())
}

// ---- accounts

/// Whether another implementation of argon2 takes the password for the one that was hashed.
fn accepts(hash: &str, password: &str) -> bool {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin/python");
    let program = "import sys, argon2\n\
                   try: print(argon2.PasswordHasher().verify(sys.argv[1], sys.argv[2]))\n\
                   except argon2.exceptions.VerifyMismatchError: print(False)";
    let answer = output_of(Command::new(python).args(["-c", program, hash, password]));
    match answer.trim() {
        "True" => true,
        "False" => false,
        other => panic!("{other}"),
    }
}

fn user(db: &Db, name: &str) -> Option<(String, Option<String>, String, String)> {
    let sql = "select type, fullName, emailAddress, password from Users where userName = $1";
    let row = db.client().query_opt(sql, &[&name]).unwrap()?;
    Some((row.get(0), row.get(1), row.get(2), row.get(3)))
}

fn roles(db: &Db, name: &str) -> Vec<String> {
    let sql = "select role from UserRoles where userName = $1 order by role";
    let rows = db.client().query(sql, &[&name]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn an_account_is_made_changed_and_renamed_with_a_password_that_others_accept() {
    let db = Pg::shared().db();
    let create = |args: &[&str]| hydrad(&db, &[&["create-user"], args].concat());

    let made = create(&["alice"]).ends_with(0);
    assert_eq!(
        (made.out.as_str(), made.err.as_str()),
        ("made user alice; no roles\n", "")
    );
    let nobody_yet = ("hydra".to_owned(), None, String::new(), "!".to_owned());
    assert_eq!(user(&db, "alice").unwrap(), nobody_yet);

    let changed = create(&[
        "alice",
        "--full-name",
        "Alice",
        "--email-address",
        "a@example.org",
        "--password",
        "correct horse",
        "--role",
        "admin",
        "--role",
        "restart-jobs",
        "--json",
    ])
    .ends_with(0)
    .complains(&["seen by everybody"]);
    let said = changed.json();
    assert_eq!(said["created"], false, "{said}");
    assert_eq!(said["roles"], serde_json::json!(["admin", "restart-jobs"]));
    assert_eq!(said["passwordSet"], true);
    let (_, full_name, email, hash) = user(&db, "alice").unwrap();
    assert_eq!(
        (full_name.as_deref(), email.as_str()),
        (Some("Alice"), "a@example.org")
    );
    assert!(
        hash.starts_with("$argon2id$v=19$m=262144,t=3,p=1$"),
        "as Hydra's web server hashes: {hash}"
    );
    assert!(accepts(&hash, "correct horse") && !accepts(&hash, "wrong horse"));

    // What is not named stays; roles are added.
    create(&["alice", "--role", "cancel-build"]).ends_with(0);
    assert_eq!(user(&db, "alice").unwrap().3, hash);
    assert_eq!(
        roles(&db, "alice"),
        ["admin", "cancel-build", "restart-jobs"]
    );
    create(&["alice", "--wipe-roles", "--role", "restart-jobs"]).ends_with(0);
    assert_eq!(roles(&db, "alice"), ["restart-jobs"]);

    // A new name: what belongs to the old one follows.
    db.client()
        .batch_execute("insert into Projects (name, displayName, owner) values ('p', 'P', 'alice')")
        .unwrap();
    create(&["bob"]).ends_with(0);
    create(&["bob", "--rename-from", "alice"])
        .ends_with(2)
        .complains(&["there is another user `bob`"]);
    create(&["carol", "--rename-from", "dave"])
        .ends_with(2)
        .complains(&["no user `dave`"]);
    create(&["carol", "--rename-from", "alice"]).ends_with(0);
    assert!(user(&db, "alice").is_none());
    assert_eq!(user(&db, "carol").unwrap().3, hash);
    assert_eq!(roles(&db, "carol"), ["restart-jobs"]);
    let owner = "select owner from Projects";
    let owner: String = db.client().query_one(owner, &[]).unwrap().get(0);
    assert_eq!(owner, "carol");

    // Elsewhere's accounts have no password here.
    create(&["erin", "--type", "google"])
        .ends_with(2)
        .complains(&["a mail address", "`erin`"]);
    let erin = "erin@example.org";
    create(&[erin, "--type", "github", "--password", "x"])
        .ends_with(2)
        .complains(&["github account", "leave out --password"]);
    assert!(
        user(&db, erin).is_none(),
        "nothing is written that is refused"
    );
    create(&[erin, "--type", "github"]).ends_with(0);
    let github = ("github".to_owned(), None, erin.to_owned(), "!".to_owned());
    assert_eq!(user(&db, erin).unwrap(), github);
    create(&[erin, "--email-address", "other@example.org"])
        .ends_with(2)
        .complains(&["github account"]);

    // Hashes of others, and what is none.
    let sha1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
    create(&["bob", "--password-hash", sha1]).ends_with(0);
    let hash = user(&db, "bob").unwrap().3;
    assert!(hash.starts_with("$argon2id$") && accepts(&hash, sha1));
    create(&["carol", "--password-hash", &hash]).ends_with(0);
    assert_eq!(user(&db, "carol").unwrap().3, hash);
    create(&["bob", "--password-hash", "secret"])
        .ends_with(2)
        .complains(&["no password hash", "argon2"]);
    create(&["bob", "--password-hash", sha1, "--password", "x"])
        .ends_with(2)
        .complains(&["cannot be used with"]);
    create(&["bob", "--password", ""])
        .ends_with(2)
        .complains(&["the password is empty"]);
    create(&["bob", "--role", "admn"])
        .ends_with(0)
        .complains(&["no role `admn`", "create-projects"]);
    create(&["a\nb"])
        .ends_with(2)
        .complains(&["control character"]);
}

#[test]
fn a_password_is_asked_for_without_showing_it_or_read_from_a_pipe() {
    let db = Pg::shared().db();
    let command = || {
        Hydrad::run(&["create-user", "alice", "--password-prompt"])
            .db(&db)
            .command()
    };

    let mut piped = command()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = piped.stdin.take().unwrap();
    input.write_all(b"from a pipe\nmore\n").unwrap();
    drop(input);
    assert!(piped.wait().unwrap().success());
    assert!(accepts(&user(&db, "alice").unwrap().3, "from a pipe"));

    // Two different ones: nothing is changed.
    let (code, shown) = at_a_terminal(command(), &["ein wort", "ein anderes"]);
    assert_eq!(code, 2, "{shown}");
    assert!(shown.contains("two different passwords"), "{shown}");
    assert!(accepts(&user(&db, "alice").unwrap().3, "from a pipe"));

    let (code, shown) = at_a_terminal(command(), &["geheimes wort", "geheimes wort"]);
    assert_eq!(code, 0, "{shown}");
    assert!(!shown.contains("geheim"), "{shown}");
    assert!(accepts(&user(&db, "alice").unwrap().3, "geheimes wort"));
}

/// Runs a command at a terminal of its own; each time the terminal stops showing what is typed, a line is typed. Exit code,
/// and what the terminal showed.
fn at_a_terminal(mut command: Command, lines: &[&str]) -> (i32, String) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: the call fills two descriptors; the rest may be null.
    let opened = unsafe {
        libc::openpty(
            &mut master,
            &mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(opened, 0, "a terminal");
    // SAFETY: both are open and nobody else's.
    let (mut terminal, slave) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
    // SAFETY: both calls may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command
        .stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap())
        .stderr(slave);
    let mut child = command.spawn().unwrap();
    drop(command); // and with it our ends of the terminal's other side
    let shows = |terminal: &File| {
        // SAFETY: all zeros is a value of this structure of numbers, and the call fills it.
        let mut settings: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and the structure is ours.
        unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut settings) };
        settings.c_lflag & libc::ECHO != 0
    };
    let mut shown = Vec::new();
    let mut buffer = [0; 1024];
    for (at, line) in lines.iter().enumerate() {
        let asked = |shown: &[u8]| String::from_utf8_lossy(shown).matches(": ").count() > at;
        while !asked(&shown) {
            let count = terminal.read(&mut buffer).unwrap();
            shown.extend_from_slice(&buffer[..count]);
        }
        eventually("nothing typed is shown", || {
            (!shows(&terminal)).then_some(())
        });
        terminal.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    // The end of the other side is an error here.
    while let Ok(count @ 1..) = terminal.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..count]);
    }
    let code = child.wait().unwrap().code().expect("no signal ended it");
    (code, String::from_utf8_lossy(&shown).into_owned())
}

// ---- old tables

/// A database as a Hydra of that time left it: its tables, and rows of every kind that an upgrade touches.
fn old_hydra(version: i32) -> Db {
    assert!((82..=85).contains(&version));
    let pg = Pg::shared();
    let made = |db: &Db| {
        let mut client = db.client();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/schema");
        for file in ["hydra-87.sql", "hydra-85-from-87.sql"] {
            let sql = std::fs::read_to_string(root.join(file)).unwrap();
            client.batch_execute(&sql).unwrap();
        }
        let down = [
            (
                85,
                "alter table JobsetEvalInputs drop column shortRevLength",
            ),
            (
                84,
                "alter table BuildOutputs alter column path set not null;
                 alter table BuildStepOutputs alter column path set not null",
            ),
            (
                83,
                "create index IndexBuildOutputsOnPath on BuildOutputs (path)",
            ),
        ];
        for (to, sql) in down {
            if version < to {
                client.batch_execute(sql).unwrap();
            }
        }
        client
            .execute("update SchemaVersion set version = $1", &[&version])
            .unwrap();
        client.batch_execute(ROWS).unwrap();
    };
    pg.db_from(&format!("old hydra {version}"), made)
}

/// A finished build with a step that was built, one that was substituted (without a derivation, as the C++ program has it)
/// and a failed one, an evaluation with its input, and users with passwords of three times.
const ROWS: &str = "
insert into Users (userName, emailAddress, password) values
    ('old', 'old@example.org', 'a94a8fe5ccb19ba61c4c0873d391e987982fbbd3'),
    ('none', '', '!'), ('new', '', '$argon2id$v=19$m=262144,t=3,p=1$c29tZXNhbHRzb21lc2FsdA$M8/e0i3NGrjhOliVLa5LqQ');
insert into UserRoles values ('old', 'admin');
insert into Projects (name, displayName, owner) values ('p', 'P', 'old');
insert into Jobsets (name, project, emailOverride, nixExprInput, nixExprPath) values ('j', 'p', '', 'src', 'default.nix');
insert into JobsetInputs (project, jobset, name, type) values ('p', 'j', 'src', 'git');
insert into JobsetInputAlts (project, jobset, input, altnr, value) values ('p', 'j', 'src', 0, 'https://example.org/r.git');
insert into Builds (id, finished, timestamp, jobset_id, job, nixName, drvPath, system, startTime, stopTime, isCachedBuild,
                    buildStatus, isCurrent)
    select 1, 1, 1600000000, id, 'a', 'a-1', '/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a.drv', 'x', 1600000001, 1600000009, 0, 0, 1
      from Jobsets;
select setval('builds_id_seq', 1);
insert into BuildOutputs values (1, 'out', '/nix/store/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-a');
insert into BuildSteps (build, stepnr, type, drvPath, busy, status, startTime, stopTime, machine) values
    (1, 1, 1, null, 0, 0, 1600000001, 1600000002, ''),
    (1, 2, 0, '/nix/store/cccccccccccccccccccccccccccccccc-c.drv', 0, 1, 1600000002, 1600000003, 'm1'),
    (1, 3, 0, '/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a.drv', 0, 0, 1600000003, 1600000009, 'm1');
insert into BuildStepOutputs values (1, 1, 'out', '/nix/store/dddddddddddddddddddddddddddddddd-d'),
    (1, 3, 'out', '/nix/store/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-a');
insert into FailedPaths values ('/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-c');
insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash, nrBuilds)
    select 1, id, 1600000000, 1, 1, 1, 'h', 1 from Jobsets;
select setval('jobsetevals_id_seq', 1);
insert into JobsetEvalInputs (eval, name, altNr, type, uri, revision)
    values (1, 'src', 0, 'git', 'https://example.org/r.git', '0123456789abcdef0123456789abcdef01234567');
insert into JobsetEvalMembers values (1, 1, 1);
";

/// Everything that Hydra's tables consist of, and nothing of what is in them.
fn shape(db: &Db) -> Vec<String> {
    let sql = "
    select 'column ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
           || case when a.attnotnull then ' not null' else '' end
           || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
      from pg_class c join pg_attribute a on a.attrelid = c.oid left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
     where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
    union all
    select 'index ' || pg_get_indexdef(i.indexrelid) from pg_index i join pg_class c on c.oid = i.indexrelid
     where c.relnamespace = 'public'::regnamespace
    union all
    select 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) from pg_constraint
     where connamespace = 'public'::regnamespace and conrelid <> 0
    union all
    select 'trigger ' || pg_get_triggerdef(oid) from pg_trigger where not tgisinternal
    union all
    select 'function ' || pg_get_functiondef(p.oid) from pg_proc p join pg_language l on l.oid = p.prolang
     where p.pronamespace = 'public'::regnamespace and l.lanname = 'plpgsql'
    union all
    select 'rule ' || definition from pg_rules where schemaname = 'public'
    union all
    select 'version ' || version from SchemaVersion
    order by 1";
    let rows = db.client().query(sql, &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn tables_of_each_old_version_end_as_new_ones_begin_and_rows_survive() {
    let pg = Pg::shared();
    let fresh = shape(&pg.db_with_sql(&["sql/schema/hydra-87.sql"]));
    let files = ["sql/schema/hydra-87.sql", "sql/schema/hydra-85-from-87.sql"];
    let fresh_85 = shape(&pg.db_with_sql(&files));
    assert_ne!(fresh, fresh_85);
    for version in [82, 84, 85] {
        let db = old_hydra(version);
        let init = |args: &[&str]| hydrad(&db, &[&["init"], args].concat());

        // Called as Hydra's program is, it leaves Hydra's tables alone and says what is there; old passwords are hashed anew.
        let before = shape(&db);
        let told = init(&[]).ends_with(0).out;
        for words in [
            format!("at version {version}; left alone"),
            "hydrad init --upgrade-to 87".to_owned(),
            "hashed 1 passwords anew".to_owned(),
        ] {
            assert!(told.contains(&words), "{words} in {told}");
        }
        assert_eq!(shape(&db), before);
        let hash = user(&db, "old").unwrap().3;
        assert!(accepts(&hash, "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3"));
        assert_eq!(user(&db, "none").unwrap().3, "!");
        assert!(!init(&[]).ends_with(0).out.contains("hashed"), "only once");

        // Without a terminal the plan is shown and nothing is changed.
        let plan = init(&["--upgrade-to", "87"]).ends_with(2).complains(&[
            &format!("from version {version} to 87"),
            "older programs: Hydra's C++ queue runner can no longer record a substitution",
            "buildsteps is locked for about 1 s",
            "nothing was changed",
        ]);
        assert_eq!(
            plan.err.contains("duplicate index"),
            version < 83,
            "{}",
            plan.err
        );
        assert_eq!(shape(&db), before);

        init(&["--upgrade-to", "85", "--yes"]).ends_with(0);
        assert_eq!(shape(&db), fresh_85, "from {version} to 85");
        let done = init(&["--upgrade-to", "87", "--yes", "--json"])
            .ends_with(0)
            .json();
        assert_eq!(
            (&done["upgraded_from"], &done["version"]),
            (&85.into(), &87.into())
        );
        assert_eq!(shape(&db), fresh, "from {version} to 87");

        let mut client = db.client();
        let steps = client
            .query("select drvPath from BuildSteps order by stepnr", &[])
            .unwrap();
        let steps: Vec<String> = steps.iter().map(|row| row.get(0)).collect();
        assert_eq!(
            steps,
            [
                "/nix/store/00000000000000000000000000000000-substituted.drv",
                "/nix/store/cccccccccccccccccccccccccccccccc-c.drv",
                "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a.drv"
            ]
        );
        let input = "select revision, shortRevLength from JobsetEvalInputs";
        let input = client.query_one(input, &[]).unwrap();
        assert_eq!(input.get::<_, String>(0).len(), 40);
        assert_eq!(input.get::<_, Option<i16>>(1), None);
        // Status 13 and a derivation go together, and older rows are none of its business.
        let wrong = "update BuildSteps set status = 13 where stepnr = 3";
        assert!(client.batch_execute(wrong).is_err());
    }
}

#[test]
fn a_queue_runner_builds_on_old_tables_goes_on_while_they_are_upgraded_and_builds_on_new_ones() {
    for version in [82, 84, 85] {
        let site = Site::with_db(old_hydra(version));
        said(&mut site.hydrad(&["init"]).command()).ends_with(0);
        site.machines(&Site::localhost(2));
        let mut hydrad = site.start();
        let job = |name: &str| {
            format!(
                "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
                 args = [ \"-c\" \"echo {name} > $out\" ]; }}"
            )
        };
        let slow = "derivation { name = \"slow\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
                    args = [ \"-c\" \"echo started; while [ ! -e \\\"$gate\\\" ]; do /bin/sleep 0.05; done; echo slow > $out\" ]; \
                    gate = \"GATE\"; }"
            .replace("GATE", &site.data().join("gate").display().to_string());

        let first = site.queue(&job("before"));
        site.wait_all_finished(&mut hydrad);
        // One is running while the tables change.
        let second = site.queue(&slow);
        let running = "select exists (select 1 from BuildSteps where busy <> 0)";
        hydrad.wait_sql(&site.db, running);
        said(
            &mut site
                .hydrad(&["init", "--upgrade-to", "87", "--yes"])
                .command(),
        )
        .ends_with(0);
        std::fs::write(site.data().join("gate"), "").unwrap();
        site.wait_all_finished(&mut hydrad);
        let third = site.queue(&job("after"));
        site.wait_all_finished(&mut hydrad);
        assert!(hydrad.terminate().success());

        let mut hydrad = site.start();
        let fourth = site.queue(&job("after-a-restart"));
        site.wait_all_finished(&mut hydrad);
        for build in [first, second, third, fourth].concat() {
            let sql = format!("select buildStatus from Builds where id = {build}");
            assert_eq!(site.ask::<i32>(&sql), 0, "schema {version}, build {build}");
        }
        assert_eq!(site.ask::<i32>("select version from SchemaVersion"), 87);
        // The old build's rows are as Hydra left them; all others have everything.
        site.db
            .client()
            .batch_execute("delete from Builds where id = 1")
            .unwrap();
        site.assert_complete();
    }
}

// ---- what nobody needs any more

/// Builds of every kind; `DAY` is a day, `NOW` the time of the test. Of these only 1, half of 4 and 1001 to 1450 have steps that
/// may go.
const OLD_BUILDS: &str = "
insert into Users (userName, emailAddress, password) values ('u', '', '!');
insert into Projects (name, displayName, owner) values ('p', 'P', 'u');
insert into Jobsets (name, project, emailOverride, nixExprInput, nixExprPath) values ('j', 'p', '', 'src', 'default.nix');
insert into Builds (id, finished, timestamp, jobset_id, job, nixName, drvPath, system, startTime, stopTime, isCachedBuild,
                    buildStatus, keep, isCurrent, notificationPendingSince)
    select b.id, b.finished, NOW - 500 * DAY, j.id, 'job' || b.id, 'n', '/nix/store/' || b.id || '.drv', 'x', NOW - b.days * DAY - 9,
           NOW - b.days * DAY, 0, b.status, b.keep, b.current, b.pending
      from Jobsets j,
           (values (1, 1, 400, 0, 0, 0, null::int), (2, 1, 400, 0, 1, 0, null), (3, 1, 400, 0, 0, 1, null), (4, 1, 400, 1, 0, 0, null),
                   (5, 1, 400, 0, 0, 0, 5), (6, 1, 300, 0, 0, 0, null), (7, 0, 400, 0, 0, 0, null))
               as b (id, finished, days, status, keep, current, pending)
    union all
    select n, 1, NOW - 500 * DAY, j.id, 'job' || n, 'n', '/nix/store/' || n || '.drv', 'x', NOW - 400 * DAY - 9, NOW - 400 * DAY, 0, 0,
           0, null, null
      from Jobsets j, generate_series(1001, 1450) as n;
insert into BuildSteps (build, stepnr, type, drvPath, busy, status, startTime, stopTime, machine)
    select b.id, n, 0, '/nix/store/' || b.id || '-' || n || '.drv', 0, case when b.id = 4 and n = 1 then 1 else 0 end, 1, 2, 'm'
      from Builds b, generate_series(1, 2) as n;
select setval('builds_id_seq', 5000);
insert into BuildStepOutputs select build, stepnr, 'out', '/nix/store/' || build || '-' || stepnr from BuildSteps;
insert into FailedPaths values ('/nix/store/4-1');
insert into hydrad.events (id, channel, payload, at, state) overriding system value values
    (1, 'build_finished', '1', NOW - 30 * DAY, 'planned'), (2, 'build_finished', '2', NOW - 1 * DAY, 'planned'),
    (3, 'build_finished', '3', NOW - 30 * DAY, 'planned'), (4, 'build_finished', '4', NOW - 30 * DAY, 'planned'),
    (5, 'build_finished', '5', NOW - 100 * DAY, 'planned'), (6, 'build_finished', '6', NOW - 30 * DAY, 'held'),
    (7, 'build_finished', '7', NOW - 30 * DAY, 'planned');
insert into hydrad.deliveries (event, target, state, due_at, done_at) values
    (1, 'a', 'delivered', 0, NOW - 29 * DAY), (1, 'b', 'discarded', 0, NOW - 29 * DAY), (2, 'a', 'delivered', 0, NOW),
    (3, 'a', 'waiting', 0, null), (4, 'a', 'given_up', 0, NOW - 29 * DAY), (5, 'a', 'given_up', 0, NOW - 99 * DAY),
    (7, 'a', 'delivered', 0, NOW - 1 * DAY);
";

#[test]
fn what_is_old_is_named_and_then_goes_while_builds_run_and_rows_are_locked() {
    let site = Site::new(Pg::shared());
    let now = std::time::SystemTime::now();
    let unix = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let rows = OLD_BUILDS
        .replace("NOW", &unix.to_string())
        .replace("DAY", "86400");
    let mut client = site.db.client();
    client.batch_execute(&rows).unwrap();
    // Nobody is to touch the build that is queued.
    client
        .batch_execute(
            "update Builds set globalPriority = -1, drvPath = '/nix/store/none.drv' where id = 7",
        )
        .unwrap();
    site.folder("data/build-logs");
    let folder = site.folder("data/build-logs/aa");
    let log = |name: &str, days: u64| {
        let path = folder.join(name);
        std::fs::write(&path, "ten bytes!").unwrap();
        let time = now - std::time::Duration::from_secs(days * 86_400);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(time).unwrap();
        path
    };
    let gone = log("x.drv.attempt-1", 40);
    let young = log("x.drv.attempt-2.bz2", 20);
    let last = log("x.drv", 40);
    let only = log("y.drv.attempt-3", 40);

    let prune = |args: &[&str]| said(&mut site.hydrad(&[&["prune"], args].concat()).command());
    // (The queued build gets a third step from the queue runner: its derivation is gone.)
    let counts = || -> (i64, i64, i64) {
        let steps = site.ask("select count(*) from BuildSteps where build <= 2000 and stepnr <= 2");
        let outputs =
            site.ask("select count(*) from BuildStepOutputs where build <= 2000 and stepnr <= 2");
        (
            steps,
            outputs,
            site.ask("select count(*) from hydrad.events"),
        )
    };
    let before = counts();
    assert_eq!(before, (914, 914, 7));

    // Without being told to, steps stay.
    let plan = prune(&["--dry-run"]).ends_with(0);
    assert_eq!((plan.out.lines().count(), plan.err.as_str()), (4, ""));
    for line in [
        "logs of earlier attempts  30 days 0 h  1 files, 10 bytes",
        "notifications that ended  7 days 0 h   2 events, 3 deliveries",
        "steps of builds           never     left alone",
    ] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            squeezed(&plan.out).contains(&squeezed(line)),
            "{line} in {}",
            plan.out
        );
    }
    let all = ["--steps", "365d"];
    let plan = prune(&[&all[..], &["--dry-run", "--json"]].concat())
        .ends_with(0)
        .json();
    assert_eq!(plan["dryRun"], true);
    assert_eq!(plan["attemptLogs"]["files"], 1, "{plan}");
    assert_eq!(plan["ledger"]["events"], 2, "{plan}");
    assert_eq!(plan["steps"]["steps"], 903, "{plan}");
    prune(&all)
        .ends_with(2)
        .complains(&["nothing was removed", "--yes"]);
    assert_eq!(counts(), before);
    assert!(gone.exists());

    // An evaluation holds rows of old builds, and a build is running.
    site.machines(&Site::localhost(1));
    let mut hydrad = site.start();
    let gate = site.data().join("gate");
    let slow = format!(
        "derivation {{ name = \"slow\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"while [ ! -e {} ]; do /bin/sleep 0.05; done; echo slow > $out\" ]; }}",
        gate.display()
    );
    let running = site.queue(&slow);
    let busy = "select exists (select 1 from BuildSteps where busy <> 0)";
    hydrad.wait_sql(&site.db, busy);
    let mut holder = site.db.client();
    let mut held = holder.transaction().unwrap();
    held.execute(
        "update Builds set isCurrent = 0 where id in (1, 1001, 1400)",
        &[],
    )
    .unwrap();
    let done = prune(&[&all[..], &["--yes", "--json"]].concat())
        .ends_with(0)
        .json();
    held.rollback().unwrap();
    assert_eq!(done["attemptLogs"]["removed"], 1, "{done}");
    assert_eq!(done["attemptLogs"]["removedBytes"], 10, "{done}");
    assert_eq!(done["ledger"]["deleted"], 2, "{done}");
    assert_eq!(done["steps"]["deleted"], 903, "{done}");
    assert_eq!(counts(), (11, 11, 5));
    let steps = site
        .rows("select build, count(*) from BuildSteps where build <= 2000 and stepnr <= 2 group by 1 order by 1");
    assert_eq!(steps, ["2 2", "3 2", "4 1", "5 2", "6 2", "7 2"]);
    assert_eq!(
        site.ask::<i32>("select stepnr from BuildSteps where build = 4"),
        1
    );
    let events = site.rows("select id from hydrad.events order by id");
    assert_eq!(events, ["2", "3", "4", "6", "7"]);
    assert!(!gone.exists() && young.exists() && last.exists() && only.exists());
    // The recorded failure still has its age.
    let failures = said(
        &mut site
            .hydrad(&["clear-failed", "--older-than", "1d", "--dry-run"])
            .command(),
    );
    assert!(failures.ends_with(0).out.contains("/nix/store/4-1  failed"));

    let again = prune(&[&all[..], &["--yes"]].concat()).ends_with(0);
    assert_eq!(again.out, "nothing is old enough to go\n");
    std::fs::write(&gate, "").unwrap();
    let ended = format!(
        "select finished = 1 and buildStatus = 0 from Builds where id = {}",
        running[0]
    );
    hydrad.wait_sql(&site.db, &ended);
}

// ---- numbers for statsd

/// A statsd server that keeps the last value of each gauge.
struct Gauges(UdpSocket);

impl Gauges {
    fn new() -> Gauges {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(patience())).unwrap();
        Gauges(socket)
    }

    fn conf(&self) -> String {
        let port = self.0.local_addr().unwrap().port();
        format!("<statsd>\nhost = 127.0.0.1\nport = {port}\n</statsd>\n")
    }

    /// Receives until a gauge of this name comes.
    fn until(&self, name: &str) -> BTreeMap<String, f64> {
        let mut gauges = BTreeMap::new();
        let mut buffer = [0; 2_000];
        loop {
            let length = self.0.recv(&mut buffer).expect("a datagram");
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            let (key, value) = text.split_once(':').expect("a name and a value");
            let value = value.strip_suffix("|g").expect("a gauge");
            gauges.insert(key.to_owned(), value.parse().unwrap());
            if key == name {
                return gauges;
            }
        }
    }
}

#[test]
fn a_queue_runners_numbers_go_to_statsd_and_trouble_is_a_warning() {
    let statsd = Gauges::new();
    let site = Site::new(Pg::shared());
    site.configure(&statsd.conf());
    // As Hydra's program is called.
    let once = || {
        let mut command = site.hydrad(&["--once"]).command();
        command.arg0("hydra-send-stats");
        said(&mut command).ends_with(0)
    };
    let quiet = |said: Said| assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""));

    quiet(once());
    let down = statsd.until("hydra.queue.up");
    assert_eq!(down["hydra.queue.up"], 0.0);
    assert!(down["hydra.mem.dirty"] >= 0.0);

    site.machines(&format!(
        "{}{}",
        Site::localhost(2),
        Site::stub("m1", 4, 1, "-")
    ));
    let mut hydrad = site.start();
    site.queue(
        "derivation { name = \"a\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo a > $out\" ]; }",
    );
    site.wait_all_finished(&mut hydrad);
    quiet(once());
    let up = statsd.until("hydra.queue.machines.in_use");
    for (name, value) in [
        ("up", 1.0),
        ("builds.read", 1.0),
        ("builds.finished", 1.0),
        ("builds.unfinished", 0.0),
        ("steps.finished", 1.0),
        ("steps.active", 0.0),
        ("steps.unsupported", 0.0),
        ("machines.total", 2.0),
        ("machines.in_use", 0.0),
    ] {
        assert_eq!(up[&format!("hydra.queue.{name}")], value, "{name}");
    }
    for name in [
        "steps.avg_total_time",
        "checks",
        "bytes_received",
        "steps.max_retries",
    ] {
        assert!(up[&format!("hydra.queue.{name}")] >= 0.0, "{name}");
    }

    // As a service: at once, then from time to time, until it is told to stop.
    let mut service = site.hydrad(&["send-stats"]).start();
    assert_eq!(
        statsd.until("hydra.queue.machines.in_use")["hydra.queue.up"],
        1.0
    );
    assert!(service.terminate().success());

    // A queue runner that died left a report that nobody stands by.
    hydrad.kill_9();
    once().complains(&["the queue runner does not answer"]);
    let gone = statsd.until("hydra.queue.up");
    assert_eq!(gone["hydra.queue.up"], 0.0);

    site.configure("<statsd>\nhost = no.such.host.invalid\n</statsd>\n");
    once().complains(&["no.such.host.invalid:8125", "<statsd>"]);
    site.configure("");
    let nowhere = site
        .hydrad(&["--once"])
        .env("HYDRA_DBI", "dbi:Pg:dbname=hydra;host=/nowhere");
    let mut nowhere = nowhere.command();
    nowhere.arg0("hydra-send-stats");
    said(&mut nowhere).ends_with(0).complains(&["/nowhere"]);
}
