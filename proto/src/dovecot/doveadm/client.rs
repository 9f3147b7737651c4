//! The half that calls: shows a password, says a command, reads its reply.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;

use super::command::{Command, IN_PACKETS};
use super::packets::{Demux, Logged};
use super::{LINE_BYTES_MAX, line, status_of};
use crate::ProtoError;
use crate::dovecot::text;

const CLIENT_HELLO: &[u8] = super::OUR_HELLO.as_bytes();

enum Asking {
    Greeting,
    Password,
    Values,
    Status,
    Open,
}

/// Calls a Dovecot's doveadm service.
pub struct Client {
    asking: Asking,
    password: Option<(String, String)>,
    command: Vec<u8>,
    /// The same for a dsync-server, if it is to be run there and not the beginning of a session.
    run: Option<Vec<u8>>,
    demux: Option<Demux>,
    minor: u32,
    plain: BytesMut,
    log: Vec<Logged>,
    values: BytesMut,
}

impl Client {
    /// For this command of this user's; `password` is the name and the word to show, if it comes to that. Begins to speak.
    pub fn new(password: Option<(String, String)>, command: &Command, output: &mut BytesMut) -> Client {
        output.extend_from_slice(CLIENT_HELLO);
        Client {
            asking: Asking::Greeting,
            password,
            command: command.to_line(),
            run: None,
            demux: None,
            minor: 0,
            plain: BytesMut::new(),
            log: Vec::new(),
            values: BytesMut::new(),
        }
    }

    /// The same for a command that the server runs: what it prints is had by [`Client::printed`], and `true` says that it succeeded.
    pub fn to_run(password: Option<(String, String)>, command: &Command, output: &mut BytesMut) -> Client {
        let mut ours = command.clone();
        ours.arguments.insert(0, IN_PACKETS.to_owned());
        Client { run: Some(ours.to_line()), ..Client::new(password, command, output) }
    }

    /// Takes what came. `true`: the command succeeded, and what follows is its own ([`Client::into_stream`]).
    pub fn advance(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<bool, Refusal> {
        loop {
            if let Some(demux) = &mut self.demux {
                self.log.extend(demux.take(input, &mut self.plain)?);
            }
            let source = if self.demux.is_some() { &mut self.plain } else { &mut *input };
            if matches!(self.asking, Asking::Open) {
                return Ok(true);
            }
            let Some(line) = line(source, LINE_BYTES_MAX)? else { return Ok(false) };
            match (&self.asking, line.as_str()) {
                (Asking::Greeting, version) if version.starts_with("VERSION\t") => {
                    let minor = version.strip_prefix("VERSION\tdoveadm-client\t1\t");
                    self.minor = minor.and_then(|minor| minor.parse().ok()).ok_or_else(|| {
                        ProtoError::OtherProtocol("it is a Dovecot of another doveadm protocol".into())
                    })?;
                }
                (Asking::Greeting, "-") => {
                    let Some((user, password)) = self.password.take() else {
                        return Err(Refusal::PasswordWanted);
                    };
                    let secret = BASE64.encode(format!("\0{user}\0{password}"));
                    output.extend_from_slice(format!("PLAIN\t{secret}\n").as_bytes());
                    self.asking = Asking::Password;
                }
                (Asking::Greeting | Asking::Password, "+") => {
                    let ours = self.run.as_ref().filter(|_| self.minor == 0);
                    output.extend_from_slice(ours.unwrap_or(&self.command));
                    self.demux = (self.minor > 0 || ours.is_some()).then(Demux::default);
                    self.asking = Asking::Values;
                }
                (Asking::Password, "-") => return Err(Refusal::PasswordWrong),
                (Asking::Values, values) if values.is_empty() || values.ends_with('\t') => {
                    // A Dovecot prints its values so.
                    for value in
                        text::split_list(values.trim_end_matches('\t').as_bytes()).unwrap_or_default()
                    {
                        if self.run.is_some() && !value.is_empty() {
                            self.values.extend_from_slice(&value);
                            self.values.extend_from_slice(b"\n");
                        }
                    }
                    self.asking = Asking::Status;
                }
                (Asking::Values | Asking::Status, "+") => self.asking = Asking::Open,
                (Asking::Values | Asking::Status, status) if status.starts_with('-') => {
                    return Err(Refusal::Status(status_of(&status[1..])));
                }
                (_, other) => {
                    let shown: String = other.chars().take(80).collect();
                    return Err(ProtoError::OtherProtocol(format!("it says {shown:?}")).into());
                }
            }
        }
    }

    /// What the server logged since this was last asked.
    pub fn log(&mut self) -> Vec<Logged> {
        std::mem::take(&mut self.log)
    }

    /// What the command printed since this was last asked.
    pub fn printed(&mut self) -> BytesMut {
        let mut printed = self.demux.as_mut().map(|demux| demux.printed.split()).unwrap_or_default();
        printed.unsplit(self.values.split());
        printed
    }

    /// How the rest of the stream is to be read, and what of it is here.
    pub fn into_stream(self) -> (Option<Demux>, BytesMut) {
        (self.demux, self.plain)
    }
}

/// Why a server does not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    PasswordWanted,
    PasswordWrong,
    /// It tried, and this is its exit status.
    Status(u8),
    Proto(ProtoError),
}

impl From<ProtoError> for Refusal {
    fn from(error: ProtoError) -> Refusal {
        Refusal::Proto(error)
    }
}
