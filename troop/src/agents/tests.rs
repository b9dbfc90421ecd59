//! Agents that dial in over TLS: the agent's own connection against the reception.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use troop_agent::channel::{self, ChannelError, Endpoint, Event};
use troop_agent_core::protocol::{self, Capabilities, FromAgent, Hello, ToAgent};
use troop_policies::RegionName;
use troop_policies::policy::AgentsListener;

use super::identity::{Identity, IdentityError};
use super::proof::tests::{Agent, DOCUMENT, Picture, Signer};
use super::proof::{Keys, Prover};
use super::token::{AgentsSecret, Scope};
use super::{Agents as _, HostName, Hub, Reception, Standing};
use crate::tls::tests::Authority;

const HOST: &str = "prod/us-east-1/i-0a11";
/// Far more than a handshake needs.
const PATIENCE: Duration = Duration::from_secs(20);

struct Desk {
    folder: tempfile::TempDir,
    authority: Authority,
    secret: AgentsSecret,
    hub: Arc<Hub>,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Desk {
    async fn open() -> Self {
        Self::open_for(PATIENCE).await
    }

    /// One that sends away whoever does not say within `patience` who it is.
    async fn open_for(patience: Duration) -> Self {
        Self::open_with(patience, None).await
    }

    /// One of a site with an account at AWS, and the certificates of its region where they are given.
    async fn open_at_aws(certificates: Option<&str>) -> Self {
        Self::open_with(PATIENCE, Some(certificates)).await
    }

    async fn open_with(patience: Duration, at_aws: Option<Option<&str>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (hub, stop) = (Arc::new(Hub::default()), CancellationToken::new());
        let desk = Self {
            folder,
            authority,
            secret: AgentsSecret::from_bytes([7; 32]),
            address: listener.local_addr().unwrap(),
            hub,
            stop,
        };
        desk.certify("127.0.0.1", &desk.authority);
        let identity = Identity::read(&desk.files()).unwrap();
        let prover = at_aws.map(|certificates| {
            let files = certificates.map(|text| {
                std::fs::write(desk.path("us-east-1.pem"), text).unwrap();
                (RegionName::new("us-east-1").unwrap(), desk.path("us-east-1.pem"))
            });
            let picture = Arc::new(Picture::new("123456789012"));
            Prover::new(files.into_iter().collect(), Keys::of(desk.folder.path()), picture)
        });
        let mut reception = Reception::new(Arc::clone(&desk.hub), desk.secret.clone(), prover, desk.stop.clone());
        reception.patience = patience;
        tokio::spawn(reception.on_tls(listener, identity));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> AgentsListener {
        let (certificate_file, key_file) = (self.path("agents.pem"), self.path("agents.key"));
        AgentsListener { address: self.address, certificate_file, key_file }
    }

    fn certify(&self, name: &str, authority: &Authority) {
        let (certificate, key) = authority.issue(name);
        std::fs::write(self.path("agents.pem"), certificate).unwrap();
        std::fs::write(self.path("agents.key"), key).unwrap();
    }

    /// An agent's connection with this token, as long as the handle lives.
    fn dial(&self, token: String) -> (AbortOnDropHandle<()>, mpsc::Receiver<Event>) {
        let (tell, told) = mpsc::channel(16);
        let ca_file = Some(self.path("ca.pem"));
        let to = Endpoint::Tls { host: "127.0.0.1".to_owned(), port: self.address.port(), ca_file };
        (AbortOnDropHandle::new(tokio::spawn(channel::keep(to, token, tell))), told)
    }

    /// The token of all of the host's region.
    fn join_token(&self) -> String {
        self.secret.token_of(&Scope::parse("prod/us-east-1").unwrap())
    }

    fn standing(&self) -> Standing {
        self.hub.seen()[0].standing
    }

    fn is_connected(&self) -> bool {
        self.hub.seen().iter().any(|agent| agent.host.as_str() == HOST && agent.since.is_some())
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn hello() -> FromAgent {
    FromAgent::Hello(Hello {
        newest_version: protocol::VERSION,
        oldest_version: protocol::OLDEST_VERSION,
        instance: HOST.to_owned(),
        release: "0.1.0".to_owned(),
        highest_number: 0,
        host: Capabilities::default(),
        identity: None,
    })
}

async fn next(told: &mut mpsc::Receiver<Event>) -> Event {
    timeout(PATIENCE, told.recv()).await.expect("something happens in time").unwrap()
}

/// Why the first connection came to nothing.
async fn turned_away(desk: &Desk, token: String) -> ChannelError {
    let (_dialling, mut told) = desk.dial(token);
    loop {
        match next(&mut told).await {
            Event::Up { sender, .. } => assert!(sender.send(&hello())),
            Event::Message(message) => panic!("it was told {message:?}"),
            Event::Down(why) => return why,
        }
    }
}

#[tokio::test]
async fn an_agent_with_its_hosts_token_is_received_over_tls_and_others_are_not() {
    let desk = Desk::open().await;
    let host = HostName::parse(HOST).unwrap();
    let (_dialling, mut told) = desk.dial(desk.secret.token_of(&(&host).into()));
    let Event::Up { sender, ends, .. } = next(&mut told).await else { panic!("no connection") };
    assert_eq!(ends, [desk.address]);
    assert!(sender.send(&hello()));
    let Event::Message(welcome) = next(&mut told).await else { panic!("no welcome") };
    assert_eq!(welcome, ToAgent::Welcome { version: protocol::VERSION });
    assert!(desk.is_connected());

    let other = desk.secret.token_of(&Scope::parse("prod/us-east-1/i-0a12").unwrap());
    for wrong in [other, AgentsSecret::from_bytes([8; 32]).token_of(&(&host).into()), "no token".to_owned()] {
        assert!(matches!(turned_away(&desk, wrong).await, ChannelError::Closed | ChannelError::Http(_)));
    }
    assert!(desk.is_connected(), "who was turned away has replaced nobody");
}

/// What an agent with the region's token hears first that says of itself what `identity` makes of the nonce; connected as long as what comes with it
/// is held.
async fn first_word(desk: &Desk, identity: impl Fn(&str) -> Option<protocol::Identity>) -> (impl Sized, ToAgent) {
    let (dialling, mut told) = desk.dial(desk.join_token());
    let Event::Up { sender, nonce, .. } = next(&mut told).await else { panic!("no connection") };
    let FromAgent::Hello(hello) = hello() else { panic!("no hello") };
    let identity = identity(&nonce.expect("there is a nonce"));
    assert!(sender.send(&FromAgent::Hello(Hello { identity, ..hello })));
    let Event::Message(word) = next(&mut told).await else { panic!("no word") };
    ((dialling, told, sender), word)
}

#[tokio::test]
async fn an_agent_with_its_regions_token_is_received_by_what_it_shows_and_told_why_not() {
    let signer = Signer::region();
    let desk = Desk::open_at_aws(Some(&signer.pem)).await;
    let signature = signer.sign(DOCUMENT.as_bytes());
    let (agent, thief) = (Agent::new(), Agent::new());
    let shows =
        |agent: &Agent, nonce: &str| Some(protocol::Identity::Ec2(agent.parts(HOST, nonce, DOCUMENT, &signature)));
    let refused = |word: ToAgent| {
        let ToAgent::Refused { why } = word else { panic!("{word:?}") };
        why
    };
    // An agent of a release before, which shows nothing: where the site asks for more, it is not received.
    let (_, word) = first_word(&desk, |_| None).await;
    assert!(refused(word).contains("must show that it is that instance"));
    let (_dialling, word) = first_word(&desk, |nonce| shows(&agent, nonce)).await;
    assert_eq!(word, ToAgent::Welcome { version: protocol::VERSION });
    assert_eq!((desk.is_connected(), desk.standing()), (true, Standing::Proven));
    // Another with the same document, and one that plays back what it heard.
    let (_, word) = first_word(&desk, |nonce| shows(&thief, nonce)).await;
    assert!(refused(word).contains("with another key"));
    let (_, word) = first_word(&desk, |_| shows(&agent, "00ff")).await;
    assert!(refused(word).contains("does not prove that it has the key"));
    assert!(desk.is_connected(), "who was turned away has replaced nobody");
}

#[tokio::test]
async fn without_certificates_an_agent_of_a_release_before_goes_on_working() {
    let desk = Desk::open_at_aws(None).await;
    let (_dialling, word) = first_word(&desk, |_| None).await;
    assert_eq!(word, ToAgent::Welcome { version: protocol::VERSION });
    assert_eq!((desk.is_connected(), desk.standing()), (true, Standing::Seen));
    // And where nobody knows of instances, the token of a region is none of anybody's.
    let desk = Desk::open().await;
    let (_, word) = first_word(&desk, |_| None).await;
    let ToAgent::Refused { why } = word else { panic!("{word:?}") };
    assert_eq!(why, format!("this control plane has no picture of a cloud in which `{HOST}` could be"));
    assert!(!desk.is_connected());
}

#[tokio::test]
async fn a_certificate_that_was_exchanged_is_the_next_connections() {
    let desk = Desk::open().await;
    let token = desk.secret.token_of(&Scope::parse(HOST).unwrap());
    desk.certify("127.0.0.1", &Authority::new());
    assert!(matches!(turned_away(&desk, token.clone()).await, ChannelError::Dial(_)), "signed by nobody it trusts");
    // What cannot be used leaves the one from before in force.
    std::fs::write(desk.path("agents.pem"), "no certificate").unwrap();
    assert!(matches!(turned_away(&desk, token.clone()).await, ChannelError::Dial(_)));
    desk.certify("127.0.0.1", &desk.authority);
    let (_dialling, mut told) = desk.dial(token);
    assert!(matches!(next(&mut told).await, Event::Up { .. }));
}

#[tokio::test]
async fn who_does_not_say_who_it_is_is_sent_away() {
    let desk = Desk::open_for(Duration::from_millis(50)).await;
    let mut silent = TcpStream::connect(desk.address).await.unwrap();
    let read = timeout(PATIENCE, silent.read(&mut [0; 1])).await.expect("it is not kept for ever");
    assert!(matches!(read, Ok(0) | Err(_)));
    // Nor is one that has shaken hands, and a token, and goes on to say nothing.
    let (_dialling, mut told) = desk.dial(desk.secret.token_of(&Scope::parse(HOST).unwrap()));
    let Event::Up { sender, .. } = next(&mut told).await else { panic!("no connection") };
    assert!(matches!(next(&mut told).await, Event::Down(_)));
    drop(sender);
    assert!(!desk.is_connected());
}

#[test]
fn an_identity_that_cannot_be_used_is_told_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (certificate_file, key_file) = (path("agents.pem"), path("agents.key"));
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let read = || {
        Identity::read(&AgentsListener {
            address,
            certificate_file: certificate_file.clone(),
            key_file: key_file.clone(),
        })
    };
    assert!(matches!(read().unwrap_err(), IdentityError::File { .. }));
    let (ours, other) = (Authority::new().issue("a.test"), Authority::new().issue("a.test"));
    std::fs::write(&certificate_file, "no PEM").unwrap();
    std::fs::write(&key_file, &ours.1).unwrap();
    assert!(matches!(read().unwrap_err(), IdentityError::NoCertificate { .. }));
    std::fs::write(&certificate_file, &ours.0).unwrap();
    read().unwrap();
    std::fs::write(&key_file, other.1).unwrap();
    let error = read().unwrap_err().to_string();
    assert!(error.contains("agents.pem") && error.contains("agents.key"), "{error}");
    std::fs::write(&key_file, "no PEM").unwrap();
    assert!(matches!(read().unwrap_err(), IdentityError::Pem { .. }));
}
