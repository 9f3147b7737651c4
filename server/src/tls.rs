//! The server's certificate, and what a client's certificate tells.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use dsync_accounts::{Settings, Ssl};
use dsync_session::dial::{ALPNS, certificates, private_key};
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
    config.alpn_protocols = ALPNS.map(<[u8]>::to_vec).to_vec();
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use dsync_session::dial::{self, Trust};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A Dovecot 2.4 names `doveadm` in TLS, at either end, and goes no further with whoever names something else only.
    #[tokio::test]
    async fn a_dovecot_is_met_in_tls_by_the_name_of_its_protocol() {
        let certs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../certs-dev");
        let (certs, provider) = (certs.display(), Arc::new(rustls::crypto::ring::default_provider()));
        let words = [
            "ssl=yes".into(),
            format!("ssl_cert=<{certs}/server.pem"),
            format!("ssl_key=<{certs}/server.key"),
        ];
        let settings = Settings::load(Some(Path::new("/dev/null")), &words).expect("read");
        let ours = config(&settings).expect("valid").expect("is on");
        let ca = std::fs::read(format!("{certs}/ca.pem")).expect("read");
        for (here, there, expected) in
            [(None, &b"doveadm"[..], b"doveadm"), (Some(&b"doveadm"[..]), b"", b"doveadm")]
        {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let port = listener.local_addr().expect("known").port();
            let mut config = (*ours).clone();
            if !there.is_empty() {
                config.alpn_protocols = vec![there.to_vec()];
            }
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let served = tokio::spawn(async move {
                let (stream, _) = listener.accept().await.expect("a client");
                let stream = acceptor.accept(stream).await.expect("an agreement");
                stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
            });
            match here {
                None => {
                    let trust = Trust { ca: Some(ca.clone()), ..Trust::default() };
                    let way = dial::tls("localhost", port, &trust, provider.clone()).await;
                    assert_eq!(way.expect("a way").native, Some(false));
                }
                Some(name) => {
                    let mut roots = RootCertStore::empty();
                    certificates(&ca).expect("one").into_iter().for_each(|ca| roots.add(ca).expect("valid"));
                    let builder = rustls::ClientConfig::builder_with_provider(provider.clone());
                    let builder = builder.with_safe_default_protocol_versions().expect("versions");
                    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
                    config.alpn_protocols = vec![name.to_vec()];
                    let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connects");
                    let host = "localhost".try_into().expect("a name");
                    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
                    connector.connect(host, stream).await.expect("an agreement");
                }
            }
            assert_eq!(served.await.expect("ends").as_deref(), Some(&expected[..]));
        }
    }
}
