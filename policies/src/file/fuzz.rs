//! The part of [`crate::fuzz`] that sees single values.

use super::scalar::{date, date_time, duration, percent, time, written};

/// What must hold of a text as a value of a kind.
pub(crate) fn values(kind: u8, text: &str) {
    match kind % 6 {
        0 => {
            if let Ok(read) = duration(text) {
                assert_eq!(duration(&written(read)), Ok(read));
            }
        }
        1 => {
            if let Ok(read) = percent(text) {
                assert!((0.0..=100.0).contains(&read));
                assert_eq!(percent(&format!("{read}%")), Ok(read));
            }
        }
        2 => {
            if let Ok(read) = time(text) {
                assert_eq!(time(&read.strftime("%H:%M").to_string()), Ok(read));
            }
        }
        3 => {
            if let Ok(read) = date(text) {
                assert_eq!((date(&read.to_string()), read.to_string().as_str()), (Ok(read), text));
            }
        }
        4 => {
            if let Ok(read) = date_time(text) {
                assert_eq!(date_time(&read.to_string()), Ok(read));
            }
        }
        _ => drill(text),
    }
}

/// A cron line, by way of a drill: it is kept in a form of which reading changes nothing more.
fn drill(text: &str) {
    let file = |cron: &str| {
        let cron = toml::Value::String(cron.to_owned());
        let text = format!(
            "format = 1\nteam = \"t\"\ntimezone = \"UTC\"\nwindows = [{{ days = [\"mon\"], open = \"10:00\", close = \"11:00\" }}]\n\
             [apps.a]\nmin_serving = 1\nchaos = {{ mean_workdays = 1, min_workdays = 1 }}\n\
             drills = [{{ cron = {cron}, monkey = \"chaos\" }}]\n"
        );
        let policy = super::parse_policy("p.toml", &text).ok()?.0;
        policy.apps.into_values().next()?.drills.pop()
    };
    if let Some(drill) = file(text) {
        assert_eq!(file(&drill.cron), Some(drill));
    }
}
