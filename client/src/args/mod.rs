//! The command line as typed: the same letters as `doveadm`'s, and a long name for each.
//!
//! What a session takes is in `session`, how values are written in `values`.

mod session;
mod values;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

pub use session::{Changes, Common, Compress, Protocol};

/// Synchronises mailboxes: two ways, one way, or as a backup.
#[derive(Debug, Parser)]
#[command(name = "dsync", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that may stand before the command, as doveadm has them, or behind it.
#[derive(Clone, Debug, Default, Args)]
pub struct Globals {
    /// Say all that is going on
    #[arg(short = 'D', long)]
    pub debug: bool,
    /// Show progress, and a line for each mailbox that changed
    #[arg(short, long)]
    pub verbose: bool,
    /// Configuration file, in Dovecot's syntax [default: /etc/dsync/dsync.conf, else /etc/dovecot/dovecot.conf]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a setting of the configuration; may be given more than once
    #[arg(short = 'o', long = "option", value_name = "SETTING=VALUE", action = ArgAction::Append)]
    pub overrides: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Merge the changes of both ends into both; loses nothing
    Sync {
        /// Merge the changes into one end only, which keeps its own
        #[arg(short = '1', long)]
        one_way: bool,
        #[command(flatten)]
        changes: Changes,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        globals: Globals,
    },
    /// Make the destination the same as the source; what only it has is removed
    Backup {
        #[command(flatten)]
        changes: Changes,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        globals: Globals,
    },
    /// Free what expunged messages still take up in the files of mdbox
    Purge {
        /// User whose mail it is [default: who runs it]
        #[arg(short, long, value_name = "USER")]
        user: Option<String>,
        /// Wait so many seconds for the lock of the store
        #[arg(short, long, value_name = "SECS", default_value_t = 30)]
        lock_wait: u32,
        /// The mail [default: the setting mail_location, else where it usually is]
        #[arg(value_name = "LOCATION")]
        location: Option<String>,
        #[command(flatten)]
        globals: Globals,
    },
    /// Compare both ends message by message, and change nothing; status 2 if anything differs
    Verify {
        /// Compare the contents too, by BLAKE3
        #[arg(long)]
        bodies: bool,
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        globals: Globals,
    },
    /// Show what was recorded by -r, a line for each frame
    Rawlog {
        /// The file that -r named
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Read a password from stdin, and print the hash for doveadm_password
    HashPassword,
    /// Write the manual pages into a directory
    Man {
        /// Where to, /usr/local/share/man/man1 for instance
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
    /// Print the completions for a shell
    Completions {
        /// Which shell
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
}

impl Cli {
    /// What was said before and behind the command.
    pub fn globals(&self) -> Globals {
        let mut all = self.globals.clone();
        let behind = match &self.command {
            Command::Sync { globals, .. }
            | Command::Backup { globals, .. }
            | Command::Purge { globals, .. }
            | Command::Verify { globals, .. } => Some(globals),
            Command::Rawlog { .. }
            | Command::HashPassword
            | Command::Man { .. }
            | Command::Completions { .. } => None,
        };
        if let Some(behind) = behind {
            all.debug |= behind.debug;
            all.verbose |= behind.verbose;
            all.config = behind.config.clone().or(all.config);
            all.overrides.extend(behind.overrides.iter().cloned());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let words = line.split(' ').map(|word| if word == "''" { "" } else { word });
        Cli::try_parse_from(std::iter::once("dsync").chain(words))
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    /// Every option of the manual page, the ones that it forgot, and doveadm's order.
    #[test]
    fn what_doveadm_takes_is_taken() {
        for line in [
            "-D -v -c /etc/x.conf -o mail_fsync=never sync -u alice remote:mx1",
            "sync -1 -f -R -l 60 -T 30 -u alice -m INBOX tcp:mx1:12345",
            "backup -u alice -x Trash -x \\Junk -x Sp* maildir:/backup",
            "sync -s '' -u alice remoteprefix:vmail@mx1",
            "sync -f -s AQAAAA== -g 0123456789abcdef0123456789abcdef tcps:mx1",
            "sync -m '' mx1",
            "sync -n '' -n Shared/ -N -a Virtual/All -U -d",
            "sync -t 2024-01-01 -e 1w -I 10M -O -\\Deleted -r /tmp/raw -p mail_path=~/m maildir:/x",
            "sync -S /run/dsync/socket mx1",
            "sync -P maildir:/x",
            "sync -u alice ssh -i id_dsa.dovecot vmail@mx1 doveadm dsync-server -u alice",
            "sync maildir:/a mdbox:/b tcps:mx1",
            "backup --dry-run --allow-mass-delete --json -r raw maildir:/b",
            "-v verify --bodies -u alice -m INBOX tcps:mx1",
            "rawlog raw",
        ] {
            let parsed = parse(line);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
        for line in [
            "sync",
            "backup -1 x:y",
            "sync -l many x:y",
            "sync -T 0 x:y",
            "sync -g 12 x:y",
            "sync -t someday x:y",
            "sync -I big x:y",
            "sync -O \\Recent x:y",
            "sync -o",
            "sync -d maildir:/x",
            "sync --no-such x:y",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn settings_before_and_behind_the_command_both_count() {
        let cli = parse("-o a=1 -v sync -o b=2 -D x:y").unwrap();
        let globals = cli.globals();
        assert_eq!(globals.overrides, ["a=1", "b=2"]);
        assert!(globals.debug && globals.verbose);
    }

    /// One sentence for each option, and a long name.
    #[test]
    fn every_option_is_documented_and_has_a_long_name() {
        for command in std::iter::once(&Cli::command()).chain(Cli::command().get_subcommands()) {
            for option in command.get_arguments() {
                let (name, id) = (command.get_name(), option.get_id());
                assert!(option.get_help().is_some(), "{name}: {id} is not documented");
                assert!(
                    option.is_positional() || option.get_long().is_some(),
                    "{name}: {id} has no long name"
                );
            }
        }
    }
}
