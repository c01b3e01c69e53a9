//! What peaks are measured with does what it says; how fast, only a GPU can tell.

use crate::device::emulated;
use kernels::cuda::peak::{PeakSizes, measure};

#[test]
fn peaks_are_measured_without_leaving_memory() {
    let device = emulated(1);
    for read_bytes in [0, 16, 5 * 16 * 1000] {
        let peaks = measure(&device, PeakSizes { read_bytes, rounds: 3 }).expect("kernels run");
        assert!(peaks.mma_tflop_s > 0.0);
    }
    assert_eq!((device.synchronize(), device.allocated_bytes()), (Ok(()), 0));
}
