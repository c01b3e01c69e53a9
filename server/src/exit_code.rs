//! Exit codes of the process: what a supervisor can tell apart.

pub const EXIT_FAILURE: u8 = 1;
pub const EXIT_USAGE: u8 = 2;
pub const EXIT_LOAD: u8 = 3;
pub const EXIT_MEMORY: u8 = 4;
/// The engine failed while serving: the process should be started again.
pub const EXIT_ENGINE: u8 = 86;
