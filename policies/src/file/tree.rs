//! Checks a parsed TOML tree against a file's JSON Schema: unknown keys, wrong types, missing keys, values out of bounds.
//!
//! What is wrong is told with its place and taken out of the tree, so that the rest can still be read and every mistake
//! of a file is told at once. Only what schemars writes for our own types is understood here; it is no general validator.

use std::ops::Range;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::diagnostic::{Findings, is_harmless, shown};

/// Longest text where the schema names no other bound: long enough for any name or path, short enough for a table's cell.
const TEXT_CHARS_MAX: u64 = 500;
/// How alike two keys must be (Jaro-Winkler) for one to be offered for the other.
const ALIKE: f64 = 0.8;
/// What to do about lists past their bounds.
const TOO_MANY: &str = "people must be able to read this file: keep less in it, or let several teams keep one each";
/// Titles of texts that TOML can also write without quotes.
const DATETIME_TITLES: [&str; 3] = ["time", "date", "date and time"];

/// How a tree is to be checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check<'s> {
    /// The whole schema, to say where a misplaced key belongs.
    pub(crate) root: &'s Value,
    /// Whether to tell missing keys: not in a file with syntax errors, where the broken line may hold them.
    pub(crate) missing: bool,
}

/// Checks the root table and takes out what is wrong.
pub(crate) fn check(table: &mut Spanned<DeTable<'_>>, how: Check<'_>, out: &mut Findings<'_>) {
    check_table(table.get_mut(), 0..0, how.root, "", how, out);
}

fn check_table(
    table: &mut DeTable<'_>,
    span: Range<usize>,
    schema: &Value,
    path: &str,
    how: Check<'_>,
    out: &mut Findings<'_>,
) {
    let properties = schema.get("properties").and_then(Value::as_object);
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    for key in required.filter(|key| how.missing && !is_meant(table, key, properties)) {
        let example = example_of(&schema["properties"][key]);
        out.error(span.clone(), format!("missing key `{key}`"), Some(format!("add {key} = {example}")));
    }
    if let Some(most) = schema.get("maxProperties").and_then(Value::as_u64)
        && u64::try_from(table.len()).unwrap_or(u64::MAX) > most
    {
        let message = format!("`[{path}]` holds {} entries; {most} is the most", table.len());
        out.error(span, message, Some(TOO_MANY.to_owned()));
        return table.clear();
    }
    let others = schema.get("additionalProperties").filter(|s| s.is_object());
    for (key, mut value) in std::mem::take(table) {
        let name: &str = key.get_ref();
        let inner = properties.and_then(|p| p.get(name)).or(others);
        let Some(inner) = inner else {
            let known: Vec<_> = properties.into_iter().flat_map(|p| p.keys()).map(String::as_str).collect();
            out.error(key.span(), format!("unknown key `{}`", shown(name)), unknown_key_hint(name, &known, how.root));
            continue;
        };
        let path = if path.is_empty() { shown(name) } else { format!("{path}.{}", shown(name)) };
        // A table that only its sub-tables' headers imply has no place of its own; its key has.
        let place = if value.span().is_empty() { key.span() } else { value.span() };
        if check_value(&mut value, place, inner, &Named { name: &shown(name), path: &path }, how, out) {
            table.insert(key, value);
        }
    }
}

/// Whether `key` stands in the table, or one that was meant to be it: two messages for one slip would send its author to two
/// places.
fn is_meant(table: &DeTable<'_>, key: &str, properties: Option<&serde_json::Map<String, Value>>) -> bool {
    let known = || properties.into_iter().flat_map(|p| p.keys()).map(String::as_str);
    table
        .keys()
        .map(|k| k.get_ref())
        .any(|k| k == key || (!known().any(|p| p == k) && nearest(k, known()) == Some(key)))
}

/// Whether the table at `path` of `schema` (names of properties; `*` for any) has `key`, or one that was meant to be it.
pub(crate) fn has_or_means(table: &DeTable<'_>, key: &str, schema: &Value, path: &[&str]) -> bool {
    let at = path
        .iter()
        .fold(schema, |at, step| if *step == "*" { &at["additionalProperties"] } else { &at["properties"][step] });
    is_meant(table, key, at.get("properties").and_then(Value::as_object))
}

/// What a value is called in a message, and where it stands.
struct Named<'n> {
    name: &'n str,
    path: &'n str,
}

/// Returns whether the value may stay in the tree.
fn check_value(
    value: &mut Spanned<DeValue<'_>>,
    span: Range<usize>,
    schema: &Value,
    named: &Named<'_>,
    how: Check<'_>,
    out: &mut Findings<'_>,
) -> bool {
    let branches = schema.get("anyOf").and_then(Value::as_array);
    let branch = match branches {
        Some(branches) => branches.iter().find(|b| has_type(value.get_ref(), b)),
        None => has_type(value.get_ref(), schema).then_some(schema),
    };
    let Some(schema) = branch else {
        let message = format!("`{}` must be {}, not {}", named.name, wanted(schema), found(value.get_ref()));
        out.error(span, message, type_hint(value.get_ref(), schema, named));
        return false;
    };
    let problem = match value.get_mut() {
        DeValue::Table(table) => {
            check_table(table, span, schema, named.path, how, out);
            return true;
        }
        DeValue::Array(array) => return check_array(array, span, schema, named, how, out),
        DeValue::String(text) => text_problem(text, schema, named),
        DeValue::Integer(integer) => {
            integer_problem(i64::from_str_radix(integer.as_str(), integer.radix()).ok(), schema, named)
        }
        DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => None,
    };
    match problem {
        Some((message, hint)) => {
            out.error(span, message, hint);
            false
        }
        None => true,
    }
}

fn check_array(
    array: &mut DeArray<'_>,
    span: Range<usize>,
    schema: &Value,
    named: &Named<'_>,
    how: Check<'_>,
    out: &mut Findings<'_>,
) -> bool {
    let count = u64::try_from(array.len()).unwrap_or(u64::MAX);
    if schema.get("minItems").and_then(Value::as_u64).is_some_and(|least| count < least) {
        out.error(span, format!("`{}` is empty", named.name), Some(format!("write {}", example_of(schema))));
        return false;
    }
    let unique = schema.get("uniqueItems").is_some();
    if let Some(most) = schema.get("maxItems").and_then(Value::as_u64).filter(|most| count > *most && !unique) {
        let message = format!("`{}` holds {count} entries; {most} is the most", named.name);
        out.error(span, message, Some(TOO_MANY.to_owned()));
        return false;
    }
    let mut kept = DeArray::new();
    let mut seen = std::collections::BTreeSet::new();
    for mut item in std::mem::replace(array, DeArray::new()) {
        let span = item.span();
        if !check_value(&mut item, span.clone(), &schema["items"], named, how, out) {
            continue;
        }
        let text = item.get_ref().as_str().map(str::to_owned);
        if let Some(text) = text.filter(|text| unique && !seen.insert(text.clone())) {
            let message = format!("`{}` stands twice in `{}`", shown(&text), named.name);
            out.error(span, message, Some("remove one of the two".to_owned()));
            continue;
        }
        kept.push(item);
    }
    if let Some(most) = schema
        .get("maxItems")
        .and_then(Value::as_u64)
        .filter(|most| unique && u64::try_from(seen.len()).unwrap_or(u64::MAX) > *most)
    {
        let message = format!("`{}` holds {count} entries; {most} is the most", named.name);
        out.error(span, message, Some(TOO_MANY.to_owned()));
        return false;
    }
    *array = kept;
    true
}

type Problem = (String, Option<String>);

fn text_problem(text: &str, schema: &Value, named: &Named<'_>) -> Option<Problem> {
    let name = named.name;
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        let values: Vec<_> = values.iter().filter_map(Value::as_str).collect();
        if values.contains(&text) {
            return None;
        }
        let list = values.iter().map(|v| format!("\"{v}\"")).collect::<Vec<_>>().join(", ");
        let hint = match nearest(text, values.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"? Known: {list}"),
            None => format!("known: {list}"),
        };
        return Some((format!("`{}` is no value of `{name}`", shown(text)), Some(hint)));
    }
    if let Some(c) = text.chars().find(|c| !is_harmless(*c)) {
        let message = format!("`{name}` holds the character {}, which would spoil a terminal", c.escape_unicode());
        return Some((message, Some("write it on one line, without control characters".to_owned())));
    }
    let count = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
    let most = schema.get("maxLength").and_then(Value::as_u64).unwrap_or(TEXT_CHARS_MAX);
    if count > most {
        let hint = format!("shorten it to {most} characters");
        return Some((format!("`{name}` has {count} characters; {most} is the most"), Some(hint)));
    }
    let least = schema.get("minLength").and_then(Value::as_u64).unwrap_or(0);
    let hint = "write something between the quotes, for whoever reads it".to_owned();
    (count < least).then(|| (format!("`{name}` is empty"), Some(hint)))
}

fn integer_problem(number: Option<i64>, schema: &Value, named: &Named<'_>) -> Option<Problem> {
    let name = named.name;
    let least = schema.get("minimum").and_then(Value::as_i64).unwrap_or(i64::MIN);
    let most = schema.get("maximum").and_then(Value::as_i64).unwrap_or(i64::MAX);
    match number {
        Some(number) if (least..=most).contains(&number) => None,
        Some(_) | None if least == most => {
            Some((format!("`{name}` must be {least}"), Some(format!("this Troop reads only {name} = {least}"))))
        }
        Some(number) if number < least => {
            let hint = match name {
                "kills_per_day" => "to hurt nothing, keep `leashed = true`".to_owned(),
                _ => format!("write {name} = {least} or more"),
            };
            Some((format!("`{name}` must be at least {least}"), Some(hint)))
        }
        Some(_) | None => {
            Some((format!("`{name}` can be {most} at most"), Some(format!("write {name} = {most} or less"))))
        }
    }
}

fn has_type(value: &DeValue<'_>, schema: &Value) -> bool {
    let title = schema.get("title").and_then(Value::as_str).unwrap_or("");
    match (schema.get("type").and_then(Value::as_str), value) {
        (Some("string"), DeValue::String(_))
        | (Some("integer"), DeValue::Integer(_))
        | (Some("boolean"), DeValue::Boolean(_))
        | (Some("array"), DeValue::Array(_))
        | (Some("object"), DeValue::Table(_)) => true,
        (Some("string"), DeValue::Datetime(_)) => DATETIME_TITLES.contains(&title),
        (Some(_) | None, _) => false,
    }
}

fn wanted(schema: &Value) -> String {
    let title = schema.get("title").and_then(Value::as_str);
    let kind = schema.get("type").and_then(Value::as_str);
    match (title, kind) {
        (Some(title), _) => format!("a {title}"),
        (None, Some("string")) => "a text".to_owned(),
        (None, Some("integer")) => "a whole number".to_owned(),
        (None, Some("boolean")) => "true or false".to_owned(),
        (None, Some("array")) if holds_tables(schema) => "a list of tables".to_owned(),
        (None, Some("array")) => "a list".to_owned(),
        (None, Some("object")) => "a table".to_owned(),
        (None, Some(_) | None) => "something else".to_owned(),
    }
}

fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn holds_tables(schema: &Value) -> bool {
    schema["items"]["type"] == "object"
}

fn type_hint(value: &DeValue<'_>, schema: &Value, named: &Named<'_>) -> Option<String> {
    let (name, title) = (named.name, schema.get("title").and_then(Value::as_str).unwrap_or(""));
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or("");
    Some(match (kind, value) {
        ("boolean", DeValue::String(text)) => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => format!("remove the quotes: {name} = true"),
            "false" | "no" | "off" => format!("remove the quotes: {name} = false"),
            _ => format!("write {name} = true or {name} = false, without quotes"),
        },
        ("boolean", DeValue::Integer(_)) => format!("write {name} = true or {name} = false"),
        ("integer", DeValue::String(text)) if text.parse::<i64>().is_ok() => {
            format!("remove the quotes: {name} = {}", shown(text))
        }
        (_, DeValue::Integer(number)) if title.starts_with("duration or") => {
            format!("add a unit and quotes: {name} = \"{}ms\"", shown(number.as_str()))
        }
        (_, DeValue::Integer(number)) if title == "duration" => {
            format!("add a unit and quotes: {name} = \"{0}s\" or \"{0}m\"", shown(number.as_str()))
        }
        (_, DeValue::Integer(number)) if title.starts_with("share") => {
            format!("add a percent sign and quotes: {name} = \"{}%\"", shown(number.as_str()))
        }
        ("string", DeValue::Integer(number)) if title.is_empty() && schema.get("examples").is_none() => {
            format!("put it into quotes: {name} = \"{}\"", shown(number.as_str()))
        }
        ("array", DeValue::Table(_)) if holds_tables(schema) => {
            format!("write [[{}]] with two brackets: there can be several", named.path)
        }
        ("array", DeValue::String(text)) => format!("put it into brackets: {name} = [\"{}\"]", shown(text)),
        ("object", DeValue::Array(_)) => format!("write [{}] with one bracket: there is only one", named.path),
        (_, _) => format!("for example {name} = {}", example_of(schema)),
    })
}

/// A value that the schema would take, for hints.
fn example_of(schema: &Value) -> String {
    if let Some(example) = schema.get("examples").and_then(|e| e.get(0)) {
        return example.to_string();
    }
    if let Some(first) = schema.get("enum").and_then(|e| e.get(0)).and_then(Value::as_str) {
        return format!("\"{first}\"");
    }
    if let Some(branch) = schema.get("anyOf").and_then(|b| b.get(0)) {
        return example_of(branch);
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("integer") => schema.get("minimum").and_then(Value::as_i64).unwrap_or(1).to_string(),
        Some("boolean") => "true".to_owned(),
        Some("array") => format!("[{}]", example_of(&schema["items"])),
        Some("object") => "{ … }".to_owned(),
        Some(_) | None => "\"…\"".to_owned(),
    }
}

fn unknown_key_hint(name: &str, known: &[&str], root: &Value) -> Option<String> {
    if let Some(near) = nearest(name, known.iter().copied()) {
        return Some(format!("did you mean `{near}`?"));
    }
    let mut homes = Vec::new();
    tables_with(name, root, "", false, &mut homes);
    if homes.is_empty() {
        return Some(format!("known keys: {}", known.join(", ")));
    }
    Some(format!("`{name}` belongs in {}", homes.join(" or ")))
}

/// Finds the tables of a schema that have a key `name`, as their headers are written.
fn tables_with(name: &str, schema: &Value, path: &str, in_list: bool, homes: &mut Vec<String>) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        if properties.contains_key(name) {
            homes.push(match (path, in_list) {
                ("", _) => "the top of the file".to_owned(),
                (path, true) => format!("`[[{path}]]`"),
                (path, false) => format!("`[{path}]`"),
            });
        }
        properties.iter().for_each(|(key, inner)| tables_with(name, inner, &join(key), false, homes));
    }
    if let Some(inner) = schema.get("additionalProperties").filter(|s| s.is_object()) {
        tables_with(name, inner, &join("NAME"), false, homes);
    }
    if let Some(inner) = schema.get("items") {
        tables_with(name, inner, path, true, homes);
    }
}

/// The known text most like `text`, if one is alike at all.
pub fn nearest<'k>(text: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    // Comparing costs the product of the lengths, and no key is that long.
    if text.chars().count() > 64 {
        return None;
    }
    let lower = text.to_lowercase();
    known
        .map(|k| (strsim::jaro_winkler(&lower, &k.to_lowercase()), k))
        .filter(|(alike, _)| *alike > ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}
