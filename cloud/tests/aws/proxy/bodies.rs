//! Answers as AWS writes them, by service.

const REQUEST: &str = "4d6b1c1e-0000-4000-8000-000000000000";

/// EC2's envelope of an error: `RequestID`, and no `Type`.
pub(crate) fn ec2_error(code: &str, message: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message>\
         </Error></Errors><RequestID>{REQUEST}</RequestID></Response>"
    )
}

/// Auto Scaling's envelope.
pub(crate) fn scaling_error(code: &str, message: &str) -> String {
    error("http://autoscaling.amazonaws.com/doc/2011-01-01/", code, message)
}

/// Elastic Load Balancing's envelope.
pub(crate) fn balancing_error(code: &str, message: &str) -> String {
    error("http://elasticloadbalancing.amazonaws.com/doc/2015-12-01/", code, message)
}

fn error(namespace: &str, code: &str, message: &str) -> String {
    format!(
        "<ErrorResponse xmlns=\"{namespace}\"><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message>\
         </Error><RequestId>{REQUEST}</RequestId></ErrorResponse>"
    )
}

/// A page of some device between, or of a double of AWS that failed.
pub(crate) fn html() -> String {
    "<!doctype html>\n<html lang=en>\n<title>500 Internal Server Error</title>\n<h1>Internal Server Error</h1>"
        .to_owned()
}

/// An answer of Auto Scaling's.
pub(crate) fn scaling_answer(action: &str, result: &str) -> String {
    format!(
        "<{action}Response xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><{action}Result>{result}\
         </{action}Result><ResponseMetadata><RequestId>{REQUEST}</RequestId></ResponseMetadata></{action}Response>"
    )
}

pub(crate) fn deleted_versions() -> String {
    format!(
        "<DeleteLaunchTemplateVersionsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <requestId>{REQUEST}</requestId></DeleteLaunchTemplateVersionsResponse>"
    )
}
