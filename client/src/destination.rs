//! What the DESTINATION words stand for.

use std::path::PathBuf;

use dsync_accounts::{CommandVars, Settings, command};

use crate::Failed;

/// Where the other end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A mail location on this machine.
    Local(String),
    Tcp {
        host: String,
        port: u16,
        tls: bool,
    },
    /// The socket of a server on this machine, by its path.
    Socket(PathBuf),
    /// A program that speaks on its stdin and stdout.
    Command {
        words: Vec<String>,
        /// The user's name goes ahead of everything, in a line of its own: what a trusted wrapper script reads.
        user_line: bool,
    },
}

/// How destinations begin that say what they are.
const KINDS: [&str; 13] = [
    "tcp",
    "tcps",
    "remote",
    "remoteprefix",
    "maildir",
    "mbox",
    "sdbox",
    "mdbox",
    "dbox",
    "imapc",
    "pop3c",
    "auto",
    "virtual",
];

impl Destination {
    /// Reads the words of the command line: several destinations if each word says what it is, else one.
    pub fn parse_all(words: &[String], settings: &Settings, user: &str) -> Result<Vec<Destination>, Failed> {
        let speaks = |word: &String| word.split_once(':').is_some_and(|(kind, _)| KINDS.contains(&kind));
        if words.len() > 1 && words.iter().all(speaks) {
            return words.iter().map(|word| Destination::parse(word, settings, user)).collect();
        }
        let one = match words {
            [word] => Destination::parse(word, settings, user)?,
            _ => Destination::command(words.to_vec(), user)?,
        };
        Ok(vec![one])
    }

    fn parse(word: &str, settings: &Settings, user: &str) -> Result<Destination, Failed> {
        let (kind, rest) = word.split_once(':').unwrap_or(("", word));
        match kind {
            "tcp" if rest.starts_with('/') => Ok(Destination::Socket(rest.into())),
            "tcp" | "tcps" => {
                let (host, port) = host_and_port(rest)?;
                let port = match port {
                    Some(port) => port,
                    None => settings.doveadm_port()?,
                };
                Ok(Destination::Tcp { host, port, tls: kind == "tcps" })
            }
            "remote" | "remoteprefix" => remote(rest, kind == "remoteprefix", settings, user),
            "" if is_program(word) => Destination::command(vec![word.to_owned()], user),
            "" if word.contains('/') || word.starts_with('~') => Ok(Destination::Local(word.to_owned())),
            "" if word.contains(' ') => {
                Destination::command(word.split_whitespace().map(str::to_owned).collect(), user)
            }
            "" => remote(rest, false, settings, user),
            _ => Ok(Destination::Local(word.to_owned())),
        }
    }

    /// A command that runs a dsync-server; where no word says so, that is what it is asked to run.
    fn command(mut words: Vec<String>, user: &str) -> Result<Destination, Failed> {
        match words.first() {
            Some(program) if !program.starts_with('-') => {}
            _ => return Err(Failed::usage("the destination is missing")),
        }
        if !words.iter().any(|word| word.rsplit('/').next() == Some("dsync-server")) {
            words.extend(["dsync-server".to_owned(), format!("-u{user}")]);
        }
        Ok(Destination::Command { words, user_line: false })
    }
}

/// Says whether a word is a program to run, and no mail: with a path, and a file that may be executed.
fn is_program(word: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let runs = |meta: std::fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    word.contains('/') && std::fs::metadata(word).is_ok_and(runs)
}

fn remote(text: &str, user_line: bool, settings: &Settings, user: &str) -> Result<Destination, Failed> {
    let (login, host) = match text.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, text),
    };
    check_host(host)?;
    if let Some(login) = login {
        check_host(login)?;
    }
    let words = command(&settings.dsync_remote_cmd(), &CommandVars { login, host, user });
    let words =
        words.map_err(|error| Failed::new(64, anyhow::Error::from(error).context("dsync_remote_cmd")))?;
    Ok(Destination::Command { words, user_line })
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), Failed> {
    let (host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((host, rest)) => {
            (host, rest.strip_prefix(':').or(if rest.is_empty() { None } else { Some(rest) }))
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, Some(port)),
            _ => (text, None),
        },
    };
    check_host(host)?;
    let port = port.map(|port| match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Failed::usage(format!("{port:?} is no port number (1 to 65535)"))),
    });
    Ok((host.to_owned(), port.transpose()?))
}

/// A word that a program could take for an option, or that holds white space, is no host and no login.
fn check_host(text: &str) -> Result<(), Failed> {
    if text.is_empty() || text.starts_with('-') || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Failed::usage(format!("{text:?} is no host or login name")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let parse = |text: &str| -> Result<Destination, Failed> {
            let words: Vec<String> = text.split('|').map(str::to_owned).collect();
            let mut all = Destination::parse_all(&words, &Settings::defaults(), "alice")?;
            assert_eq!(all.len(), 1, "{text}");
            Ok(all.remove(0))
        };
        let tcp = |host: &str, port, tls| Destination::Tcp { host: host.into(), port, tls };
        assert_eq!(parse("tcps:mx1").unwrap(), tcp("mx1", 12345, true));
        assert_eq!(parse("tcp:mx1:99").unwrap(), tcp("mx1", 99, false));
        assert_eq!(parse("tcps:[::1]:99").unwrap(), tcp("::1", 99, true));
        assert_eq!(parse("tcps:::1").unwrap(), tcp("::1", 12345, true));
        assert_eq!(
            parse("maildir:~/M:LAYOUT=fs").unwrap(),
            Destination::Local("maildir:~/M:LAYOUT=fs".into())
        );
        assert_eq!(
            parse("tcp:/run/doveadm-server").unwrap(),
            Destination::Socket("/run/doveadm-server".into())
        );
        let of = |words: &str, user_line| Destination::Command {
            words: words.split(' ').map(str::to_owned).collect(),
            user_line,
        };
        let ssh = |words| of(words, false);
        assert_eq!(parse("remote:bob@mx1").unwrap(), ssh("ssh -lbob mx1 dsync-server --stdio -ualice"));
        assert_eq!(parse("mx1").unwrap(), ssh("ssh mx1 dsync-server --stdio -ualice"));
        let prefixed = of("ssh -lbob mx1 dsync-server --stdio -ualice", true);
        assert_eq!(parse("remoteprefix:bob@mx1").unwrap(), prefixed);
        assert_eq!(parse("ssh|-p|2222|mx1").unwrap(), ssh("ssh -p 2222 mx1 dsync-server -ualice"));
        assert_eq!(parse("ssh mx1").unwrap(), ssh("ssh mx1 dsync-server -ualice"));
        assert_eq!(parse("/bin/true").unwrap(), ssh("/bin/true dsync-server -ualice"));
        assert_eq!(parse("/no/mail/there").unwrap(), Destination::Local("/no/mail/there".into()));
        let words = "ssh -i id vmail@mx1 doveadm dsync-server -u alice";
        assert_eq!(parse(&words.replace(' ', "|")).unwrap(), ssh(words));
        let words = ["maildir:/a", "tcps:mx1", "mx:/b"].map(str::to_owned);
        let all = |words: &[String]| Destination::parse_all(words, &Settings::defaults(), "alice").unwrap();
        assert_eq!(all(&words[..2]), [Destination::Local("maildir:/a".into()), tcp("mx1", 12345, true)]);
        assert_eq!(all(&words).len(), 1, "a word that says nothing makes it a command");
        for bad in [
            "tcp:",
            "tcp:mx1:0",
            "remoteprefix:a b",
            "-x|y",
            "tcp:mx1:99999",
            "remote:-oProxyCommand=x",
            "tcp:-x",
            "remote:a b@h",
            "remote:$(id)",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
