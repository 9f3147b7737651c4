//! Whose mail: all users, those of a file, how many side by side.

use std::path::PathBuf;

use clap::Args;

/// Options that choose users.
#[derive(Debug, Args)]
pub struct Users {
    /// All users that the userdb lists
    #[arg(short = 'A', long, conflicts_with_all = ["user", "user_file"])]
    pub all_users: bool,
    /// The users that this file names, one a line; - is stdin
    #[arg(short = 'F', long, value_name = "FILE", conflicts_with = "user")]
    pub user_file: Option<PathBuf>,
    /// Ask no userdb: a user is a name, and the configuration says where the mail is
    #[arg(long, conflicts_with = "all_users")]
    pub no_userdb_lookup: bool,
    /// So many users at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub jobs: u16,
    /// Note in this file which users are done, and leave out those that it names; it goes when all are done
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
}
