//! What can be wrong with a configuration, and where in it.

use std::{fmt, io, path::PathBuf, sync::Arc};

use crate::variables::VarError;

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a file, counted from 1.
    Line {
        /// The file.
        file: Arc<PathBuf>,
        /// The line a setting begins on.
        line: u32,
    },
    /// The command line's `-o setting=value`.
    Override,
    /// A field of the userdb.
    Userdb,
}

impl Place {
    /// The directory that relative file names of this place begin at.
    pub(crate) fn dir(&self) -> Option<&std::path::Path> {
        match self {
            Self::Line { file, .. } => file.parent(),
            Self::Override | Self::Userdb => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{}: line {line}", file.display()),
            Self::Override => f.write_str("-o"),
            Self::Userdb => f.write_str("userdb"),
        }
    }
}

/// A configuration that cannot be used; someone must edit it.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// A configuration file cannot be read.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that a setting names cannot be read.
    #[error("{place}: {setting}: {path}")]
    File {
        /// Where the setting is.
        place: Place,
        /// Its name.
        setting: String,
        /// The file it names.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// A line is not configuration syntax.
    #[error("{place}: {what}")]
    Syntax {
        /// The line.
        place: Place,
        /// What is wrong with it.
        what: String,
    },
    /// A known setting has a value that means nothing.
    #[error("{place}: {setting}: {what}")]
    Invalid {
        /// Where the setting is.
        place: Place,
        /// Its name.
        setting: String,
        /// What is wrong; quotes the value unless it may be a secret.
        what: String,
    },
    /// A setting uses a variable that is unknown or has no value.
    #[error("{place}: {setting}")]
    Variable {
        /// Where the setting is.
        place: Place,
        /// Its name.
        setting: String,
        /// What is wrong with the variable.
        source: VarError,
    },
    /// Something Dovecot can do and dsync cannot.
    #[error("{place}: {what}")]
    Unsupported {
        /// Where it is asked for.
        place: Place,
        /// What it is.
        what: String,
    },
}

impl ConfError {
    /// The exit status of a program that ends with this error: 78, configuration.
    pub fn status(&self) -> u8 {
        78
    }
}
