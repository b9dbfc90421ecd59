//! `troop sample-app`: a small service that is worth deploying, so that the demo and the tests kill and replace something
//! real. It has a version page, a health check, a registration of its own, a downstream call, and faults on request.
//!
//! It knows nothing of Troop but the environment of an instance, as any other image would.

mod eureka;
mod pages;
mod settings;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use eureka::Eureka;
use settings::{Behaviour, Identity};

/// The image's own settings, in the working directory.
const BEHAVIOUR_FILE: &str = "app.toml";
/// Requests in flight at SIGTERM get this long. Shorter than any cloud waits before its SIGKILL.
const FINISH_WITHIN: Duration = Duration::from_secs(2);
/// Each call to the registry or downstream. The lease is 3 s, so a lost renewal can still be made up for.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the sample service did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    #[error("{name} is not set; the cloud sets it for an instance, by hand: HOST=127.0.0.1 PORT=8080 troop sample-app")]
    Missing { name: &'static str },
    #[error("PORT is `{text}`; write a number from 1 to 65535")]
    Port {
        text: String,
        #[source]
        source: std::num::ParseIntError,
    },
    #[error("could not read {}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not understand {}; its keys are greeting, health_status, error_rate, downstream", path.display())]
    Malformed {
        path: PathBuf,
        #[source]
        source: toml::de::Error,
    },
    #[error("{}: {what}", path.display())]
    Value { path: PathBuf, what: String },
    #[error("could not listen on {host}:{port}; is HOST an address of this machine, and the port free?")]
    Listen {
        host: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("could not watch for SIGTERM")]
    Signal(#[source] io::Error),
    #[error("could not make the HTTP client")]
    Client(#[source] reqwest::Error),
    #[error("the server ended by itself")]
    Serve(#[source] io::Error),
}

/// Serves on HOST:PORT until SIGTERM or SIGINT, then leaves the registry, stops accepting and finishes what is in flight
/// (at most 2 s).
///
/// # Errors
/// [`SampleError`]: the environment, `app.toml` or the address do not let it start.
pub async fn run() -> Result<(), SampleError> {
    let stop = CancellationToken::new();
    // Before anything else: a SIGTERM during the start must end it as cleanly as a later one.
    let mut term = signal(SignalKind::terminate()).map_err(SampleError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(SampleError::Signal)?;
    let _signals = AbortOnDropHandle::new(tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        }
    }));
    let identity = Identity::from_env(|name| std::env::var(name).ok())?;
    let behaviour = Behaviour::read(Path::new(BEHAVIOUR_FILE))?;
    serve(identity, behaviour, stop).await
}

async fn serve(identity: Identity, behaviour: Behaviour, stop: CancellationToken) -> Result<(), SampleError> {
    let identity = Arc::new(identity);
    let client = client().map_err(SampleError::Client)?;
    let eureka = identity.eureka.as_ref().map(|base| Eureka::new(base.clone(), client.clone()));

    let (listening, is_listening) = watch::channel(false);
    let registration = AbortOnDropHandle::new(tokio::spawn({
        let (eureka, identity, stop) = (eureka.clone(), Arc::clone(&identity), stop.clone());
        async move {
            match eureka {
                Some(eureka) => eureka.stay_registered(&identity, is_listening, stop).await,
                None => stop.cancelled().await,
            }
        }
    }));

    let listener = match TcpListener::bind((identity.host.as_str(), identity.port)).await {
        Ok(listener) => listener,
        Err(source) => {
            stop.cancel();
            if registration.await.is_err() {
                tracing::error!("the registration ended abnormally");
            }
            return Err(SampleError::Listen { host: identity.host.clone(), port: identity.port, source });
        }
    };
    listening.send_replace(true);
    tracing::info!(host = %identity.host, port = identity.port, version = %identity.version, "serving");

    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "could not set TCP_NODELAY");
        }
    });
    let left = CancellationToken::new();
    let router = pages::router(identity, behaviour, eureka, client);
    let server = axum::serve(listener, router).with_graceful_shutdown(left.clone().cancelled_owned());
    tokio::select! {
        ended = server.into_future() => ended.map_err(SampleError::Serve),
        () = async {
            // The registry forgets it first: nobody is sent to a door that is about to close.
            if registration.await.is_err() {
                tracing::error!("the registration ended abnormally; its lease runs out by itself");
            }
            left.cancel();
            tokio::time::sleep(FINISH_WITHIN).await;
        } => {
            tracing::warn!("requests in flight took longer than {} s and were cut off", FINISH_WITHIN.as_secs());
            Ok(())
        }
    }
}

/// One client for all calls: inside an instance there is no proxy to ask and no redirect to follow.
fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(CALL_TIMEOUT)
        .tcp_nodelay(true)
        .build()
}

#[cfg(test)]
mod tests;
