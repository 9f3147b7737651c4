//! The From_ line that begins every message of an mbox file: `From <sender>  Mon Feb 05 10:00:00 2024`.
//!
//! Reads what Dovecot reads: all variants of the storage formats reference, 7.2, were tried on Dovecot 2.3.19.
//! Where a date lies outside its month, as in `Feb 30`, it runs over into the next one, as it does there.

use dsync_model::Timestamp;
use jiff::SignedDuration;
use jiff::civil::Date;
use jiff::tz::{Offset, TimeZone};

/// A From_ line longer than this is text.
pub const FROM_LINE_BYTES_MAX: usize = 8 << 10;
/// What must at least follow the sender: a date without seconds.
const DATE_BYTES_MIN: usize = 21;
/// The sender where none is known, as mail systems write it.
const NOBODY: &str = "MAILER-DAEMON";
const MONTHS: [&[u8; 3]; 12] =
    [b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"];

/// What a From_ line says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FromLine<'a> {
    pub sender: &'a [u8],
    pub received: Timestamp,
}

/// Reads a line without its line end; `None` if it is no From_ line. Times without an offset are local to `zone`.
pub fn parse<'a>(line: &'a [u8], zone: &TimeZone) -> Option<FromLine<'a>> {
    let rest = line.strip_prefix(b"From ")?;
    let length = sender_length(rest)?;
    let (sender, date) = rest.split_at(length);
    if date.len() < DATE_BYTES_MIN {
        return None;
    }
    let received = parse_date(date.trim_ascii_start(), zone)?;
    Some(FromLine { sender, received })
}

/// Bytes up to the space behind the sender. A quoted local part may hold spaces.
fn sender_length(text: &[u8]) -> Option<usize> {
    let mut quoted = 0;
    if text.first() == Some(&b'"') {
        quoted = 1;
        loop {
            match text.get(quoted)? {
                b'\\' => quoted += 2,
                b'"' => break,
                _ => quoted += 1,
            }
        }
    }
    Some(quoted + text.get(quoted..)?.iter().position(|b| *b == b' ')?)
}

/// `Mon Feb  5 10:00[:00] [zone] 2024 [+0100]` or `Mon, 5 Feb 2024 10:00[:00] [+0100]`.
fn parse_date(text: &[u8], zone: &TimeZone) -> Option<Timestamp> {
    let (weekday, rest) = text.split_at_checked(3)?;
    if !weekday.iter().all(u8::is_ascii_alphabetic) {
        return None;
    }
    let (day, month, year, clock, behind);
    if let Some(text) = rest.strip_prefix(b", ") {
        let (found, text) = number(text, 1, 2)?;
        day = found;
        let (found, text) = parse_month(text.strip_prefix(b" ")?)?;
        month = found;
        let (found, text) = number(text.strip_prefix(b" ")?, 4, 4)?;
        year = found;
        (clock, behind) = parse_clock(text.strip_prefix(b" ")?)?;
    } else {
        let (found, text) = parse_month(rest.strip_prefix(b" ")?)?;
        month = found;
        let text = text.strip_prefix(b" ")?;
        let (found, text) = number(text.strip_prefix(b" ").unwrap_or(text), 1, 2)?;
        day = found;
        let (found, text) = parse_clock(text.strip_prefix(b" ")?)?;
        clock = found;
        (year, behind) = parse_year(text.strip_prefix(b" ")?)?;
    }
    let date = Date::new(i16::try_from(year).ok()?, i8::try_from(month).ok()?, 1).ok()?;
    let elapsed = SignedDuration::from_secs((day.max(1) - 1) * 86_400 + clock);
    let local = date.at(0, 0, 0, 0).checked_add(elapsed).ok()?;
    let time = match offset(behind) {
        Some(offset) => offset.to_timestamp(local),
        None => zone.to_timestamp(local),
    };
    Some(Timestamp(time.ok()?.as_second()))
}

fn parse_month(text: &[u8]) -> Option<(usize, &[u8])> {
    let (name, rest) = text.split_at_checked(3)?;
    Some((MONTHS.iter().position(|month| name.eq_ignore_ascii_case(*month))? + 1, rest))
}

/// Seconds since midnight. The hour may be 24 and the minute 60: no more is asked than two digits each.
fn parse_clock(text: &[u8]) -> Option<(i64, &[u8])> {
    let (hours, rest) = number(text, 2, 2)?;
    let (minutes, rest) = number(rest.strip_prefix(b":")?, 2, 2)?;
    let (seconds, rest) = match rest.strip_prefix(b":") {
        Some(rest) => number(rest, 2, 2)?,
        None => (0, rest),
    };
    Some((hours * 3600 + minutes * 60 + seconds, rest))
}

/// The year; one word in front of it, the name of a zone, is passed over.
fn parse_year(text: &[u8]) -> Option<(i64, &[u8])> {
    number(text, 4, 4).or_else(|| {
        let word = text.iter().position(|b| *b == b' ')?;
        number(&text[word + 1..], 4, 4)
    })
}

fn number(text: &[u8], digits_min: usize, digits_max: usize) -> Option<(i64, &[u8])> {
    let digits = text.iter().take(digits_max).take_while(|b| b.is_ascii_digit()).count();
    if digits < digits_min {
        return None;
    }
    let value = text[..digits].iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
    Some((value, &text[digits..]))
}

/// ` +0100` behind the date. Dovecot takes the minutes of it for seconds; we do not.
fn offset(text: &[u8]) -> Option<Offset> {
    let text = text.strip_prefix(b" ")?;
    let sign = match text.first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (value, _) = number(&text[1..], 4, 4)?;
    Offset::from_seconds(sign * i32::try_from(value / 100 * 3600 + value % 100 * 60).ok()?).ok()
}

/// Writes a From_ line, without line end, the sender filled up with spaces to at least `sender_bytes_min`.
///
/// A time that the clocks of `zone` show twice gets its offset from UTC.
pub fn format(sender: &str, sender_bytes_min: usize, received: Timestamp, zone: &TimeZone) -> String {
    let clean = !sender.is_empty() && !sender.bytes().any(|b| b <= b' ' || b == b'"' || b == 0x7f);
    let sender = if clean && sender.len() < FROM_LINE_BYTES_MAX / 2 { sender } else { NOBODY };
    let time = jiff::Timestamp::from_second(received.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let epoch = jiff::Timestamp::UNIX_EPOCH;
    let time = if (1..=9998).contains(&zone.to_datetime(time).year()) { time } else { epoch };
    let local = zone.to_datetime(time);
    let line = format!("From {sender:sender_bytes_min$}  {}", local.strftime("%a %b %d %H:%M:%S %Y"));
    match parse(line.as_bytes(), zone) {
        Some(read) if read.received.0 != time.as_second() => {
            let seconds = zone.to_offset(time).seconds();
            let (sign, minutes) = (if seconds < 0 { '-' } else { '+' }, seconds.abs() / 60);
            format!("{line} {sign}{:02}{:02}", minutes / 60, minutes % 60)
        }
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn seconds(line: &str, zone: &TimeZone) -> Option<String> {
        let read = parse(line.as_bytes(), zone)?;
        Some(jiff::Timestamp::from_second(read.received.0).unwrap().strftime("%F %T").to_string())
    }

    /// The answers are those of Dovecot 2.3.19 (`doveadm fetch date.received`), asked line by line.
    #[test]
    fn dates_are_read_as_dovecot_reads_them() {
        let ten = Some("2024-02-05 10:00:00");
        let cases = [
            ("a@b Mon Feb  5 10:00:00 2024", ten),
            ("a@b  Mon Feb 05 10:00:00 2024", ten),
            ("a@b Mon Feb 5 10:00:00 2024", ten),
            ("a@b Mon Feb 5 10:00 2024", ten),
            ("a@b Mon Feb  5 10:00:00 CET 2024", ten),
            ("a@b Mon Feb  5 10:00:00 +0100 2024", ten),
            ("a@b Mon Feb  5 10:00:00 2024 +0100", Some("2024-02-05 09:00:00")),
            ("a@b Mon Feb  5 10:00:00 2024 CET", ten),
            ("a@b Mon, 5 Feb 2024 10:00:00", ten),
            ("a@b Mon, 05 Feb 2024 10:00:00 +0200", Some("2024-02-05 08:00:00")),
            ("a@b Mon, 05 Feb 2024 10:00", ten),
            ("\"a b\"@c Mon Feb  5 10:00:00 2024", ten),
            ("\"a\\\"b c\"@d Mon Feb  5 10:00:00 2024", ten),
            ("a\"b c\"@d Mon Feb  5 10:00:00 2024", None),
            ("a b Mon Feb  5 10:00:00 2024", None),
            (" Mon Feb  5 10:00:00 2024", ten),
            ("- Mon Feb  5 10:00:00 2024", ten),
            ("a@b xxx feb  5 10:00:00 2024", ten),
            ("a@b Mon Foo  5 10:00:00 2024", None),
            ("a@b Mon Feb 35 10:00:00 2024", Some("2024-03-06 10:00:00")),
            ("a@b Mon Feb 00 10:00:00 2024", Some("2024-02-01 10:00:00")),
            ("a@b Mon Feb  5 24:00:00 2024", Some("2024-02-06 00:00:00")),
            ("a@b Mon Feb  5 23:59:61 2024", Some("2024-02-06 00:00:01")),
            ("a@b Mon Feb  5 10:00:00 24", None),
            ("a@b Mon Feb  5 10:00:00 1924", Some("1924-02-05 10:00:00")),
            ("a@b Mon Feb  5 10:00:00 2024 trailing stuff", ten),
            ("a@b Mon Feb  5 10:00:00 2024x", ten),
            ("a@b    Mon Feb  5 10:00:00 2024", ten),
            ("a@b\tMon Feb  5 10:00:00 2024", None),
            ("a@b Mon  Feb  5 10:00:00 2024", None),
            ("a@b Mon Feb  5  10:00:00 2024", None),
            ("a@b Mon Feb  5 10:00:00  2024", ten),
            ("a@b Mon Feb  5 10:00:00 MET DST 2024", None),
            ("a@b Mon Feb  5 9:00:00 2024", None),
            ("a@b Mon Feb  5 10:00:0x 2024", None),
            ("a@b Mon Feb  5 10.00.00 2024", None),
            ("a@b Mon,  5 Feb 2024 10:00:00", None),
            ("a@b Mon, 5 Feb 24 10:00:00", None),
            ("a@b Mon Feb  5 10:00:00 9999", Some("9999-02-05 10:00:00")),
            ("here on it is text.", None),
            ("", None),
        ];
        for (line, expected) in cases {
            let line = format!("From {line}");
            assert_eq!(seconds(&line, &TimeZone::UTC).as_deref(), expected, "{line}");
        }
        assert_eq!(parse(b"from a@b Mon Feb  5 10:00:00 2024", &TimeZone::UTC), None);
        assert_eq!(parse(b"From \"a\\", &TimeZone::UTC), None);
        let sender = parse(b"From \"a b\"@c  Mon Feb 05 10:00:00 2024", &TimeZone::UTC).unwrap().sender;
        assert_eq!(sender, b"\"a b\"@c");
    }

    #[test]
    fn times_are_local() {
        let at = |line| seconds(line, &berlin());
        assert_eq!(at("From a@b Mon Feb  5 10:00:00 2024").as_deref(), Some("2024-02-05 09:00:00"));
        assert_eq!(at("From a@b Mon Jul  5 10:00:00 2024").as_deref(), Some("2024-07-05 08:00:00"));
        assert_eq!(at("From a@b Mon Jul  5 10:00:00 2024 +0000").as_deref(), Some("2024-07-05 10:00:00"));
        // An hour that clocks skip.
        assert_eq!(at("From a@b Sun Mar 31 02:30:00 2024").as_deref(), Some("2024-03-31 01:30:00"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        // The last two are 2:30 in the night when it is 2:30 twice.
        for second in [0, -1, 1_707_127_200, 1_720_166_400, 253_000_000_000, 1_729_989_000, 1_729_992_600] {
            for zone in [TimeZone::UTC, berlin()] {
                for sender in ["a@b", "", "a b", "\"x", "a\nb"] {
                    let line = format(sender, 16, Timestamp(second), &zone);
                    let read = parse(line.as_bytes(), &zone).unwrap();
                    assert_eq!(read.received, Timestamp(second), "{line}");
                    assert_eq!(read.sender, if sender == "a@b" { sender } else { NOBODY }.as_bytes());
                }
            }
        }
        let line = format("alice@example.org", 16, Timestamp(1_707_127_200), &TimeZone::UTC);
        assert_eq!(line, "From alice@example.org  Mon Feb 05 10:00:00 2024");
    }
}
