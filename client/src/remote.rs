//! `-S`: has a server run the command, and shows what it says. And the other side of it: what may be run for whom.

use std::io::Write;

use anyhow::Context as _;
use bytes::BytesMut;
use dsync_accounts::{Settings, refuse_root};
use dsync_session::dial::{self, Way};
use dsync_session::dovecot::greet::{more, send};
use dsync_session::proto::dovecot::doveadm::{Client, Command, Level, Refusal};
use dsync_session::proto::preface::Auth;

use crate::args::{Common, Globals, Users};
use crate::connection::{auth, dial_tls};
use crate::destination::Destination;
use crate::{Failed, users};

/// Set by a dsync-server for the program that it starts: who asked for it.
const SERVED: &str = "DSYNC_SERVED";

/// For whom this program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served {
    /// For who started it.
    Nobody,
    /// For a client on this machine who could have started it as well.
    Local,
    Remote,
}

impl Served {
    pub fn now() -> Served {
        match std::env::var_os(SERVED) {
            None => Served::Nobody,
            Some(word) if word == "local" => Served::Local,
            // Whatever else it says, no more is allowed.
            Some(_) => Served::Remote,
        }
    }

    /// Refuses what a client at another machine may not have this one do: read and write files as whoever runs the server.
    pub fn check(self, common: &Common, users: &Users, behind: &Globals) -> Result<(), Failed> {
        let wanted = [
            (common.socket.is_some(), "-S"),
            (common.rawlog.is_some(), "-r"),
            (!common.destination_option.is_empty(), "-p"),
            (users.user_file.is_some(), "-F"),
            (users.resume.is_some(), "--resume"),
            (behind.config.is_some(), "-c"),
            (!behind.overrides.is_empty(), "-o"),
        ];
        match wanted.iter().find(|(given, _)| *given) {
            Some((_, option)) if self == Served::Remote => {
                let what = format!("{option} is not for clients by network; run dsync there");
                Err(Failed::new(77, anyhow::Error::msg(what)))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a program as destination, unless the administrator named it (`-d`) or could have run it.
    pub fn check_destination(self, destination: &Destination, default: bool) -> Result<(), Failed> {
        match destination {
            Destination::Command { words, .. } if self == Served::Remote && !default => {
                let what = format!(
                    "the destination is a command ({}), which is not run for clients by network",
                    words.first().map(String::as_str).unwrap_or_default()
                );
                Err(Failed::new(77, anyhow::Error::msg(what)))
            }
            _ => Ok(()),
        }
    }

    /// Refuses to work as root for a client by network, who says where to write.
    pub fn check_root(self, settings: &Settings) -> Result<(), Failed> {
        if self == Served::Remote { Ok(refuse_root(settings)?) } else { Ok(()) }
    }
}

/// Has the server at `socket` run this command; gives its exit status.
pub fn run(socket: &str, settings: &Settings, common: &Common, globals: &Globals) -> Result<u8, Failed> {
    let words: Option<Vec<String>> =
        std::env::args_os().skip(1).map(|word| word.into_string().ok()).collect();
    let words = words.ok_or_else(|| Failed::usage("-S takes words in UTF-8 alone"))?;
    let (name, mut arguments) = command_words(&words)
        .ok_or_else(|| Failed::usage("write -S as a word of its own, behind the command"))?;
    let user = match &common.user {
        Some(user) => user.clone(),
        // The server's end would take whoever runs it.
        None => {
            let own = users::one(settings, None)?.name;
            if !arguments
                .iter()
                .any(|word| matches!(word.as_str(), "-A" | "--all-users" | "-F" | "--user-file"))
            {
                arguments.splice(0..0, ["-u".to_owned(), own.clone()]);
            }
            own
        }
    };
    let command = Command { debug: globals.debug, verbose: globals.verbose, user, name, arguments };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime").map_err(|error| Failed::new(75, error))?;
    runtime.block_on(async {
        let mut way = reach(socket, settings).await?;
        // A unix socket lets in whom it trusts; a hash of the password is the server's business.
        let shown = match auth(settings, common.insecure, &way) {
            Err(_) if socket.starts_with('/') => Auth::None,
            other => other?,
        };
        let password = match shown {
            Auth::Plain { user, password } => Some((user, password)),
            Auth::None => None,
        };
        talk(&mut way, password, &command).await
    })
}

/// A path, `host:port`, or a destination `tcp:` or `tcps:`.
async fn reach(socket: &str, settings: &Settings) -> Result<Way, Failed> {
    if socket.starts_with('/') {
        return Ok(dial::unix(std::path::Path::new(socket)).await?);
    }
    let word = match socket.split_once(':') {
        Some(("tcp" | "tcps", _)) => socket.to_owned(),
        _ => format!("tcp:{socket}"),
    };
    match Destination::parse_all(&[word], settings, "")?.pop() {
        Some(Destination::Tcp { host, port, tls: false }) => Ok(dial::tcp(&host, port).await?),
        Some(Destination::Tcp { host, port, tls: true }) => dial_tls(settings, &host, port).await,
        _ => Err(Failed::usage(format!("-S {socket}: neither a path nor host:port"))),
    }
}

async fn talk(way: &mut Way, password: Option<(String, String)>, command: &Command) -> Result<u8, Failed> {
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut client = Client::to_run(password, command, &mut output);
    let mut said = false;
    loop {
        if !output.is_empty() {
            send(&mut *way.stream, &output).await?;
            output.clear();
        }
        let ended = client.advance(&mut input, &mut output);
        for line in client.log() {
            said |= line.level >= Level::Warning;
            eprintln!("{}{}", line.level.word(), line.text);
        }
        let printed = client.printed();
        let mut stdout = std::io::stdout();
        let told = stdout.write_all(&printed).and_then(|()| stdout.flush());
        told.context("cannot write to stdout").map_err(|error| Failed::new(75, error))?;
        match ended {
            Ok(true) => return Ok(0),
            Ok(false) if !output.is_empty() => {}
            Ok(false) => more(&mut *way.stream, &mut input).await?,
            // Its own lines say why.
            Err(Refusal::Status(status)) if said || status == 2 => return Ok(status),
            Err(refusal) => return Err(refused(refusal)),
        }
    }
}

fn refused(refusal: Refusal) -> Failed {
    let (status, what) = match refusal {
        Refusal::PasswordWanted => (77, "the server wants a password: set doveadm_password".to_owned()),
        Refusal::PasswordWrong => (77, "the server says that doveadm_password is wrong".to_owned()),
        Refusal::Status(status) => (status, format!("the server's command ended with status {status}")),
        Refusal::Proto(error) => {
            return Failed::from(dsync_session::SessionError::from(error));
        }
    };
    Failed::new(status, anyhow::Error::msg(format!("-S: {what}")))
}

/// The command's name, and its words without `-S` and its value. `None`: the words are not written so.
fn command_words(words: &[String]) -> Option<(String, Vec<String>)> {
    let mut at = 0;
    while words.get(at)?.starts_with('-') {
        at += if matches!(words[at].as_str(), "-c" | "-o" | "--config" | "--option") { 2 } else { 1 };
    }
    let (name, rest) = words[at..].split_first()?;
    let mut rest = rest.to_vec();
    let found = rest
        .iter()
        .position(|word| word.starts_with("-S") || word == "--socket" || word.starts_with("--socket="))?;
    let alone = matches!(rest[found].as_str(), "-S" | "--socket");
    rest.drain(found..found + if alone { 2 } else { 1 });
    Some((name.clone(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_command_are_handed_on_without_the_socket() {
        for (line, expected) in [
            ("sync -S /s -u alice tcps:mx1", "sync: -u alice tcps:mx1"),
            ("-v -c f -o a=b backup -u alice -S/s -R ssh -S x mx1", "backup: -u alice -R ssh -S x mx1"),
            ("--config=f sync --socket=h:1 maildir:/x", "sync: maildir:/x"),
            ("sync --socket h:1 -1 maildir:/x", "sync: -1 maildir:/x"),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let (name, rest) = command_words(&words).unwrap();
            assert_eq!(format!("{name}: {}", rest.join(" ")), expected);
        }
        assert!(command_words(&["sync".to_owned(), "-1S".to_owned(), "/s".to_owned()]).is_none());
    }
}
