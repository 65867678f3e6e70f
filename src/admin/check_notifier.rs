//! What `hydrad check` says of the notifier: who would be told, and whether what that needs is there. Nobody is asked over the
//! network.

use super::check::{folder_mark, CheckRow, Mark};
use crate::config::settings::{Service, Settings};
use crate::notify::plugins::{self, Plugin};
use crate::notify::{self, http};
use crate::web::client::host;

const SECTION: &str = "notifier";

/// A row for each plugin, and one for whatever is wrong with it. Without the service in `services` only what is wrong, as a
/// warning: `hydrad notify` may be started by itself, or Hydra's own notifier may be at work.
pub fn rows(settings: &Settings) -> Vec<CheckRow> {
    let serves = settings.services.contains(&Service::Notify);
    let bad = if serves { Mark::Problem } else { Mark::Warning };
    let mut rows = Vec::new();
    let all = notify::read_plugins(settings)
        .map_err(|error| error.to_string())
        .and_then(|blocks| plugins::all(&blocks));
    match all {
        Ok(all) => {
            for plugin in all {
                plugin_rows(settings, plugin.as_ref(), bad, &mut rows);
            }
        }
        // Told among the settings where the service is.
        Err(_) if serves => {}
        Err(error) => rows.push(CheckRow::new(SECTION, "plugins", "", bad, error)),
    }
    if !serves {
        rows.retain(|row| row.mark != Mark::Ok);
    }
    if !serves && !rows.is_empty() {
        let note = "`services` has no `notify`: this counts for `hydrad notify` by itself, not where Hydra's notifier is at work";
        rows.push(CheckRow::new(SECTION, "service", "", Mark::Note, note));
    }
    rows
}

fn plugin_rows(settings: &Settings, plugin: &dyn Plugin, bad: Mark, rows: &mut Vec<CheckRow>) {
    let needs = plugin.needs();
    let hosts: Vec<&str> = needs.addresses.iter().map(|url| host(url)).collect();
    let before = rows.len();
    for url in &needs.addresses {
        if let Err(why) = http::is_usable(url) {
            let host = host(url).to_owned();
            rows.push(CheckRow::new(SECTION, plugin.target(), host, bad, why));
        }
    }
    for path in &needs.secrets {
        if let Err(failure) = plugins::secret(path) {
            let shown = path.display().to_string();
            rows.push(CheckRow::new(
                SECTION,
                plugin.target(),
                shown,
                bad,
                failure.text,
            ));
        }
    }
    for folder in &needs.folders {
        let path = settings.data_dir.join(folder);
        if let (Mark::Problem, note) = folder_mark(&path, String::new()) {
            let shown = path.display().to_string();
            rows.push(CheckRow::new(SECTION, plugin.target(), shown, bad, note));
        }
    }
    if rows.len() == before {
        let channels = plugin.channels().join(", ");
        let note = format!("hears {channels}");
        rows.push(CheckRow::new(
            SECTION,
            plugin.target(),
            hosts.join(", "),
            Mark::Ok,
            note,
        ));
    }
}
