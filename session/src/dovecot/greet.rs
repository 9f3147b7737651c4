//! Finds out whether the other end is a Dovecot, and comes to terms with it.
//!
//! A program that was started for us is probed with Dovecot's version line and a table that only we know: a Dovecot passes over tables that it
//! does not know, and a dsync-server answers in its own protocol. On TCP both begin with doveadm's version line; Dovecot answers
//! with one of its own, we never do so to our own client.

use bytes::{Buf, BytesMut};
use dsync_proto::ProtoError;
use dsync_proto::dovecot::doveadm::{Client, Command, Refusal};
use dsync_proto::preface::{MAGIC, Spoken, recognise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::link::{Early, tell};
use crate::SessionError;
use crate::greet::PREFACE_WAIT;
use crate::link::Stream;

/// What we say first to a program on a pipe.
pub const PROBE: &[u8] = b"VERSION\tdsync\t3\t5\n~dsync\tnative\n";
/// The version line in it.
const PROBE_LINE: usize = 18;

/// Who is at the other end.
pub enum Peer {
    /// A dsync-server: native talk begins anew.
    Native,
    Dovecot(Early),
}

/// Asks a program on a pipe what it is.
pub async fn probe(stream: &mut dyn Stream) -> Result<Peer, SessionError> {
    let mut input = BytesMut::new();
    let talk = async {
        send(stream, PROBE).await?;
        loop {
            match recognise(&input) {
                Some(Spoken::Native) => return Ok(Peer::Native),
                Some(Spoken::Dovecot) => {
                    return Ok(Peer::Dovecot(Early { input, demux: None, named: true }));
                }
                Some(_) => {
                    let shown =
                        String::from_utf8_lossy(&input[..input.len().min(80)]).escape_debug().to_string();
                    let text = format!(
                        "the remote command is neither a dsync-server nor a Dovecot; it says \"{shown}\""
                    );
                    return Err(SessionError::Link { status: 76, text });
                }
                None => more(stream, &mut input).await?,
            }
        }
    };
    timeout(PREFACE_WAIT, talk).await.unwrap_or_else(|_| Err(silent()))
}

/// Calls a Dovecot's doveadm service, or finds that it is a dsync-server, unless `only_dovecot`. `password`: name and word.
pub async fn call(
    stream: &mut dyn Stream,
    password: Option<(String, String)>,
    user: &str,
    only_dovecot: bool,
) -> Result<Peer, SessionError> {
    let debug = tracing::enabled!(tracing::Level::DEBUG);
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut client = Client::new(password, &Command::dsync_server(user, debug), &mut output);
    let mut begun = only_dovecot;
    let talk = async {
        loop {
            if !output.is_empty() {
                send(stream, &output).await?;
                output.clear();
            }
            if !begun {
                if input.starts_with(b"-\n") || input.starts_with(b"+\n") {
                    return Ok(Peer::Native);
                }
                begun = match recognise(&input) {
                    Some(Spoken::Dovecot) => true,
                    Some(Spoken::Http) => return Err(ProtoError::OtherProtocol("it is HTTP".into()).into()),
                    Some(_) if input.len() >= 2 => {
                        return Err(ProtoError::OtherProtocol("it is not dsync".into()).into());
                    }
                    Some(_) | None => false,
                };
            }
            if begun {
                let opened = client.advance(&mut input, &mut output);
                client.log().into_iter().for_each(tell);
                match opened {
                    Ok(true) => {
                        let (demux, plain) = client.into_stream();
                        let demux = demux.map(|demux| (demux, plain));
                        return Ok(Peer::Dovecot(Early { input, demux, named: false }));
                    }
                    Ok(false) if !output.is_empty() => continue,
                    Ok(false) => {}
                    Err(refusal) => return Err(refused(refusal)),
                }
            }
            more(stream, &mut input).await?;
        }
    };
    timeout(PREFACE_WAIT, talk).await.unwrap_or_else(|_| Err(silent()))
}

fn refused(refusal: Refusal) -> SessionError {
    let (status, text) = match refusal {
        Refusal::PasswordWanted => (77, "the Dovecot wants a password: set doveadm_password".to_owned()),
        Refusal::PasswordWrong => (77, "the Dovecot says that doveadm_password is wrong".to_owned()),
        Refusal::Status(67) => (67, "the Dovecot knows no such user".to_owned()),
        Refusal::Status(status) => {
            (status, format!("the Dovecot refuses, with status {status}; its log says why"))
        }
        Refusal::Proto(error) => return error.into(),
    };
    SessionError::Link { status, text }
}

/// How a program that was started on a pipe is spoken to.
pub enum Caller {
    /// In our own protocol; `early` begins with its first bytes.
    Native(BytesMut),
    Dovecot(Early),
}

/// Hears on a pipe who calls.
pub async fn listen(stream: &mut dyn Stream) -> Result<Caller, SessionError> {
    let mut input = BytesMut::new();
    let talk = async {
        loop {
            match recognise(&input) {
                Some(Spoken::Dovecot) if input.len() > PROBE_LINE => {
                    if input[PROBE_LINE] != PROBE[PROBE_LINE] || !input.starts_with(&PROBE[..PROBE_LINE]) {
                        return Ok(Caller::Dovecot(Early { input, ..Early::default() }));
                    }
                    if input.len() < PROBE.len() {
                        more(stream, &mut input).await?;
                        continue;
                    }
                    input.advance(PROBE.len());
                    send(stream, MAGIC).await?;
                    return Ok(Caller::Native(input));
                }
                Some(Spoken::Dovecot) | None => more(stream, &mut input).await?,
                Some(_) => return Ok(Caller::Native(input)),
            }
        }
    };
    timeout(PREFACE_WAIT, talk).await.unwrap_or_else(|_| Err(silent()))
}

/// Reads what comes next; an end is an error.
pub async fn more(stream: &mut dyn Stream, input: &mut BytesMut) -> Result<(), SessionError> {
    match stream.read_buf(input).await {
        Ok(0) => {
            let text = "the other end closed the connection before the session began; its log says why";
            Err(SessionError::Link { status: 75, text: text.into() })
        }
        Ok(_) => Ok(()),
        Err(error) => Err(broken(&error)),
    }
}

/// Sends all of it.
pub async fn send(stream: &mut dyn Stream, bytes: &[u8]) -> Result<(), SessionError> {
    stream.write_all(bytes).await.map_err(|error| broken(&error))?;
    stream.flush().await.map_err(|error| broken(&error))
}

fn broken(error: &std::io::Error) -> SessionError {
    SessionError::Link { status: 75, text: format!("the connection broke: {error}") }
}

fn silent() -> SessionError {
    SessionError::Link {
        status: 75,
        text: format!("the other end said nothing for {} s", PREFACE_WAIT.as_secs()),
    }
}
