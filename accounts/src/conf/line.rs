//! One logical line of configuration: comments, quotes, and what kind of line it is.

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Empty,
    /// `key = value`
    Text(String, String),
    /// `key = value` with an unquoted value, in which `$setting` may stand.
    Variable(String, String),
    /// `key = <file`
    File(String, String),
    /// `kind title {`, closed on the same line or not.
    Open {
        kind: String,
        title: String,
        closed: bool,
    },
    /// `}`
    Close,
    /// `!include glob`, or `!include_try glob` when `tolerant`.
    Include {
        glob: String,
        tolerant: bool,
    },
}

/// Cuts off a comment, and tells whether its `#` touched the text before it.
///
/// As in Dovecot, any `#` outside quotes begins a comment, and a quote that is not closed goes to the end.
pub(super) fn without_comment(line: &str) -> (&str, bool) {
    let bytes = line.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => match closing_quote(&bytes[at + 1..], quote) {
                Some(end) => at += end + 1,
                None => return (line, false),
            },
            b'#' => return (&line[..at], at > 0 && !bytes[at - 1].is_ascii_whitespace()),
            _ => {}
        }
        at += 1;
    }
    (line, false)
}

/// The offset of the closing quote, past backslash escapes.
fn closing_quote(bytes: &[u8], quote: u8) -> Option<usize> {
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'\\' {
            at += 1;
        } else if bytes[at] == quote {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Takes the backslashes out of a quoted text.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

/// The text inside quotes, if the whole value is one quoted text.
fn quoted(value: &str) -> Option<String> {
    let quote = *value.as_bytes().first().filter(|b| matches!(b, b'"' | b'\''))?;
    let end = closing_quote(&value.as_bytes()[1..], quote)?;
    (end + 2 == value.len()).then(|| unescape(&value[1..=end]))
}

/// Reads one line, comment already cut off.
pub(super) fn parse(line: &str) -> Result<Line, String> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Line::Empty);
    }
    if line == "}" {
        return Ok(Line::Close);
    }
    let end = line.find(|c: char| c.is_ascii_whitespace() || c == '=').unwrap_or(line.len());
    let (key, rest) = (&line[..end], line[end..].trim_start());
    if let "!include" | "!include_try" = key {
        let glob = quoted(rest).unwrap_or_else(|| rest.to_owned());
        if glob.is_empty() {
            return Err(format!("{key} names no file"));
        }
        return Ok(Line::Include { glob, tolerant: key == "!include_try" });
    }
    if let Some(value) = rest.strip_prefix('=') {
        if key.is_empty() {
            return Err("no setting before \"=\"".to_owned());
        }
        let value = value.trim_start();
        let key = key.to_owned();
        return Ok(match (value.strip_prefix('<'), quoted(value)) {
            (Some(path), _) => Line::File(key, path.trim_start().to_owned()),
            (None, Some(text)) => Line::Text(key, text),
            (None, None) => Line::Variable(key, value.to_owned()),
        });
    }
    open(key, rest)
}

/// Reads the rest of a line that is neither a setting nor an include: it must open a section.
fn open(key: &str, rest: &str) -> Result<Line, String> {
    // `plugin{`: the brace may touch the name.
    let (kind, rest) = match key.strip_suffix('{') {
        Some(kind) if rest.is_empty() || rest == "}" => (kind, format!("{{{rest}")),
        _ => (key, rest.to_owned()),
    };
    let Some(brace) = rest.rfind('{') else {
        return Err(format!("expected \"=\" or \"{{\" after {}", shown(key)));
    };
    let closed = match rest[brace + 1..].trim() {
        "" => false,
        "}" => true,
        _ => return Err("text after \"{\"".to_owned()),
    };
    let title = rest[..brace].trim();
    let title = quoted(title).unwrap_or_else(|| title.to_owned());
    if kind.is_empty() {
        return Err("section without a name".to_owned());
    }
    Ok(Line::Open { kind: kind.to_owned(), title, closed })
}

/// A word for an error message, without control characters and cut to a length people read.
fn shown(word: &str) -> String {
    let word: String = word.chars().take(40).filter(|c| !c.is_control()).collect();
    format!("\"{word}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: &str, value: &str) -> Line {
        Line::Text(key.to_owned(), value.to_owned())
    }

    fn variable(key: &str, value: &str) -> Line {
        Line::Variable(key.to_owned(), value.to_owned())
    }

    #[test]
    fn lines_are_told_apart() {
        let open = |kind: &str, title: &str, closed| Line::Open {
            kind: kind.to_owned(),
            title: title.to_owned(),
            closed,
        };
        for (line, want) in [
            ("", Line::Empty),
            ("a = b c ", variable("a", "b c")),
            ("a=b", variable("a", "b")),
            ("a =", variable("a", "")),
            (r#"a = "b \"c\" \\ ""#, text("a", r#"b "c" \ "#)),
            ("a = 'b'", text("a", "b")),
            ("a = 'b' c", variable("a", "'b' c")),
            ("a = </x y", Line::File("a".to_owned(), "/x y".to_owned())),
            ("namespace inbox {", open("namespace", "inbox", false)),
            ("mailbox \"Sent Messages\" {", open("mailbox", "Sent Messages", false)),
            ("plugin {", open("plugin", "", false)),
            ("plugin{", open("plugin", "", false)),
            ("dict { }", open("dict", "", true)),
            ("}", Line::Close),
            ("!include conf.d/*.conf", Line::Include { glob: "conf.d/*.conf".to_owned(), tolerant: false }),
            ("!include_try x", Line::Include { glob: "x".to_owned(), tolerant: true }),
        ] {
            assert_eq!(parse(line), Ok(want), "{line}");
        }
    }

    #[test]
    fn other_lines_are_errors() {
        for line in ["word", "= x", "a { b", "!include", "{"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn comments_end_a_line_outside_quotes() {
        for (line, want) in [
            ("# x", ""),
            ("a = b # c", "a = b "),
            ("a = \"b # c\" # d", "a = \"b # c\" "),
            ("a = it's # c", "a = it's # c"),
            ("a = b#c", "a = b"),
            ("a = \"\\\" # \" # d", "a = \"\\\" # \" "),
        ] {
            assert_eq!(without_comment(line).0, want, "{line}");
        }
    }
}
