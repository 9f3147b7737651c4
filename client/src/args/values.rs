//! How dates, sizes, flags and GUIDs are written on the command line (man doveadm-search-query).

use dsync_session::model::{FlagSet, Flags, Keyword, MailboxGuid, Timestamp};
use jiff::tz::TimeZone;
use jiff::{ZonedDateTime, civil};

/// `-O`: a flag that must be there, or must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagCondition {
    pub absent: bool,
    pub flag: FlagSet,
}

/// `-g`: a mailbox, or none for the list of mailboxes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuidOrNone(pub Option<MailboxGuid>);

/// Units of an interval: names, and seconds.
const UNITS: [(&[&str], i64); 5] = [
    (&["s", "sec", "secs", "second", "seconds"], 1),
    (&["m", "min", "mins", "minute", "minutes"], 60),
    (&["h", "hour", "hours"], 3600),
    (&["d", "day", "days"], 86_400),
    (&["w", "week", "weeks"], 7 * 86_400),
];

/// Reads a point in time: a date, an IMAP date with time and zone, seconds since 1970, or how long ago it was.
pub fn date(text: &str) -> Result<Timestamp, String> {
    date_at(text, &ZonedDateTime::now())
}

fn date_at(text: &str, now: &ZonedDateTime) -> Result<Timestamp, String> {
    let text = text.trim();
    let wrong = || {
        "no date; use 2024-01-31, 31-Jan-2024, \"31-Jan-2024 12:00:00 +0100\", seconds since 1970, or 2days, 1w, 12h"
            .to_owned()
    };
    if text.len() >= 6 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(Timestamp).map_err(|_| wrong());
    }
    for form in ["%Y-%m-%d", "%d-%b-%Y"] {
        if let Ok(date) = civil::Date::strptime(form, text) {
            let midnight = date.to_zoned_datetime(now.time_zone().clone()).map_err(|_| wrong())?;
            return Ok(Timestamp(midnight.timestamp().as_second()));
        }
    }
    if let Ok(time) = ZonedDateTime::strptime("%d-%b-%Y %H:%M:%S %z", text) {
        return Ok(Timestamp(time.with_time_zone(TimeZone::UTC).timestamp().as_second()));
    }
    let interval = text.strip_suffix("ago").unwrap_or(text).trim();
    let digits = interval.len() - interval.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = interval.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let seconds = UNITS.iter().find(|(names, _)| names.contains(&unit.as_str())).map(|(_, seconds)| *seconds);
    let (Ok(number), Some(seconds)) = (number.parse::<i64>(), seconds) else { return Err(wrong()) };
    let ago = number.checked_mul(seconds).ok_or_else(wrong)?;
    now.timestamp().as_second().checked_sub(ago).map(Timestamp).ok_or_else(wrong)
}

/// Reads a size in bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || "no size; use bytes, or a number with B, K, M, G or T".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" => 10,
        "M" | "MB" => 20,
        "G" | "GB" => 30,
        "T" | "TB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Reads `\Flagged`, `-\Deleted`, `$Junk` or `-work`.
pub fn flag_condition(text: &str) -> Result<FlagCondition, String> {
    let (absent, name) = match text.strip_prefix('-') {
        Some(name) => (true, name),
        None => (false, text),
    };
    let system =
        Flags::NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(flag, _)| *flag);
    let flag = match (system, Keyword::new(name)) {
        (Some(flag), _) => FlagSet::system(flag),
        (None, Some(keyword)) => FlagSet { system: Flags::NONE, keywords: [keyword].into() },
        (None, None) => {
            let names = Flags::NAMES.map(|(_, name)| name).join(", ");
            return Err(format!("no flag; use {names}, or a keyword without a backslash"));
        }
    };
    Ok(FlagCondition { absent, flag })
}

/// Reads the GUID of a mailbox; empty text is none.
pub fn guid_or_none(text: &str) -> Result<GuidOrNone, String> {
    if text.is_empty() {
        return Ok(GuidOrNone(None));
    }
    let guid = MailboxGuid::parse(text).ok_or("no GUID of a mailbox: 32 hex digits")?;
    Ok(GuidOrNone(Some(guid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_every_form_of_dovecot() {
        let now: ZonedDateTime = "2024-03-10T12:00:00+01:00[Europe/Berlin]".parse().unwrap();
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_second();
        for (text, expected) in [
            ("2007-04-13", at("2007-04-12T22:00:00Z")),
            ("13-Apr-2007", at("2007-04-12T22:00:00Z")),
            ("1-jan-2007", at("2006-12-31T23:00:00Z")),
            ("13-Apr-2007 14:15:16 +0200", at("2007-04-13T12:15:16Z")),
            ("1176418800", 1_176_418_800),
            ("946684800", 946_684_800),
            ("1w", at("2024-03-03T11:00:00Z")),
            ("1weeks", at("2024-03-03T11:00:00Z")),
            ("7 days ago", at("2024-03-03T11:00:00Z")),
            ("2 hours", at("2024-03-10T09:00:00Z")),
            ("90mins", at("2024-03-10T09:30:00Z")),
            ("5s", at("2024-03-10T10:59:55Z")),
        ] {
            assert_eq!(date_at(text, &now), Ok(Timestamp(expected)), "{text}");
        }
        for text in ["", "someday", "2007-13-01", "31-Feb-2007", "7", "7 moons", "days", "99999999999999w"] {
            assert!(date_at(text, &now).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_flags_and_guids() {
        for (text, expected) in
            [("0", 0), ("200", 200), ("7B", 7), ("10k", 10 << 10), ("1M", 1 << 20), ("2 GB", 2 << 30)]
        {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for text in ["", "big", "-1", "1X", "99999999999999999999", "99999999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
        let condition = flag_condition("-\\flagged").unwrap();
        assert!(condition.absent && condition.flag.system == Flags::FLAGGED);
        assert!(!flag_condition("$Junk").unwrap().absent);
        for text in ["", "-", "\\Recent", "a b"] {
            assert!(flag_condition(text).is_err(), "{text}");
        }
        assert_eq!(guid_or_none(""), Ok(GuidOrNone(None)));
        assert!(guid_or_none("5d3a5f298348046b626d000026acbed8").unwrap().0.is_some());
        assert!(guid_or_none("5d3a").is_err());
    }
}
