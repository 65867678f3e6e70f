//! `hydrad create-user`: makes and changes accounts of Hydra's web server, with the options of `hydra-create-user`.

use std::io::{self, BufRead, IsTerminal, Read};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context as _, Result};
use serde_json::json;

use super::connect::StateArgs;
use super::password::{self, PASSWORD_BYTES_MAX};
use crate::db::users::{self, User, Written};

const APPLICATION_NAME: &str = "hydra-create-user";
/// What Hydra's web server gives a meaning to.
const ROLES: &[&str] = &[
    "admin",
    "bump-to-front",
    "cancel-build",
    "create-projects",
    "eval-jobset",
    "restart-jobs",
];

/// Make or change an account of Hydra's web server
///
/// A user who does not exist is made: of type `hydra`, without an address, and unable to log in until there is a password.
/// Of one who exists only what is named here changes; roles are added to those that are there.
///
/// A google or github account logs in at Google or GitHub: its name is the mail address there, and it has no password here.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Roles: admin (everything), bump-to-front, cancel-build, create-projects, restart-jobs, eval-jobset (Hydra of 2025 and later).

Examples:
  hydrad create-user alice --full-name 'Alice' --email-address alice@example.org --password-prompt --role admin
  pass show hydra/bot | hydrad create-user bot --password-prompt --role restart-jobs     without a terminal: a line is read
  hydrad create-user alice@example.org --type google --role create-projects
  hydrad create-user alice --wipe-roles                     alice may only look
  hydrad create-user alicia --rename-from alice             her projects follow"
)]
#[command(group = clap::ArgGroup::new("a password").args(["password", "password_hash", "password_prompt"]))]
pub struct CreateUserArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// The name to log in with
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Give the user of this name the new name; projects, roles and stars follow
    #[arg(long, value_name = "NAME")]
    pub rename_from: Option<String>,
    /// Who says that it is them: hydra (a password), google or github
    #[arg(long = "type", value_name = "TYPE", value_parser = clap::builder::PossibleValuesParser::new(["hydra", "google", "github"]))]
    pub kind: Option<String>,
    #[arg(long, value_name = "NAME")]
    pub full_name: Option<String>,
    #[arg(long, value_name = "ADDRESS")]
    pub email_address: Option<String>,
    /// Ask for the password, without showing it; if standard input is no terminal, its first line is the password
    #[arg(long)]
    pub password_prompt: bool,
    /// The password as an argon2 hash, or as the sha1 sum that Hydras until 2021 kept
    #[arg(long, value_name = "HASH")]
    pub password_hash: Option<String>,
    /// The password. Everybody on this host can read it meanwhile (`ps`), and your shell remembers it
    #[arg(long, value_name = "PASSWORD")]
    pub password: Option<String>,
    /// Take all roles away, before --role gives new ones
    #[arg(long)]
    pub wipe_roles: bool,
    /// Give the user this role; may be repeated
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<String>,
    /// Say what was done as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// # Errors
/// When nothing was changed.
pub fn run(args: &CreateUserArgs) -> Result<ExitCode> {
    check_names(args)?;
    let target = args.state.target(&args.state.settings()?)?;
    // Before the question, so that nobody types a password in vain.
    let mut client = target.connect(APPLICATION_NAME)?;
    let password = password(args)?;
    let name = args.name.as_str();
    let written = users::write(&mut client, args.rename_from.as_deref(), name, |present| {
        decide(args, present, password.as_deref())
    })?;
    let (created, roles) = match written {
        Written::Done { created, roles } => (created, roles),
        Written::NoSuchUser => bail!(
            "there is no user `{}` to be renamed",
            args.rename_from.as_deref().unwrap_or_default()
        ),
        Written::NameTaken => bail!("there is another user `{name}` already"),
    };
    let verb = match (created, &args.rename_from) {
        (true, _) => "made user",
        (false, Some(_)) => "renamed user",
        (false, None) => "changed user",
    };
    if args.json {
        println!(
            "{}",
            json!({"user": name, "created": created, "renamedFrom": args.rename_from, "roles": roles,
                "passwordSet": password.is_some()})
        );
    } else {
        let roles = match roles.as_slice() {
            [] => "no roles".to_owned(),
            roles => format!("roles: {}", roles.join(", ")),
        };
        println!("{verb} {name}; {roles}");
    }
    Ok(ExitCode::SUCCESS)
}

fn check_names(args: &CreateUserArgs) -> Result<()> {
    let texts = [
        ("the user name", Some(&args.name)),
        ("--rename-from", args.rename_from.as_ref()),
        ("--full-name", args.full_name.as_ref()),
        ("--email-address", args.email_address.as_ref()),
    ];
    let roles = args.roles.iter().map(|role| ("--role", Some(role)));
    for (what, text) in texts.into_iter().chain(roles) {
        let Some(text) = text else { continue };
        ensure!(
            !text.chars().any(char::is_control),
            "{what} has a control character in it: {text:?}"
        );
    }
    ensure!(!args.name.trim().is_empty(), "the user name is empty");
    for role in &args.roles {
        ensure!(!role.is_empty(), "a role is empty");
        if !ROLES.contains(&role.as_str()) {
            eprintln!(
                "hydrad: warning: Hydra knows no role `{role}`; it knows {}",
                ROLES.join(", ")
            );
        }
    }
    Ok(())
}

/// The password to be written, hashed; `None` leaves it as it is.
fn password(args: &CreateUserArgs) -> Result<Option<String>> {
    if let Some(text) = &args.password_hash {
        return password::from_hash(text).map(Some);
    }
    if let Some(text) = &args.password {
        eprintln!(
            "hydrad: warning: a password on the command line is seen by everybody on this host and remembered by your shell; \
             --password-prompt asks for it"
        );
        return password::hash(text).map(Some);
    }
    if args.password_prompt {
        return password::hash(&ask()?).map(Some);
    }
    Ok(None)
}

/// Asks twice on a terminal; else reads a line.
fn ask() -> Result<String> {
    if io::stdin().is_terminal() {
        let prompt = |text| rpassword::prompt_password(text).context("cannot read a password");
        let password = prompt("Password: ")?;
        ensure!(
            password == prompt("The same again: ")?,
            "these were two different passwords; nothing was changed"
        );
        return Ok(password);
    }
    let mut line = String::new();
    let limit = PASSWORD_BYTES_MAX as u64 + 2; // a longer one is refused by its length
    io::stdin()
        .lock()
        .take(limit)
        .read_line(&mut line)
        .context("cannot read a password from standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// What to write of a user who is of type `present`, or new.
fn decide<'a>(
    args: &'a CreateUserArgs,
    present: Option<&str>,
    password: Option<&'a str>,
) -> Result<User<'a>> {
    let kind = args.kind.as_deref().or(present).unwrap_or("hydra");
    let user = User {
        name: &args.name,
        kind: args.kind.as_deref(),
        full_name: args.full_name.as_deref(),
        email: args.email_address.as_deref(),
        password,
        roles: &args.roles,
        wipe_roles: args.wipe_roles,
    };
    if !matches!(kind, "google" | "github") {
        return Ok(user);
    }
    ensure!(
        args.name.contains('@'),
        "the name of a {kind} account is a mail address, and `{}` is none",
        args.name
    );
    ensure!(
        password.is_none() && args.email_address.is_none(),
        "a {kind} account has its password and its address there; leave out --password... and --email-address"
    );
    Ok(User {
        email: Some(&args.name),
        password: Some("!"),
        ..user
    })
}
