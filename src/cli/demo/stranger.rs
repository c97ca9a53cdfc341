//! Who is turned away at the door? Clients that nobody vouches for: one with a certificate that it made
//! itself, in the name of somebody who is let in, and one without any.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use rcgen::{
    CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::props::TRUST_DOMAIN;

/// How a stranger comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stranger<'a> {
    /// With a certificate for this SPIFFE ID from a CA of its own, which bears the trust domain's name.
    SelfMade(&'a str),
    /// With none.
    WithoutCertificate,
}

/// Tries to send a request to the sidecar at `address`, and returns the TLS alert it was refused with.
///
/// # Errors
/// When it was not refused in the handshake, with what happened instead.
pub(super) async fn knock(address: SocketAddr, stranger: Stranger<'_>) -> anyhow::Result<String> {
    let connector = TlsConnector::from(Arc::new(config(stranger)?));
    let knocking = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::IpAddress(address.ip().into());
        let mut stream = connector.connect(name, stream).await?;
        // In TLS 1.3 a client has finished before its certificate is judged: the answer to its first
        // bytes tells.
        stream.write_all(REQUEST).await?;
        let mut answer = vec![0; 1024];
        let read = stream.read(&mut answer).await?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&answer[..read]).into_owned())
    };
    match timeout(PATIENCE, knocking).await {
        Ok(Err(error)) => alert(error),
        Ok(Ok(answer)) => {
            bail!("expected a refusal in the TLS handshake, but was answered {answer:?}")
        }
        Err(_) => {
            bail!("expected a refusal in the TLS handshake, but nothing came in {PATIENCE:?}")
        }
    }
}

const REQUEST: &[u8] = b"GET /v1/invoices/7 HTTP/1.1\r\nhost: invoices.demo\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(10);

fn alert(error: io::Error) -> anyhow::Result<String> {
    match error.downcast::<rustls::Error>() {
        Ok(rustls::Error::AlertReceived(alert)) => Ok(format!("{alert:?}")),
        Ok(error) => bail!("expected a TLS alert, but the handshake failed by itself: {error}"),
        Err(error) => Err(error).context("expected a TLS alert, but the connection broke"),
    }
}

fn config(stranger: Stranger<'_>) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let careless = Careless(provider.signature_verification_algorithms);
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(careless));
    let mut config = match stranger {
        Stranger::WithoutCertificate => config.with_no_client_auth(),
        Stranger::SelfMade(id) => {
            let (chain, key) = forge(id)?;
            config.with_client_auth_cert(chain, key.into())?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Everything about it is as it should be, but that nobody trusts its CA.
fn forge(id: &str) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>)> {
    let now = SystemTime::now();
    let params = |uri: &str| {
        let mut params = CertificateParams::default();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(600)).into();
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        anyhow::Ok(params)
    };
    let mut authority = params(&format!("spiffe://{TRUST_DOMAIN}"))?;
    authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let mut leaf = params(id)?;
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate()?;
    let leaf = leaf.signed_by(&key, &authority)?;
    Ok((vec![leaf.der().clone()], key.serialize_der().into()))
}

/// An intruder does not mind who answers. Nothing but the demo's strangers uses this.
#[derive(Debug)]
struct Careless(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(CertificateError::BadSignature.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
