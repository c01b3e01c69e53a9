//! Work that takes long, or waits for other machines, runs on the runtime's blocking threads, few pieces at a time. Being there is a
//! value: what must not run on an async thread asks for a [`Blocking`], and only [`Lane::run`] has one to lend.

use crate::error::ApiError;
use std::marker::PhantomData;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Proof that the current thread may be kept. It is lent, and does not leave its thread: a future that holds one cannot be spawned.
#[derive(Debug)]
pub struct Blocking(PhantomData<*const ()>);

impl Blocking {
    /// Tests' own threads may be kept as well.
    #[cfg(test)]
    pub(crate) fn in_test() -> Self {
        Self(PhantomData)
    }
}

/// A bound on one kind of work: on the threads that it takes and on the memory that it holds at a time.
#[derive(Debug, Clone)]
pub struct Lane {
    places: Arc<Semaphore>,
}

impl Lane {
    pub fn new(num_places: usize) -> Self {
        assert!(num_places > 0, "a lane without places never moves");
        Self { places: Arc::new(Semaphore::new(num_places)) }
    }

    /// Waits for a place and runs `work` there. The place is given back when the work has ended, not when its caller stops waiting.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Blocking) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| ApiError::Draining)?;
        let work = move || {
            let _place = place;
            work(&Blocking(PhantomData))
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "work on a blocking thread failed");
            ApiError::Internal
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_place_is_held_until_the_work_ends_though_nobody_waits_for_it() {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let lane = Lane::new(1);
        let (begun_sender, begun) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let first = runtime.spawn({
            let lane = lane.clone();
            async move {
                lane.run(move |_| {
                    begun_sender.send(()).expect("the test waits");
                    released.recv().expect("the test releases");
                })
                .await
            }
        });
        begun.recv().expect("the work begins");
        first.abort();
        runtime.block_on(async {
            assert!(first.await.expect_err("aborted").is_cancelled());
            assert_eq!(lane.places.available_permits(), 0, "the work still runs");
            release.send(()).expect("the work waits");
            assert_eq!(lane.run(|_| 7).await, Ok(7));
        });
    }

    #[test]
    fn a_panic_is_an_error_and_gives_the_place_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let lane = Lane::new(1);
        runtime.block_on(async {
            assert_eq!(lane.run(|_| panic!("planted")).await, Err::<(), _>(ApiError::Internal));
            assert_eq!(lane.run(|_| ()).await, Ok(()));
        });
    }
}
