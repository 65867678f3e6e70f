//! Whom the notifier tells: each plugin against a real server of its protocol on loopback, and servers that misbehave.

mod common;

use std::process::Command;

use common::notified::{announce, finish, finish_row, Place};
use common::{output_of, MailServer, RunAs};
use serde_json::{json, Value};
use sha2::{Digest, Sha256};

/// A clone as the evaluator keeps it, with commits by these, the oldest first; the names of the commits.
fn clone(place: &Place, uri: &str, commits: &[(&str, &str)]) -> Vec<String> {
    let hash: String = Sha256::digest(uri.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let dir = place.dir.join("scm/git").join(hash);
    std::fs::create_dir_all(&dir).expect("a folder");
    let git = |args: &[&str], author: (&str, &str)| {
        output_of(
            Command::new("git")
                .arg("-C")
                .arg(&dir)
                .args(args)
                .env("GIT_CONFIG_GLOBAL", "/dev/null")
                .env("GIT_AUTHOR_NAME", author.0)
                .env("GIT_AUTHOR_EMAIL", author.1)
                .env("GIT_COMMITTER_NAME", "c")
                .env("GIT_COMMITTER_EMAIL", "c@example.org"),
        )
    };
    git(&["init", "--quiet"], ("", ""));
    let mut revisions = Vec::new();
    for author in commits {
        git(&["commit", "--quiet", "--allow-empty", "-m", "x"], *author);
        revisions.push(git(&["rev-parse", "HEAD"], *author));
    }
    // git reads only what belongs to whoever asks.
    RunAs::Unprivileged.give_tree(&place.dir.join("scm"));
    revisions
}

fn to(mail: &Value) -> &str {
    mail["headers"]["To"].as_str().expect("To")
}

fn delivered(count: usize) -> String {
    format!("select count(*) = {count} from hydrad.deliveries where target = 'EmailNotification' and state = 'delivered'")
}

#[test]
fn mails_are_hydras_and_go_to_maintainers_and_committers() {
    let server = MailServer::start(None, None);
    let place = Place::new(&format!(
        "base_uri = https://hydra.example/\nemail_notification = 1\nnotification_sender = farm@example.org\n\
         <email>\nhost = 127.0.0.1\nport = {}\n</email>\n",
        server.port()
    ));
    place.builds(1..=7);
    let uri = "https://git.example/r.git";
    let revisions = clone(
        &place,
        uri,
        &[
            ("Zero", "z@x"),
            ("Ann", "ann@x"),
            ("Bob Ü.", "bob@x"),
            ("Ann", "ann@x"),
        ],
    );
    let mut client = place.client();
    client
        .batch_execute(&format!(
            "insert into JobsetInputs (project, jobset, name, type, emailResponsible) values ('p', 's', 'src', 'git', 1);
             insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash)
                 select n, id, 1, 1, 1, 1, 'h' from Jobsets, generate_series(7, 8) n;
             insert into JobsetEvalMembers (eval, build, isNew) values (7, 1, 1), (8, 3, 1), (8, 4, 1);
             insert into JobsetEvalInputs (eval, name, altNr, type, uri, revision) values
                 (7, 'src', 0, 'git', '{uri}', '{}'), (8, 'src', 0, 'git', '{uri}', '{}');
             update Builds set maintainers = 'm@x, bob@x' where id = 1;
             update Builds set maintainers = 'm@x, n@x,bob@x', job = 'job1' where id = 3;
             update Builds set maintainers = 'm@x' where id = 4;
             update Builds set maintainers = 'm@x', job = 'job1' where id in (5, 6, 7)",
            revisions[0], revisions[3]
        ))
        .expect("two evaluations");
    let mut hydrad = place.notifier();

    // The first of its job, a success.
    finish(&mut client, 1, 0);
    let mails = server.wait(2);
    assert_eq!(
        mails.iter().map(to).collect::<Vec<_>>(),
        ["bob@x", "m@x"],
        "each address has a mail"
    );
    let mail = &mails[1];
    let mut headers = mail["headers"].clone();
    let headers = headers.as_object_mut().expect("headers");
    for changing in ["Date", "Message-ID"] {
        assert!(headers.remove(changing).is_some(), "{changing}");
    }
    assert_eq!(
        json!(headers),
        json!({
            "To": "m@x", "From": "Hydra Build Daemon <farm@example.org>",
            "Subject": "Success: Hydra job p:s:job1 on x86_64-linux",
            "X-Hydra-Instance": "https://hydra.example", "X-Hydra-Project": "p", "X-Hydra-Jobset": "s", "X-Hydra-Job": "job1",
            "X-Hydra-System": "x86_64-linux", "MIME-Version": "1.0", "Content-Type": "text/plain; charset=\"utf-8\"",
            "Content-Transfer-Encoding": "quoted-printable",
        })
    );
    assert_eq!(mail["sender"], "farm@example.org");
    let body = mail["body"].as_str().expect("text");
    for part in ["is \"Success\"", "https://hydra.example/build/1", "Yay!"] {
        assert!(body.contains(part), "{part} in {body}");
    }

    // It fails, and takes another with it: who committed in between is told, and of the build itself alone.
    finish_row(&mut client, 4, 2);
    finish_row(&mut client, 3, 1);
    announce(&mut client, "build_finished", "3\t4");
    hydrad.wait_sql(&place.db, &delivered(2));
    let mails = server.mails().split_off(2);
    assert_eq!(
        mails.iter().map(to).collect::<Vec<_>>(),
        ["ann@x", "bob@x", "m@x", "n@x"]
    );
    let of = |mail: &Value| {
        let subject = mail["headers"]["Subject"]
            .as_str()
            .expect("a subject")
            .to_owned();
        (subject, mail["body"].as_str().expect("a text").to_owned())
    };
    let due = "This may be due to 3 commits by Ann <ann@x> or Bob Ü. <bob@x>.";
    let (subject, body) = of(&mails[2]);
    assert_eq!(
        subject,
        "Failed: Hydra job p:s:job1 on x86_64-linux (and 1 others)"
    );
    for part in [
        "has changed from \"Success\" to \"Failed\"",
        "* p:s:job4 (https://hydra.example/build/4)",
        due,
        "Go forth and fix them.",
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
    for at in [0, 1, 3] {
        let (subject, body) = of(&mails[at]);
        assert_eq!(subject, "Failed: Hydra job p:s:job1 on x86_64-linux");
        assert!(body.contains(due) && body.contains("fix it."), "{body}");
        assert!(!body.contains("build/4"), "{body}");
    }

    // The same status again, a cancelled one, a jobset without mails: nothing. An address instead of the maintainers': that one.
    finish(&mut client, 5, 1);
    finish(&mut client, 2, 4);
    hydrad.wait_sql(&place.db, &delivered(4));
    client
        .batch_execute("update Jobsets set enableEmail = 0; update Builds set maintainers = 'm@x' where id = 6")
        .expect("off");
    finish(&mut client, 6, 0);
    hydrad.wait_sql(&place.db, &delivered(5));
    assert_eq!(server.mails().len(), 6);
    client
        .batch_execute("update Jobsets set enableEmail = 1, emailOverride = 'list@x'")
        .expect("on");
    finish(&mut client, 7, 1);
    assert_eq!(to(&server.wait(7)[6]), "list@x");
    assert!(hydrad.terminate().success());
}

#[test]
fn an_error_of_an_evaluation_goes_to_the_owner_who_wants_it() {
    let place = Place::new("email_notification = 1\nnotification_sender = farm@example.org\n");
    let sink = place.dir.join("sink");
    let mut client = place.client();
    client
        .batch_execute(
            "update Users set emailAddress = 'owner@x';
             update Jobsets set errorMsg = 'error: .hidden line' || chr(10) || 'at «f» ' || repeat('x', 100)",
        )
        .expect("an error");
    let mut hydrad = place
        .hydrad(&["notify"])
        .env("HYDRA_MAIL_SINK", sink.display().to_string())
        .start();
    hydrad.wait_log("notifier: active");
    let jobset: i32 = client
        .query_one("select id from Jobsets", &[])
        .expect("a row")
        .get(0);
    let mut announce_error = |wanted: i32| {
        client
            .execute("update Users set emailOnError = $1", &[&wanted])
            .expect("wanted");
        let payload = format!("1.5.7\t{jobset}");
        client
            .query(
                include_str!("../sql/queue/notify_all.sql"),
                &[&vec!["eval_error_changed"], &vec![payload]],
            )
            .expect("as the evaluator announces it");
    };
    announce_error(0);
    hydrad.wait_sql(&place.db, &delivered(1));
    assert!(!sink.exists(), "it is not wanted");
    announce_error(1);
    hydrad.wait_sql(&place.db, &delivered(2));
    let text = std::fs::read_to_string(&sink).expect("a mail");
    for line in [
        "To: owner@x",
        "Subject: Hydra p:s evaluation error",
        "X-Hydra-Project: p",
        "X-Hydra-Jobset: s",
        "error: .hidden line",
        "at =C2=ABf=C2=BB ",
    ] {
        assert!(
            text.lines().any(|known| known.starts_with(line)),
            "{line} in {text}"
        );
    }
    assert!(text
        .lines()
        .any(|line| line.starts_with("X-Hydra-Instance: http://")));
    assert!(hydrad.terminate().success());
}

#[test]
fn a_digest_is_one_mail_for_each_evaluation_and_recipient() {
    let server = MailServer::start(None, None);
    let place = Place::new(&format!(
        "email_notification = 1\nnotification_sender = farm@example.org\nmax-concurrent-notifications = 4\n\
         <email>\nhost = 127.0.0.1\nport = {}\ndigest = 1\n</email>\n",
        server.port()
    ));
    place.builds(1..=20);
    let mut client = place.client();
    client
        .batch_execute(
            "insert into JobsetEvals (id, jobset_id, timestamp, checkoutTime, evalTime, hasNewBuilds, hash)
                 select n, id, 1, 1, 1, 1, 'h' from Jobsets, generate_series(7, 8) n;
             insert into JobsetEvalMembers (eval, build, isNew) select 7, n, 1 from generate_series(1, 9) n;
             insert into JobsetEvalMembers (eval, build, isNew) select 8, n, 1 from generate_series(11, 19) n;
             update Builds set maintainers = case when id % 2 = 1 then 'odd@x, all@x' else 'all@x' end;
             update Builds set job = 'job' || id - 10 where id between 11 and 19",
        )
        .expect("two evaluations");
    let mut hydrad = place.notifier();
    // First successes are no news; two failures are.
    for id in 1..=9 {
        let status = i32::from(id == 2 || id == 3);
        finish(&mut client, id, status);
    }
    let mails = server.wait(2);
    let subject = |mail: &Value| {
        mail["headers"]["Subject"]
            .as_str()
            .expect("a subject")
            .to_owned()
    };
    assert_eq!(to(&mails[0]), "all@x");
    assert_eq!(
        subject(&mails[0]),
        "Hydra jobset p:s: 2 failed in evaluation 7"
    );
    assert_eq!(to(&mails[1]), "odd@x");
    assert_eq!(
        subject(&mails[1]),
        "Hydra jobset p:s: 1 failed in evaluation 7"
    );
    // The last one of the next evaluation is cancelled by somebody: no event, and yet it has ended.
    for id in 11..=18 {
        finish(&mut client, id, i32::from(id == 14));
    }
    hydrad.wait_sql(&place.db, &delivered(17 + 1));
    assert_eq!(server.mails().len(), 2, "it goes on");
    finish_row(&mut client, 19, 4);
    // A build that no evaluation made is told of at once.
    finish(&mut client, 20, 1);
    let mut mails = server.wait(5).split_off(2);
    mails.sort_by_key(|mail| (subject(mail), to(mail).to_owned()));
    let told: Vec<(String, &str)> = mails.iter().map(|mail| (subject(mail), to(mail))).collect();
    let expected = [
        ("Failed: Hydra job p:s:job20 on x86_64-linux", "all@x"),
        (
            "Hydra jobset p:s: 1 failed, 2 succeed again in evaluation 8",
            "all@x",
        ),
        ("Hydra jobset p:s: 1 succeed again in evaluation 8", "odd@x"),
    ];
    assert_eq!(told, expected.map(|(subject, to)| (subject.to_owned(), to)));
    let body = mails[1]["body"].as_str().expect("a text");
    for part in [
        "* job4 on x86_64-linux: \"Failed\", was \"Success\"",
        "* job2 on x86_64-linux: \"Success\", was \"Failed\"",
    ] {
        assert!(body.contains(part), "{part} in {body}");
    }
    assert!(hydrad.terminate().success());
}
