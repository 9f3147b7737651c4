//! The command line of `dsync-server`. The client reads this file too: `dsync man` makes the manual page from it.

use std::path::PathBuf;

use clap::{ArgAction, Parser};

/// Answers dsync: listens on the settings listen and doveadm_port, or speaks on stdin and stdout.
#[derive(Debug, Parser)]
#[command(name = "dsync-server", version)]
pub struct Cli {
    /// Speak on stdin and stdout, as ssh starts it; needs -u
    #[arg(long, requires = "user")]
    pub stdio: bool,
    /// The one user whose mail may be had; implies --stdio
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Configuration file, in Dovecot's syntax [default: /etc/dsync/dsync.conf, else /etc/dovecot/dovecot.conf]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override a setting; may be given more than once
    #[arg(short = 'o', long = "option", value_name = "SETTING=VALUE", action = ArgAction::Append)]
    pub overrides: Vec<String>,
    /// Say all that is going on
    #[arg(short = 'D', long)]
    pub debug: bool,
    /// As Dovecot's callers send it; there is no replicator to be told
    #[arg(short = 'U', hide = true)]
    pub replicator: bool,
    /// The word that Dovecot puts behind a command of its own accord
    #[arg(value_parser = ["dsync-server"], hide = true)]
    pub appended: Option<String>,
}
