//! Times and durations for people: in the policy's zone and in UTC.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The zone with this IANA name, or UTC where the name is unknown here.
pub fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap_or(TimeZone::UTC)
}

fn in_zone(at: Timestamp, zone: &TimeZone, format: &str) -> String {
    at.to_zoned_datetime(zone.clone()).strftime(format).to_string()
}

fn is_utc(zone: &TimeZone) -> bool {
    matches!(zone.iana_name(), Some("UTC" | "Etc/UTC")) || *zone == TimeZone::UTC
}

/// `Tue 2026-11-24 13:07:04 EST (18:07:04Z)`; the second part only where it differs.
pub fn both(at: Timestamp, zone: &TimeZone) -> String {
    let local = in_zone(at, zone, "%a %Y-%m-%d %H:%M:%S %Z");
    if is_utc(zone) { local } else { format!("{local} ({}Z)", in_zone(at, &TimeZone::UTC, "%H:%M:%S")) }
}

/// `13:07:04 (18:07:04Z)`.
pub fn clock_both(at: Timestamp, zone: &TimeZone) -> String {
    let local = in_zone(at, zone, "%H:%M:%S");
    if is_utc(zone) {
        format!("{local} UTC")
    } else {
        format!("{local} ({}Z)", in_zone(at, &TimeZone::UTC, "%H:%M:%S"))
    }
}

/// `13:07`.
pub fn minute(at: Timestamp, zone: &TimeZone) -> String {
    in_zone(at, zone, "%H:%M")
}

/// `2026-11-24 13:07:04 EST`.
pub fn day_and_clock(at: Timestamp, zone: &TimeZone) -> String {
    in_zone(at, zone, "%Y-%m-%d %H:%M:%S %Z")
}

/// `10:00-16:00`, with the UTC of both where the zone is another.
pub fn window(opens: Timestamp, shuts: Timestamp, zone: &TimeZone) -> String {
    let span = |zone: &TimeZone| format!("{}-{}", minute(opens, zone), minute(shuts, zone));
    if is_utc(zone) { span(zone) } else { format!("{} ({}Z)", span(zone), span(&TimeZone::UTC)) }
}

/// Seconds as people say them: `0.2 s`, `74 s`, `5 min 3 s`, `2 h 5 min`, `3 d 4 h`.
pub fn seconds(seconds: f64) -> String {
    if !(0.0..1e12).contains(&seconds) {
        return "-".to_owned();
    }
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 60 and 1e12")]
    let whole = seconds as u64;
    let two = |big: u64, big_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{big} {big_unit}"),
        small => format!("{big} {big_unit} {small} {small_unit}"),
    };
    match whole {
        0..120 => format!("{whole} s"),
        120..3_600 => two(whole / 60, "min", whole % 60, "s"),
        3_600..86_400 => two(whole / 3_600, "h", whole % 3_600 / 60, "min"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3_600, "h"),
    }
}

/// How long before `now` something was.
pub fn since(at: Timestamp, now: Timestamp) -> String {
    seconds(now.duration_since(at).as_secs_f64().max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_stand_in_the_zone_and_in_utc() {
        let at: Timestamp = "2026-11-24T18:07:04Z".parse().unwrap();
        let new_york = zone("America/New_York");
        assert_eq!(both(at, &new_york), "Tue 2026-11-24 13:07:04 EST (18:07:04Z)");
        assert_eq!(both(at, &TimeZone::UTC), "Tue 2026-11-24 18:07:04 UTC");
        assert_eq!(both(at, &zone("UTC")), "Tue 2026-11-24 18:07:04 UTC");
        assert_eq!(both(at, &zone("No/Where")), "Tue 2026-11-24 18:07:04 UTC");
        assert_eq!(clock_both(at, &new_york), "13:07:04 (18:07:04Z)");
        let later = "2026-11-24T21:00:00Z".parse().unwrap();
        assert_eq!(window(at, later, &new_york), "13:07-16:00 (18:07-21:00Z)");
    }

    #[test]
    fn durations_read_like_speech() {
        for (value, text) in [
            (0.23, "0.2 s"),
            (74.9, "74 s"),
            (300.0, "5 min"),
            (303.0, "5 min 3 s"),
            (7_500.0, "2 h 5 min"),
            (273_600.0, "3 d 4 h"),
            (-1.0, "-"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(seconds(value), text);
        }
    }
}
