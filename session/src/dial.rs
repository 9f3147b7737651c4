//! Reaches the other end: TCP, TLS, a Unix socket, or a program's stdin and stdout.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::SessionError;
use crate::link::Stream;

/// The name of the native protocol in TLS (ALPN).
pub const ALPN: &[u8] = b"dsync/1";
/// What is offered and taken in TLS. A Dovecot 2.4 ends the handshake with whoever names protocols and not its own; 2.3 names none.
pub const ALPNS: [&[u8]; 2] = [ALPN, b"doveadm"];
const CONNECT_WAIT: Duration = Duration::from_secs(30);
/// What a pipe may hold: as much as Linux grants to everybody.
const PIPE_BYTES: usize = 1 << 20;

/// An open way to the other end, and what we know of it.
pub struct Way {
    pub stream: Box<dyn Stream>,
    /// Nobody on the way can read along, or it does not leave this machine.
    pub private: bool,
    /// It does not leave this machine: compressing would only cost.
    pub local: bool,
    /// The program at the other end of the pipe, if it is one.
    pub child: Option<Child>,
    /// TLS says whether our own protocol is spoken; `None`: nothing says so yet.
    pub native: Option<bool>,
}

/// Whom a TLS client trusts, and how it shows itself. PEM.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// `None`: the system's.
    pub ca: Option<Vec<u8>>,
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
}

/// Connects by TCP; every address of the name is tried.
pub async fn tcp(host: &str, port: u16) -> Result<Way, SessionError> {
    let (stream, address) = connect(host, port).await?;
    let local = address.ip().is_loopback();
    Ok(Way { stream: Box::new(stream), private: local, local, child: None, native: None })
}

/// Connects by TLS, and checks the server's name and certificate.
pub async fn tls(
    host: &str,
    port: u16,
    trust: &Trust,
    provider: Arc<CryptoProvider>,
) -> Result<Way, SessionError> {
    let config = client_config(trust, provider)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| SessionError::Refused { status: 64, text: format!("{host:?} is no host name") })?;
    let (stream, address) = connect(host, port).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let shaken = timeout(CONNECT_WAIT, connector.connect(name, stream)).await;
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(tls_failed(host, port, &error)),
        Err(_) => return Err(no_answer(host, port)),
    };
    let native = Some(stream.get_ref().1.alpn_protocol() == Some(ALPN));
    Ok(Way {
        stream: Box::new(stream),
        private: true,
        local: address.ip().is_loopback(),
        child: None,
        native,
    })
}

fn tls_failed(host: &str, port: u16, error: &std::io::Error) -> SessionError {
    let certificate =
        error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some_and(|inner| {
            matches!(
                inner,
                rustls::Error::InvalidCertificate(_)
                    | rustls::Error::AlertReceived(_)
                    | rustls::Error::NoCertificatesPresented
            )
        });
    let (status, hint) = if certificate {
        (77, "; the CA to trust is set by ssl_client_ca_file")
    } else {
        (76, "; is it a dsync-server with ssl = yes?")
    };
    SessionError::Link { status, text: format!("{host} port {port}: TLS: {error}{hint}") }
}

async fn connect(host: &str, port: u16) -> Result<(TcpStream, SocketAddr), SessionError> {
    let text = |what: String| SessionError::Link { status: 75, text: format!("{host} port {port}: {what}") };
    let addresses: Vec<SocketAddr> = match tokio::net::lookup_host((host, port)).await {
        Ok(found) => found.collect(),
        Err(error) => return Err(text(format!("cannot find the host: {error}"))),
    };
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        match timeout(CONNECT_WAIT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!("no delay: {error}");
                }
                return Ok((stream, address));
            }
            Ok(Err(error)) => last = format!("cannot connect to {}: {error}", address.ip()),
            Err(_) => last = format!("{} does not answer", address.ip()),
        }
    }
    Err(text(last))
}

fn no_answer(host: &str, port: u16) -> SessionError {
    SessionError::Link { status: 75, text: format!("{host} port {port}: does not answer") }
}

/// Connects to the Unix socket of a server on this machine. Who may connect is a matter of the file's mode.
pub async fn unix(path: &Path) -> Result<Way, SessionError> {
    let failed =
        |what: String| SessionError::Link { status: 75, text: format!("{}: {what}", path.display()) };
    let stream = match timeout(CONNECT_WAIT, UnixStream::connect(path)).await {
        Ok(connected) => connected.map_err(|error| failed(format!("cannot connect: {error}")))?,
        Err(_) => return Err(failed("does not answer".into())),
    };
    Ok(Way { stream: Box::new(stream), private: true, local: true, child: None, native: None })
}

/// Starts a program and speaks with it over its stdin and stdout. No shell sees the words.
pub fn command(words: &[String]) -> Result<Way, SessionError> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(SessionError::Refused { status: 64, text: "the remote command is empty".into() });
    };
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned
        .map_err(|error| SessionError::Link { status: 75, text: format!("cannot run {program}: {error}") })?;
    match (child.stdout.take(), child.stdin.take()) {
        (Some(output), Some(input)) => {
            widen(&output);
            widen(&input);
            Ok(Way {
                stream: Box::new(tokio::io::join(output, input)),
                private: true,
                local: false,
                child: Some(child),
                native: None,
            })
        }
        _ => Err(SessionError::Link { status: 75, text: format!("cannot speak with {program}") }),
    }
}

/// The way of a server that was started for us.
pub fn own_stdio() -> Way {
    let pipes = || {
        let (input, output) = (std::io::stdin(), std::io::stdout());
        widen(&output);
        let receiver = Receiver::from_owned_fd(input.as_fd().try_clone_to_owned()?)?;
        let sender = Sender::from_owned_fd(output.as_fd().try_clone_to_owned()?)?;
        std::io::Result::Ok((receiver, sender))
    };
    let stream: Box<dyn Stream> = match pipes() {
        Ok((receiver, sender)) => Box::new(tokio::io::join(receiver, sender)),
        // Threads wait for what is no pipe.
        Err(_) => Box::new(tokio::io::join(tokio::io::stdin(), tokio::io::stdout())),
    };
    Way { stream, private: true, local: false, child: None, native: None }
}

/// Lets a pipe hold more, so that its ends need not wait for each other so often; where that is not permitted, it works all the same.
fn widen(pipe: impl AsFd) {
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES) {
        tracing::debug!("pipe stays as small as it is: {error}");
    }
}

fn client_config(trust: &Trust, provider: Arc<CryptoProvider>) -> Result<ClientConfig, SessionError> {
    let wrong = |what: String| SessionError::Refused { status: 78, text: what };
    let mut roots = RootCertStore::empty();
    match &trust.ca {
        Some(pem) => {
            for certificate in
                certificates(pem).map_err(|what| wrong(format!("ssl_client_ca_file: {what}")))?
            {
                roots.add(certificate).map_err(|error| wrong(format!("ssl_client_ca_file: {error}")))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    if roots.is_empty() {
        return Err(wrong("no CA to trust: set ssl_client_ca_file".into()));
    }
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong(format!("TLS: {error}")))?.with_root_certificates(roots);
    let mut config = match &trust.certificate {
        Some((certificate, key)) => {
            let chain =
                certificates(certificate).map_err(|what| wrong(format!("ssl_client_cert: {what}")))?;
            let key = private_key(key).map_err(|what| wrong(format!("ssl_client_key: {what}")))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| wrong(format!("ssl_client_cert: {error}")))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = ALPNS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// The certificates of a PEM file; at least one.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err("holds no certificate in PEM".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// The private key of a PEM file.
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("holds no private key in PEM: {error}"))
}
