//! The preface, both halves: hello, authentication, whose mail.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use dsync_proto::preface::{self, Auth, Common, Hello, MAGIC, Spoken, Start, Verdict, recognise};
use dsync_proto::{ProtoError, status_told};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::SessionError;
use crate::link::Stream;

/// How long the whole preface may take.
pub const PREFACE_WAIT: Duration = Duration::from_secs(30);

/// Longest wait for the next user on an open connection.
const NEXT_WAIT: Duration = Duration::from_secs(300);

/// What a client learns from the preface.
#[derive(Debug)]
pub struct Greeted {
    pub common: Common,
    /// The server's answer: it does not let us in, or not to this user.
    pub refused: Option<SessionError>,
    /// Bytes that came behind.
    pub early: BytesMut,
}

/// Says hello, who we are and whose mail we come for.
pub async fn client(
    stream: &mut dyn Stream,
    auth: Auth,
    user: &str,
    compress: bool,
) -> Result<Greeted, SessionError> {
    let ours = Hello::ours(compress);
    let mut output = BytesMut::from(&MAGIC[..]);
    preface::encode(&ours, &mut output)?;
    preface::encode(&auth, &mut output)?;
    preface::encode(&Start { user: user.to_owned() }, &mut output)?;
    let talk = async {
        stream.write_all(&output).await.map_err(|error| lost(&error))?;
        stream.flush().await.map_err(|error| lost(&error))?;
        let mut input = BytesMut::new();
        expect_native(stream, &mut input).await?;
        let theirs: Hello = receive(stream, &mut input).await?;
        let common = ours.negotiate(&theirs)?;
        let refused = refusal(receive(stream, &mut input).await?);
        Ok(Greeted { common, refused, early: input })
    };
    timeout(PREFACE_WAIT, talk).await.unwrap_or_else(|_| Err(silent()))
}

fn refusal(verdict: Verdict) -> Option<SessionError> {
    match verdict {
        Verdict::Welcome => None,
        Verdict::Refused { status, text } => {
            let status = status_told(status);
            Some(SessionError::Link { status, text: format!("the server refuses: {}", text.escape_debug()) })
        }
    }
}

/// Comes for another user's mail on a connection whose session is over. Gives the server's refusal, if it does refuse.
pub async fn next(
    stream: &mut dyn Stream,
    input: &mut BytesMut,
    user: &str,
) -> Result<Option<SessionError>, SessionError> {
    let mut output = BytesMut::new();
    preface::encode(&Start { user: user.to_owned() }, &mut output)?;
    let talk = async {
        stream.write_all(&output).await.map_err(|error| lost(&error))?;
        stream.flush().await.map_err(|error| lost(&error))?;
        Ok(refusal(receive(stream, input).await?))
    };
    timeout(PREFACE_WAIT, talk).await.unwrap_or_else(|_| Err(silent()))
}

/// Waits for the next user that a client comes for; `None` if it goes, or says nothing for long.
pub async fn next_user(
    stream: &mut dyn Stream,
    input: &mut BytesMut,
) -> Result<Option<String>, SessionError> {
    let talk = async {
        if input.is_empty() && stream.read_buf(input).await.map_err(|error| lost(&error))? == 0 {
            return Ok(None);
        }
        let Start { user } = receive(stream, input).await?;
        Ok(Some(user))
    };
    timeout(NEXT_WAIT, talk).await.unwrap_or(Ok(None))
}

/// What a client wants.
#[derive(Debug)]
pub struct Asked {
    pub auth: Auth,
    pub user: String,
    pub program: String,
    pub common: Common,
    /// Bytes that came behind.
    pub early: BytesMut,
}

/// Hears a client out. `input` holds what was read so far.
pub async fn server(
    stream: &mut dyn Stream,
    mut input: BytesMut,
    compress: bool,
) -> Result<Asked, SessionError> {
    let talk = async {
        expect_native(stream, &mut input).await?;
        let ours = Hello::ours(compress);
        let theirs: Hello = receive(stream, &mut input).await?;
        let mut hello = BytesMut::from(&MAGIC[..]);
        preface::encode(&ours, &mut hello)?;
        stream.write_all(&hello).await.map_err(|error| lost(&error))?;
        stream.flush().await.map_err(|error| lost(&error))?;
        let common = ours.negotiate(&theirs)?;
        let auth = receive(stream, &mut input).await?;
        let Start { user } = receive(stream, &mut input).await?;
        Ok(Asked { auth, user, program: theirs.program, common, early: std::mem::take(&mut input) })
    };
    timeout(PREFACE_WAIT, talk).await.unwrap_or_else(|_| Err(silent()))
}

/// Answers a client.
pub async fn answer(stream: &mut dyn Stream, verdict: Verdict) -> Result<(), SessionError> {
    let mut output = BytesMut::new();
    preface::encode(&verdict, &mut output)?;
    let tell = async {
        stream.write_all(&output).await?;
        stream.flush().await
    };
    match timeout(PREFACE_WAIT, tell).await {
        Ok(told) => told.map_err(|error| lost(&error)),
        Err(_) => Err(silent()),
    }
}

async fn expect_native(stream: &mut dyn Stream, input: &mut BytesMut) -> Result<(), SessionError> {
    loop {
        match recognise(input) {
            Some(Spoken::Native) => {
                input.advance(MAGIC.len());
                return Ok(());
            }
            Some(other) => {
                let what = match other {
                    Spoken::Dovecot => "it is a Dovecot; --protocol native is not for it",
                    Spoken::Http => "it is HTTP",
                    Spoken::Tls => "it is TLS where none was expected; use tcps:",
                    _ => "it is not dsync",
                };
                return Err(ProtoError::OtherProtocol(what.into()).into());
            }
            None => more(stream, input).await?,
        }
    }
}

async fn receive<T: bincode_free::Decode>(
    stream: &mut dyn Stream,
    input: &mut BytesMut,
) -> Result<T, SessionError> {
    loop {
        if let Some(message) = T::decode(input)? {
            return Ok(message);
        }
        more(stream, input).await?;
    }
}

/// Keeps bincode's traits out of this crate.
mod bincode_free {
    use super::{Auth, BytesMut, Hello, ProtoError, Start, Verdict, preface};

    pub trait Decode: Sized {
        fn decode(input: &mut BytesMut) -> Result<Option<Self>, ProtoError>;
    }
    macro_rules! decoded {
        ($($name:ty),*) => {$(
            impl Decode for $name {
                fn decode(input: &mut BytesMut) -> Result<Option<Self>, ProtoError> {
                    preface::decode(input)
                }
            }
        )*};
    }
    decoded!(Hello, Auth, Start, Verdict);
}

async fn more(stream: &mut dyn Stream, input: &mut BytesMut) -> Result<(), SessionError> {
    match stream.read_buf(input).await {
        Ok(0) => Err(SessionError::Link {
            status: 75,
            text: "the other end closed the connection before it said who it is".into(),
        }),
        Ok(_) => Ok(()),
        Err(error) => Err(lost(&error)),
    }
}

fn lost(error: &std::io::Error) -> SessionError {
    SessionError::Link { status: 75, text: format!("the connection broke: {error}") }
}

fn silent() -> SessionError {
    SessionError::Link {
        status: 75,
        text: format!("the other end said nothing for {} s", PREFACE_WAIT.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_version_is_refused_at_both_ends_with_the_one_to_update() {
        let (low, high) = dsync_proto::VERSIONS;
        for (version, older) in [(low - 1, "the other end"), (high + 1, "this end")] {
            let hello = Hello { versions: (version, version), ..Hello::ours(false) };
            let mut bytes = BytesMut::from(&MAGIC[..]);
            preface::encode(&hello, &mut bytes).unwrap();
            let (mut ours, mut theirs) = tokio::io::duplex(16 << 10);
            theirs.write_all(&bytes).await.unwrap();
            let called = client(&mut ours, Auth::None, "alice", false).await.unwrap_err();
            let (mut ours, mut theirs) = tokio::io::duplex(16 << 10);
            theirs.write_all(&bytes).await.unwrap();
            let serving = server(&mut ours, BytesMut::new(), false).await.unwrap_err();
            for error in [called, serving] {
                let text = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let expected = format!(
                    "the other end speaks version {version} of dsync's protocol, this one {high}: update the dsync of {older}"
                );
                assert!(text.contains(&expected), "{text}");
                assert_eq!(error.status(), 76);
            }
            // The client heard which version is spoken here, and can say the same.
            let mut heard = vec![0; MAGIC.len()];
            theirs.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, MAGIC);
        }
    }
}
