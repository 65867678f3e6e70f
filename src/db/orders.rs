//! Operators' orders about machines: rows of `hydrad.machine_orders`.

use postgres::Client;

use super::DbError;
use crate::model::UnixSecs;
use crate::plan::event::{MachineOrder, OrderState};

/// Orders changed; empty payload.
pub const CHANGED: &str = "hydrad_machine_orders";

/// All orders, also those whose time is over.
///
/// # Errors
/// Of the database.
pub fn read(client: &mut Client) -> Result<Vec<MachineOrder>, DbError> {
    let rows = client.query(include_str!("../../sql/admin/select_orders.sql"), &[])?;
    let text = |value: Option<String>| value.map(String::into_boxed_str);
    let order = |row: &postgres::Row| {
        Some(MachineOrder {
            machine: text(row.get(0))?,
            state: OrderState::from_word(row.get(1))?,
            until: row.get(2),
            reason: text(row.get(3)),
            who: text(row.get(4))?,
            since: row.get(5),
        })
    };
    Ok(rows.iter().filter_map(order).collect())
}

/// The Unix time that PostgreSQL understands a date and time as.
///
/// # Errors
/// When it does not understand it.
pub fn moment(client: &mut Client, text: &str) -> Result<UnixSecs, DbError> {
    let sql = include_str!("../../sql/admin/show_moment.sql");
    Ok(client.query_one(sql, &[&text])?.get(0))
}

/// Replaces the order about a machine, and announces it.
///
/// # Errors
/// Of the database.
pub fn set(client: &mut Client, order: &MachineOrder) -> Result<(), DbError> {
    let (machine, state, who) = (&*order.machine, order.state.word(), &*order.who);
    client.query(
        include_str!("../../sql/admin/replace_order.sql"),
        &[
            &machine,
            &state,
            &order.until,
            &order.reason.as_deref(),
            &who,
            &order.since,
        ],
    )?;
    Ok(())
}
