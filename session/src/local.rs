//! Joins two brains in one process: poll one, hand to the other. Bodies go as open readers.

use crate::{Brain, Report, SessionError};

/// Runs a session to its end. `watch` is called after each step with both brains' progress; when it returns `false`, the session
/// is brought to a safe point and ends with [`SessionError::Stopped`].
pub fn run(
    a: &mut Brain,
    b: &mut Brain,
    watch: &mut dyn FnMut(&Brain) -> bool,
) -> Result<(Report, Report), SessionError> {
    let _ = (a, b, watch);
    todo!()
}
