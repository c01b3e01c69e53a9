//! What the driver promises about order: streams, events, graphs. The emulator is as late as a device may be, so a missing wait shows.

use crate::bench::Bench;
use crate::device::{SEEDS, emulated};
use kernels::cuda::compile::Source;
use kernels::cuda::driver::*;
use kernels::{Device, Indices, Milestone};

const SOURCE: Source = Source {
    name: "queues.cu",
    text: r#"
#include "common.cuh"
__global__ void multiply(In<float> x, float factor, Out<float> out) { out[threadIdx.x] = x[threadIdx.x] * factor; }
"#,
};

fn setup(bench: &Bench) -> Function {
    bench.function(SOURCE, "multiply", &[]).expect("it compiles")
}

fn args(x: DevicePtr, factor: f32, out: DevicePtr) -> Args {
    Args::new().pointer(x).value(factor).pointer(out)
}

fn launch_on(bench: &Bench, stream: Stream, function: Function, args: &Args) {
    let grid = Grid { blocks: [1; 3], threads: [4, 1, 1], shared: 0 };
    // SAFETY: the emulator checks arguments and every access.
    unsafe { bench.driver.launch(stream, function, &grid, args).expect("a launch") };
}

#[test]
fn nothing_happens_before_somebody_waits() {
    let bench = Bench::new(1);
    let multiply = setup(&bench);
    let x = bench.filled(&[1f32, 2.0, 3.0, 4.0], "x");
    let out = bench.region(16, "out");
    let pinned = bench.driver.allocate_pinned(16).expect("memory");
    launch_on(&bench, bench.stream, multiply, &args(x.start, 2.0, out.start));
    // SAFETY: pinned memory of this size, read below while the copy is not done: the emulator runs nothing on its own.
    unsafe {
        bench.driver.download(bench.stream, pinned.as_ptr(), out.start, 16).expect("a copy");
        let read = || pinned.cast::<[f32; 4]>().read_unaligned();
        assert_eq!(read(), [0.0; 4], "too early");
        bench.driver.synchronize(bench.stream).expect("done");
        assert_eq!(read(), [2.0, 4.0, 6.0, 8.0]);
    }
}

#[test]
fn streams_are_ordered_by_events_only() {
    for waits in [true, false] {
        let bench = Bench::new(2);
        let multiply = setup(&bench);
        let other = bench.driver.new_stream().expect("a stream");
        let event = bench.driver.new_event().expect("an event");
        let x = bench.filled(&[1f32, 2.0, 3.0, 4.0], "x");
        let (between, out) = (bench.region(16, "between"), bench.region(16, "out"));
        launch_on(&bench, bench.stream, multiply, &args(x.start, 2.0, between.start));
        bench.driver.record(event, bench.stream).expect("recorded");
        if waits {
            bench.driver.wait(other, event).expect("a wait");
        }
        launch_on(&bench, other, multiply, &args(between.start, 5.0, out.start));
        let outcome = bench.driver.synchronize(other);
        assert_eq!(outcome.is_ok(), waits, "{outcome:?}");
        if waits {
            assert_eq!(bench.read::<f32>(out), Ok(vec![10.0, 20.0, 30.0, 40.0]));
            assert_eq!(bench.driver.is_done(event), Ok(true));
        }
    }
}

#[test]
fn a_milestone_is_reached_when_what_was_before_it_is_done() {
    let mut of_processor = Milestone::new(&Device::cpu(Some(1))).expect("nothing to make");
    of_processor.set();
    assert!(of_processor.is_reached());
    let device = emulated(SEEDS[0]);
    let mut milestone = Milestone::new(&device).expect("an event");
    let mut indices = Indices::new(&device, 3);
    for round in 0..2 {
        indices.set(&[round, 8, 9]);
        milestone.set();
        // The first answer is no: a device may take its time.
        assert_eq!([(); 3].map(|()| milestone.is_reached()), [false, true, true]);
    }
    indices.set(&[7]);
    milestone.set();
    device.synchronize().expect("done");
    assert!(milestone.is_reached());
}

#[test]
fn a_graph_reads_what_is_there_when_it_runs() {
    let bench = Bench::new(3);
    let multiply = setup(&bench);
    let x = bench.filled(&[1f32, 2.0, 3.0, 4.0], "x");
    let out = bench.region(16, "out");
    bench.driver.synchronize(bench.stream).expect("uploaded");
    bench.driver.begin_capture(bench.stream).expect("a capture");
    assert!(bench.driver.begin_capture(bench.stream).is_err(), "one capture at a time");
    launch_on(&bench, bench.stream, multiply, &args(x.start, 3.0, out.start));
    let graph = bench.driver.end_capture(bench.stream).expect("a graph");
    assert!(bench.driver.end_capture(bench.stream).is_err(), "no capture is left");
    assert!(bench.read::<f32>(out).is_err(), "a capture runs nothing");

    let bench = Bench::new(3);
    let multiply = setup(&bench);
    let x = bench.filled(&[1f32, 2.0, 3.0, 4.0], "x");
    let out = bench.region(16, "out");
    bench.driver.begin_capture(bench.stream).expect("a capture");
    launch_on(&bench, bench.stream, multiply, &args(x.start, 3.0, out.start));
    let again = bench.driver.end_capture(bench.stream).expect("a graph");
    assert_eq!(graph, again, "the first of its driver");
    bench.driver.launch_graph(bench.stream, again).expect("a replay");
    assert_eq!(bench.read::<f32>(out), Ok(vec![3.0, 6.0, 9.0, 12.0]));
    // SAFETY: both regions have 16 bytes.
    unsafe { bench.driver.copy(bench.stream, x.start, out.start, 16).expect("a copy") };
    bench.driver.launch_graph(bench.stream, again).expect("a replay");
    assert_eq!(bench.read::<f32>(out), Ok(vec![9.0, 18.0, 27.0, 36.0]));
}

#[test]
fn copies_stay_inside_regions_and_pinned_memory() {
    let bench = Bench::new(4);
    let region = bench.region(16, "small");
    let pinned = bench.driver.allocate_pinned(32).expect("memory");
    // SAFETY: what is wrong here is what the emulator must find before it copies.
    unsafe { bench.driver.upload(bench.stream, region.start, pinned.as_ptr(), 17).expect("enqueued") };
    let error = bench.driver.synchronize(bench.stream).expect_err("17 bytes into 16");
    assert!(error.to_string().contains("small"), "{error}");

    let bench = Bench::new(4);
    let region = bench.region(16, "small");
    let pageable = [0u8; 16];
    // SAFETY: as above.
    unsafe { bench.driver.upload(bench.stream, region.start, pageable.as_ptr(), 16).expect("enqueued") };
    let error = bench.driver.synchronize(bench.stream).expect_err("pageable memory");
    assert!(error.to_string().contains("not pinned"), "{error}");

    let bench = Bench::new(4);
    let region = bench.region(16, "small");
    let error = bench.read::<u8>(region).expect_err("nobody wrote it");
    assert!(error.to_string().contains("never written"), "{error}");
}
