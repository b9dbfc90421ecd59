//! A cloud of the test's own that signs as EC2 does, and agents that show what it signed.

use std::path::Path;
use std::sync::Mutex;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use der::Encode as _;
use der::asn1::ObjectIdentifier;
use proptest::prelude::*;
use rcgen::{CertificateParams, DnType, KeyPair as CertificateKey, SerialNumber};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use x509_cert::Certificate;

use super::*;

const REGION_KEY: &str = include_str!("testdata/region.key");
const OTHER_KEY: &str = include_str!("testdata/other.key");
const REGION_CERTIFICATE: &str = include_str!("testdata/region.pem");
pub(in crate::agents) const DOCUMENT: &str = include_str!("testdata/document.json");
const BY_OPENSSL: &str = include_str!("testdata/signature.txt");
const HOST: &str = "prod/us-east-1/i-0a11";
const NONCE: &str = "00ff";

fn now() -> Timestamp {
    "2026-11-24T11:00:00Z".parse().unwrap()
}

fn launched_at() -> Timestamp {
    "2026-11-24T10:00:05Z".parse().unwrap()
}

fn host() -> HostName {
    HostName::parse(HOST).unwrap()
}

/// One who signs documents: a region's own service.
pub(in crate::agents) struct Signer {
    key: RsaKeyPair,
    pub(in crate::agents) pem: String,
    certificate: Certificate,
}

impl Signer {
    fn new(key: &str, serial: u64, years: [i32; 2]) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "Nobody's Web Services");
        params.serial_number = Some(SerialNumber::from(serial));
        [params.not_before, params.not_after] = years.map(|year| rcgen::date_time_ymd(year, 1, 1));
        let pem = params.self_signed(&CertificateKey::from_pem(key).unwrap()).unwrap().pem();
        Self::of(key, pem)
    }

    fn of(key: &str, pem: String) -> Self {
        let key = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let key = RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("certificate.pem");
        std::fs::write(&path, &pem).unwrap();
        let certificate = read_certificates(&path).unwrap().remove(0);
        Self { key, pem, certificate }
    }

    pub(in crate::agents) fn region() -> Self {
        Self::new(REGION_KEY, 0x00db_8280_2707_b4e2, [2015, 2195])
    }

    /// As the metadata service has it: BER of indefinite length, in base64 of 76 columns.
    pub(in crate::agents) fn sign(&self, document: &[u8]) -> String {
        let oid = |text: &str| ObjectIdentifier::new_unwrap(text).to_der().unwrap();
        let [data, signed_data] = ["1.2.840.113549.1.7.1", "1.2.840.113549.1.7.2"].map(oid);
        let algorithm = |text| long(0x30, &[oid(text), vec![5, 0]].concat());
        let sha_256 = algorithm("2.16.840.1.101.3.4.2.1");
        let attribute = |kind, value: &[u8]| long(0x30, &[oid(kind), long(0x31, value)].concat());
        let attributes = [
            attribute("1.2.840.113549.1.9.3", &data),
            attribute("1.2.840.113549.1.9.5", &long(0x17, b"261124100010Z")),
            attribute("1.2.840.113549.1.9.4", &long(0x04, digest(&SHA256, document).as_ref())),
        ]
        .concat();
        let mut signature = vec![0; self.key.public().modulus_len()];
        let statement = long(0x31, &attributes);
        self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &statement, &mut signature).unwrap();
        let own = self.certificate.tbs_certificate();
        let issuer = [own.issuer().to_der().unwrap(), own.serial_number().to_der().unwrap()].concat();
        let signer = [
            vec![2, 1, 1],
            long(0x30, &issuer),
            sha_256.clone(),
            long(0xa0, &attributes),
            algorithm("1.2.840.113549.1.1.11"),
            long(0x04, &signature),
        ]
        .concat();
        let content = open(0xa0, &open(0x24, &long(0x04, document)));
        let signed = [
            vec![2, 1, 1],
            long(0x31, &sha_256),
            open(0x30, &[data, content].concat()),
            long(0x31, &long(0x30, &signer)),
        ]
        .concat();
        let whole = open(0x30, &[signed_data, open(0xa0, &open(0x30, &signed))].concat());
        let text = BASE64_STANDARD.encode(whole);
        text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect::<Vec<_>>().join("\n")
    }
}

/// A value with its length.
fn long(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = match u16::try_from(value.len()).unwrap() {
        short @ 0..0x80 => vec![u8::try_from(short).unwrap()],
        middle @ 0x80..0x100 => vec![0x81, u8::try_from(middle).unwrap()],
        long => [vec![0x82], long.to_be_bytes().to_vec()].concat(),
    };
    [vec![tag], length, value.to_vec()].concat()
}

/// A value with its end.
fn open(tag: u8, value: &[u8]) -> Vec<u8> {
    [&[tag, 0x80], value, &[0, 0]].concat()
}

/// What a control plane would have read of its cloud.
#[derive(Debug)]
pub(in crate::agents) struct Picture {
    number: Option<&'static str>,
    sighting: Mutex<Sighting>,
}

impl Picture {
    /// One of an account with this number, in which the document's instance runs.
    pub(in crate::agents) fn new(number: &'static str) -> Self {
        Self {
            number: Some(number).filter(|number| !number.is_empty()),
            sighting: Mutex::new(Sighting::Running { launched_at: launched_at() }),
        }
    }
}

#[async_trait]
impl Sightings for Picture {
    async fn account_number(&self, account: &AccountName) -> Option<String> {
        assert_eq!(account.as_str(), "prod");
        self.number.map(str::to_owned)
    }

    async fn instance(&self, _: &AccountName, region: &RegionName, _: &InstanceId) -> Sighting {
        assert!(region.as_str().starts_with("us-"));
        self.sighting.lock().unwrap().clone()
    }
}

/// A control plane that has this file of certificates for us-east-1.
struct Site {
    folder: tempfile::TempDir,
    picture: Arc<Picture>,
    prover: Prover,
}

impl Site {
    fn new(certificates: Option<&str>) -> Self {
        Self::of("123456789012", certificates)
    }

    fn of(number: &'static str, certificates: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let picture = Arc::new(Picture::new(number));
        let path = folder.path().join("us-east-1.pem");
        let mut named = BTreeMap::new();
        if let Some(text) = certificates {
            std::fs::write(&path, text).unwrap();
            named.insert(RegionName::new("us-east-1").unwrap(), path);
        }
        let prover = Prover::new(named, Keys::of(folder.path()), Arc::clone(&picture) as Arc<dyn Sightings>);
        Self { folder, picture, prover }
    }

    fn sees(&self, sighting: Sighting) {
        *self.picture.sighting.lock().unwrap() = sighting;
    }

    async fn check(&self, host: &str, identity: Option<Identity>) -> Result<Standing, String> {
        let host = HostName::parse(host).unwrap();
        let claim = Claim { host: &host, identity: identity.as_ref(), nonce: NONCE };
        self.prover.check(claim, now()).await.map_err(|error| chain(&error))
    }
}

/// An agent with a key of its own.
pub(in crate::agents) struct Agent(Ed25519KeyPair);

impl Agent {
    pub(in crate::agents) fn new() -> Self {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(made.as_ref()).unwrap())
    }

    fn shows(&self, document: &str, signature: &str) -> Option<Identity> {
        Some(Identity::Ec2(self.parts(HOST, NONCE, document, signature)))
    }

    pub(in crate::agents) fn parts(&self, host: &str, nonce: &str, document: &str, signature: &str) -> Ec2Identity {
        Ec2Identity {
            document: document.to_owned(),
            signature: signature.to_owned(),
            key: hex::encode(self.0.public_key()),
            proof: hex::encode(self.0.sign(&statement(nonce, host, document))),
        }
    }
}

#[tokio::test]
async fn an_agent_that_shows_its_instances_document_is_proven() {
    let signer = Signer::region();
    let site = Site::new(Some(&signer.pem));
    let agent = Agent::new();
    let shown = || agent.shows(DOCUMENT, &signer.sign(DOCUMENT.as_bytes()));
    assert_eq!(site.check(HOST, shown()).await, Ok(Standing::Proven));
    assert_eq!(site.check(HOST, shown()).await, Ok(Standing::Proven), "again, after its connection broke");
    // While a region's certificate is exchanged its file holds both.
    let next = Signer::new(OTHER_KEY, 9, [2026, 2195]);
    let both = Site::new(Some(&(next.pem + &signer.pem)));
    assert_eq!(both.check(HOST, shown()).await, Ok(Standing::Proven));
}

#[test]
fn a_signature_that_openssl_made_is_taken_for_its_document_alone() {
    let signer = Signer::of(REGION_KEY, REGION_CERTIFICATE.to_owned());
    let certificates = std::slice::from_ref(&signer.certificate);
    let now = "2026-12-01T11:00:00Z".parse().unwrap();
    verify(DOCUMENT.as_bytes(), BY_OPENSSL, certificates, now).unwrap();
    let other = DOCUMENT.replace("t3.micro", "t3.large");
    let error = verify(other.as_bytes(), BY_OPENSSL, certificates, now).unwrap_err();
    assert!(matches!(error, SignatureError::OtherDocument));
    // And what the tests sign is read by the same code as what OpenSSL signs.
    verify(DOCUMENT.as_bytes(), &signer.sign(DOCUMENT.as_bytes()), certificates, now).unwrap();
}

#[tokio::test]
async fn what_others_sign_or_change_is_refused_with_its_reason() {
    let signer = Signer::region();
    let site = Site::new(Some(&signer.pem));
    let agent = Agent::new();
    let signature = signer.sign(DOCUMENT.as_bytes());
    let tampered = DOCUMENT.replace("10.0.0.11", "10.0.0.12");
    let other_instance = DOCUMENT.replace("i-0a11", "i-0a12");
    let other_region = DOCUMENT.replace("us-east-1\"", "us-west-2\"");
    let other_account = DOCUMENT.replace("123456789012", "210987654321");
    let earlier = DOCUMENT.replace("10:00:07", "09:54:07");
    // Same issuer and serial number, another key.
    let impostor = Signer::new(OTHER_KEY, 0x00db_8280_2707_b4e2, [2015, 2195]);
    let stranger = Signer::new(OTHER_KEY, 77, [2015, 2195]);
    let signed = |document: &str| agent.shows(document, &signer.sign(document.as_bytes()));
    let rows = [
        (
            agent.shows(DOCUMENT, &impostor.sign(DOCUMENT.as_bytes())),
            "its signature was not made by the key of certificate",
        ),
        (agent.shows(DOCUMENT, &stranger.sign(DOCUMENT.as_bytes())), "is by certificate 4d, which is none of those"),
        (agent.shows(&tampered, &signature), "its signature is of another document"),
        (agent.shows(DOCUMENT, "c2lnbmF0dXJl"), "its signature is no signed data of PKCS #7: "),
        (agent.shows(DOCUMENT, "no base64!"), "its signature is no base64"),
        (signed(&other_instance), "is of instance `i-0a12`"),
        (signed(&other_region), "is of region `us-west-2`"),
        (signed(&other_account), "is of account `210987654321`"),
        (signed(&earlier), "its document says 2026-11-24T09:54:07Z: it is of an earlier start"),
        (signed("{}"), "is no instance identity document: missing field `accountId`"),
        (None, "must show that it is that instance"),
        (Some(Identity::Unknown), "something that this release does not know"),
    ];
    for (identity, expected) in rows {
        let why = site.check(HOST, identity).await.unwrap_err();
        assert!(why.contains(expected), "{expected}\n{why}");
    }
    assert!(!site.folder.path().join("agents").exists(), "no key of anybody who was refused is kept");
}

#[tokio::test]
async fn a_certificate_counts_only_while_it_is_valid() {
    let agent = Agent::new();
    for (years, expected) in [([2010, 2026], "until 2026-01-01"), ([2027, 2195], "valid from 2027-01-01")] {
        let signer = Signer::new(REGION_KEY, 5, years);
        let shown = agent.shows(DOCUMENT, &signer.sign(DOCUMENT.as_bytes()));
        let why = Site::new(Some(&signer.pem)).check(HOST, shown).await.unwrap_err();
        assert!(why.contains(expected), "{why}");
    }
    let signer = Signer::region();
    let shown = || agent.shows(DOCUMENT, &signer.sign(DOCUMENT.as_bytes()));
    let why = Site::new(Some("no PEM")).check(HOST, shown()).await.unwrap_err();
    assert!(why.starts_with("the certificates for `us-east-1` cannot be used") && why.contains("holds 0"), "{why}");
    let why = Site::of("", Some(&signer.pem)).check(HOST, shown()).await.unwrap_err();
    assert_eq!(why, format!("which number the account of `{HOST}` has is not known yet"));
}

#[tokio::test]
async fn a_document_that_somebody_else_has_read_is_of_no_use_to_him() {
    let signer = Signer::region();
    let site = Site::new(Some(&signer.pem));
    let (agent, thief) = (Agent::new(), Agent::new());
    let signature = signer.sign(DOCUMENT.as_bytes());
    assert_eq!(site.check(HOST, agent.shows(DOCUMENT, &signature)).await, Ok(Standing::Proven));
    let why = site.check(HOST, thief.shows(DOCUMENT, &signature)).await.unwrap_err();
    assert!(why.starts_with("another agent has spoken for") && why.contains(&format!("--forget {HOST}")), "{why}");
    // With the agent's public key, which is no secret, and what it signed for another connection, host or document.
    let mut foreign = agent.parts(HOST, NONCE, DOCUMENT, &signature);
    foreign.proof = hex::encode(thief.0.sign(&statement(NONCE, HOST, DOCUMENT)));
    let replayed = agent.parts(HOST, "earlier", DOCUMENT, &signature);
    let elsewhere = agent.parts("prod/us-east-1/i-0a12", NONCE, DOCUMENT, &signature);
    let mut shouted = agent.parts(HOST, NONCE, DOCUMENT, &signature);
    shouted.key = shouted.key.to_uppercase();
    let mut no_key = agent.parts(HOST, NONCE, DOCUMENT, &signature);
    no_key.key = "xyz".to_owned();
    for parts in [foreign, replayed, elsewhere, shouted, no_key] {
        let why = site.check(HOST, Some(Identity::Ec2(parts))).await.unwrap_err();
        assert_eq!(why, format!("`{HOST}` does not prove that it has the key that it shows"));
    }
    // Until somebody says so.
    assert!(Keys::of(site.folder.path()).forget(&host()).unwrap());
    assert_eq!(site.check(HOST, thief.shows(DOCUMENT, &signature)).await, Ok(Standing::Proven));
}

#[tokio::test]
async fn an_instance_that_is_not_seen_to_run_has_no_agent() {
    let signer = Signer::region();
    let shown = || Agent::new().shows(DOCUMENT, &signer.sign(DOCUMENT.as_bytes()));
    for site in [Site::new(Some(&signer.pem)), Site::new(None)] {
        site.sees(Sighting::Gone);
        assert_eq!(site.check(HOST, shown()).await.unwrap_err(), format!("no instance `{HOST}` runs"));
        site.sees(Sighting::Unknown("the picture is 5 min old".to_owned()));
        let why = site.check(HOST, shown()).await.unwrap_err();
        assert_eq!(why, format!("whether `{HOST}` runs cannot be seen at the moment: the picture is 5 min old"));
    }
}

#[tokio::test]
async fn without_certificates_token_and_picture_hold_and_it_is_said() {
    let signer = Signer::region();
    let site = Site::new(None);
    assert_eq!(site.check(HOST, None).await, Ok(Standing::Seen), "an agent one release older");
    let shown = Agent::new().shows(DOCUMENT, &signer.sign(DOCUMENT.as_bytes()));
    assert_eq!(site.check(HOST, shown).await, Ok(Standing::Seen));
    // Certificates are of a region.
    let east = Site::new(Some(&signer.pem));
    assert_eq!(east.check("prod/us-west-2/i-1", None).await, Ok(Standing::Seen));
    let regions = ["us-east-1", "us-west-2"].map(|region| RegionName::new(region).unwrap());
    let account = troop_policies::policy::Account {
        name: AccountName::new("prod").unwrap(),
        role: None,
        regions: regions.iter().map(|region| (region.clone(), Default::default())).collect(),
    };
    let named = BTreeMap::from([(regions[0].clone(), Path::new("a.pem").to_owned())]);
    assert_eq!(unproven([&account], &named), ["prod/us-west-2"]);
    assert_eq!(unproven([&account], &BTreeMap::new()), ["prod/us-east-1", "prod/us-west-2"]);
}

/// Its own length, key and digest, so that only what is changed can be at fault.
fn well_made() -> (Certificate, Vec<u8>) {
    let signer = Signer::region();
    let text: String = signer.sign(DOCUMENT.as_bytes()).split_ascii_whitespace().collect();
    (signer.certificate, BASE64_STANDARD.decode(text).unwrap())
}

proptest! {
    #[test]
    fn no_signature_whatever_makes_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), text in "\\PC{0,200}") {
        let document = bytes.as_slice();
        prop_assert!(verify(document, &text, &[], now()).is_err());
        prop_assert!(verify(document, &BASE64_STANDARD.encode(&bytes), &[], now()).is_err());
    }

    #[test]
    fn a_damaged_signature_is_refused_or_still_of_this_very_document(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>()) {
        let (certificate, mut ber) = well_made();
        let at = at.index(ber.len());
        if cut { ber.truncate(at) } else { ber[at] = to }
        let text = BASE64_STANDARD.encode(&ber);
        let certificates = [certificate];
        // What is not signed may be anything; the document may not.
        let _either = verify(DOCUMENT.as_bytes(), &text, &certificates, now());
        let other = DOCUMENT.replace("i-0a11", "i-0a12");
        prop_assert!(verify(other.as_bytes(), &text, &certificates, now()).is_err());
    }
}
