//! What goes over a network that is not ssh: objects in a bucket, against a real S3 server that checks signatures and one
//! that misbehaves; and TLS to PostgreSQL, with certificates made here.

mod common;

use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use common::{Authority, Pg, RunAs, S3Auth, S3Server, S3User, Site, Spoil, TestDir, Unreliable};
use hydrad::db::DbTarget;
use hydrad::store::objects::{Body, Existing, Folder, Headers, Objects};
use hydrad::store::s3::{Bucket, Limits};
use hydrad::store::uri::StoreUri;

const XZ: Headers<'static> = Headers {
    content_type: "application/x-nix-nar",
    content_encoding: "xz",
};

/// Bounds that a test can wait for.
const SHORT: Limits = Limits {
    connect: Duration::from_secs(10),
    quiet: Duration::from_secs(20),
    tries_max: 4,
    delay_first: Duration::from_millis(2),
    delay_max: Duration::from_millis(10),
    total_max: Duration::from_secs(60),
};

fn user(id: &str, secret: &str) -> S3User {
    S3User {
        id: id.to_owned(),
        secret: secret.to_owned(),
        token: String::new(),
    }
}

fn open(dir: &TestDir, endpoint: &str, more: &str, user: &S3User, limits: Limits) -> Bucket {
    open_with(dir, endpoint, more, user, limits, &[])
}

fn open_with(
    dir: &TestDir,
    endpoint: &str,
    more: &str,
    user: &S3User,
    limits: Limits,
    env: &[(&str, &str)],
) -> Bucket {
    let text = format!("s3://cache?endpoint={endpoint}{more}");
    let mut uri = StoreUri::parse(&text).expect("a URI");
    let find = |name: &str| match name {
        "AWS_ACCESS_KEY_ID" => Some(user.id.clone()),
        "AWS_SECRET_ACCESS_KEY" => Some(user.secret.clone()),
        "AWS_SESSION_TOKEN" => Some(user.token.clone()),
        name => env
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned()),
    };
    Bucket::with_limits(&mut uri, &find, Folder::at(dir.path()), limits).expect("a bucket")
}

fn put(bucket: &Bucket, key: &str, bytes: &[u8]) -> Result<bool, String> {
    bucket
        .put(key, Body::Bytes(bytes), XZ, Existing::Replace)
        .map_err(|error| error.to_string())
}

fn get(bucket: &Bucket, key: &str) -> Result<Option<Vec<u8>>, String> {
    bucket.get(key, 1 << 30).map_err(|error| error.to_string())
}

/// Bytes that no compression and no mistaken offset would leave unnoticed.
fn noise(bytes: usize) -> Vec<u8> {
    let mut random = hydrad::base::random::Random::new(bytes as u64);
    (0..bytes).map(|_| random.below(256) as u8).collect()
}

/// A complete temporary file of the bucket's.
fn file(bucket: &Bucket, bytes: &[u8]) -> std::path::PathBuf {
    let (mut file, path) = bucket.staging().expect("a file");
    file.write_all(bytes).expect("written");
    path
}

#[test]
fn objects_come_back_as_they_went_and_only_for_those_who_may() {
    let server = S3Server::start(S3Auth::Checked);
    let (writer, reader, session) = server.users("cache");
    let dir = TestDir::new(RunAs::Me);
    let as_user = |user: &S3User| open(&dir, &server.endpoint(), "", user, SHORT);
    let bucket = as_user(&writer);

    // Keys that have to be written differently in an address and in a signature.
    let keys = [
        "nix-cache-info",
        "realisations/sha256:ab!out.doi",
        "log/a+b c=1&d?.drv",
        "nar/\u{e4}~'(1)*.nar",
    ];
    for key in keys {
        assert_eq!(bucket.stat(key), Ok(None), "{key}");
        assert_eq!(get(&bucket, key), Ok(None), "{key}");
        assert_eq!(put(&bucket, key, key.as_bytes()), Ok(true), "{key}");
        assert_eq!(
            get(&bucket, key),
            Ok(Some(key.as_bytes().to_vec())),
            "{key}"
        );
        let stat = bucket.stat(key).expect("answered").expect("there");
        assert_eq!(stat.size, key.len() as u64);
        assert!(
            stat.modified.is_some_and(|at| at > 1_700_000_000),
            "{stat:?}"
        );
    }
    let path = file(&bucket, b"a nar");
    for (existing, wrote) in [
        (Existing::Keep, true),
        (Existing::Keep, false),
        (Existing::Replace, true),
    ] {
        assert_eq!(
            bucket.put("nar/1.nar.xz", Body::File(&path), XZ, existing),
            Ok(wrote)
        );
    }
    assert_eq!(get(&bucket, "nar/1.nar.xz"), Ok(Some(b"a nar".to_vec())));
    assert_eq!(put(&bucket, "empty", b""), Ok(true));
    assert_eq!(get(&bucket, "empty"), Ok(Some(Vec::new())));
    for _ in 0..2 {
        assert_eq!(bucket.delete("nix-cache-info"), Ok(()));
        assert_eq!(bucket.stat("nix-cache-info"), Ok(None));
    }
    assert!(put(&bucket, "../x", b"").is_err());

    // Temporary credentials, whose token has to be signed as well.
    let with_token = as_user(&session);
    assert_eq!(put(&with_token, "by-session", b"1"), Ok(true));
    assert_eq!(get(&with_token, "by-session"), Ok(Some(b"1".to_vec())));

    // To those who may not list, S3 does not tell "absent" from "refused"; see `absent_or`.
    let may_read = as_user(&reader);
    assert_eq!(get(&may_read, "by-session"), Ok(Some(b"1".to_vec())));
    let error = put(&may_read, "by-reader", b"1").expect_err("may not write");
    assert!(
        error.starts_with("cannot write s3://cache/by-reader: http://127.0.0.1:")
            && error.contains("answered 403 AccessDenied")
            && error.contains("needs s3:PutObject")
            && !error.contains("tried"),
        "{error}"
    );
    let wrong = as_user(&user(&writer.id, "wrong"));
    for error in [
        put(&wrong, "x", b"").expect_err("a wrong secret"),
        get(&wrong, "x").expect_err("a wrong secret"),
        wrong.stat("x").expect_err("a wrong secret").to_string(),
    ] {
        assert!(
            error.contains("403 SignatureDoesNotMatch")
                && error.contains(&format!(
                    "which came from AWS_ACCESS_KEY_ID ({})",
                    writer.id
                ))
                && !error.contains("wrong"),
            "{error}"
        );
    }
    let unknown = as_user(&user("AKIANOBODY", "x"));
    let error = unknown.stat("x").expect_err("nobody").to_string();
    assert!(error.contains("403 InvalidAccessKeyId"), "{error}");
}

#[test]
fn large_objects_go_in_parts_and_leave_nothing_when_they_fail() {
    let server = S3Server::start(S3Auth::Open);
    server.make_bucket("cache");
    let front = Unreliable::start(Some(server.address()));
    let dir = TestDir::new(RunAs::Me);
    let small = "&multipart-threshold=1&multipart-chunk-size=1";
    let bucket = open(&dir, &front.endpoint(), small, &user("a", "b"), SHORT);
    let bytes = noise((11 << 20) + 7);
    let path = file(&bucket, &bytes);
    // One part has to be sent again, and the answer to the last request is lost.
    front.spoil(
        "partNumber=2",
        Spoil::error("500 Internal Server Error", "InternalError"),
    );
    front.spoil("partNumber=3", Spoil::CutRequest);
    front.spoil("POST /cache/nar/1.nar.xz?uploadId=", Spoil::LoseAnswer);
    let put = |existing| bucket.put("nar/1.nar.xz", Body::File(&path), XZ, existing);
    assert_eq!(put(Existing::Keep), Ok(true));
    assert!(
        get(&bucket, "nar/1.nar.xz") == Ok(Some(bytes)),
        "the same bytes"
    );
    assert_eq!(
        server.python("o = s3.head_object(Bucket='cache', Key='nar/1.nar.xz'); print(o['ContentType'], o['ContentEncoding'], o['ETag'][-3:])"),
        "application/x-nix-nar xz -3\"",
        "three parts"
    );
    let requests = bucket.requests();
    let put_bytes = requests
        .put_bytes
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(put_bytes, (11 << 20) + 7);

    // Refused for good: the upload is aborted and the old object stays.
    front.spoil(
        "partNumber=2",
        Spoil::error("403 Forbidden", "AccessDenied"),
    );
    let error = put(Existing::Replace).expect_err("refused").to_string();
    assert!(error.contains("403 AccessDenied: made up"), "{error}");
    let aborted = front
        .seen()
        .iter()
        .any(|line| line.starts_with("DELETE /cache/nar/1.nar.xz?uploadId="));
    assert!(aborted, "{:?}", front.seen());
    let left =
        server.python("print(len(s3.list_multipart_uploads(Bucket='cache').get('Uploads', [])))");
    assert_eq!(left, "0");
    assert_eq!(
        bucket
            .stat("nar/1.nar.xz")
            .expect("answered")
            .map(|stat| stat.size),
        Some((11 << 20) + 7)
    );

    // An error in an answer whose status is 200, as S3 gives it when assembling takes long.
    let error = "<Error><Code>InternalError</Code><Message>late</Message></Error>".to_owned();
    front.spoil(
        "POST /cache/nar/1.nar.xz?uploadId=",
        Spoil::Answer("200 OK", error),
    );
    assert_eq!(put(Existing::Replace), Ok(true));
    front.spoil(
        "?uploads=",
        Spoil::Answer("200 OK", "<html>Welcome to the proxy</html>".to_owned()),
    );
    let error = put(Existing::Replace).expect_err("not S3").to_string();
    assert!(
        error.contains("an answer that S3 would not give: <html>Welcome"),
        "{error}"
    );
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_told_at_once() {
    let server = S3Server::start(S3Auth::Open);
    server.make_bucket("cache");
    let front = Unreliable::start(Some(server.address()));
    let dir = TestDir::new(RunAs::Me);
    let bucket = open(&dir, &front.endpoint(), "", &user("a", "b"), SHORT);
    let busy = || Spoil::error("503 Slow Down", "SlowDown");

    for spoils in [
        vec![
            Spoil::error("500 Oops", "InternalError"),
            busy(),
            Spoil::Answer("502 Bad Gateway", "<html>".into()),
        ],
        vec![
            Spoil::Answer("429 Too Many", String::new()),
            Spoil::CutRequest,
            Spoil::LoseAnswer,
        ],
        vec![
            Spoil::error("400 Bad Request", "RequestTimeout"),
            Spoil::Answer("nonsense", String::new()),
        ],
    ] {
        let count = spoils.len();
        for spoil in spoils {
            front.spoil("PUT", spoil);
        }
        let before = front.seen().len();
        assert_eq!(put(&bucket, "a", b"abc"), Ok(true));
        assert_eq!(front.seen().len() - before, count + 1);
    }
    for spoil in [busy(), Spoil::CutAnswer, Spoil::CutAnswer] {
        front.spoil("GET", spoil);
    }
    let large = noise(300_000);
    assert_eq!(put(&bucket, "large", &large), Ok(true));
    assert!(
        get(&bucket, "large") == Ok(Some(large)),
        "two halves and the rest"
    );

    // An object that is replaced between two halves is not mixed.
    front.spoil("GET", Spoil::CutAnswer);
    let mut reader = bucket.open("a").expect("answered").expect("there");
    let mut first = [0];
    reader.read_exact(&mut first).expect("the first half");
    assert_eq!(put(&bucket, "a", b"xyz"), Ok(true));
    let error = reader
        .read_to_end(&mut Vec::new())
        .expect_err("replaced")
        .to_string();
    assert!(error.contains("replaced meanwhile"), "{error}");

    let told = |needle: &str, spoils: &[Spoil], words: &[&str]| {
        for spoil in spoils {
            front.spoil(needle, spoil.clone());
        }
        let before = front.seen().len();
        let error = put(&bucket, "a", b"abc").expect_err("must fail");
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
        assert_eq!(front.seen().len() - before, spoils.len(), "{error}");
    };
    told(
        "PUT",
        &[busy(), busy(), busy(), busy()],
        &["503 SlowDown: made up (tried 4 times)"],
    );
    let moved =
        "<Error><Code>PermanentRedirect</Code><Region>eu-west-3</Region></Error>".to_owned();
    told(
        "PUT",
        &[Spoil::Answer(
            "301 Moved\r\nx-amz-bucket-region: eu-west-3",
            moved,
        )],
        &[
            "301 PermanentRedirect",
            "the bucket is in region eu-west-3: write region=eu-west-3",
        ],
    );
    told(
        "PUT",
        &[Spoil::error("403 No", "RequestTimeTooSkewed")],
        &["set the clock of this host"],
    );
    told(
        "PUT",
        &[Spoil::error("404 No", "NoSuchBucket")],
        &["there is no such bucket at this endpoint"],
    );
    told(
        "PUT",
        &[Spoil::Answer("403 Forbidden", "<h1>Squid</h1>".into())],
        &["answered 403: <h1>Squid</h1>"],
    );

    // No bucket, for real. A question with GET tells; for HEAD S3 has no words.
    let text = format!("s3://other?endpoint={}", front.endpoint());
    let mut uri = StoreUri::parse(&text).expect("a URI");
    let env = |name: &str| {
        name.starts_with("AWS_")
            .then(|| "x".to_owned())
            .filter(|_| name.contains("KEY"))
    };
    let other =
        Bucket::with_limits(&mut uri, &env, Folder::at(dir.path()), SHORT).expect("a bucket");
    for error in [
        put(&other, "a", b"").expect_err("no bucket"),
        get(&other, "a").expect_err("no bucket"),
    ] {
        assert!(
            error.contains("s3://other/a: ") && error.contains("404 NoSuchBucket"),
            "{error}"
        );
    }
}

#[test]
fn a_server_that_says_nothing_or_is_not_there_is_given_up_in_time() {
    let dir = TestDir::new(RunAs::Me);
    let quiet = Limits {
        quiet: Duration::from_millis(200),
        ..SHORT
    };
    let front = Unreliable::start(None);
    let bucket = open(&dir, &front.endpoint(), "", &user("a", "b"), quiet);
    for _ in 0..4 {
        front.spoil("PUT", Spoil::Hang);
    }
    let error = put(&bucket, "a", b"abc").expect_err("must fail");
    assert!(
        error.contains("nothing moved for 0.2 s") && error.contains("(tried 4 times)"),
        "{error}"
    );
    front.spoil("PUT", Spoil::Hang);
    front.spoil("PUT", Spoil::Answer("200 OK", String::new()));
    assert_eq!(put(&bucket, "a", b"abc"), Ok(true), "it hung once");

    drop(front);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", gone.local_addr().expect("an address"));
    drop(gone);
    let bucket = open(&dir, &endpoint, "", &user("a", "b"), SHORT);
    let error = put(&bucket, "a", b"abc").expect_err("nobody listens");
    assert!(
        error.contains(&format!(
            "{endpoint}: Connection refused; is the endpoint right"
        )) && error.contains("(tried 4 times)"),
        "{error}"
    );
}

#[test]
fn connections_are_used_again_and_credentials_are_read_again_when_they_end() {
    let dir = TestDir::new(RunAs::Me);
    let front = Unreliable::start(None);
    let bucket = open(&dir, &front.endpoint(), "", &user("a", "b"), SHORT);
    for _ in 0..50 {
        front.spoil("HEAD", Spoil::Answer("404 Not Found", String::new()));
        front.spoil("PUT", Spoil::Answer("200 OK", String::new()));
    }
    for _ in 0..50 {
        assert_eq!(bucket.stat("a"), Ok(None));
        assert_eq!(put(&bucket, "a", b"abc"), Ok(true));
    }
    assert_eq!((front.seen().len(), front.connections()), (100, 1));

    let profile = |id: &str| {
        let text = format!("[farm]\naws_access_key_id = {id}\naws_secret_access_key = s\n");
        dir.file("credentials", &text, RunAs::Me)
    };
    let path = profile("OLD").display().to_string();
    let mut uri = StoreUri::parse(&format!(
        "s3://cache?profile=farm&endpoint={}",
        front.endpoint()
    ))
    .expect("a URI");
    let env = |name: &str| (name == "AWS_SHARED_CREDENTIALS_FILE").then(|| path.clone());
    let bucket =
        Bucket::with_limits(&mut uri, &env, Folder::at(dir.path()), SHORT).expect("a bucket");
    front.spoil("PUT", Spoil::Answer("200 OK", String::new()));
    assert_eq!(put(&bucket, "a", b""), Ok(true));
    profile("NEW");
    front.spoil("PUT", Spoil::error("400 Bad Request", "ExpiredToken"));
    front.spoil("PUT", Spoil::Answer("200 OK", String::new()));
    assert_eq!(
        put(&bucket, "a", b""),
        Ok(true),
        "with what the file has now"
    );
    for _ in 0..2 {
        front.spoil("PUT", Spoil::error("400 Bad Request", "ExpiredToken"));
    }
    let error = put(&bucket, "a", b"").expect_err("ended for good");
    assert!(
        error.contains("400 ExpiredToken") && error.contains("which came from profile 'farm' of "),
        "{error}"
    );
}

#[test]
fn https_is_verified_with_the_certificates_that_are_named() {
    let dir = TestDir::new(RunAs::Me);
    let authority = Authority::new("farm");
    let own = authority.issue("server", "IP:127.0.0.1");
    let server = S3Server::start_tls(&own);
    server.make_bucket("cache");
    let trusting = |bundle: &Path| {
        let bundle = bundle.display().to_string();
        let env = [("AWS_CA_BUNDLE", &*bundle)];
        open_with(&dir, &server.endpoint(), "", &user("a", "b"), SHORT, &env)
    };
    let bucket = trusting(&authority.certificate());
    assert_eq!(put(&bucket, "a", b"abc"), Ok(true));
    assert_eq!(get(&bucket, "a"), Ok(Some(b"abc".to_vec())));
    // The certificates of this host do not have it, and trying again would not help.
    let bucket = open(&dir, &server.endpoint(), "", &user("a", "b"), SHORT);
    let error = put(&bucket, "a", b"abc").expect_err("not trusted");
    assert!(
        error.contains("UnknownIssuer")
            && error.contains("AWS_CA_BUNDLE")
            && !error.contains("tried"),
        "{error}"
    );
}

#[test]
fn tls_to_postgresql_is_configured_and_verified_as_libpq_does_it() {
    let authority = Authority::new("farm authority");
    let other = Authority::new("another authority");
    let own = authority.issue("db.example", "DNS:db.example");
    let (pg, port) = Pg::start_tls(
        &own,
        &authority,
        "hostssl all hydra 127.0.0.1/32 scram-sha-256\n\
         hostssl all by_certificate 127.0.0.1/32 cert\n\
         hostnossl all unencrypted 127.0.0.1/32 trust\n",
    );
    pg.admin()
        .batch_execute(
            "alter role hydra password 'secret';
             create role by_certificate login; create role unencrypted login",
        )
        .expect("roles");
    let file = |path: &Path| path.display().to_string();
    let (roots, wrong) = (file(&authority.certificate()), file(&other.certificate()));
    let home = TestDir::new(RunAs::Me);
    let connect = |user: &str, more: &str| -> Result<String, String> {
        let dbi = format!("dbi:Pg:host=db.example;hostaddr=127.0.0.1;port={port};dbname=postgres;user={user};{more}");
        let env = |name: &str| match name {
            "HYDRA_DBI" => Some(dbi.clone()),
            "PGPASSWORD" => Some("secret".to_owned()),
            "HOME" => Some(file(home.path())),
            _ => None,
        };
        let target = DbTarget::from_parts(&env, None).map_err(|error| error.to_string())?;
        let mut client = target.connect("test").map_err(|error| error.to_string())?;
        let row = client
            .query_one(
                "select ssl, coalesce(version, '') from pg_stat_ssl where pid = pg_backend_pid()",
                &[],
            )
            .expect("an answer");
        Ok(match row.get(0) {
            true => row.get(1),
            false => "not encrypted".to_owned(),
        })
    };
    let encrypted = Ok("TLSv1.3".to_owned());
    let plain = Ok("not encrypted".to_owned());

    assert_eq!(connect("hydra", ""), encrypted, "prefer is the default");
    assert_eq!(
        connect("hydra", "sslmode=allow"),
        encrypted,
        "the server insists"
    );
    assert_eq!(
        connect("hydra", "sslmode=require;channel_binding=require"),
        encrypted
    );
    for mode in ["verify-ca", "verify-full"] {
        assert_eq!(
            connect("hydra", &format!("sslmode={mode};sslrootcert={roots}")),
            encrypted
        );
    }
    let old = format!("sslmode=verify-full;sslrootcert={roots};ssl_max_protocol_version=TLSv1.2");
    assert_eq!(connect("hydra", &old), Ok("TLSv1.2".to_owned()));
    // A server's own certificate among the authorities is believed.
    let pinned = format!("sslmode=verify-full;sslrootcert={}", file(&own.certificate));
    assert_eq!(connect("hydra", &pinned), encrypted);
    let by_address = format!("host=127.0.0.1;sslmode=verify-ca;sslrootcert={roots}");
    assert_eq!(
        connect("hydra", &by_address),
        encrypted,
        "the name does not count"
    );
    assert_eq!(connect("unencrypted", ""), plain, "prefer goes on without");
    assert_eq!(connect("unencrypted", "sslmode=allow"), plain);

    let client = authority.issue("by_certificate", "");
    let mine = format!(
        "sslmode=verify-full;sslrootcert={roots};sslcert={};sslkey={}",
        file(&client.certificate),
        file(&client.key)
    );
    assert_eq!(connect("by_certificate", &mine), encrypted);
    // Also where libpq looks by itself.
    std::fs::create_dir(home.join(".postgresql")).expect("made");
    for (from, name) in [
        (&authority.certificate(), "root.crt"),
        (&client.certificate, "postgresql.crt"),
        (&client.key, "postgresql.key"),
    ] {
        std::fs::copy(from, home.join(".postgresql").join(name)).expect("copied");
    }
    assert_eq!(connect("by_certificate", "sslmode=verify-full"), encrypted);
    std::fs::remove_dir_all(home.join(".postgresql")).expect("removed");

    let full_by_address = format!("host=127.0.0.1;sslmode=verify-full;sslrootcert={roots}");
    let foreign = other.issue("by_certificate", "");
    let foreign = format!(
        "sslmode=require;sslcert={};sslkey={}",
        file(&foreign.certificate),
        file(&foreign.key)
    );
    let open_key = home.file(
        "open.key",
        &std::fs::read_to_string(&client.key).expect("a key"),
        RunAs::Me,
    );
    std::fs::set_permissions(
        &open_key,
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .expect("chmod");
    let open_key = format!(
        "sslmode=require;sslcert={};sslkey={}",
        file(&client.certificate),
        file(&open_key)
    );
    for (user, more, words) in [
        (
            "hydra",
            &*format!("sslmode=verify-full;sslrootcert={wrong}"),
            "was not issued by an authority in ",
        ),
        (
            "hydra",
            &format!("sslmode=verify-ca;sslrootcert={wrong}"),
            "was not issued by an authority in ",
        ),
        // As in libpq, a file of authorities counts for `require` too.
        (
            "hydra",
            &format!("sslmode=require;sslrootcert={wrong}"),
            "was not issued by an authority in ",
        ),
        (
            "hydra",
            "sslrootcert=system",
            "was not issued by an authority in this host's",
        ),
        (
            "hydra",
            &full_by_address,
            "only names in the certificate's subjectAltName count",
        ),
        (
            "hydra",
            "sslmode=disable",
            "the server may want TLS: set sslmode=require",
        ),
        (
            "hydra",
            "sslmode=verify-full",
            "/.postgresql/root.crt does not exist; name it in sslrootcert",
        ),
        (
            "hydra",
            "sslmode=verify-ca;sslrootcert=system",
            "needs sslmode=verify-full, not verify-ca",
        ),
        (
            "hydra",
            "sslmode=require;sslrootcert=/none",
            "cannot read the certificates in /none",
        ),
        (
            "hydra",
            "sslmode=require;sslcrl=/x",
            "`sslcrl` is not supported: revocation lists are not read",
        ),
        (
            "hydra",
            "sslmode=always",
            "expected disable, allow, prefer, require, verify-ca or verify-full",
        ),
        (
            "hydra",
            "ssl_min_protocol_version=SSLv3",
            "only TLSv1.2 and TLSv1.3",
        ),
        ("hydra", &open_key, "others may read it; run `chmod 600 "),
        (
            "by_certificate",
            "sslmode=require",
            "connection requires a valid client certificate",
        ),
        ("by_certificate", &foreign, "the server does not accept "),
        ("unencrypted", "sslmode=require", "no pg_hba.conf entry"),
    ] {
        let error = connect(user, more).expect_err("must fail");
        assert!(error.contains(words), "{more}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[test]
fn all_sessions_of_the_queue_runner_are_encrypted() {
    let authority = Authority::new("farm authority");
    let own = authority.issue("localhost", "DNS:localhost,IP:127.0.0.1");
    let (pg, port) = Pg::start_tls(
        &own,
        &authority,
        "hostssl all hydra 127.0.0.1/32 scram-sha-256\n",
    );
    pg.admin()
        .batch_execute("alter role hydra password 'secret'")
        .expect("a password");
    let site = Site::new(&pg);
    site.machines(&Site::localhost(1));
    let roots = site.file(
        "root.crt",
        &std::fs::read_to_string(authority.certificate()).expect("readable"),
    );
    let dbi = format!(
        "dbi:Pg:host=127.0.0.1;port={port};dbname={};user=hydra;sslmode=verify-full",
        site.db.name()
    );
    let with_tls = |args: &[&str]| {
        site.hydrad(args)
            .env("HYDRA_DBI", &dbi)
            .env("PGPASSWORD", "secret")
            .env("PGSSLROOTCERT", roots.display().to_string())
    };
    let mut hydrad = with_tls(&["run"]).start();
    hydrad.wait_log("ready: ");
    let builds = site.queue("{ a = derivation { name = \"a\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo > $out\" ]; }; }");
    site.wait_all_finished(&mut hydrad);
    assert_eq!(
        site.rows("select id, buildStatus from Builds"),
        [format!("{} 0", builds[0])]
    );
    let mut admin = site.db.superuser();
    let rows = admin
        .query(
            "select a.query, s.ssl from pg_stat_activity a join pg_stat_ssl s using (pid)
             where a.datname = current_database() and a.application_name like 'hydrad%'",
            &[],
        )
        .expect("sessions");
    // The listener, the lock and the pool.
    assert!(rows.len() >= 3, "{} sessions", rows.len());
    assert!(rows.iter().all(|row| row.get::<_, bool>(1)), "{rows:?}");

    let output = with_tls(&["check"]).command().output().expect("started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains(&format!("verify-full, authorities in {}", roots.display())),
        "{text}"
    );
}
