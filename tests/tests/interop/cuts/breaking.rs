//! How a session is cut off: after how many bytes of which direction, and what becomes of the ends.

use std::fs;
use std::time::{Duration, Instant};

use dsync_tests::interop::World;
use dsync_tests::peers::Ends;

use super::Case;

/// What happens to a session after so many bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Blow {
    /// Whoever hears these bytes sees the end of the stream.
    End,
    KillsCaller,
    KillsCalled,
    KillsBoth,
}

#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Whose bytes are counted: what the called end hears, or what the calling one does.
    pub to_called: bool,
    pub bytes: u64,
    pub blow: Blow,
}

impl Cut {
    /// Whether it kills the end that is a Dovecot.
    pub fn kills_dovecot(self, ends: Ends) -> bool {
        let its_own = if ends == Ends::DovecotCalls { Blow::KillsCaller } else { Blow::KillsCalled };
        self.blow == its_own || self.blow == Blow::KillsBoth
    }

    fn script(self, world: &World, other: &str) -> String {
        let Cut { to_called, bytes, blow } = self;
        let [called, passing] =
            ["called-pid", "passing-pid"].map(|name| world.path(name).display().to_string());
        // `dd` passes each byte on at once.
        let started = |pid: &str, words: &str| format!("sh -c 'echo $$ > \"$0\"; exec \"$@\"' {pid} {words}");
        let other = started(&called, other);
        let wait = |pid: &str| format!("while ! [ -s {pid} ]; do :; done");
        let counted = format!("dd bs=1 count={bytes} status=none");
        let after = match blow {
            Blow::End if to_called => ":".to_owned(),
            // Both directions end.
            Blow::End => format!("{}; kill `cat {passing}`", wait(&passing)),
            Blow::KillsCaller => "kill -9 $PPID".to_owned(),
            Blow::KillsCalled => format!("{}; kill -9 `cat {called}`", wait(&called)),
            Blow::KillsBoth => format!("{}; kill -9 $PPID `cat {called}`", wait(&called)),
        };
        let (first, rest) = if to_called {
            (format!("{{ {counted}; {after}; }}"), other)
        } else {
            let kept = started(&passing, "dd bs=64k status=none");
            (kept, format!("{{ {other}; kill `cat {passing}`; }} | {{ {counted}; {after}; }}"))
        };
        format!("rm -f {called} {passing}\n{}", piped(world, &first, &format!("{{ {rest}; }} 2> /dev/null")))
    }
}

/// A pipeline of which nobody else holds an end, so that who closes one is seen at once. It is over when all but its first part are.
fn piped(world: &World, first: &str, rest: &str) -> String {
    let pipe = world.path("fifo");
    let pipe = pipe.display();
    format!(
        "rm -f {pipe}\nmkfifo {pipe}\nexec 3<&0\n{first} <&3 3<&- > {pipe} &\n\
         {{ {rest}; }} < {pipe} 3<&- &\nexec <&- >&- 3<&-\nwait $!"
    )
}

impl Case<'_> {
    /// A session that is cut off: its exit status, and what was logged.
    pub fn cut(&self, cut: Cut) -> (i32, String) {
        let (a, b) = (self.location(0), self.location(1));
        self.world.through(self.ends, self.mode, (&a, &b), |other| cut.script(self.world, other))
    }

    /// How many bytes each end hears in a whole session: the called one, the calling one.
    pub fn whole(&self) -> [u64; 2] {
        let counts = ["heard-called", "heard-calling"].map(|name| self.world.path(name));
        let [called, calling] = counts.each_ref().map(|path| path.display().to_string());
        let (a, b) = (self.location(0), self.location(1));
        let script = |other: &str| {
            piped(self.world, &format!("dd bs=64k 2> {called}"), &format!("{other} | dd bs=64k 2> {calling}"))
        };
        let (_, text) = self.world.through(self.ends, self.mode, (&a, &b), script);
        let begun = Instant::now();
        counts.map(|path| {
            loop {
                // A doveadm does not wait for all that it started.
                let said = fs::read_to_string(&path).expect("written");
                let count = said.lines().find(|line| line.contains(" bytes"));
                if let Some(count) = count.and_then(|line| line.split(' ').next()?.parse().ok()) {
                    return count;
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "{text}");
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    }
}
