//! Who the users are and where their mail lives: configuration, variables, userdb and passdb.
#![forbid(unsafe_code)]

mod conf;
mod drivers;
mod identity;
mod md5_crypt;
mod passdb;
mod passwd_file;
mod schemes;
mod user;
mod userdb;
mod variables;

pub use conf::{
    ConfError, Fsync, Mail, MboxLocks, Namespace, Place, Print, Secret, Settings, Ssl, UnixSocket,
    known_settings,
};
pub use identity::{Identity, refuse_root};
pub use passdb::{verify, verify_secret};
pub use schemes::hash_password;
pub use user::{User, UserError, check_user, location_for};
pub use userdb::{invoking_user, iterate, lookup, unlisted};
pub use variables::{CommandVars, VarError, command};
