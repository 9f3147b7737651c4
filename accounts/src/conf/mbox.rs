//! How mbox files are locked: `mbox_read_locks` and its kin. What the methods do is the work of the storage.

use std::time::Duration;

use super::ConfError;
use super::settings::Settings;
use super::units;

const METHODS: [&str; 5] = ["fcntl", "lockf", "dotlock", "dotlock_try", "flock"];

/// The settings for locks of mbox files; `None` where nothing is set.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MboxLocks {
    /// Methods in the order in which they are taken, separated by spaces.
    pub read: Option<String>,
    pub write: Option<String>,
    /// How long locks are waited for.
    pub timeout: Option<Duration>,
    /// How long a lock file and its mbox must not have changed before the lock is taken for a leftover.
    pub dotlock_change_timeout: Option<Duration>,
}

impl Settings {
    pub fn mbox_locks(&self) -> Result<MboxLocks, ConfError> {
        let methods = |text: &str| {
            let known = text.split_ascii_whitespace().all(|word| METHODS.contains(&word));
            (known && !text.trim().is_empty()).then(|| text.to_owned())
        };
        let what = format!("one or more of {}", METHODS.join(", "));
        let time = |setting| self.parsed(setting, "a time such as 30 s or 5 mins", duration);
        Ok(MboxLocks {
            read: self.parsed("mbox_read_locks", &what, methods)?,
            write: self.parsed("mbox_write_locks", &what, methods)?,
            timeout: time("mbox_lock_timeout")?,
            dotlock_change_timeout: time("mbox_dotlock_change_timeout")?,
        })
    }
}

/// A time as Dovecot has it: a number and a unit, which may be cut short; without a unit seconds.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = units::split(text)?;
    match unit.to_ascii_lowercase().as_str() {
        "" => Some(Duration::from_secs(number)),
        "msecs" | "ms" => Some(Duration::from_millis(number)),
        unit => number.checked_mul(units::seconds_in(unit)?).map(Duration::from_secs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, secs) in
            [("30", 30), ("5 mins", 300), ("2m", 120), ("120 s", 120), ("1 hour", 3600), ("1w", 604_800)]
        {
            assert_eq!(duration(text), Some(Duration::from_secs(secs)), "{text}");
        }
        assert_eq!(duration("500 ms"), Some(Duration::from_millis(500)));
        for bad in ["", "s", "5 years", "-1", "99999999999999999999", "18446744073709551615 weeks"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
