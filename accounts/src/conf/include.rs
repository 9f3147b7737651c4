//! File names of `!include`: wildcards, relative names, sorted matches.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// Most files one pattern may match.
const MATCHES_MAX: usize = 1000;

/// Whether a name has wildcards.
pub(super) fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// The files that a pattern matches, sorted; a name without wildcards is itself, there or not.
pub(super) fn expand(base: &Path, pattern: &str) -> Vec<PathBuf> {
    let whole = base.join(pattern);
    if !is_pattern(pattern) {
        return vec![whole];
    }
    let mut found = vec![PathBuf::new()];
    for component in whole.components() {
        found = match component {
            Component::Normal(name) if name.to_str().is_some_and(is_pattern) => {
                let name = name.to_string_lossy();
                found.iter().flat_map(|dir| matching(dir, &name)).take(MATCHES_MAX).collect()
            }
            other => found.into_iter().map(|dir| dir.join(other)).collect(),
        };
    }
    found.retain(|path| path.exists());
    found.sort();
    found
}

/// The entries of a directory that match; none if it cannot be listed.
fn matching(dir: &Path, pattern: &str) -> Vec<PathBuf> {
    let listed = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let Ok(entries) = fs::read_dir(listed) else { return Vec::new() };
    let pattern: Vec<char> = pattern.chars().collect();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter(|name| !name.starts_with('.') || pattern.first() == Some(&'.'))
        .filter(|name| matches(&pattern, &name.chars().collect::<Vec<_>>()))
        .map(|name| dir.join(name))
        .collect()
}

/// Shell matching of one name, in time at most pattern times name.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on if the match fails: after the last star, one character of the name later.
    let mut retry = None;
    loop {
        if pattern.get(p) == Some(&'*') {
            p += 1;
            retry = Some((p, n));
            continue;
        }
        if p == pattern.len() && n == name.len() {
            return true;
        }
        let step = name.get(n).and_then(|&c| one(&pattern[p..], c));
        match (step, retry) {
            (Some(step), _) => {
                p += step;
                n += 1;
            }
            (None, Some((star, from))) if from < name.len() => {
                retry = Some((star, from + 1));
                (p, n) = (star, from + 1);
            }
            (None, _) => return false,
        }
    }
}

/// How much of the pattern matches this one character, if it does.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match *pattern.first()? {
        '?' => Some(1),
        '[' => {
            let Some(end) = pattern.iter().skip(2).position(|&c| c == ']').map(|at| at + 2) else {
                return (c == '[').then_some(1);
            };
            let negated = matches!(pattern[1], '!' | '^');
            let set = &pattern[1 + usize::from(negated)..end];
            let ranged = set.windows(3).any(|w| w[1] == '-' && (w[0]..=w[2]).contains(&c));
            ((set.contains(&c) || ranged) != negated).then_some(end + 1)
        }
        literal => (literal == c).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_in_the_shell() {
        let check = |pattern: &str, name: &str| {
            matches(&pattern.chars().collect::<Vec<_>>(), &name.chars().collect::<Vec<_>>())
        };
        for (pattern, name) in [
            ("*.conf", "10-auth.conf"),
            ("1?-*.conf", "10-a.conf"),
            ("[0-9]*", "9x"),
            ("*", ""),
            ("[!a]b", "cb"),
        ] {
            assert!(check(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("*.conf", "a.conf.ext"), ("?", ""), ("[!a]b", "ab"), ("a", "ab"), ("[a", "a")]
        {
            assert!(!check(pattern, name), "{pattern} {name}");
        }
    }
}
