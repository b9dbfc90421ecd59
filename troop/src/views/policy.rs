//! What `troop policy check` found, app by app.

use serde::Serialize;
use troop_policies::policy::AppPolicy;

use crate::ui;

/// One app of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppRow {
    pub app: String,
    pub team: String,
    pub file: String,
    /// Null where no cloud was asked.
    pub groups: Option<usize>,
    pub instances: Option<usize>,
    pub opted_in: Vec<String>,
    pub warnings: Vec<String>,
}

/// What an app opted in to: `chaos`, `latency (leashed)`.
pub fn opted_in(app: &AppPolicy) -> Vec<String> {
    let monkey = |name: &str, leashed: bool| if leashed { format!("{name} (leashed)") } else { name.to_owned() };
    let chaos = app.chaos.as_ref().map(|chaos| monkey("chaos", chaos.leashed));
    let latency = app.latency.as_ref().map(|latency| monkey("latency", latency.leashed));
    chaos.into_iter().chain(latency).collect()
}

pub fn text(rows: &[AppRow]) -> String {
    let number = |n: Option<usize>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let list = |items: &[String]| if items.is_empty() { "-".to_owned() } else { items.join("; ") };
    let row =
        |r: &AppRow| vec![r.app.clone(), number(r.groups), number(r.instances), list(&r.opted_in), list(&r.warnings)];
    ui::table(&["APP", "GROUPS", "INSTANCES", "OPTED IN", "WARNINGS"], &rows.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_one_row() {
        let row = AppRow {
            app: "checkout".to_owned(),
            team: "shop".to_owned(),
            file: "shop.toml".to_owned(),
            groups: Some(3),
            instances: Some(17),
            opted_in: vec!["chaos".to_owned(), "latency (leashed)".to_owned()],
            warnings: vec!["checkout-pci: exception, shop.toml:42".to_owned()],
        };
        let plain = AppRow { groups: None, instances: None, opted_in: Vec::new(), warnings: Vec::new(), ..row.clone() };
        assert_eq!(
            text(&[row, plain]),
            "\
APP       GROUPS  INSTANCES  OPTED IN                  WARNINGS
checkout  3       17         chaos; latency (leashed)  checkout-pci: exception, shop.toml:42
checkout  -       -          -                         -"
        );
    }
}
