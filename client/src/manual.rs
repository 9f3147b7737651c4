//! Manual pages and completions, made from the grammar of the command line itself.

use std::path::Path;

use anyhow::Context as _;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::Failed;
use crate::args::Cli;

/// The grammar of the other program.
#[path = "../../server/src/args.rs"]
mod server_args;

/// The page of the configuration, written by hand.
const CONF: &str = include_str!("../../docs/man/dsync.conf.5");

const EXIT_STATUS: &str = "\
.SH EXIT STATUS
.TP
0
Both ends are equal, and that was shown.
.TP
2
No error, but both ends are not equal: something changed meanwhile, or (verify) differs. Run again.
.TP
64, 65, 67, 68
Usage; not possible with this data; no such user; no such mailbox.
.TP
73, 75, 76, 77, 78
Over quota; try later; another protocol or version; not permitted, or refused by the guard; configuration.
.SH SEE ALSO
.BR dsync (1),
.BR dsync\\-sync (1),
.BR dsync\\-backup (1),
.BR dsync\\-verify (1),
.BR dsync\\-server (1),
.BR dsync.conf (5)
";

/// Writes dsync.1, a page for each command, dsync-server.1 and dsync.conf.5.
pub fn pages(directory: &Path) -> Result<(), Failed> {
    let all = all_pages().context("cannot make the manual pages").map_err(|error| Failed::new(75, error))?;
    for (name, text) in all {
        let path = directory.join(&name);
        std::fs::write(&path, text).map_err(|error| Failed::file(path.display(), error))?;
    }
    Ok(())
}

fn all_pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut client = Cli::command();
    client.build();
    let commands = client.get_subcommands().filter(|command| command.get_name() != "help");
    let commands = commands.map(|command| {
        let name = format!("dsync-{}", command.get_name());
        command.clone().name(name.clone()).display_name(name)
    });
    let mut pages = Vec::new();
    for command in std::iter::once(client.clone()).chain(commands).chain([server_args::Cli::command()]) {
        pages.push((format!("{}.1", command.get_name()), page(command)?));
    }
    pages.push(("dsync.conf.5".to_owned(), CONF.as_bytes().to_vec()));
    Ok(pages)
}

fn page(command: Command) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(command).render(&mut text)?;
    text.extend_from_slice(EXIT_STATUS.as_bytes());
    Ok(text)
}

/// Prints the completions for a shell.
pub fn completions(shell: Shell) -> Result<(), Failed> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "dsync", &mut text);
    std::io::Write::write_all(&mut std::io::stdout(), &text)
        .context("cannot write to stdout")
        .map_err(|error| Failed::new(75, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_stands_in_the_page_of_its_command() {
        let pages = all_pages().unwrap();
        let page = |name: &str| {
            let (_, text) = pages.iter().find(|(known, _)| known == name).unwrap();
            String::from_utf8(text.clone()).unwrap()
        };
        let mut client = Cli::command();
        client.build();
        for name in ["sync", "backup", "verify"] {
            let text = page(&format!("dsync-{name}.1"));
            let command = client.find_subcommand(name).unwrap();
            for option in command.get_arguments().filter_map(|option| option.get_long()) {
                assert!(text.contains(&option.replace('-', "\\-")), "{name}: --{option}");
            }
            assert!(text.contains("EXIT STATUS") && text.starts_with(".ie"), "{name}");
        }
        assert!(page("dsync.1").contains("dsync\\-backup") && page("dsync-server.1").contains("stdio"));
        for setting in dsync_accounts::known_settings() {
            assert!(page("dsync.conf.5").contains(setting), "dsync.conf.5 does not tell of {setting}");
        }
    }

    #[test]
    fn completions_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dsync", &mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("backup") && text.contains("allow-mass-delete"), "{shell}");
        }
    }
}
