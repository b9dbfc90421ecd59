//! EC2's signature of an instance identity document: PKCS #7 (RFC 5652) by RSA-2048 and SHA-256, in base64.
//!
//! What the metadata service sends is BER with indefinite lengths, around a copy of the document; it holds no certificate, names the one it was made
//! by with issuer and serial number, and signs four attributes, the document's digest among them. Seen so in a signature of 2022 from ap-northeast-2,
//! which this module takes with that region's published certificate; the user guide ("Verify the instance identity document") says
//! only that OpenSSL's `smime -verify` takes it. The copy within is not looked at: what counts is that the digest is that of the document
//! which the agent sent.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cms::content_info::ContentInfo;
use cms::signed_data::{SignedAttributes, SignedData, SignerIdentifier};
use der::asn1::{ObjectIdentifier, OctetString};
use der::{Decode as _, Encode as _};
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use x509_cert::Certificate;

// RFC 5652 sections 4, 5.1, 11.1 and 11.2; RFC 5754 section 2.2; RFC 8017 appendix C.
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
const SHA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SHA_256_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");

/// Certificates of one region; AWS has one each, and while one is exchanged two.
const CERTIFICATES_MAX: usize = 8;

/// Why a file of certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    #[error("could not read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("`{}` holds {count} certificates, not 1 to {CERTIFICATES_MAX}", path.display())]
    Count { path: PathBuf, count: usize },
    #[error("`{}` holds a certificate that cannot be used", path.display())]
    Bad {
        path: PathBuf,
        #[source]
        source: der::Error,
    },
}

/// Why a signature is not one of the document. Fragments that fit after "its signature".
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    #[error("is no base64")]
    Base64,
    #[error("is no signed data of PKCS #7")]
    Shape(#[source] der::Error),
    #[error("is something else of PKCS #7 than signed data")]
    Type,
    #[error("is of {0} signers, not of one")]
    Signers(usize),
    #[error("is not by RSA and SHA-256")]
    Algorithm,
    #[error("does not name its certificate by issuer and serial number")]
    Unnamed,
    #[error("is by certificate {serial}, which is none of those for its region")]
    UnknownSigner { serial: String },
    #[error("is by certificate {serial}, which is valid from {from} until {until} only")]
    Expired { serial: String, from: String, until: String },
    #[error("does not sign a document's digest")]
    Attributes,
    #[error("is of another document")]
    OtherDocument,
    #[error("was not made by the key of certificate {serial}")]
    Wrong { serial: String },
}

/// Reads the certificates of a PEM file.
///
/// # Errors
/// [`CertificatesError`].
pub fn read_certificates(path: &Path) -> Result<Vec<Certificate>, CertificatesError> {
    let failed = |source| CertificatesError::Read { path: path.to_owned(), source };
    let read = CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    if read.is_empty() || read.len() > CERTIFICATES_MAX {
        return Err(CertificatesError::Count { path: path.to_owned(), count: read.len() });
    }
    let parsed = |der: &CertificateDer<'_>| Certificate::from_der(der);
    let bad = |source| CertificatesError::Bad { path: path.to_owned(), source };
    read.iter().map(parsed).collect::<Result<_, _>>().map_err(bad)
}

/// Checks that one of `certificates`, valid at `now`, has signed exactly this document.
///
/// # Errors
/// [`SignatureError`].
pub fn verify(
    document: &[u8],
    signature: &str,
    certificates: &[Certificate],
    now: Timestamp,
) -> Result<(), SignatureError> {
    let text: String = signature.split_ascii_whitespace().collect();
    let ber = BASE64_STANDARD.decode(text).map_err(|_| SignatureError::Base64)?;
    let outer = ContentInfo::from_ber(&ber).map_err(SignatureError::Shape)?;
    if outer.content_type != SIGNED_DATA {
        return Err(SignatureError::Type);
    }
    // Its own decoder takes what is within for DER.
    let inner = outer.content.to_der().map_err(SignatureError::Shape)?;
    let signed = SignedData::from_ber(&inner).map_err(SignatureError::Shape)?;
    let [signer] = signed.signer_infos.0.as_slice() else {
        return Err(SignatureError::Signers(signed.signer_infos.0.len()));
    };
    if signer.digest_alg.oid != SHA_256 || ![RSA, SHA_256_WITH_RSA].contains(&signer.signature_algorithm.oid) {
        return Err(SignatureError::Algorithm);
    }
    let SignerIdentifier::IssuerAndSerialNumber(id) = &signer.sid else { return Err(SignatureError::Unnamed) };
    let serial = hex::encode(id.serial_number.as_bytes());
    let is_its = |certificate: &&Certificate| {
        let own = certificate.tbs_certificate();
        *own.issuer() == id.issuer && *own.serial_number() == id.serial_number
    };
    let Some(certificate) = certificates.iter().find(is_its) else {
        return Err(SignatureError::UnknownSigner { serial });
    };
    check_age(certificate, &serial, now)?;
    let attributes = signer.signed_attrs.as_ref().ok_or(SignatureError::Attributes)?;
    if only::<ObjectIdentifier>(attributes, CONTENT_TYPE)? != DATA {
        return Err(SignatureError::Attributes);
    }
    if only::<OctetString>(attributes, MESSAGE_DIGEST)?.as_bytes() != digest(&SHA256, document).as_ref() {
        return Err(SignatureError::OtherDocument);
    }
    // RFC 5652 section 5.4: what is signed is the DER of the attributes as a SET OF, whatever they came as.
    let statement = attributes.to_der().map_err(SignatureError::Shape)?;
    let key = &certificate.tbs_certificate().subject_public_key_info().subject_public_key;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.raw_bytes())
        .verify(&statement, signer.signature.as_bytes())
        .map_err(|_| SignatureError::Wrong { serial })
}

fn check_age(certificate: &Certificate, serial: &str, now: Timestamp) -> Result<(), SignatureError> {
    let validity = certificate.tbs_certificate().validity();
    let second = |time: &x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    if (second(&validity.not_before)..=second(&validity.not_after)).contains(&now.as_second()) {
        return Ok(());
    }
    let (from, until) = (validity.not_before.to_string(), validity.not_after.to_string());
    Err(SignatureError::Expired { serial: serial.to_owned(), from, until })
}

/// The one value of the one attribute of this kind.
fn only<'a, T: der::DecodeValue<'a, Error = der::Error> + der::Choice<'a>>(
    attributes: &'a SignedAttributes,
    kind: ObjectIdentifier,
) -> Result<T, SignatureError> {
    let mut found = attributes.iter().filter(|attribute| attribute.oid == kind);
    let (Some(one), None) = (found.next(), found.next()) else { return Err(SignatureError::Attributes) };
    let [value] = one.values.as_slice() else { return Err(SignatureError::Attributes) };
    value.decode_as::<T>().map_err(SignatureError::Shape)
}
