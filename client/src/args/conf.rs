//! What `dsync conf` takes: doveconf's letters.

use clap::{ArgAction, Args};

/// Options of `conf`.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Conf {
    /// Only settings that are not at their default
    #[arg(short, long)]
    pub non_default: bool,
    /// All settings that dsync knows [default unless names are given]
    #[arg(short, long, conflicts_with = "non_default")]
    pub all: bool,
    /// Passwords and keys as well
    #[arg(short = 'P', long)]
    pub show_secrets: bool,
    /// Values without the names of the settings
    #[arg(short = 'h', long, requires = "names")]
    pub hide_names: bool,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    pub help: Option<bool>,
    /// Only these settings
    #[arg(value_name = "SETTING", conflicts_with_all = ["non_default", "all"])]
    pub names: Vec<String>,
}
