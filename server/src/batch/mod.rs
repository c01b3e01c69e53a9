//! Many requests from one file: `/v1/batches` and `perilune run-batch`. Each line runs in process through the same router as a request
//! over HTTP, so that nothing is written twice and a route that is added can be batched at once.
//!
//! ```text
//!   lines      JSONL in, checked as a whole before anything runs
//!   request    one line through the router, waiting where the server is full
//!   results    results on disk, each custom_id once whatever happens to the process
//!   job        lines × bounded concurrency → results, until the end, a cancellation, a deadline or the end of the server
//!   record     the API's batch object and its states
//!   store      the batches of a server: made, listed, cancelled, driven, resumed
//! ```

pub mod job;
pub mod lines;
pub mod record;
pub mod request;
pub mod results;
pub mod store;
