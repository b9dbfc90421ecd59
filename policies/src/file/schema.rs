//! The JSON Schemas of both files, made from the types that read them: editors complete by them, and [`super::tree`]
//! checks by them, so what is documented and what is taken cannot drift apart.

use std::sync::LazyLock;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::raw::RawPolicy;
use super::raw_site::RawSite;

static POLICY: LazyLock<Value> = LazyLock::new(schema_of::<RawPolicy>);
static SITE: LazyLock<Value> = LazyLock::new(schema_of::<RawSite>);

pub(crate) fn policy() -> &'static Value {
    &POLICY
}

pub(crate) fn site() -> &'static Value {
    &SITE
}

fn schema_of<T: JsonSchema>() -> Value {
    // Draft 7 is what the TOML extensions of editors read; inlined, a walk needs to follow no reference.
    let settings = SchemaSettings::draft07().for_deserialize().with(|s| s.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    without_null(&mut schema);
    in_reading_order(&mut schema);
    schema
}

/// What a person looks for first; the rest follows as schemars wrote it.
const FIRST: [&str; 8] =
    ["$schema", "title", "description", "type", "required", "additionalProperties", "enum", "items"];

/// Puts each schema's keywords into one order, so that the files in docs/ read well and change only with their meaning.
fn in_reading_order(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            let mut rest = std::mem::take(object);
            let first = FIRST.iter().filter_map(|key| rest.shift_remove_entry(*key)).collect::<Vec<_>>();
            object.extend(first.into_iter().chain(rest));
            object.values_mut().for_each(in_reading_order);
        }
        Value::Array(values) => values.iter_mut().for_each(in_reading_order),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// TOML has no null: an optional key is left out. What schemars says for `Option` is taken back, at every depth, with what
/// else an editor of TOML has no use for.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|t| t != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(values)) = object.get_mut("enum") {
                values.retain(|v| !v.is_null());
            }
            if let Some(Value::Array(branches)) = object.get_mut("anyOf") {
                branches.retain(|b| b.get("type").is_none_or(|t| t != "null"));
                if let [Value::Object(only)] = branches.as_mut_slice() {
                    let only = std::mem::take(only);
                    object.remove("anyOf");
                    // What the key says of itself stands before what its type says of all its uses.
                    for (key, value) in only {
                        object.entry(key).or_insert(value);
                    }
                }
            }
            let is_empty = |d: &Value| {
                matches!(d, Value::Null)
                    || d.as_array().is_some_and(Vec::is_empty)
                    || d.as_object().is_some_and(serde_json::Map::is_empty)
            };
            if object.get("default").is_some_and(is_empty) {
                object.remove("default");
            }
            // Rust's widths are nobody's business, and strict validators refuse formats that they do not know.
            if object.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("uint")) {
                object.remove("format");
            }
            object.values_mut().for_each(without_null);
        }
        Value::Array(values) => values.iter_mut().for_each(without_null),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_description_and_no_schema_speaks_of_null() {
        fn walk(schema: &Value, path: &str, undescribed: &mut Vec<String>) {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                for (key, inner) in properties {
                    let path = format!("{path}.{key}");
                    if inner.get("description").is_none() {
                        undescribed.push(path.clone());
                    }
                    walk(inner, &path, undescribed);
                }
            }
            for inner in ["items", "additionalProperties"].iter().filter_map(|k| schema.get(*k)) {
                walk(inner, path, undescribed);
            }
        }
        for schema in [policy(), site()] {
            let mut undescribed = Vec::new();
            walk(schema, "", &mut undescribed);
            assert_eq!(undescribed, Vec::<String>::new());
            let text = schema.to_string();
            assert!(!text.contains("null") && !text.contains("$ref"), "{text}");
        }
    }
}
