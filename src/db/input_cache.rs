//! What was fetched before: Hydra's tables `Cached...Inputs`, one for each kind of repository. A row says which store path holds a
//! revision; whether that path is still valid it does not know.

use super::pool::Conn;
use super::DbError;

/// A revision in a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key<'a> {
    Git {
        uri: &'a str,
        branch: &'a str,
        revision: &'a str,
        deep: bool,
    },
    Hg {
        uri: &'a str,
        branch: &'a str,
        revision: &'a str,
    },
    Subversion {
        uri: &'a str,
        revision: i32,
    },
    Bazaar {
        uri: &'a str,
        revision: i32,
    },
    Darcs {
        uri: &'a str,
        revision: &'a str,
    },
}

/// Where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cached {
    /// Full path.
    pub store_path: String,
    /// SHA-256 of the NAR in base 32, of paths with `sha256:` in front.
    pub sha256: String,
    /// Darcs' alone.
    pub rev_count: Option<i32>,
}

/// The row of a revision.
///
/// # Errors
/// Of the database.
pub fn find(conn: &mut Conn, key: &Key<'_>) -> Result<Option<Cached>, DbError> {
    let rows = match key {
        Key::Git {
            uri,
            branch,
            revision,
            deep,
        } => conn.query(
            include_str!("../../sql/inputs/select_git.sql"),
            &[uri, branch, revision, deep],
        )?,
        Key::Hg {
            uri,
            branch,
            revision,
        } => conn.query(
            include_str!("../../sql/inputs/select_hg.sql"),
            &[uri, branch, revision],
        )?,
        Key::Subversion { uri, revision } => conn.query(
            include_str!("../../sql/inputs/select_subversion.sql"),
            &[uri, revision],
        )?,
        Key::Bazaar { uri, revision } => conn.query(
            include_str!("../../sql/inputs/select_bazaar.sql"),
            &[uri, revision],
        )?,
        Key::Darcs { uri, revision } => conn.query(
            include_str!("../../sql/inputs/select_darcs.sql"),
            &[uri, revision],
        )?,
    };
    Ok(rows.first().map(|row| Cached {
        store_path: row.get(0),
        sha256: row.get(1),
        rev_count: matches!(key, Key::Darcs { .. }).then(|| row.get(2)),
    }))
}

/// Records where a revision is.
///
/// # Errors
/// Of the database.
pub fn record(conn: &mut Conn, key: &Key<'_>, at: &Cached) -> Result<(), DbError> {
    let (path, hash) = (&at.store_path, &at.sha256);
    match key {
        Key::Git {
            uri,
            branch,
            revision,
            deep,
        } => conn.execute(
            include_str!("../../sql/inputs/upsert_git.sql"),
            &[uri, branch, revision, deep, path, hash],
        ),
        Key::Hg {
            uri,
            branch,
            revision,
        } => conn.execute(
            include_str!("../../sql/inputs/upsert_hg.sql"),
            &[uri, branch, revision, path, hash],
        ),
        Key::Subversion { uri, revision } => conn.execute(
            include_str!("../../sql/inputs/upsert_subversion.sql"),
            &[uri, revision, path, hash],
        ),
        Key::Bazaar { uri, revision } => conn.execute(
            include_str!("../../sql/inputs/upsert_bazaar.sql"),
            &[uri, revision, path, hash],
        ),
        Key::Darcs { uri, revision } => conn.execute(
            include_str!("../../sql/inputs/upsert_darcs.sql"),
            &[uri, revision, path, hash, &at.rev_count.unwrap_or(0)],
        ),
    }
    .map(|_| ())
}

/// What a path held when it was looked at after `since`, and when that was first seen there (both Unix time).
///
/// # Errors
/// Of the database.
pub fn recent_path(
    conn: &mut Conn,
    source: &str,
    since: i64,
) -> Result<Option<(Cached, i64)>, DbError> {
    let rows = conn.query(
        include_str!("../../sql/inputs/select_recent_path.sql"),
        &[&source, &column_time(since)],
    )?;
    Ok(rows.first().map(|row| {
        let cached = Cached {
            store_path: row.get(0),
            sha256: row.get(1),
            rev_count: None,
        };
        (cached, i64::from(row.get::<_, i32>(2)))
    }))
}

/// Records what a path holds now; when that was first seen there.
///
/// # Errors
/// Of the database.
pub fn see_path(conn: &mut Conn, source: &str, at: &Cached, now: i64) -> Result<i64, DbError> {
    let rows = conn.query(
        include_str!("../../sql/inputs/see_path.sql"),
        &[&source, &column_time(now), &at.sha256, &at.store_path],
    )?;
    Ok(rows
        .first()
        .map_or(now, |row| i64::from(row.get::<_, i32>(0))))
}

fn column_time(time: i64) -> i32 {
    i32::try_from(time).unwrap_or(i32::MAX)
}
