//! One command line: a session's beginning, or a command to be run.

use crate::dovecot::text;

/// Most arguments of a command.
const ARGUMENTS_MAX: usize = 100;

/// The first argument of a command whose reply is wanted in packets; for a dsync-server, which names no version.
pub(super) const IN_PACKETS: &str = "--in-packets";

/// How the reply to a command is to be given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// As dsync takes it: what is printed and logged in packets.
    Packets,
    /// As Dovecot takes it from one who named no version: values, and a status. There is no place for a log.
    Values,
    /// As Dovecot takes it from one who named a version: the same in packets, and a log.
    ValuesAndLog,
}

/// One command line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Command {
    pub debug: bool,
    pub verbose: bool,
    pub user: String,
    pub name: String,
    pub arguments: Vec<String>,
}

impl Command {
    /// The command that begins a session for this user.
    pub fn dsync_server(user: &str, debug: bool) -> Command {
        let arguments = vec![format!("-u{user}")];
        Command { debug, user: user.into(), name: "dsync-server".into(), arguments, ..Command::default() }
    }

    /// The arguments of a command that is to be run here, `sync` or `backup`, and how its reply is wanted: with `packed`, the client takes packets.
    pub fn to_be_run(&self, packed: bool) -> Option<(Vec<String>, Manner)> {
        if !matches!(self.name.as_str(), "sync" | "backup") {
            return None;
        }
        if let Some((first, arguments)) = self.arguments.split_first()
            && first == IN_PACKETS
        {
            return Some((arguments.to_vec(), Manner::Packets));
        }
        // A doveadm that was told of its user by the environment names it only ahead of the command.
        let mut arguments = self.arguments.clone();
        if !arguments.iter().take_while(|word| *word != "--").any(|word| word == "-u") {
            arguments.splice(0..0, ["-u".to_owned(), self.user.clone()]);
        }
        Some((arguments, if packed { Manner::ValuesAndLog } else { Manner::Values }))
    }

    pub(super) fn to_line(&self) -> Vec<u8> {
        let flags = match (self.debug, self.verbose) {
            (true, true) => "Dv",
            (true, false) => "D",
            (false, true) => "v",
            (false, false) => "",
        };
        let fields =
            [flags, &self.user, &self.name].into_iter().chain(self.arguments.iter().map(String::as_str));
        let fields: Vec<&str> = fields.collect();
        let mut line = text::join_list(&fields);
        line.push(b'\n');
        line
    }

    /// Reads a command line. `None`: it has a flag that is not known, or too few fields.
    pub fn parse(line: &str) -> Option<Command> {
        let mut fields = text::split_list(line.as_bytes())?.into_iter();
        let mut next = || fields.next().and_then(|field| String::from_utf8(field).ok());
        let mut command = Command::default();
        let mut extended = false;
        for flag in next()?.chars() {
            match flag {
                'D' => command.debug = true,
                'v' => command.verbose = true,
                'x' => extended = true,
                _ => return None,
            }
        }
        if extended {
            next()?;
        }
        (command.user, command.name) = (next()?, next()?);
        while let Some(argument) = next() {
            command.arguments.push(argument);
        }
        (command.arguments.len() <= ARGUMENTS_MAX).then_some(command)
    }

    /// Says whether all arguments are such as `dsync-server` takes: those of the user named, and some that mean nothing here.
    pub fn is_dsync_server(&self) -> bool {
        let mut arguments = self.arguments.iter();
        while let Some(argument) = arguments.next() {
            let (option, value) = argument.split_at_checked(2).unwrap_or((argument, ""));
            let value = |rest: &mut std::slice::Iter<'_, String>| match value {
                "" => rest.next().cloned(),
                value => Some(value.to_owned()),
            };
            let known = match option {
                "-U" => argument == "-U",
                "-u" => value(&mut arguments).is_some_and(|user| user == self.user),
                "-T" => value(&mut arguments).is_some_and(|secs| secs.parse::<u32>().is_ok()),
                "-r" => value(&mut arguments).is_some(),
                _ => false,
            };
            if !known {
                return false;
            }
        }
        true
    }
}
