//! What the DESTINATION words stand for.

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
    /// A program that speaks on its stdin and stdout.
    Command(Vec<String>),
}

impl Destination {
    /// Reads the words of the command line.
    pub fn parse(words: &[String], settings: &Settings, user: &str) -> Result<Destination, Failed> {
        let [word] = words else {
            return match words.first() {
                Some(program) if !program.starts_with('-') => Ok(Destination::Command(words.to_vec())),
                _ => Err(Failed::usage("the destination is missing")),
            };
        };
        let (kind, rest) = word.split_once(':').unwrap_or(("", word));
        match kind {
            "tcp" | "tcps" => {
                let (host, port) = host_and_port(rest)?;
                let port = match port {
                    Some(port) => port,
                    None => settings.doveadm_port()?,
                };
                Ok(Destination::Tcp { host, port, tls: kind == "tcps" })
            }
            "remote" => remote(rest, settings, user),
            "remoteprefix" => Err(Failed::usage("remoteprefix: is not supported yet; use remote:")),
            "" if word.contains('/') || word.starts_with('~') => Ok(Destination::Local(word.clone())),
            "" => remote(rest, settings, user),
            _ => Ok(Destination::Local(word.clone())),
        }
    }
}

fn remote(text: &str, settings: &Settings, user: &str) -> Result<Destination, Failed> {
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
    Ok(Destination::Command(words))
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
        let parse = |text: &str| {
            let words: Vec<String> = text.split('|').map(str::to_owned).collect();
            Destination::parse(&words, &Settings::defaults(), "alice")
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
        let ssh = |words: &str| Destination::Command(words.split(' ').map(str::to_owned).collect());
        assert_eq!(parse("remote:bob@mx1").unwrap(), ssh("ssh -lbob mx1 dsync-server --stdio -ualice"));
        assert_eq!(parse("mx1").unwrap(), ssh("ssh mx1 dsync-server --stdio -ualice"));
        assert_eq!(parse("ssh|-p|2222|mx1").unwrap(), ssh("ssh -p 2222 mx1"));
        for bad in [
            "tcp:",
            "tcp:mx1:0",
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
