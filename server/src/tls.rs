//! The server's certificate, and what a client's certificate tells.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use dsync_accounts::{Settings, Ssl};
use dsync_session::dial::{ALPN, certificates, private_key};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;

/// The TLS side of the server; `None` where `ssl = no`, or no certificate is set and none is required.
pub fn config(settings: &Settings) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    let ssl = settings.ssl()?;
    if ssl == Ssl::No {
        return Ok(None);
    }
    let (Some(certificate), Some(key)) = (settings.ssl_cert()?, settings.ssl_key()?) else {
        bail!("ssl is on, and ssl_cert or ssl_key is not set");
    };
    let chain = certificates(&certificate).map_err(anyhow::Error::msg).context("ssl_cert")?;
    let key = private_key(&key).map_err(anyhow::Error::msg).context("ssl_key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let required = settings.ssl_verify_client_cert()?;
    let builder = match settings.ssl_ca()? {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&ca).map_err(anyhow::Error::msg).context("ssl_ca")? {
                roots.add(certificate).context("ssl_ca")?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().context("ssl_ca")?)
        }
        None if required => bail!("ssl_verify_client_cert = yes needs ssl_ca"),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).context("ssl_cert and ssl_key")?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Some(Arc::new(config)))
}

/// The names that a verified client certificate is for (subject alternative names).
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    match webpki::EndEntityCert::try_from(certificate) {
        Ok(parsed) => parsed.valid_dns_names().map(str::to_owned).collect(),
        Err(error) => {
            tracing::warn!("client certificate cannot be read: {error}");
            Vec::new()
        }
    }
}
