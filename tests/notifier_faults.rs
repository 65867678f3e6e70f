//! The notifier when something goes wrong: killed at random instants, two of them, slow and limited servers, a hydra.conf that
//! changes while it works.
//!
//! `HYDRAD_TEST_KILLS=200` kills that often (25 otherwise); `HYDRAD_TEST_SEED` makes the same random choices again.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::notified::{announce, build_of, fetch, finish, finish_row, Door, Place};
use common::{
    eventually, free_port, system, Answer, Farm, NixStore, Recorder, RunAs, Running, TestDir, Told,
};
use hydrad::base::random::Random;
use postgres::Client;

fn kills() -> usize {
    let kills = std::env::var("HYDRAD_TEST_KILLS").ok();
    kills.and_then(|n| n.parse().ok()).unwrap_or(25)
}

fn random() -> Random {
    let seed = std::env::var("HYDRAD_TEST_SEED").ok();
    let seed = seed.and_then(|n| n.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("after 1970").as_nanos() as u64
    });
    println!("HYDRAD_TEST_SEED={seed}");
    Random::new(seed)
}

/// As hydrad's own writer ends builds: the rows and all that is said of them in one transaction.
fn finish_as_hydrad(client: &mut Client, builds: &[(i32, i32)]) {
    let mut transaction = client.transaction().expect("a transaction");
    for (id, status) in builds {
        finish_row(&mut transaction, *id, *status);
    }
    let ids: Vec<String> = builds.iter().map(|(id, _)| id.to_string()).collect();
    transaction
        .execute(
            include_str!("../sql/queue/notify_all.sql"),
            &[&vec!["build_finished"], &vec![ids.join("\t")]],
        )
        .expect("announced");
    transaction.commit().expect("committed");
}

/// The build and the key of each request.
fn keys(told: &[Told]) -> BTreeMap<i64, BTreeMap<String, usize>> {
    let mut keys: BTreeMap<i64, BTreeMap<String, usize>> = BTreeMap::new();
    for one in told {
        let key = one.header("idempotency-key").expect("a key").to_owned();
        *keys
            .entry(build_of(one))
            .or_default()
            .entry(key)
            .or_default() += 1;
    }
    keys
}

/// Each build has one key: whoever remembers keys is never told twice. Says how many calls were doubles.
fn doubles(told: &[Told]) -> usize {
    let keys = keys(told);
    for (build, keys) in &keys {
        assert_eq!(keys.len(), 1, "build {build} was told with {keys:?}");
    }
    keys.values()
        .flat_map(BTreeMap::values)
        .map(|times| times - 1)
        .sum()
}

const SESSIONS: &str = "select count(*) from pg_stat_activity
    where datname = current_database() and application_name = 'hydrad-notify'";

/// What a chat was told of: the build that its message names first.
fn chat_build(told: &Told) -> i64 {
    let title = &told.json()["attachments"][0]["title"];
    let title = title.as_str().expect("a title");
    let number = title.rsplit(' ').next().expect("a word");
    number.parse().expect("a number")
}

#[test]
fn s5_killed_at_any_instant_every_build_is_told_and_none_again_once_recorded() {
    let (kills, mut random) = (kills(), random());
    let target = Recorder::accepting();
    // A plugin of Hydra's, whose server fails now and then.
    let (requests, up) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let is_up = up.clone();
    let chat = Recorder::start(move |_| {
        let number = requests.fetch_add(1, Ordering::SeqCst);
        match !is_up.load(Ordering::SeqCst) && number % 5 == 2 {
            true => Answer::status("503 Service Unavailable"),
            false => Answer::status("200 OK"),
        }
    });
    let place = Place::new(&format!(
        "max-concurrent-notifications = 4\n<webhook>\nurl = {}\n</webhook>\n<slack>\njobs = .*\nforce = 1\nurl = {}/c\n</slack>\n",
        target.url(),
        chat.url()
    ));
    let count = 40 * kills as i32;
    place.builds(1..=2 * count);
    let mut client = place.client();
    let began: i32 = client
        .query_one("select extract(epoch from now())::int", &[])
        .expect("the time")
        .get(0);
    let mut next = 1;
    // For each kill: how many requests there had been, and what was recorded as told.
    let mut snapshots: Vec<(usize, BTreeSet<i64>)> = Vec::new();
    let mut chatted: BTreeSet<i64> = BTreeSet::new();
    for _ in 0..kills {
        let mut hydrad = place.hydrad(&["notify"]).start();
        let before = target.count();
        for _ in 0..20 {
            // Even ones are dependents of the odd ones.
            finish_row(&mut client, 2 * next, 2);
            finish_row(&mut client, 2 * next - 1, 1);
            let payload = format!("{}\t{}", 2 * next - 1, 2 * next);
            announce(&mut client, "build_finished", &payload);
            next += 1;
            finish_as_hydrad(&mut client, &[(2 * next - 1, 0), (2 * next, 0)]);
            next += 1;
        }
        // At the start, or somewhere among what there is to tell.
        match random.chance(0.2) {
            true => std::thread::sleep(Duration::from_micros(random.below(400_000))),
            false => {
                let wanted = before + random.below(35) as usize;
                hydrad.eventually("some are told", || (target.count() >= wanted).then_some(()));
                std::thread::sleep(Duration::from_micros(random.below(20_000)));
            }
        }
        hydrad.kill_9();
        eventually("its sessions are gone", || {
            (place.rows(SESSIONS) == 0).then_some(())
        });
        // What it had sent last has come by now, or never will: its sockets are closed.
        let recorded = client
            .query(
                "select unnest(builds)::bigint from hydrad.events e join hydrad.deliveries d on d.event = e.id
                 where d.state = 'delivered' and d.target like 'Webhook%'",
                &[],
            )
            .expect("the ledger");
        snapshots.push((
            target.count(),
            recorded.iter().map(|row| row.get(0)).collect(),
        ));
        // Hydra's own notifier could go on from here: what it was not told is marked, or in a row as its own.
        let told = chat.told();
        chatted.extend(told.iter().map(chat_build));
        let lost: i64 = client
            .query_one(
                "select count(*) from Builds b
                 where finished = 1 and notificationPendingSince is null and b.id % 2 = 1 and not b.id::bigint = any($1)
                   and not exists (select 1 from TaskRetries t
                                    where t.pluginname = 'Hydra::Plugin::SlackNotification' and t.channel = 'build_finished'
                                      and b.id = any(string_to_array(t.payload, E'\\t')::integer[]))",
                &[&chatted.iter().copied().collect::<Vec<i64>>()],
            )
            .expect("counted")
            .get(0);
        assert_eq!(lost, 0, "neither told nor left to be told");
        // One that is due for long is one that had to wait behind others.
        let foreign = client
            .query(
                "select t::text from TaskRetries t
                 where pluginname <> 'Hydra::Plugin::SlackNotification' or channel <> 'build_finished'
                    or payload !~ '^\\d+(\\t\\d+)*$' or attempts not between 1 and 101
                    or retry_at not between $1 and extract(epoch from now()) + 3600",
                &[&began],
            )
            .expect("rows of TaskRetries");
        let foreign: Vec<String> = foreign.iter().map(|row| row.get(0)).collect();
        assert!(
            foreign.is_empty(),
            "rows that Hydra's notifier could not read: {foreign:?}"
        );
    }
    up.store(true, Ordering::SeqCst);
    let mut hydrad = place.notifier();
    for sql in [
        "select count(*) = 0 from Builds where notificationPendingSince is not null",
        "select count(*) = 0 from hydrad.deliveries where state <> 'delivered'",
        "select count(*) = 0 from TaskRetries",
    ] {
        hydrad.wait_sql(&place.db, sql);
    }
    let told = target.told();
    let mut builds = BTreeSet::new();
    for one in &told {
        builds.insert(build_of(one));
        let dependents = one.json()["dependentIds"].clone();
        let dependents = dependents.as_array().expect("a list").clone();
        builds.extend(dependents.iter().filter_map(|id| id.as_i64()));
    }
    let all = 2 * count as usize;
    assert_eq!(builds.len(), all, "every build and every dependent is told");
    for (at, recorded) in &snapshots {
        for one in &told[(*at).min(told.len())..] {
            let build = build_of(one);
            assert!(
                !recorded.contains(&build),
                "build {build} was recorded as told, and told again"
            );
        }
    }
    let doubles = doubles(&told);
    println!(
        "{kills} kills, {} builds told in {} requests, {doubles} of them doubles",
        builds.len(),
        told.len()
    );
    // Four threads, two calls each; one of two targets never has all of the threads.
    assert!(doubles <= kills * 6, "{doubles} doubles with {kills} kills");
    assert!(hydrad.terminate().success());
}

#[test]
fn s5_what_is_being_told_at_a_stop_is_waited_for_and_recorded() {
    let door = Arc::new(Door::default());
    let inner = door.clone();
    let target = Recorder::start(move |_| {
        inner.pass();
        Answer::status("200 OK")
    });
    let place = Place::new(&format!("<webhook>\nurl = {}\n</webhook>\n", target.url()));
    place.builds(1..=2);
    let mut client = place.client();
    let mut hydrad = place.notifier();
    finish(&mut client, 1, 0);
    finish(&mut client, 2, 0);
    target.wait(1);
    hydrad.signal(libc::SIGTERM);
    // Hydra's own would not be let in before it has ended, nor another of hydrad's.
    let mut next = place.hydrad(&["notify"]).start();
    next.wait_log("standing by while another one is at work");
    door.open();
    assert!(hydrad.wait().success());
    assert!(
        !hydrad.log().contains("may be told again"),
        "{}",
        hydrad.log()
    );
    next.wait_sql(
        &place.db,
        "select count(*) = 2 from hydrad.deliveries where state = 'delivered'",
    );
    let told: Vec<i64> = target.told().iter().map(build_of).collect();
    assert_eq!(told, [1, 2], "each once");
    assert!(next.terminate().success());
}

#[test]
fn s5_rows_of_hydras_notifier_are_taken_up_as_it_left_them_and_left_as_it_would() {
    let up = Arc::new(AtomicBool::new(false));
    let is_up = up.clone();
    let chat = Recorder::start(move |_| match is_up.load(Ordering::SeqCst) {
        true => Answer::status("200 OK"),
        false => Answer::status("503 Service Unavailable"),
    });
    let place = Place::new(&format!(
        "<slack>\njobs = .*\nforce = 1\nurl = {}/c\n</slack>\n",
        chat.url()
    ));
    place.builds(1..=2);
    let mut client = place.client();
    finish_row(&mut client, 1, 0);
    finish_row(&mut client, 2, 1);
    // As Perl writes it after a third failure, and for a plugin that hydrad does not have.
    client
        .batch_execute(
            "update Builds set notificationPendingSince = null;
             insert into TaskRetries (channel, pluginname, payload, attempts, retry_at) values
                 ('build_finished', 'Hydra::Plugin::SlackNotification', E'1\\t2', 3, extract(epoch from now())::int - 1),
                 ('build_finished', 'Hydra::Plugin::SoTest', '1', 7, extract(epoch from now())::int + 60)",
        )
        .expect("rows");
    let row =
        "select attempts, retry_at - extract(epoch from now())::int, payload, id from TaskRetries
               where pluginname = 'Hydra::Plugin::SlackNotification'";
    let id: i32 = client.query_one(row, &[]).expect("a row").get(3);
    let mut hydrad = place.notifier();
    // The fourth failure: Perl's pause is 2^min(10, attempts) s.
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from TaskRetries where attempts = 4",
    );
    let left = client.query_one(row, &[]).expect("one row");
    let pause: i32 = left.get(1);
    assert!(
        (13..=16).contains(&pause),
        "2^4 s, less what has passed: {pause}"
    );
    assert_eq!(left.get::<_, String>(2), "1\t2");
    assert_eq!(left.get::<_, i32>(3), id, "Hydra's own row");
    hydrad.kill_9();
    eventually("its sessions are gone", || {
        (place.rows(SESSIONS) == 0).then_some(())
    });
    // Meanwhile Hydra's notifier was at work again, and failed a fifth time.
    client
        .batch_execute(
            "update TaskRetries set attempts = 5, retry_at = extract(epoch from now())::int where pluginname like '%Slack%'",
        )
        .expect("as Perl");
    up.store(true, Ordering::SeqCst);
    let mut hydrad = place.notifier();
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 0 from TaskRetries where pluginname like '%Slack%'",
    );
    let foreign: i32 = client
        .query_one("select attempts from TaskRetries", &[])
        .expect("the one of SoTest")
        .get(0);
    assert_eq!(foreign, 7, "what belongs to others stays as it is");
    assert_eq!(chat_build(chat.told().last().expect("told")), 1);
    assert!(hydrad.terminate().success());
}

#[test]
fn two_notifiers_the_active_one_killed_at_random_nothing_lost_and_doubles_only_with_the_same_key() {
    let (rounds, mut random) = (kills().div_ceil(5), random());
    let target = Recorder::accepting();
    let place = Place::new(&format!(
        "max-concurrent-notifications = 3\n<webhook>\nurl = {}\nevents = buildStarted buildFinished\n</webhook>\n",
        target.url()
    ));
    let all = 400 * rounds as i32;
    place.builds(1..=all);
    let mut active = place.notifier();
    let ended = Arc::new(AtomicUsize::new(0));
    let (stop, counted) = (Arc::new(AtomicBool::new(false)), ended.clone());
    let (mut client, is_stopped) = (place.client(), stop.clone());
    // Builds end all the while, every other one as Hydra's own queue runner ends them.
    let writer = std::thread::spawn(move || {
        let mut id = 0;
        while !is_stopped.load(Ordering::SeqCst) && id < all {
            id += 1;
            match id % 2 {
                0 => {
                    let sql = include_str!("../sql/queue/notify_all.sql");
                    let started = vec!["build_started"];
                    client
                        .execute(sql, &[&started, &vec![id.to_string()]])
                        .expect("announced");
                    finish_as_hydrad(&mut client, &[(id, 0)]);
                }
                _ => finish(&mut client, id, 1),
            }
            counted.store(id as usize, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(8));
        }
        id
    });
    for round in 0..rounds {
        let mut other = place.hydrad(&["notify"]).start();
        other.wait_log("standing by while another one is at work");
        let wanted = target.count() + 5 + random.below(60) as usize;
        active.eventually("some more are told", || {
            let told = target.count();
            let is_over = ended.load(Ordering::SeqCst) >= all as usize;
            (told >= wanted || is_over).then_some(())
        });
        std::thread::sleep(Duration::from_micros(random.below(10_000)));
        match round % 4 {
            // Cut off from the database only: it stands by from then on.
            3 => {
                let locks = "select pid from pg_locks where locktype = 'advisory' and classid = 1752786034 and objid = 3 and granted
                             and database = (select oid from pg_database where datname = current_database())";
                let mut client = place.client();
                let holder: i32 = client.query_one(locks, &[]).expect("it is held").get(0);
                // It must not take the lock again before the other one looks: stopped meanwhile.
                active.signal(libc::SIGSTOP);
                client
                    .query("select pg_terminate_backend($1)", &[&holder])
                    .expect("cut off");
                other.wait_log("notifier: active");
                active.signal(libc::SIGCONT);
                active.wait_log_times("standing by while another one is at work", 1);
                assert!(active.terminate().success());
            }
            _ => {
                active.kill_9();
                other.wait_log("notifier: active");
            }
        }
        active = other;
    }
    stop.store(true, Ordering::SeqCst);
    let last = writer.join().expect("the writer");
    active.wait_sql(
        &place.db,
        "select count(*) = 0 from Builds where notificationPendingSince is not null",
    );
    active.wait_sql(
        &place.db,
        "select count(*) = 0 from hydrad.deliveries where state <> 'delivered'",
    );
    let told = target.told();
    let (mut ends, mut starts) = (Vec::new(), Vec::new());
    for one in told {
        match one.header("x-hydrad-event") {
            Some("buildStarted") => starts.push(one),
            _ => ends.push(one),
        }
    }
    let builds: BTreeSet<i64> = ends.iter().map(build_of).collect();
    assert_eq!(builds.len(), last as usize, "nothing is lost");
    let started: BTreeSet<i64> = starts.iter().map(build_of).collect();
    assert_eq!(
        started.len(),
        last as usize / 2,
        "nor is a start of hydrad's own"
    );
    let doubles = doubles(&ends) + doubles(&starts);
    println!("{rounds} rounds, {last} builds, {doubles} doubles");
    assert!(
        doubles <= rounds * 6,
        "{doubles} doubles in {rounds} rounds"
    );
    assert!(active.terminate().success());
}

#[test]
fn a_changed_hydra_conf_counts_at_once_and_a_broken_one_changes_nothing() {
    let right = Arc::new(AtomicBool::new(false));
    let is_right = right.clone();
    let target = Recorder::start(move |told| {
        let known = told.header("x-token") == Some("new");
        is_right.fetch_or(known, Ordering::SeqCst);
        match known || told.path != "/guarded" {
            true => Answer::status("200 OK"),
            false => Answer::status("401 Unauthorized"),
        }
    });
    let port = free_port();
    let conf = |blocks: &str| {
        format!("{blocks}<hydra_notify>\n<prometheus>\nlisten_address = 127.0.0.1\nport = {port}\n</prometheus>\n</hydra_notify>\n")
    };
    let webhook = |name: &str, more: &str| {
        format!(
            "<webhook>\nname = {name}\nurl = {}/{name}\n{more}</webhook>\n",
            target.url()
        )
    };
    let old = conf(&format!(
        "{}{}",
        webhook("guarded", "header = X-Token: old\n"),
        webhook("leaving", "events = buildStarted\n")
    ));
    let place = Place::new(&old);
    place.builds(1..=20);
    let mut client = place.client();
    let mut hydrad = place.notifier();
    let health =
        || -> serde_json::Value { serde_json::from_str(&fetch(port, "/healthz")).expect("JSON") };
    finish(&mut client, 1, 0);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries where attempts >= 3 and state = 'waiting'",
    );

    // Broken: the old one stays, and says so wherever one looks.
    place.file("hydra.conf", &old.replace("url =", "uri ="));
    hydrad.hang_up();
    hydrad.wait_log("settings not read again, the old ones stay:");
    let error = health()["configError"].as_str().map(str::to_owned);
    assert!(error.expect("an error").contains("<webhook>"));
    assert!(fetch(port, "/metrics").contains("hydrad_notify_config_error 1"));
    announce(&mut client, "build_started", "2");
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries where target = 'Webhook leaving' and state = 'delivered'",
    );

    // A new token, a target less, one more, and a thread more, which needs a restart.
    let new = conf(&format!(
        "max-concurrent-notifications = 3\n{}{}",
        webhook("guarded", "header = X-Token: new\n"),
        webhook("coming", "jobs = p:s:job1[0-9]\n")
    ));
    place.file("hydra.conf", &new);
    let before = Instant::now();
    hydrad.hang_up();
    hydrad.wait_log(
        "settings read again; DeclarativeJobsets, CompressLog, Webhook guarded, Webhook coming",
    );
    hydrad.wait_log("max-concurrent-notifications was changed: that needs a restart");
    // The fourth try would have been 8 s after the third, and later ones later still.
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries where target = 'Webhook guarded' and state = 'delivered' and attempts <= 5",
    );
    println!("told {:?} after the change", before.elapsed());
    assert!(right.load(Ordering::SeqCst));
    assert!(health()["configError"].is_null());
    assert_eq!(health()["active"], true);
    announce(&mut client, "build_started", "3");
    for id in [4, 14] {
        finish(&mut client, id, 0);
    }
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 5 from hydrad.deliveries where state = 'delivered' and target <> 'Webhook leaving'",
    );
    let told: Vec<(String, i64)> = target
        .told()
        .iter()
        .filter(|told| told.path != "/guarded")
        .map(|told| (told.path.clone(), build_of(told)))
        .collect();
    let path = |path: &str, build| (path.to_owned(), build);
    assert_eq!(told, [path("/leaving", 2), path("/coming", 14)]);
    assert!(hydrad.terminate().success());
}

#[test]
fn a_host_gets_no_more_than_its_rate_and_the_pause_it_asks_for_whoever_has_to_tell_it_something() {
    // Five a second, and fifty at once.
    let target = Recorder::accepting();
    let webhook = |name: &str, url: &str| {
        format!("<webhook>\nname = {name}\nurl = {url}/{name}\n</webhook>\n")
    };
    let place = Place::new(&format!(
        "notification_rates = 127.0.0.1:300 localhost:1\nmax-concurrent-notifications = 4\n{}{}",
        webhook("a", &target.url()),
        webhook("b", &target.url())
    ));
    place.builds(1..=32);
    let mut client = place.client();
    let mut hydrad = place.notifier();
    let began = Instant::now();
    for id in 1..=32 {
        finish(&mut client, id, 0);
    }
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 64 from hydrad.deliveries where state = 'delivered'",
    );
    let took = began.elapsed();
    assert!(took > Duration::from_millis(2_500), "64 within {took:?}");
    assert_eq!(
        place.rows("select count(*) from hydrad.deliveries where attempts <> 1"),
        0,
        "to be put off is no try"
    );
    assert!(hydrad.terminate().success());

    // And one that asks for a pause itself.
    let first = AtomicBool::new(true);
    let busy = Recorder::start(move |_| match first.swap(false, Ordering::SeqCst) {
        true => Answer::Text(
            "429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n".into(),
        ),
        false => Answer::status("200 OK"),
    });
    let place = Place::new(&format!(
        "{}{}",
        webhook("a", &busy.url()),
        webhook("b", &busy.url())
    ));
    place.builds(1..=3);
    let mut client = place.client();
    let mut hydrad = place.notifier();
    let began = Instant::now();
    finish(&mut client, 1, 0);
    busy.wait(1);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 from hydrad.deliveries where last_error like '%429%'",
    );
    // While it lasts nobody else troubles the host.
    let at_once = busy.count();
    finish(&mut client, 2, 0);
    finish(&mut client, 3, 0);
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 6 from hydrad.deliveries where state = 'delivered'",
    );
    assert!(
        began.elapsed() >= Duration::from_secs(3),
        "it got its pause"
    );
    // Two calls may have been under way when it was asked for.
    assert!(
        at_once <= 2,
        "{at_once} requests before the pause was known"
    );
    assert_eq!(busy.count(), 7);
    assert_eq!(
        place.rows("select count(*) from hydrad.deliveries where attempts > 1"),
        1
    );
    assert!(hydrad.terminate().success());
}

#[test]
fn s6_builds_that_share_a_status_are_told_one_after_the_other_and_others_meanwhile() {
    let door = Arc::new(Door::default());
    let inner = door.clone();
    let forge = Recorder::start(move |told| {
        if told.json()["description"] == "Hydra build #1 of p:s:job" {
            inner.pass();
        }
        Answer::status("201 Created")
    });
    let place = Place::new(&format!(
        "max-concurrent-notifications = 4\n<github_authorization>\no = Bearer x\n</github_authorization>\n\
         <githubstatus>\njobs = .*\ninputs = src\nexcludeBuildFromContext = 1\nendpoint = {}\n</githubstatus>\n\
         compress_build_logs = 0\nignore_settings = DeclarativeJobsets\n",
        forge.url()
    ));
    place.builds(1..=4);
    let mut client = place.client();
    let rev = "0123456789abcdef0123456789abcdef01234567";
    client
        .batch_execute(&format!(
            "update Builds set job = 'job' where id < 4;
             insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash, flake)
                 select 1, id, 1, 0, 0, 1, 'h', 'github:o/r/{rev}' from Jobsets;
             insert into JobsetEvalMembers (eval, build, isNew) select 1, id, 1 from Builds"
        ))
        .expect("an evaluation");
    let mut hydrad = place.notifier();
    // The first says pending, and the forge takes its time; the end of another build of that job is not told before.
    announce(&mut client, "build_started", "1");
    forge.wait(1);
    for id in 2..=4 {
        finish(&mut client, id, 0);
    }
    // The other job's goes ahead.
    let told = forge.wait(2);
    assert_eq!(told[1].json()["description"], "Hydra build #4 of p:s:job4");
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 1 and (select count(*) from hydrad.deliveries) = 4 from hydrad.deliveries where state = 'delivered'",
    );
    door.open();
    let told = forge.wait(4);
    let told: Vec<(String, String)> = told
        .iter()
        .map(|told| {
            let json = told.json();
            let text = |key: &str| json[key].as_str().expect("text").to_owned();
            (text("description"), text("state"))
        })
        .filter(|(description, _)| !description.contains("#4"))
        .collect();
    let of = |id: i32, state: &str| (format!("Hydra build #{id} of p:s:job"), state.to_owned());
    assert_eq!(told, [of(1, "pending"), of(2, "success"), of(3, "success")]);
    assert!(hydrad.terminate().success());
}

/// The program in Python that the manual gives to whoever wants to listen.
fn manuals_listener() -> String {
    let manual = include_str!("../MANUAL.md");
    let section = manual
        .split("\n## 11. Notifications")
        .nth(1)
        .expect("section 11");
    let section = section.split("\n## ").next().expect("its text");
    let program = section.split("```python\n").nth(1).expect("a program");
    program.split("```").next().expect("its end").to_owned()
}

#[test]
fn s1_a_listener_written_from_the_manual_sees_builds_and_evaluations_and_what_it_missed() {
    let store = NixStore::owned_by(RunAs::Unprivileged);
    let farm = Farm::new(&store).with_machines(&format!("localhost {} - 1 1 - -\n", system()));
    let drvs = store.instantiate(
        r#"let mk = name: more: command: derivation ({ inherit name; system = builtins.currentSystem; builder = "/bin/sh";
                        args = [ "-c" command ]; } // more);
               broken = mk "broken" { } "exit 1";
           in [ (mk "fine" { } "echo x > $out") broken (mk "above" { inherit broken; } "echo x > $out") (mk "late" { } "echo x > $out") ]"#,
    );
    let mut hydrad = farm.run(&[]);
    let dir = TestDir::new(RunAs::Me);
    let program = dir.file("listener.py", &manuals_listener(), RunAs::Me);
    let mut command = RunAs::Me.command("/usr/bin/python3");
    let dsn = format!(
        "dbname={} host={} user=hydra",
        farm.db.name(),
        farm.db.socket_dir().display()
    );
    command.arg(program).arg(dsn).env("PYTHONUNBUFFERED", "1");
    let mut listener = Running::start(command, "listener", &dir.join("said"), libc::SIGKILL);
    let mut client = farm.db.client();
    let sessions = "select count(*) from pg_stat_activity where application_name = 'my-listener' and datname = current_database()
                    and state = 'idle' and query like '%notificationPendingSince%'";
    let mut ready = |listener: &mut Running| {
        listener.eventually("it listens", || {
            let count: i64 = client.query_one(sessions, &[]).expect(sessions).get(0);
            (count == 1).then_some(())
        });
    };
    ready(&mut listener);
    let enqueue =
        |drvs: &[String]| farm.enqueue(&drvs.iter().map(String::as_str).collect::<Vec<_>>());
    let fine = enqueue(&drvs[..1]);
    farm.wait_ended(&mut hydrad, &fine);
    let failed = enqueue(&drvs[1..3]);
    farm.wait_ended(&mut hydrad, &failed);
    let (fine, broken, above) = (fine[0], failed[0], failed[1]);
    // As an evaluator announces it.
    let mut foreign = farm.db.client();
    announce(&mut foreign, "eval_started", "12.5.77\t1");
    announce(&mut foreign, "cached_build_finished", &format!("1\t{fine}"));
    announce(&mut foreign, "eval_added", "12.5.77\t1\t1");
    announce(&mut foreign, "eval_failed", "13.5.77\t1");
    listener.wait_log("eval_failed 13.5.77 1");
    let log = |drv: &String| farm.log_path(drv).display().to_string();
    let expected = [
        format!("build_queued {fine}"),
        format!("build_started {fine}"),
        format!("step_started {fine} 1"),
        format!("step 1 of build {fine} log: {}", log(&drvs[0])),
        format!("build {fine} job fine status 0"),
        format!("build_queued {broken}"),
        format!("build_queued {above}"),
        format!("build_started {broken}"),
        format!("step_started {broken} 1"),
        format!("step 1 of build {broken} log: {}", log(&drvs[1])),
        format!("build {broken} job broken status 1"),
        format!("build {above} job above status 2"),
        "eval_started 12.5.77 1".to_owned(),
        format!("cached_build_finished 1 {fine}"),
        "eval_added 12.5.77 1 1".to_owned(),
        "eval_failed 13.5.77 1".to_owned(),
    ];
    let said: Vec<String> = listener.log().lines().map(str::to_owned).collect();
    assert_eq!(said, expected);

    // Away for a while: nobody has cleared the marks, so it tells of every end once more, and of that which it missed.
    let before = said.len();
    foreign
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'my-listener'", &[])
        .expect("cut off");
    listener.wait_log("lost the database:");
    let late = enqueue(&drvs[3..]);
    farm.wait_ended(&mut hydrad, &late);
    let last = format!("build {} job late status 0", late[0]);
    listener.wait_log(&last);
    let said: Vec<String> = listener.log().lines().map(str::to_owned).collect();
    for build in [fine, broken, above] {
        let start = format!("build {build} job ");
        let again = said[before..]
            .iter()
            .filter(|line| line.starts_with(&start));
        assert_eq!(again.count(), 1, "build {build} in {said:?}");
    }
    assert!(hydrad.terminate().success());
}

#[test]
fn s6_the_pool_never_exceeds_its_size_and_uses_it() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let targets: Vec<Recorder> = (0..3)
        .map(|_| {
            let (now, most) = (now.clone(), most.clone());
            Recorder::start(move |_| {
                let others = now.fetch_add(1, Ordering::SeqCst);
                most.fetch_max(others + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(20));
                now.fetch_sub(1, Ordering::SeqCst);
                Answer::status("200 OK")
            })
        })
        .collect();
    let blocks: String = targets
        .iter()
        .map(|target| format!("<webhook>\nurl = {}\n</webhook>\n", target.url()))
        .collect();
    let place = Place::new(&format!("max-concurrent-notifications = 5\n{blocks}"));
    place.builds(1..=60);
    let mut hydrad = place.notifier();
    let mut client = place.client();
    for id in 1..=60 {
        finish(&mut client, id, 0);
    }
    hydrad.wait_sql(
        &place.db,
        "select count(*) = 180 from hydrad.deliveries where state = 'delivered'",
    );
    assert_eq!(most.load(Ordering::SeqCst), 5);
    assert!(targets.iter().all(|target| target.count() == 60));
    assert!(hydrad.terminate().success());
}
