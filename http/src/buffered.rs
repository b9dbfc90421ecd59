//! Small bodies, whole or not at all.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};

use super::phase::Phase;

/// Why a request's body was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the request's body is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("the request's body was not there within {} s", within.as_secs_f64())]
    TooSlow { within: Duration },
    #[error("the request's body broke off")]
    BrokeOff,
}

/// Reads a request's body of at most `bytes_max` bytes, which must be whole `within` this time, whatever the pace.
///
/// # Errors
/// [`Refused`]; what it says is fit for the client. Of a body whose length says that it is too large nothing is read.
pub async fn buffered(
    request: Request<Incoming>,
    bytes_max: usize,
    within: Duration,
) -> Result<Request<Full<Bytes>>, Refused> {
    let (parts, body) = request.into_parts();
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > bytes_max {
        return Err(Refused::TooLarge { bytes_max });
    }
    let phase = parts.extensions.get::<Arc<Phase>>().cloned();
    let whole = tokio::time::timeout(within, collect(body, bytes_max, phase.as_deref())).await;
    if let Some(phase) = phase {
        phase.wants_body(false);
    }
    let whole = whole.unwrap_or(Err(Refused::TooSlow { within }))?;
    Ok(Request::from_parts(parts, Full::new(whole)))
}

async fn collect(mut body: Incoming, bytes_max: usize, phase: Option<&Phase>) -> Result<Bytes, Refused> {
    let mut whole = BytesMut::new();
    while !body.is_end_stream() {
        if let Some(phase) = phase {
            phase.wants_body(false);
            phase.wants_body(true);
        }
        let Some(frame) = body.frame().await else { break };
        let Ok(data) = frame.map_err(|_| Refused::BrokeOff)?.into_data() else { continue };
        if whole.len() + data.len() > bytes_max {
            return Err(Refused::TooLarge { bytes_max });
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
