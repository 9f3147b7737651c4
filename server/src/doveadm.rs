//! Connections of Dovecot's doveadm: by TCP with a password and one command, or as the program that it started.

use bytes::BytesMut;
use dsync_accounts::{User, check_user};
use dsync_session::dovecot::Names;
use dsync_session::dovecot::greet::{more, send};
use dsync_session::dovecot::link::Early;
use dsync_session::greet::PREFACE_WAIT;
use dsync_session::link::Stream;
use dsync_session::proto::dovecot::doveadm::{Asked, Command, Level, Server};
use dsync_session::proto::preface::MAGIC;
use dsync_session::{Report, SessionError, chain};
use dsync_worker::{Desk, Protocol};
use tokio::time::timeout;

use crate::limits::Permit;
use crate::packed::Packed;
use crate::serve::{Peer, Service};

/// What a mailbox may be for (RFC 6154, 8457).
const SPECIAL_USES: [&str; 8] =
    ["\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash", "\\Important"];

/// What became of a connection that began as doveadm's.
pub enum Doveadm {
    Done(Box<Report>),
    /// A command was run, and ended with this status.
    Ran(u8),
    /// It goes on in our own protocol.
    Native(BytesMut),
}

/// A connection before its session.
struct Talk<'a> {
    stream: &'a mut dyn Stream,
    server: Server,
    input: BytesMut,
}

impl Talk<'_> {
    /// Hears out what the client wants; `None`: to go on in our own protocol.
    async fn asked(&mut self, may_be_ours: bool) -> Result<Option<Asked>, SessionError> {
        let talk = async {
            loop {
                if may_be_ours && self.input.starts_with(MAGIC) {
                    return Ok(None);
                }
                let mut output = BytesMut::new();
                let asked = self.server.advance(&mut self.input, &mut output);
                send(self.stream, &output).await?;
                if let Some(asked) = asked? {
                    return Ok(Some(asked));
                }
                more(self.stream, &mut self.input).await?;
            }
        };
        let silent = || SessionError::Link {
            status: 75,
            text: format!("the other end did not say what it wants for {} s", PREFACE_WAIT.as_secs()),
        };
        timeout(PREFACE_WAIT, talk).await.unwrap_or_else(|_| Err(silent()))
    }

    async fn say(&mut self, say: impl FnOnce(&mut Server, &mut BytesMut)) -> Result<(), SessionError> {
        let mut output = BytesMut::new();
        say(&mut self.server, &mut output);
        send(self.stream, &output).await
    }
}

impl Service<'_> {
    /// Serves a client that began with doveadm's version line.
    pub async fn called_by_doveadm(
        &self,
        stream: &mut dyn Stream,
        input: BytesMut,
        peer: &Peer,
        permit: Option<&mut Permit>,
        named: &mut String,
    ) -> Result<Doveadm, SessionError> {
        let mut talk = Talk { stream, server: Server::new(peer.trusted), input };
        let command = match talk.asked(true).await? {
            None => return Ok(Doveadm::Native(talk.input)),
            Some(Asked::Command(command)) => command,
            Some(Asked::Password { user, password }) => {
                let admitted = self.admit_doveadm(peer, &user, &password);
                if let Err((status, text)) = admitted {
                    talk.say(|_, output| Server::turn_away(output)).await?;
                    return Err(SessionError::Refused { status, text });
                }
                talk.say(Server::admit).await?;
                let Some(Asked::Command(command)) = talk.asked(false).await? else {
                    return Err(SessionError::Peer("authenticates twice".into()));
                };
                command
            }
        };
        if let Some(permit) = permit {
            permit.authenticated();
        }
        if let Some((arguments, manner)) = command.to_be_run(talk.server.is_packed()) {
            if check_user(&command.user).is_ok() {
                named.clone_from(&command.user);
            }
            return self.run_command(talk.stream, &command, &arguments, manner, peer).await.map(Doveadm::Ran);
        }
        let opened = match self.opened(&command, named).await {
            Ok(opened) => opened,
            Err((status, text)) => {
                talk.say(|server, output| server.refuse(status, &text, output)).await?;
                return Err(SessionError::Refused { status, text });
            }
        };
        talk.say(|server, output| server.accept(output)).await?;
        let packed = talk.server.is_packed();
        let early = Early { input: talk.input, ..Early::default() };
        if !packed {
            let report = self.dovecot_session(opened, stream, early).await?;
            return Ok(Doveadm::Done(Box::new(report)));
        }
        let mut wrapped = Packed::new(stream);
        let outcome = self.dovecot_session(opened, &mut wrapped, early).await;
        let mut log = BytesMut::new();
        match &outcome {
            Ok(report) => {
                let problems = report.problems.iter();
                problems.for_each(|problem| Server::log(Level::Error, problem, &mut log));
            }
            Err(error) => Server::log(Level::Error, &chain(error), &mut log),
        }
        // Who has gone already has what it came for, or its own words for why not.
        if let Err(error) = wrapped.log(&log).await {
            tracing::debug!("the client does not take the log of its session: {error}");
        }
        outcome.map(|report| Doveadm::Done(Box::new(report)))
    }

    /// Serves a Dovecot that started us for one user.
    pub async fn started_by_dovecot(
        &self,
        stream: &mut dyn Stream,
        early: Early,
        peer: &Peer,
        named: &mut String,
    ) -> Result<Report, SessionError> {
        let user = peer.trusted_user.as_deref().unwrap_or_default();
        user.clone_into(named);
        let opened = self.desk(user).await;
        let opened = opened.map_err(|(status, text)| SessionError::Refused { status, text })?;
        self.dovecot_session(opened, stream, early).await
    }

    async fn dovecot_session(
        &self,
        (desk, user): (Desk<'_>, User),
        stream: &mut dyn Stream,
        early: Early,
    ) -> Result<Report, SessionError> {
        let mut uses = Vec::new();
        for flag in SPECIAL_USES {
            // What is wrong with the settings of the user's namespaces was found when their mail was opened.
            let names = self.settings.special_use(flag, &user).unwrap_or_default();
            uses.extend(names.into_iter().map(|name| (flag.to_owned(), name)));
        }
        let mut talk = self.talk(Protocol::Dovecot, early);
        talk.names = Names { special_uses: uses };
        desk.run(stream, talk, &mut |_| {}).await.map(|(report, _)| report)
    }

    /// Whoever knows doveadm's password may have every user's mail, as with Dovecot.
    fn admit_doveadm(&self, peer: &Peer, user: &str, password: &str) -> Result<(), (u8, String)> {
        let expected = self.settings.text("doveadm_username").unwrap_or_else(|| "doveadm".into());
        if user != expected {
            return Err((77, "wrong user name or password".to_owned()));
        }
        match self.knows_secret(peer, password)? {
            true => Ok(()),
            false => Err((77, "wrong user name or password".to_owned())),
        }
    }

    async fn opened(&self, command: &Command, named: &mut String) -> Result<(Desk<'_>, User), (u8, String)> {
        if command.name != "dsync-server" {
            let text = format!(
                "asks for the command {:?}; only dsync-server, sync and backup are served",
                command.name
            );
            return Err((77, text));
        }
        if !command.is_dsync_server() {
            return Err((64, format!("calls dsync-server with {:?}", command.arguments)));
        }
        check_user(&command.user).map_err(|error| (67, error.to_string()))?;
        named.clone_from(&command.user);
        self.desk(&command.user).await
    }
}
