//! Single values of the files: durations, shares, times, dates, cron lines; how they are read and what JSON Schema says of them.
//!
//! Each is a string in the file, because a number without a unit is the mistake that turns five minutes into five
//! seconds. Times and dates may also be written as TOML's own.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::time::Duration;

use jiff::civil::{Date, DateTime, Time};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// A value and where it stands, in bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Sp<T>(toml::Spanned<T>);

impl<T> Sp<T> {
    pub(crate) fn get(&self) -> &T {
        self.0.get_ref()
    }

    pub(crate) fn span(&self) -> Range<usize> {
        self.0.span()
    }

    /// Another value at the same place.
    pub(crate) fn with<U>(&self, value: U) -> Sp<U> {
        Sp(toml::Spanned::new(self.span(), value))
    }
}

impl<T: JsonSchema> JsonSchema for Sp<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// What is wrong with a value, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

pub(crate) fn bad<T>(message: impl Into<String>, hint: &str) -> Result<T, Bad> {
    Err(Bad { message: message.into(), hint: (!hint.is_empty()).then(|| hint.to_owned()) })
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $title:literal, $pattern:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) String);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextOrDatetime).map(Self)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "title": $title, "pattern": $pattern, "examples": [$example]})
            }
        }
    };
}

text!(
    /// `5m`, `90s`, `1h 30m`.
    DurationText, "duration", "^[0-9]+(ms|s|m|h|d)( ?[0-9]+(ms|s|m|h|d))*$", "5m");
text!(
    /// `2%`, `0.5%`.
    PercentText, "share", "^[0-9]+(\\.[0-9]+)?%$", "2%");
text!(
    /// `10:00`.
    TimeText, "time", "^([01][0-9]|2[0-3]):[0-5][0-9](:00)?$", "10:00");
text!(
    /// `2026-12-23`.
    DateText, "date", "^[0-9]{4}-[0-9]{2}-[0-9]{2}$", "2026-12-23");
text!(
    /// `2026-11-25T12:00`, or a date.
    DateTimeText, "date and time", "^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?)?$", "2026-11-25T12:00");
text!(
    /// Five fields with weekdays by name.
    CronText, "cron line", "^\\S+ +\\S+ +\\S+ +\\S+ +\\S+$", "30 10 * * mon-thu");

/// One of the built-in holiday calendars.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct CalendarName(pub(crate) String);

impl JsonSchema for CalendarName {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "CalendarName".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "enum": super::KNOWN_CALENDARS})
    }
}

struct TextOrDatetime;

impl<'de> Visitor<'de> for TextOrDatetime {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<String, A::Error> {
        Ok(toml::value::Datetime::deserialize(MapAccessDeserializer::new(map))?.to_string())
    }
}

/// One value, or `{ from, to }`, from which one is drawn.
#[derive(Debug, Clone)]
pub(crate) enum OneOrRange<T> {
    One(T),
    Range(Bounds<T>),
}

#[derive(Debug, Clone, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bounds<T> {
    /// The least.
    #[schemars(required)]
    pub from: Option<Sp<T>>,
    /// The most.
    #[schemars(required)]
    pub to: Option<Sp<T>>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrRange<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand, because an untagged enum would lose where `from` and `to` stand.
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrRange<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a table of `from` and `to`")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(StrDeserializer::new(text)).map(OneOrRange::One)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                Bounds::deserialize(MapAccessDeserializer::new(map)).map(OneOrRange::Range)
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for OneOrRange<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrRange_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        let title = one.get("title").and_then(|t| t.as_str()).unwrap_or("value").to_owned();
        let range = generator.subschema_for::<Bounds<T>>();
        json_schema!({"title": format!("{title} or {{ from, to }}"), "anyOf": [one, range]})
    }
}

/// Units, greatest first, in milliseconds. A day is 24 hours here: no key counts civil days.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `5m`, `90s`, `1h 30m`: whole numbers with units, greatest first.
pub(crate) fn duration(text: &str) -> Result<Duration, Bad> {
    let is_bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if is_bare {
        return bad(
            "a duration needs a unit",
            &format!("for example \"{text}s\" or \"{text}m\"; units are ms, s, m, h, d"),
        );
    }
    let wrong = || {
        bad(
            "not a duration",
            "write whole numbers with units, such as \"5m\", \"90s\" or \"1h 30m\"; units are ms, s, m, h, d",
        )
    };
    let (mut rest, mut total_ms, mut units) = (text, 0u64, UNITS.as_slice());
    if text.is_empty() {
        return wrong();
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
        let Some(at) = units.iter().position(|(name, _)| *name == unit) else { return wrong() };
        if number.is_empty() {
            return wrong();
        }
        // Digits that are no number are too many of them.
        let in_ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(units[at].1));
        let Some(sum) = in_ms.and_then(|ms| total_ms.checked_add(ms)) else {
            return bad("the duration is too long", "nothing here lasts for more than days");
        };
        total_ms = sum;
        units = &units[at + 1..];
        rest = &rest[digits + letters..];
        rest = match rest.strip_prefix(' ') {
            Some("") => return wrong(),
            Some(after) => after,
            None => rest,
        };
    }
    Ok(Duration::from_millis(total_ms))
}

/// Writes a duration as this file's form reads it.
pub(crate) fn written(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = UNITS.iter().find(|(_, size)| ms >= *size && ms % size == 0);
    fits.map_or_else(|| format!("{ms}ms"), |(unit, size)| format!("{}{unit}", ms / size))
}

/// Reads `2%` as 2.0.
pub(crate) fn percent(text: &str) -> Result<f64, Bad> {
    let Some(number) = text.strip_suffix('%') else {
        return bad("a share needs a percent sign", "for example \"2%\" or \"0.5%\"");
    };
    let plain =
        number.starts_with(|c: char| c.is_ascii_digit()) && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match number.trim().parse::<f64>() {
        Ok(value) if plain && (0.0..=100.0).contains(&value) => Ok(value),
        Ok(value) if plain && value > 100.0 => bad("a share cannot be over 100%", "100% is all there is"),
        Ok(_) | Err(_) => bad("not a share", "for example \"2%\" or \"0.5%\""),
    }
}

/// Whether `text` has the form of `shape`, in which `0` stands for any digit.
fn has_shape(text: &str, shape: &str) -> bool {
    text.len() == shape.len()
        && text.bytes().zip(shape.bytes()).all(|(t, s)| if s == b'0' { t.is_ascii_digit() } else { t == s })
}

/// Reads `10:00`; windows are counted in whole minutes.
pub(crate) fn time(text: &str) -> Result<Time, Bad> {
    if text == "24:00" {
        return bad("a day ends at 23:59", "write \"00:00\"; as `close` it means midnight at the end of the day");
    }
    if has_shape(text, "00:00:00") && !text.ends_with(":00") {
        return bad("a time is given in whole minutes", &format!("write \"{}\"", &text[..5]));
    }
    if has_shape(text, "0:00") {
        return bad("a time has two digits for the hour", &format!("write \"0{text}\""));
    }
    if !has_shape(text, "00:00") && !has_shape(text, "00:00:00") {
        return bad("not a time of day", "write hours and minutes of 24 hours, such as \"10:00\" or \"16:30\"");
    }
    let number = |at: Range<usize>| text[at].parse::<i8>().unwrap_or(-1);
    Time::new(number(0..2), number(3..5), 0, 0)
        .or_else(|_| bad("no such time of day", "hours go from 00 to 23, minutes from 00 to 59"))
}

/// Reads `2026-12-23`.
pub(crate) fn date(text: &str) -> Result<Date, Bad> {
    if !has_shape(text, "0000-00-00") {
        return bad("not a date", "write year, month and day, such as \"2026-12-23\"");
    }
    let number = |at: Range<usize>| text[at].parse::<i16>().unwrap_or(-1);
    let (month, day) = (i8::try_from(number(5..7)), i8::try_from(number(8..10)));
    match (month, day) {
        (Ok(month), Ok(day)) => Date::new(number(0..4), month, day).or_else(|_| {
            bad("there is no such day in the calendar", "months have 28 to 31 days, in the order year, month, day")
        }),
        (Err(_), _) | (_, Err(_)) => {
            bad("there is no such day in the calendar", "months have 28 to 31 days, in the order year, month, day")
        }
    }
}

/// Reads `2026-11-25T12:00`, or a date alone as its midnight.
pub(crate) fn date_time(text: &str) -> Result<DateTime, Bad> {
    let hint = "write date and time, such as \"2026-11-25T12:00\", or a date alone";
    if has_shape(text, "0000-00-00") {
        return Ok(date(text)?.at(0, 0, 0, 0));
    }
    let (Some(day), Some(clock)) = (text.get(..10), text.get(11..)) else { return bad("not a date and time", hint) };
    if !matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' ')) {
        return bad("not a date and time", hint);
    }
    let offset = clock.ends_with(['Z', 'z']) || clock.contains('+') || clock.contains('-');
    if offset && has_shape(day, "0000-00-00") {
        return bad("an offset has no place here", "the time is read in the policy's `timezone`; leave the offset out");
    }
    Ok(date(day)?.to_datetime(time(clock)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations_and_writes_them_back() {
        for (text, ms) in [
            ("5m", 300_000),
            ("90s", 90_000),
            ("2h", 7_200_000),
            ("1h 30m", 5_400_000),
            ("1m30s", 90_000),
            ("50ms", 50),
            ("1d", 86_400_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration(&written(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "5",
            "m",
            "5 m",
            "5M",
            "-5m",
            "1.5h",
            "5m ",
            " 5m",
            "30s 1m",
            "1m 1m",
            "5m5",
            "é",
            "5é",
            "99999999999999999999s",
            "9999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn reads_shares_as_percent() {
        assert_eq!(percent("2%"), Ok(2.0));
        assert_eq!(percent("0.5%"), Ok(0.5));
        for text in ["", "%", "2", "0.02", "-1%", "101%", "nan%", "inf%", "1e1%", " 2%", "2 %", ".5%", "1.2.3%"] {
            assert!(percent(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn reads_times_of_whole_minutes() {
        assert_eq!(time("10:00"), Ok(jiff::civil::time(10, 0, 0, 0)));
        assert_eq!(time("23:59:00"), Ok(jiff::civil::time(23, 59, 0, 0)));
        for text in ["", "24:00", "9:00", "10", "10:60", "10:00:30", "10:00 pm", "1é:00", "+1:00"] {
            assert!(time(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn reads_dates_without_offsets() {
        assert_eq!(date("2028-02-29"), Ok(jiff::civil::date(2028, 2, 29)));
        assert_eq!(date_time("2026-11-25T12:00"), Ok(jiff::civil::date(2026, 11, 25).at(12, 0, 0, 0)));
        assert_eq!(date_time("2026-11-25 12:00"), date_time("2026-11-25T12:00:00"));
        assert_eq!(date_time("2026-12-01"), Ok(jiff::civil::date(2026, 12, 1).at(0, 0, 0, 0)));
        for text in [
            "",
            "2026-02-29",
            "2026-13-01",
            "26-12-01",
            "20261201",
            "2026-12-01T",
            "2026-12-01T12",
            "2026-12-01x12:00",
            "2026-12-0é12:00",
        ] {
            assert!(date_time(text).is_err(), "{text:?} was taken");
        }
        for text in ["2026-11-25T12:00Z", "2026-11-25T12:00:00+01:00"] {
            assert!(date_time(text).unwrap_err().hint.unwrap().contains("offset"), "{text}");
        }
    }
}
