//! The doveadm protocol, in front of a session on TCP or a unix socket: version, password, one command line, its reply.
//!
//! Both halves take bytes and give bytes. As server we name version 1.1 to a Dovecot: it then takes our log in packets, and neither asks for
//! STARTTLS nor sends fields of 2.4. To our own client, known by the way it spells its version, we name none.

mod client;
mod command;
mod packets;
mod server;

use bytes::{Buf, BytesMut};

use crate::ProtoError;

pub use client::{Client, Refusal};
pub use command::{Command, Manner};
pub use packets::{Demux, LOG, Level, Logged, PRINTED};
pub use server::{Asked, Server};

/// Our client's first line. A Dovecot reads its version as 1.2; a dsync-server knows by the 0 that it is called by one of ours.
const OUR_HELLO: &str = "VERSION\tdoveadm-server\t1\t02\n";

/// Longest line that is read before a session begins, and longest one of a log.
const LINE_BYTES_MAX: usize = 64 << 10;

/// A status that a reply names, as Dovecot spells it and as a program ends with it.
const CODES: &[(&str, u8)] = &[
    ("USAGE", 64),
    ("DATAERR", 65),
    ("NOUSER", 67),
    ("NOTFOUND", 68),
    ("TEMPFAIL", 75),
    ("PROTOCOL", 76),
    ("NOPERM", 77),
    ("CHANGED", 2),
    ("UNKNOWN", 75),
];

/// The exit status that a status line names; what is not known is 75.
fn status_of(reply: &str) -> u8 {
    let code = reply.split(' ').next().unwrap_or_default();
    let known = CODES.iter().find(|(name, _)| *name == code).map(|(_, status)| *status);
    known.or_else(|| code.parse().ok().filter(|status| *status > 0)).unwrap_or(75)
}

/// The status line for an exit status.
fn reply_for(status: u8) -> &'static str {
    CODES.iter().find(|(_, known)| *known == status).map_or("", |(name, _)| name)
}

fn line(input: &mut BytesMut, bytes_max: usize) -> Result<Option<String>, ProtoError> {
    let found = memchr::memchr(b'\n', input);
    if found.unwrap_or(input.len()) > bytes_max {
        return Err(ProtoError::Malformed("a line is too long".into()));
    }
    let Some(end) = found else { return Ok(None) };
    let line = input.split_to(end);
    input.advance(1);
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_and_a_server_come_to_terms() {
        let command = Command::dsync_server("alice", true);
        let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
        let mut client = Client::new(Some(("doveadm".into(), "s3cret".into())), &command, &mut to_server);
        let mut server = Server::new(false);
        assert_eq!(server.advance(&mut to_server, &mut to_client), Ok(None));
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(false));
        let asked = server.advance(&mut to_server, &mut to_client).unwrap();
        assert_eq!(asked, Some(Asked::Password { user: "doveadm".into(), password: "s3cret".into() }));
        server.admit(&mut to_client);
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(false));
        assert_eq!(server.advance(&mut to_server, &mut to_client), Ok(Some(Asked::Command(command.clone()))));
        assert!(command.is_dsync_server());
        server.accept(&mut to_client);
        to_client.extend_from_slice(b"VERSION");
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(true));
        let (demux, plain) = client.into_stream();
        assert!(demux.is_none() && plain.is_empty() && to_client == b"VERSION"[..]);
    }

    #[test]
    fn a_command_is_run_and_its_output_and_status_come_back() {
        let command = Command {
            user: "alice".into(),
            name: "sync".into(),
            arguments: vec!["-u".into(), "alice".into(), "maildir:~/x\ty".into()],
            ..Command::default()
        };
        let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
        let mut client = Client::to_run(None, &command, &mut to_server);
        let mut server = Server::new(true);
        assert_eq!(server.advance(&mut to_server, &mut to_client), Ok(None));
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(false));
        let Ok(Some(Asked::Command(asked))) = server.advance(&mut to_server, &mut to_client) else {
            panic!("a command")
        };
        assert_eq!(asked.to_be_run(false), Some((command.arguments.clone(), Manner::Packets)));
        assert!(!asked.is_dsync_server());
        Server::packet(PRINTED, b"state\n", &mut to_client);
        Server::logged(b"one\ntwo\n", &mut to_client);
        assert_eq!(client.advance(&mut to_client, &mut to_server), Ok(false));
        assert_eq!(client.printed(), &b"state\n"[..]);
        let lines: Vec<String> = client.log().into_iter().map(|line| line.text).collect();
        assert_eq!(lines, ["one", "two"]);
        for (status, expected) in
            [(0, Ok(true)), (73, Err(Refusal::Status(73))), (2, Err(Refusal::Status(2)))]
        {
            let mut client = Client::to_run(None, &command, &mut BytesMut::new());
            let mut reply = BytesMut::from(&b"+\n"[..]);
            Server::ended(status, Manner::Packets, &mut reply);
            assert_eq!(client.advance(&mut reply, &mut BytesMut::new()), expected, "{status}");
        }
        // A Dovecot's values.
        let mut client = Client::to_run(None, &command, &mut BytesMut::new());
        let mut reply = BytesMut::from(&b"VERSION\tdoveadm-client\t1\t2\n+\n\0\0\0\0\x0aAQ==\t\n\n+\n"[..]);
        let mut sent = BytesMut::new();
        let _ = client.advance(&mut reply, &mut sent);
        assert_eq!(sent, &b"\talice\tsync\t-u\talice\tmaildir:~/x\x01ty\n"[..]);
        assert_eq!(client.printed(), &b"AQ==\n"[..]);
    }

    #[test]
    fn a_doveadms_command_is_one_to_be_run() {
        for (line, arguments) in [
            ("v\talice\tsync\t-u\talice\t-s\t\t-1\t--\tmaildir:/x", "-u alice -s  -1 -- maildir:/x"),
            ("\talice\tbackup\t--\tssh\t-u\tmx1", "-u alice -- ssh -u mx1"),
        ] {
            let command = Command::parse(line).unwrap();
            for (packed, expected) in [(false, Manner::Values), (true, Manner::ValuesAndLog)] {
                let (words, manner) = command.to_be_run(packed).unwrap();
                assert_eq!((words.join(" ").as_str(), manner), (arguments, expected));
            }
        }
        assert_eq!(Command::parse("\talice\tpurge").unwrap().to_be_run(true), None);
        let mut output = BytesMut::new();
        Server::value(b"a\tb", Manner::Values, &mut output);
        Server::ended(2, Manner::Values, &mut output);
        Server::ended(65, Manner::Values, &mut output);
        assert_eq!(output, &b"a\x01tb\t\n-2\n\n-DATAERR\n"[..]);
    }

    #[test]
    fn a_long_command_is_read_from_one_who_was_let_in() {
        let line = format!("\talice\tsync\t-s\t{}\t--\tx\n", "A".repeat(128 << 10));
        let mut input = BytesMut::from(format!("VERSION\tdoveadm-server\t1\t2\n{line}").as_bytes());
        assert!(Server::new(false).advance(&mut input.clone(), &mut BytesMut::new()).is_err());
        let asked = Server::new(true).advance(&mut input, &mut BytesMut::new());
        assert!(
            matches!(asked, Ok(Some(Asked::Command(command))) if command.arguments[1].len() == 128 << 10)
        );
    }

    #[test]
    fn what_dovecot_says_of_an_unknown_user() {
        // Capture 72.
        let mut client = Client::new(
            Some(("doveadm".into(), "s3cretpass".into())),
            &Command::dsync_server("bob", false),
            &mut BytesMut::new(),
        );
        let mut sent = BytesMut::new();
        let mut input = BytesMut::from(&b"VERSION\tdoveadm-client\t1\t2\n-\n"[..]);
        assert_eq!(client.advance(&mut input, &mut sent), Ok(false));
        assert_eq!(sent, &b"PLAIN\tAGRvdmVhZG0AczNjcmV0cGFzcw==\n"[..]);
        sent.clear();
        input.extend_from_slice(b"+\nL\0\0\0\x07\x04No\x1bo!\n\0\0\0\0\x09\n-NOUS");
        assert_eq!(client.advance(&mut input, &mut sent), Ok(false));
        assert_eq!(sent, &b"\tbob\tdsync-server\t-ubob\n"[..]);
        assert_eq!(client.log(), [Logged { level: Level::Error, text: "Noo!".into() }]);
        input.extend_from_slice(b"ER\n");
        assert_eq!(client.advance(&mut input, &mut sent), Err(Refusal::Status(67)));
    }

    #[test]
    fn command_lines_of_all_versions() {
        let parse = |line: &str| Command::parse(line);
        let plain = parse("\talice\tdsync-server\t-ualice\t-U").unwrap();
        assert!(plain.is_dsync_server() && !plain.debug && plain.user == "alice");
        let new = parse("vDx\tproxy-ttl=1\talice\tdsync-server\t-u\talice").unwrap();
        assert!(new.is_dsync_server() && new.debug && new.verbose && new.user == "alice");
        assert!(!parse("\talice\tdsync-server\t-ubob").unwrap().is_dsync_server());
        assert!(!parse("\talice\tdsync-server\t-Z").unwrap().is_dsync_server());
        for bad in ["q\talice\tdsync-server", "\talice", "", "x\talice\tdsync-server"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn other_words_are_refused_as_dovecot_refuses_them() {
        for (words, said) in [
            ("VERSION\tfoo\t1\t0\n", ""),
            ("VERSION\tdoveadm-server\t2\t0\n", ""),
            ("VERSION\tdoveadm-server\t1\t0\nLOGIN\tx\n", "-\n-\n"),
            ("VERSION\tdoveadm-server\t1\t02\nLOGIN\tx\n", "-\n-\n"),
            ("VERSION\tdoveadm-server\t1\t2\nLOGIN\tx\n", "VERSION\tdoveadm-client\t1\t1\n-\n-\n"),
            ("VERSION\tdoveadm-server\t1\t2\nPLAIN\t!!!\n", "VERSION\tdoveadm-client\t1\t1\n-\n-\n"),
            (
                "VERSION\tdoveadm-server\t1\t2\n\talice\tdsync-server\t-ualice\n",
                "VERSION\tdoveadm-client\t1\t1\n-\n-\n",
            ),
        ] {
            let (mut input, mut output) = (BytesMut::from(words), BytesMut::new());
            assert!(Server::new(false).advance(&mut input, &mut output).is_err(), "{words:?}");
            assert_eq!(output, said, "{words:?}");
        }
        assert_eq!(status_of("USAGE"), 64);
        assert_eq!(status_of(""), 75);
        assert_eq!(reply_for(67), "NOUSER");
        let mut output = BytesMut::new();
        Server::new(true).refuse(64, "it is not done", &mut output);
        assert_eq!(output, "\n-USAGE\n");
    }

    /// One that names a version, as Dovecot's: values, the log and the status come in packets, each line at its level.
    #[test]
    fn a_doveadm_has_the_log_of_its_command() {
        let (mut input, mut output) =
            (BytesMut::from(&b"VERSION\tdoveadm-server\t1\t2\n\talice\tsync\tx\n"[..]), BytesMut::new());
        let mut server = Server::new(true);
        let Ok(Some(Asked::Command(command))) = server.advance(&mut input, &mut output) else {
            panic!("asked")
        };
        assert_eq!(output.split(), &b"VERSION\tdoveadm-client\t1\t1\n+\n"[..]);
        let (_, manner) = command.to_be_run(server.is_packed()).unwrap();
        Server::logged(
            b" WARN careful\nDEBUG fine\nalice: done\ndsync: alice: wrong\nERROR bad\n",
            &mut output,
        );
        Server::value(b"state", manner, &mut output);
        Server::ended(68, manner, &mut output);
        let mut plain = BytesMut::new();
        let log = Demux::default().take(&mut output, &mut plain).unwrap();
        assert_eq!(plain, &b"state\t\n-NOTFOUND\n"[..]);
        let log: Vec<_> = log.iter().map(|line| (line.level, line.text.as_str())).collect();
        let expected = [
            (Level::Warning, "careful"),
            (Level::Debug, "fine"),
            (Level::Info, "alice: done"),
            (Level::Error, "dsync: alice: wrong"),
            (Level::Error, "bad"),
        ];
        assert_eq!(log, expected);
        server.refuse(77, "not\nallowed", &mut output);
        let log = Demux::default().take(&mut output, &mut plain).unwrap();
        assert_eq!(log, [Logged { level: Level::Error, text: "not allowed".into() }]);
    }
}
