//! What an earlier build recorded of the same outputs.

use super::pool::Conn;
use super::DbError;
use crate::model::{BuildMetric, BuildOutput, BuildProduct};

/// The newest finished build that has one of these output paths, without its outputs' names and paths.
///
/// # Errors
/// Of the database.
pub fn find(conn: &mut Conn, paths: &[&str]) -> Result<Option<BuildOutput>, DbError> {
    let mut tx = conn.transaction()?;
    let rows = tx.query(
        include_str!("../../sql/queue/select_known_output.sql"),
        &[&paths],
    )?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let build: i32 = row.get(0);
    let size = |value: Option<i64>| {
        value
            .and_then(|value| u64::try_from(value).ok())
            .unwrap_or(0)
    };
    let mut output = BuildOutput {
        failed: row.get::<_, Option<i32>>(1) == Some(6),
        release_name: row.get(2),
        closure_size: size(row.get(3)),
        size: size(row.get(4)),
        ..BuildOutput::default()
    };
    for row in tx.query(
        include_str!("../../sql/queue/select_products.sql"),
        &[&build],
    )? {
        output.products.push(BuildProduct {
            kind: row.get(0),
            subtype: row.get(1),
            file_size: row
                .get::<_, Option<i64>>(2)
                .and_then(|size| u64::try_from(size).ok()),
            sha256: row.get(3),
            path: row.get(4),
            name: row.get(5),
            default_path: row.get(6),
        });
    }
    for row in tx.query(
        include_str!("../../sql/queue/select_metrics.sql"),
        &[&build],
    )? {
        output.metrics.push(BuildMetric {
            name: row.get(0),
            unit: row.get(1),
            value: row.get(2),
        });
    }
    tx.commit()?;
    Ok(Some(output))
}
