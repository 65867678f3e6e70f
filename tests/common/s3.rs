//! A real S3 server on the loopback interface (moto, from the Python environment that `make deps` makes).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{output_of, Running};
use super::{Certificate, RunAs, TestDir};

pub struct S3Server {
    running: Running,
    dir: TestDir,
    address: SocketAddr,
    scheme: &'static str,
}

/// What a server checks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum S3Auth {
    /// Anybody may do anything.
    Open,
    /// Signatures and permissions, once [`S3Server::users`] has made users.
    Checked,
}

/// A user of the server's.
#[derive(Clone, Debug)]
pub struct S3User {
    pub id: String,
    pub secret: String,
    pub token: String,
}

impl S3Server {
    pub fn start(auth: S3Auth) -> S3Server {
        Self::start_with(auth, None)
    }

    pub fn start_tls(own: &Certificate) -> S3Server {
        Self::start_with(S3Auth::Open, Some(own))
    }

    fn start_with(auth: S3Auth, tls: Option<&Certificate>) -> S3Server {
        let dir = TestDir::new(RunAs::Me);
        let mut command = Command::new(venv("moto_server"));
        command.args(["-H", "127.0.0.1", "-p", "0"]);
        if let Some(own) = tls {
            command.arg("-c").arg(&own.certificate);
            command.arg("-k").arg(&own.key);
        }
        if auth == S3Auth::Checked {
            // So many of `users`' own requests are let through.
            command.env("INITIAL_NO_AUTH_ACTION_COUNT", USERS_REQUESTS);
        }
        let mut running = Running::start(command, "moto", &dir.join("moto.log"), libc::SIGTERM);
        let line = running.wait_log("Running on ");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = line
            .rsplit_once("//")
            .and_then(|(_, address)| address.trim().parse().ok())
            .unwrap_or_else(|| panic!("no address in {line:?}"));
        S3Server {
            running,
            dir,
            address,
            scheme,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Runs Python with `s3`, a client of Amazon's own library, and returns what it prints.
    pub fn python(&self, script: &str) -> String {
        let script = format!(
            "import boto3, json\n\
             def client(service): return boto3.client(service, endpoint_url='{}', region_name='us-east-1', \
             aws_access_key_id='test', aws_secret_access_key='test', verify=False)\n\
             s3 = client('s3')\n{script}",
            self.endpoint()
        );
        let mut command = Command::new(venv("python"));
        output_of(command.args(["-W", "ignore", "-c", &script]))
    }

    pub fn make_bucket(&self, name: &str) {
        self.python(&format!("s3.create_bucket(Bucket='{name}')"));
    }

    /// Makes the bucket and three users of it: one who may do everything, one who may only read and may not list, and a
    /// session of a role that may do everything. Once for a server, before anything else.
    pub fn users(&self, bucket: &str) -> (S3User, S3User, S3User) {
        let printed = self.python(&format!(
            "iam = client('iam')\n\
             def policy(*actions): return json.dumps(dict(Version='2012-10-17', Statement=[dict(Effect='Allow', \
             Action=list(actions), Resource='*')]))\n\
             def user(name, *actions):\n\
             \x20 iam.create_user(UserName=name)\n\
             \x20 iam.put_user_policy(UserName=name, PolicyName='p', PolicyDocument=policy(*actions))\n\
             \x20 key = iam.create_access_key(UserName=name)['AccessKey']\n\
             \x20 print(key['AccessKeyId'], key['SecretAccessKey'], '')\n\
             s3.create_bucket(Bucket='{bucket}')\n\
             user('writer', 's3:*')\nuser('reader', 's3:GetObject')\n\
             role = iam.create_role(RoleName='r', AssumeRolePolicyDocument='{{}}')['Role']['Arn']\n\
             iam.put_role_policy(RoleName='r', PolicyName='p', PolicyDocument=policy('s3:*'))\n\
             c = client('sts').assume_role(RoleArn=role, RoleSessionName='session')['Credentials']\n\
             print(c['AccessKeyId'], c['SecretAccessKey'], c['SessionToken'])\n"
        ));
        let mut users = printed.lines().map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            let mut word = || words.next().expect("three words a line");
            S3User {
                id: word(),
                secret: word(),
                token: word(),
            }
        });
        let mut user = || users.next().expect("three users");
        (user(), user(), user())
    }
}

/// create_bucket, twice three for a user, three for the role.
const USERS_REQUESTS: &str = "10";

/// A program of the Python environment with test servers.
pub fn venv(program: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/test-venv/bin")
        .join(program);
    assert!(
        path.exists(),
        "{} is missing: run `make deps`",
        path.display()
    );
    path
}
