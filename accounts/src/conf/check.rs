//! What is wrong with values whose meaning does not depend on the user: each is read as a run would read it.

use super::{ConfError, Settings};

/// Settings that are numbers.
const NUMBERS: [&str; 4] = ["first_valid_uid", "last_valid_uid", "first_valid_gid", "last_valid_gid"];

impl Settings {
    /// All that is wrong, not only what a run would come to first. Reads no file that a setting names.
    pub fn errors(&self) -> Vec<ConfError> {
        let own = [
            self.listen().err(),
            self.doveadm_port().err(),
            self.doveadm_sockets().err(),
            self.ssl().err(),
            self.ssl_verify_client_cert().err(),
            self.mail_fsync().err(),
            self.mdbox_rotate_size().err(),
            self.mdbox_rotate_interval().err(),
            self.mbox_locks().err(),
            self.max_connections().err(),
            self.max_connections_per_ip().err(),
            self.max_unauthenticated().err(),
            self.silence_secs().err(),
        ];
        let number = |name: &&str| self.parsed(name, "a number", |text| text.parse::<u32>().ok()).err();
        own.into_iter().flatten().chain(NUMBERS.iter().filter_map(number)).collect()
    }
}
