//! `dsync conf`: the configuration in force, and what is wrong with it.

use dsync_accounts::{Print, Settings};

use crate::args::{Conf, Globals};
use crate::{Failed, jobs, print_line};

/// Prints what was asked for.
pub fn print(conf: &Conf, globals: &Globals) -> Result<(), Failed> {
    let settings = Settings::load(globals.config.as_deref(), &globals.overrides)?;
    let print = Print { non_default: conf.non_default, secrets: conf.show_secrets };
    if conf.names.is_empty() {
        let head = format!(
            "# {} {}: {}",
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            jobs::config_name(&settings).display()
        );
        let lines = std::iter::once(head).chain(settings.printed(print));
        print_line(&lines.collect::<Vec<_>>().join("\n"))?;
        let mut errors: Vec<Failed> = settings.errors().into_iter().map(Failed::from).collect();
        let last = errors.pop();
        errors.iter().for_each(|error| _ = error.tell());
        return last.map_or(Ok(()), Err);
    }
    for name in &conf.names {
        let Some(value) = settings.printed_value(name, print) else {
            return Err(Failed::usage(format!(
                "{name} is no setting that dsync knows, and none that is written"
            )));
        };
        print_line(&if conf.hide_names { value } else { format!("{name} = {value}") })?;
    }
    Ok(())
}
