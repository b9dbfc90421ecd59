//! Eureka's XML, as another spelling of its JSON: `@name` is an attribute, `$` the text beside attributes, a list a
//! repeated element, and everything else an element.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::escape::escape;
use quick_xml::events::{BytesStart, Event};
use serde_json::{Map, Value};

/// Deepest nesting read. An instance with the metadata of its data centre needs four.
const DEPTH_MAX: usize = 8;

/// Why a body is no XML that is read here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadXml {
    #[error("it is not well-formed XML: {0}")]
    Syntax(String),
    #[error("a document type is not read")]
    DocType,
    #[error("the entity `&{0};` is not known")]
    Entity(String),
    #[error("it is nested deeper than {DEPTH_MAX} elements")]
    Deep,
    #[error("it ends before its first element does")]
    CutShort,
}

fn syntax(error: impl std::fmt::Display) -> BadXml {
    BadXml::Syntax(error.to_string())
}

#[derive(Debug, Default)]
struct Element {
    name: String,
    members: Map<String, Value>,
    text: String,
}

impl Element {
    fn opened(start: &BytesStart<'_>) -> Result<Self, BadXml> {
        let mut element = Self { name: start.name().as_ref().to_owned(), ..Self::default() };
        for attribute in start.attributes() {
            let attribute = attribute.map_err(syntax)?;
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(syntax)?;
            element.members.insert(format!("@{}", attribute.key.as_ref()), Value::String(value.into_owned()));
        }
        Ok(element)
    }

    fn closed(mut self) -> (String, Value) {
        let text = self.text.trim();
        if self.members.is_empty() {
            return (self.name, Value::String(text.to_owned()));
        }
        if !text.is_empty() {
            self.members.insert("$".to_owned(), Value::String(text.to_owned()));
        }
        (self.name, Value::Object(self.members))
    }
}

/// Reads a document as `{"root": ...}`.
pub(crate) fn read(text: &str) -> Result<Value, BadXml> {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    loop {
        let closed = match reader.read_event().map_err(syntax)? {
            Event::Start(start) => {
                if open.len() == DEPTH_MAX {
                    return Err(BadXml::Deep);
                }
                open.push(Element::opened(&start)?);
                None
            }
            Event::Empty(start) => Some(Element::opened(&start)?),
            Event::End(_) => Some(open.pop().ok_or(BadXml::CutShort)?),
            Event::Text(text) => {
                push(&mut open, &text.xml10_content());
                None
            }
            Event::CData(text) => {
                push(&mut open, &text.xml10_content());
                None
            }
            Event::GeneralRef(entity) => {
                push(&mut open, &resolve(&entity)?);
                None
            }
            Event::DocType(_) => return Err(BadXml::DocType),
            Event::Decl(_) | Event::PI(_) | Event::Comment(_) => None,
            Event::Eof => return Err(BadXml::CutShort),
        };
        let Some(element) = closed else { continue };
        let (name, value) = element.closed();
        match open.last_mut() {
            Some(parent) => {
                parent.members.insert(name, value);
            }
            None => return Ok(Value::Object(Map::from_iter([(name, value)]))),
        }
    }
}

fn push(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

fn resolve(entity: &quick_xml::events::BytesRef<'_>) -> Result<String, BadXml> {
    if let Some(c) = entity.resolve_char_ref().map_err(syntax)? {
        return Ok(c.to_string());
    }
    let name = entity.xml10_content();
    let text = match name.as_ref() {
        "lt" => "<",
        "gt" => ">",
        "amp" => "&",
        "quot" => "\"",
        "apos" => "'",
        other => return Err(BadXml::Entity(other.chars().take(32).collect())),
    };
    Ok(text.to_owned())
}

/// Writes `value` as the element `name`.
pub(crate) fn write(name: &str, value: &Value) -> String {
    let mut out = String::new();
    element(&mut out, name, value);
    out
}

fn element(out: &mut String, name: &str, value: &Value) {
    match value {
        Value::Null => {}
        Value::Array(items) => items.iter().for_each(|item| element(out, name, item)),
        Value::String(text) => leaf(out, name, text),
        Value::Number(number) => leaf(out, name, &number.to_string()),
        Value::Bool(flag) => leaf(out, name, &flag.to_string()),
        Value::Object(members) => {
            let name = element_name(name);
            out.push('<');
            out.push_str(&name);
            for (key, value) in members {
                if let Some(attribute) = key.strip_prefix('@') {
                    out.push_str(&format!(" {attribute}=\"{}\"", written(&plain(value))));
                }
            }
            out.push('>');
            for (key, value) in members.iter().filter(|(key, _)| !key.starts_with('@')) {
                if key == "$" {
                    out.push_str(&written(&plain(value)));
                } else {
                    element(out, key, value);
                }
            }
            out.push_str(&format!("</{name}>"));
        }
    }
}

fn leaf(out: &mut String, name: &str, text: &str) {
    let name = element_name(name);
    out.push_str(&format!("<{name}>{}</{name}>", written(text)));
}

/// A reader makes a blank of a tab or a line's end in an attribute, and a line feed of a carriage return anywhere, unless
/// they are written as references (XML 1.0, sections 2.11 and 3.3.3).
fn written(text: &str) -> Cow<'_, str> {
    let escaped = escape(text);
    if !escaped.contains(['\t', '\n', '\r']) {
        return escaped;
    }
    Cow::Owned(escaped.replace('\t', "&#9;").replace('\n', "&#10;").replace('\r', "&#13;"))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Metadata may have any names, elements may not: `_` stands for what no name may hold. A colon would need a namespace.
pub(crate) fn element_name(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name: String = name.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') { name } else { format!("_{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn attributes_and_the_text_beside_them_are_kept_apart() {
        let text = "<?xml version=\"1.0\"?><instance><port enabled=\"true\">8080</port><app>A &amp; &#66;</app>\
            <metadata class=\"x\"/><home><![CDATA[<b>]]></home><empty/></instance>";
        let expected = json!({"instance": {"port": {"@enabled": "true", "$": "8080"}, "app": "A & B",
            "metadata": {"@class": "x"}, "home": "<b>", "empty": ""}});
        assert_eq!(read(text).unwrap(), expected);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let value = json!({"port": {"@enabled": "true", "$": "8080"}, "app": "<&\">", "list": []});
        assert_eq!(
            write("instance", &value),
            "<instance><port enabled=\"true\">8080</port><app>&lt;&amp;&quot;&gt;</app></instance>"
        );
        let back = read(&write("instance", &value)).unwrap();
        assert_eq!(back["instance"]["app"], "<&\">");
        let odd = json!({"a": {"@b": "tab\tline\nreturn\rend", "$": "c\t\n\rd"}});
        assert_eq!(read(&write("i", &odd)).unwrap(), json!({"i": odd}));
    }

    #[test]
    fn names_that_no_element_may_have_are_bent() {
        assert_eq!(
            write("m", &json!({"k8s.io/name": "a", "1:b": ""})),
            "<m><k8s.io_name>a</k8s.io_name><_1_b></_1_b></m>"
        );
    }

    #[test]
    fn bombs_and_scraps_are_refused() {
        let deep = "<a>".repeat(9);
        for (bad, why) in [
            ("<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>", "a document type is not read"),
            ("<a>&b;</a>", "the entity `&b;` is not known"),
            ("<a><b></b>", "it ends before its first element does"),
            ("", "it ends before its first element does"),
            (deep.as_str(), "it is nested deeper than 8 elements"),
        ] {
            assert_eq!(read(bad).unwrap_err().to_string(), why);
        }
        assert!(matches!(read("<a></b>"), Err(BadXml::Syntax(_))));
    }
}
