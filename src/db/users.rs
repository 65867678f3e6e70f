//! Who may log in to Hydra's web server: the tables `Users` and `UserRoles`.
//!
//! Knows rows. Does not know how a password is hashed (`admin/password.rs`) or what a role allows.

use postgres::error::SqlState;
use postgres::Client;

use super::DbError;

/// What is to be written of a user; `None` leaves a column as it is.
#[derive(Clone, Debug, Default)]
pub struct User<'a> {
    pub name: &'a str,
    /// hydra, google or github.
    pub kind: Option<&'a str>,
    pub full_name: Option<&'a str>,
    pub email: Option<&'a str>,
    /// Hashed, or `!` for none.
    pub password: Option<&'a str>,
    /// Added to those that are there.
    pub roles: &'a [String],
    /// The roles that are there are taken away first.
    pub wipe_roles: bool,
}

/// How a user is written: first looked at, then changed in the same transaction.
pub enum Written {
    /// There is no user of the name that was to be changed.
    NoSuchUser,
    /// Another user has the new name already.
    NameTaken,
    Done {
        created: bool,
        roles: Vec<String>,
    },
}

/// Creates or changes a user. `old_name`: an existing user gets the new name. `decide` gets the type of the user as it is
/// (`None`: it is created) and says what to write.
///
/// # Errors
/// Of the database, or of `decide`; nothing is changed then.
pub fn write<'a, E: From<DbError>>(
    client: &mut Client,
    old_name: Option<&str>,
    name: &str,
    decide: impl FnOnce(Option<&str>) -> Result<User<'a>, E>,
) -> Result<Written, E> {
    let mut tx = client.transaction().map_err(DbError::from)?;
    let present = old_name.unwrap_or(name);
    let lock = include_str!("../../sql/users/lock_user.sql");
    let found = tx.query_opt(lock, &[&present]).map_err(DbError::from)?;
    if found.is_none() && old_name.is_some() {
        return Ok(Written::NoSuchUser);
    }
    let kind: Option<String> = found.map(|row| row.get(0));
    let user = decide(kind.as_deref())?;
    let mut change = || -> Result<Vec<String>, postgres::Error> {
        if kind.is_none() {
            tx.execute(include_str!("../../sql/users/insert_user.sql"), &[&name])?;
        }
        tx.execute(
            include_str!("../../sql/users/update_user.sql"),
            &[
                &present,
                &name,
                &user.kind,
                &user.full_name,
                &user.email,
                &user.password,
            ],
        )?;
        if user.wipe_roles {
            tx.execute(include_str!("../../sql/users/delete_roles.sql"), &[&name])?;
        }
        tx.execute(
            include_str!("../../sql/users/insert_roles.sql"),
            &[&name, &user.roles],
        )?;
        let roles = tx.query(include_str!("../../sql/users/select_roles.sql"), &[&name])?;
        Ok(roles.iter().map(|row| row.get(0)).collect())
    };
    let roles = match change() {
        Ok(roles) => roles,
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            return Ok(Written::NameTaken);
        }
        Err(error) => return Err(DbError::from(error).into()),
    };
    tx.commit().map_err(DbError::from)?;
    Ok(Written::Done {
        created: kind.is_none(),
        roles,
    })
}

/// Users whose password is a sha1 sum in hexadecimal digits, as Hydra kept them until 2021: name and sum.
///
/// # Errors
/// Of the database.
pub fn sha1_passwords(client: &mut Client) -> Result<Vec<(String, String)>, DbError> {
    let rows = client.query(
        include_str!("../../sql/users/select_sha1_passwords.sql"),
        &[],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Replaces a password that is still `old`; whether it was.
///
/// # Errors
/// Of the database.
pub fn replace_password(
    client: &mut Client,
    name: &str,
    old: &str,
    new: &str,
) -> Result<bool, DbError> {
    let sql = include_str!("../../sql/users/replace_password.sql");
    Ok(client.execute(sql, &[&name, &old, &new])? == 1)
}
