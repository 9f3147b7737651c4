//! Joins two brains in one process: poll one, hand to the other. Bodies go as open readers.

use dsync_proto::Frame;

use crate::rawlog::RawLog;
use crate::{Brain, Input, Output, Report, SessionError};

/// Runs a session to its end, `a` being the initiator. `watch` is called now and then; when it returns `false`, the session
/// is brought to a safe point and ends with [`SessionError::Stopped`].
pub fn run(
    a: &mut Brain,
    b: &mut Brain,
    watch: &mut dyn FnMut(&Brain) -> bool,
) -> Result<(Report, Report), SessionError> {
    run_recorded(a, b, watch, None)
}

/// The same, and records what goes from hand to hand, as `a` sees it.
pub fn run_recorded(
    a: &mut Brain,
    b: &mut Brain,
    watch: &mut dyn FnMut(&Brain) -> bool,
    mut rawlog: Option<RawLog>,
) -> Result<(Report, Report), SessionError> {
    let mut reports = [None, None];
    let mut brains = [a, b];
    loop {
        let mut idle = true;
        for from in 0..2 {
            // One end may say a good deal before the other listens: that saves turns, and the queue is bounded by the batch.
            for _ in 0..64 {
                if reports[from].is_some() {
                    break;
                }
                let output = brains[from].poll()?;
                let input = match output {
                    Output::Message(channel, message) => {
                        if let Some(log) = &mut rawlog {
                            log.frame(from == 0, &Frame::Message(channel, message.clone()));
                        }
                        Input::Message(channel, message)
                    }
                    Output::Body(channel, body) => {
                        if let Some(log) = &mut rawlog {
                            log.body(from == 0, channel, body.size.unwrap_or(0));
                        }
                        Input::WholeBody(channel, body)
                    }
                    Output::Working => {
                        idle = false;
                        continue;
                    }
                    Output::Idle => break,
                    Output::Done(report) => {
                        reports[from] = Some(*report);
                        idle = false;
                        break;
                    }
                };
                idle = false;
                brains[1 - from].handle(input)?;
            }
        }
        match &mut reports {
            [Some(first), Some(second)] => return Ok((std::mem::take(first), std::mem::take(second))),
            _ if idle => return Err(SessionError::Peer("waits for us while we wait for it".into())),
            _ => {}
        }
        if !watch(brains[0]) {
            brains.iter_mut().for_each(|brain| brain.stop());
        }
    }
}
