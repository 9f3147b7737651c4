//! The command line as typed.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Synchronises mailboxes: two ways, one way, or as a backup.
#[derive(Debug, Parser)]
#[command(name = "dsync", version, arg_required_else_help = true)]
pub struct Cli {
    /// Say all that is going on
    #[arg(short = 'D', global = true)]
    pub debug: bool,
    /// Show progress, and a line for each mailbox that changed
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Configuration file, in Dovecot's syntax [default: /etc/dsync/dsync.conf, else /etc/dovecot/dovecot.conf]
    #[arg(short, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Override a setting; may be given more than once
    #[arg(short = 'o', value_name = "SETTING=VALUE", global = true, action = ArgAction::Append)]
    pub overrides: Vec<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Merge the changes of both ends into both; loses nothing
    Sync {
        /// Merge the changes into one end only, which keeps its own
        #[arg(short = '1')]
        one_way: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Make the destination the same as the source; what only it has is removed
    Backup {
        #[command(flatten)]
        common: Common,
    },
    /// Read a password from stdin, and print the hash for doveadm_password
    HashPassword,
}

#[derive(Debug, Args)]
pub struct Common {
    /// Look into every mailbox, also those that seem not to have changed
    #[arg(short)]
    pub full: bool,
    /// The other way round: from the destination to here
    #[arg(short = 'R')]
    pub reverse: bool,
    /// User whose mail it is [default: who runs it]
    #[arg(short, value_name = "USER")]
    pub user: Option<String>,
    /// Only this mailbox; * and % are wildcards
    #[arg(short, value_name = "MAILBOX", action = ArgAction::Append)]
    pub mailbox: Vec<String>,
    /// Leave these mailboxes alone; * and ? are wildcards
    #[arg(short = 'x', value_name = "MASK", action = ArgAction::Append)]
    pub exclude: Vec<String>,
    /// Wait so many seconds for the lock of a store [default: 30]
    #[arg(short, value_name = "SECS")]
    pub lock_wait: Option<u32>,
    /// Give up when the other end is silent for so many seconds
    #[arg(short = 'T', value_name = "SECS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: u32,
    /// The mail here [default: the setting mail_location, else ~/Maildir]
    #[arg(long, value_name = "LOCATION")]
    pub source: Option<String>,
    /// Print the report as one JSON document
    #[arg(long)]
    pub json: bool,
    /// Send a password over a connection that others may read
    #[arg(long)]
    pub insecure: bool,
    /// Compress what travels
    #[arg(long, value_enum, default_value_t = Compress::Auto)]
    pub compress: Compress,
    /// Go on where a guard would stop: an empty source empties its backup
    #[arg(long)]
    pub force: bool,
    /// maildir:/path, tcp:host[:port], tcps:host[:port], remote:[login@]host, or a command and its arguments
    #[arg(value_name = "DESTINATION", required = true, trailing_var_arg = true, allow_hyphen_values = false)]
    pub destination: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// Except on this machine
    Auto,
    Yes,
    No,
}
