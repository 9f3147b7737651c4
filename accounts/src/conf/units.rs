//! Sizes and times as Dovecot's settings write them: `10M`, `2 weeks`.

/// Bytes: a number, and B, K, M, G or T behind it, in either case.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        "t" | "tb" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Seconds: a number and a unit, which may be cut short; 0 needs none.
pub fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return (number == 0).then_some(0);
    }
    number.checked_mul(seconds_in(unit)?)
}

/// Seconds in one of this unit, whose name may be cut short.
pub fn seconds_in(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let units = [
        ("secs", 1),
        ("seconds", 1),
        ("mins", 60),
        ("minutes", 60),
        ("hours", 3600),
        ("days", 86_400),
        ("weeks", 604_800),
    ];
    units.iter().find(|(name, _)| name.starts_with(&unit)).map(|(_, seconds)| *seconds)
}

/// A number and what stands behind it.
pub fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_dovecots() {
        for (text, bytes) in [("10M", 10 << 20), ("0", 0), ("4096", 4096), ("2 k", 2048), ("1GB", 1 << 30)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for (text, secs) in [("0", 0), ("1d", 86_400), ("2 weeks", 1_209_600), ("5 mins", 300), ("30s", 30)] {
            assert_eq!(seconds(text), Some(secs), "{text}");
        }
        for bad in ["", "M", "-1", "1x", "99999999999999999999", "9999999999999999999T"] {
            assert_eq!((size(bad), seconds(bad)), (None, None), "{bad}");
        }
        assert_eq!(seconds("10"), None, "a time without its unit means nothing");
    }
}
