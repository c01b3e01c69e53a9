//! What launches ask of memory, counted: it is the same on every device, and can be held against what an op must move.

use std::sync::Mutex;

/// Keeps what every launch of an emulator read and wrote, until it is taken.
#[derive(Debug, Default)]
pub struct Meter {
    launches: Mutex<Vec<LaunchTraffic>>,
}

/// One launch of a kernel.
#[derive(Debug)]
pub struct LaunchTraffic {
    /// The kernel with its template arguments.
    pub kernel: String,
    pub blocks: u64,
    pub tensors: Vec<TensorTraffic>,
}

/// Bytes of one tensor that a launch read and wrote. A byte counts as often as a thread asked for it: what a cache would serve is in it.
#[derive(Debug)]
pub struct TensorTraffic {
    pub name: String,
    /// Of the whole tensor.
    pub bytes: u64,
    pub read: u64,
    pub written: u64,
}

impl Meter {
    pub(super) fn add(&self, launch: LaunchTraffic) {
        self.launches.lock().expect("no holder panics").push(launch);
    }

    /// The launches since the last call, in their order.
    pub fn take(&self) -> Vec<LaunchTraffic> {
        std::mem::take(&mut self.launches.lock().expect("no holder panics"))
    }
}
