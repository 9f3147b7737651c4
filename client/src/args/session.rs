//! What a session takes: whose mail, which of it, from where to where.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use dsync_session::model::Timestamp;

use super::values::{FlagCondition, GuidOrNone, date, flag_condition, guid_or_none, size};

/// Options of every session, those that change nothing included.
#[derive(Debug, Args)]
pub struct Common {
    /// User whose mail it is, or a mask with * and ? over the users that the userdb lists [default: who runs it]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Only this mailbox, whatever name the other end has for it; * and % are wildcards, \Sent and the like stand for special
    /// uses, an empty name for the list of mailboxes without their messages
    #[arg(short, long, value_name = "MAILBOX", action = ArgAction::Append)]
    pub mailbox: Vec<String>,
    /// Only the mailbox with this GUID (32 hex digits)
    #[arg(short = 'g', long, value_name = "GUID", action = ArgAction::Append, value_parser = guid_or_none)]
    pub mailbox_guid: Vec<GuidOrNone>,
    /// Leave these mailboxes and their subscriptions alone, at both ends; * and ? are wildcards, \Trash and the like stand for
    /// special uses
    #[arg(short = 'x', long, value_name = "MASK", action = ArgAction::Append)]
    pub exclude: Vec<String>,
    /// Only the namespace with this prefix; may be given more than once
    #[arg(short, long, value_name = "PREFIX", action = ArgAction::Append)]
    pub namespace: Vec<String>,
    /// All namespaces, those with a location of their own included
    #[arg(short = 'N', long)]
    pub all_namespaces: bool,
    /// Wait so many seconds for the lock of a store [default: 30]; with it, the user is locked against doveadm sync -l as well
    #[arg(short, long, value_name = "SECS")]
    pub lock_wait: Option<u32>,
    /// Give up when the other end is silent for so many seconds
    #[arg(short = 'T', long, value_name = "SECS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: u32,
    /// The mail here [default: the setting mail_location, else ~/Maildir]
    #[arg(long, value_name = "LOCATION")]
    pub source: Option<String>,
    /// Override a setting for the destination only; may be given more than once
    #[arg(short = 'p', long, value_name = "SETTING=VALUE", action = ArgAction::Append)]
    pub destination_option: Vec<String>,
    /// Take the destination from the userdb field or setting mail_replica
    #[arg(short = 'd', long, conflicts_with = "destination")]
    pub default_destination: bool,
    /// Have a server run the command: the path of a unix socket, or host:port; tcps: before it for TLS. The configuration, users and
    /// destination are the server's
    #[arg(short = 'S', long, value_name = "SOCKET")]
    pub socket: Option<String>,
    /// Record what travels between the ends in this file, for dsync rawlog; bodies and passwords are left out
    #[arg(short, long, value_name = "FILE")]
    pub rawlog: Option<PathBuf>,
    /// Print the report as one JSON document; of many users as one line each
    #[arg(long)]
    pub json: bool,
    /// Send a password over a connection that others may read
    #[arg(long)]
    pub insecure: bool,
    /// Compress what travels
    #[arg(long, value_enum, default_value_t = Compress::Auto)]
    pub compress: Compress,
    /// What the other end speaks
    #[arg(long, value_enum, default_value_t = Protocol::Auto)]
    pub protocol: Protocol,
    /// One or several of maildir:/path (and other locations), tcp:host[:port], tcps:host[:port], remote:[login@]host,
    /// remoteprefix:[login@]host; or a command and its arguments
    #[arg(
        value_name = "DESTINATION",
        required_unless_present = "default_destination",
        trailing_var_arg = true
    )]
    pub destination: Vec<String>,
}

/// Options of sessions that change something.
#[derive(Debug, Args)]
pub struct Changes {
    /// Look into every mailbox, also those that seem not to have changed
    #[arg(short, long)]
    pub full: bool,
    /// The other way round: from the destination to here
    #[arg(short = 'R', long)]
    pub reverse: bool,
    /// Bring over only messages received then or later: 2024-01-31, 31-Jan-2024, "2 weeks", or seconds since 1970
    #[arg(short = 't', long = "since", value_name = "DATE", value_parser = date)]
    pub since: Option<Timestamp>,
    /// Bring over only messages received then or earlier
    #[arg(short = 'e', long = "until", value_name = "DATE", value_parser = date)]
    pub until: Option<Timestamp>,
    /// Bring over only messages up to this size: bytes, or a number with B, K, M, G or T
    #[arg(short = 'I', long = "max-size", value_name = "SIZE", value_parser = size)]
    pub max_size: Option<u64>,
    /// Bring over only messages with this flag or keyword, or without it if a hyphen stands before it; may be given more than once
    #[arg(short = 'O', long = "flag", value_name = "[-]FLAG", action = ArgAction::Append, value_parser = flag_condition,
          allow_hyphen_values = true)]
    pub flag: Vec<FlagCondition>,
    /// Free what expunged messages take up in the destination's storage when all is done (mdbox; with -R it is the source's)
    #[arg(short = 'P', long)]
    pub purge: bool,
    /// Begin from this state of an earlier run, and print the new one; empty: none is known
    #[arg(short = 's', long = "state", value_name = "STATE")]
    pub state: Option<String>,
    /// Mailbox with all mail, to copy from; needless here, since every mailbox is searched
    #[arg(short = 'a', long = "all-mailbox", value_name = "MAILBOX")]
    pub all_mailbox: Option<String>,
    /// Tell the replicator when it is done; here for scripts, since there is none to be told
    #[arg(short = 'U', long = "notify-replicator")]
    pub notify_replicator: bool,
    /// Write nothing at all to the source, no index, list of UIDs or note either: what has to be kept is kept in memory, so that
    /// every run compares all messages
    #[arg(long)]
    pub read_only_source: bool,
    /// Say what would be done, mailbox by mailbox, and change nothing at either end
    #[arg(long)]
    pub dry_run: bool,
    /// Go on where the guard would stop: an empty source empties its destination, most of the mail goes
    #[arg(long)]
    pub allow_mass_delete: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// Except on this machine
    Auto,
    Yes,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// Found out by what it says first
    Auto,
    /// That of a dsync-server
    Native,
    /// That of a Dovecot
    Dovecot,
}
