//! Clusters of blocks: each instruction against what the PTX ISA says of it, a pipeline whose copies go to several blocks, and bugs in
//! their use.

use crate::bench::{Bench, Region};
use crate::common::values;
use crate::device::options;
use kernels::cuda::compile::Source;
use kernels::cuda::driver::*;
use kernels::cuda::emulated::{Emulator, EmulatorOptions};
use kernels::cuda::error::Result;

const SOURCE: Source = Source { name: "clusters.cu", text: include_str!("clusters.cu") };

/// The number of a bug in the list of the source.
fn bug(name: &str) -> i32 {
    let (_, list) = SOURCE.text.split_once("enum Bug {").expect("a list of bugs");
    let (list, _) = list.split_once('}').expect("its end");
    list.split(',').position(|bug| bug.trim() == name).expect(name) as i32
}

fn launch(
    bench: &Bench,
    expression: &str,
    ([blocks, clusters], threads): ([[u32; 3]; 2], u32),
    args: &Args,
) -> Result<()> {
    let kernel = bench.function(SOURCE, expression, &[])?;
    let grid = Grid { blocks, threads: [threads, 1, 1], shared: 0 };
    let clusters = Clusters { grid, blocks: clusters };
    // SAFETY: the emulator checks arguments and every access.
    unsafe { bench.driver.launch_clusters(bench.stream, kernel, &clusters, args) }
}

fn of_line(blocks: u32, size: u32, threads: u32) -> ([[u32; 3]; 2], u32) {
    ([[blocks, 1, 1], [size, 1, 1]], threads)
}

/// %cluster_ctarank: the place in the cluster, x first.
#[test]
fn ranks_of_blocks() {
    let bench = Bench::new(3);
    for (grid, cluster) in
        [([4, 4, 2], [2, 2, 1]), ([3, 2, 4], [1, 2, 4]), ([6, 1, 1], [3, 1, 1]), ([2, 3, 1], [1; 3])]
    {
        let count = grid.iter().product::<u32>() as usize;
        let out = bench.region(count * 8, "out");
        launch(&bench, "ranks", ([grid, cluster], 1), &Args::new().pointer(out.start)).expect("a launch");
        let found: Vec<i32> = bench.read(out).expect("ranks");
        for (i, found) in found.chunks(2).enumerate() {
            let i = i as u32;
            let [x, y, z] = [i % grid[0], i / grid[0] % grid[1], i / grid[0] / grid[1]];
            let rank = x % cluster[0] + cluster[0] * (y % cluster[1] + cluster[1] * (z % cluster[2]));
            assert_eq!(found, [rank as i32, cluster.iter().product::<u32>() as i32], "block {i} of {grid:?}");
        }
    }
}

const MEMBERS: [i32; 8] = [3, 1, 4, 1, 5, 9, 2, 6];

fn of_members(expression: &str, seed: u64, planted: &str, step: Option<i32>) -> Result<Vec<i32>> {
    let bench = Bench::new(seed);
    let [made, out] = ["made", "out"].map(|name| bench.region(32, name));
    let mut args = Args::new().pointer(bench.filled(&MEMBERS, "x").start).value(bug(planted));
    if let Some(step) = step {
        args = args.value(step);
    }
    let threads = if step.is_some() { 1 } else { 40 };
    launch(&bench, expression, of_line(8, 4, threads), &args.pointer(made.start).pointer(out.start))?;
    bench.read(out)
}

/// barrier.cluster: nobody passes before all that are left have arrived.
#[test]
fn a_cluster_meets() {
    for seed in 0..4 {
        let sums = of_members("meeting", seed, "NONE", None).expect("sums");
        assert_eq!(sums, [[9; 4], [22; 4]].concat(), "seed {seed}");
    }
    for (planted, what) in [
        ("TWO_ARRIVALS", "again before it waits"),
        ("NO_ARRIVAL", "without having arrived"),
        ("NO_WAIT", "exits between its arrival"),
    ] {
        let error = (0..4)
            .find_map(|seed| of_members("meeting", seed, planted, None).err())
            .expect(planted)
            .to_string();
        let is_noticed = error.contains(what) || (planted == "NO_WAIT" && error.contains("unwritten memory"));
        assert!(is_noticed && error.contains("clusters.cu:"), "{planted}: {error}");
    }
}

/// mapa and mbarrier.arrive.shared::cluster: the barrier at the same place in the block of that rank, and no other.
#[test]
fn a_block_arrives_at_the_barrier_of_another() {
    for (seed, step) in [(0, 1), (1, 2), (2, 3), (3, 4)] {
        let expected: Vec<i32> =
            (0..8i32).map(|i| MEMBERS[(i / 4 * 4 + (i % 4 - step).rem_euclid(4)) as usize]).collect();
        assert_eq!(of_members("ring", seed, "NONE", Some(step)), Ok(expected), "step {step}");
    }
    let error = of_members("ring", 1, "NOT_TOLD", Some(1)).expect_err("nobody arrives").to_string();
    assert!(error.contains("deadlock") && error.contains("clusters.cu:"), "{error}");
}

fn multicast(seed: u64, (from, mask): (i32, i32), planted: &str) -> Result<Vec<f32>> {
    let bench = Bench::new(seed);
    let out = bench.region(8 * 24 * 4, "out");
    let x = bench.filled(&values(1, 24), "x");
    let args = Args::new().pointer(x.start).value(bug(planted)).value(from).value(mask).pointer(out.start);
    launch(&bench, "multicast", of_line(8, 4, 32), &args)?;
    bench.read(out)
}

/// cp.async.bulk with .multicast::cluster: the same place in every block of the mask, and nothing elsewhere.
#[test]
fn a_copy_goes_to_the_blocks_of_its_mask() {
    let x = values(1, 24);
    for (from, mask) in [(0, 0b1111), (2, 0b1010), (3, 0b0001), (1, 0b0010)] {
        let found = multicast(mask as u64, (from, mask), "NONE").expect("copies");
        for (i, found) in found.iter().enumerate() {
            let (rank, place) = (i / 24 % 4, i % 24);
            let is_copied = mask >> rank & 1 == 1 && (4..12).contains(&place);
            let expected = if is_copied { x[place] } else { 1.0 + rank as f32 };
            assert_eq!(*found, expected, "mask {mask:b}, rank {rank}, place {place}");
        }
    }
    for (mask, planted, what) in [
        (0b10001, "NONE", "of block 4 of a cluster, which has 4"),
        (0, "NONE", "the blocks of the mask 0"),
        (0b1111, "NOT_EXPECTED", "32 bytes more than expected have come to an mbarrier"),
    ] {
        for seed in 0..4 {
            let error = multicast(seed, (0, mask), planted).expect_err(what).to_string();
            assert!(error.contains("clusters.cu:") && error.contains(what), "{error}");
        }
    }
}

const TILES: usize = 9;

fn shared_pipeline(seed: u64, planted: &str) -> Result<Vec<f32>> {
    let bench = Bench::new(seed);
    let out: Region = bench.region(8 * 64 * 4, "out");
    let x = bench.filled(&values(3, 64 * TILES), "x");
    let args = Args::new().pointer(x.start).value(bug(planted)).value(TILES as i32).pointer(out.start);
    launch(&bench, "shared_pipeline", of_line(8, 4, 96), &args)?;
    bench.read(out)
}

fn expected_sums() -> Vec<f32> {
    let x = values(3, 64 * TILES);
    (0..8 * 64).map(|i| (0..TILES).fold(0.0, |sum, t| sum + x[t * 64 + i % 64])).collect()
}

#[test]
fn a_pipeline_of_copies_to_all_blocks() {
    for seed in 0..16 {
        assert_eq!(shared_pipeline(seed, "NONE"), Ok(expected_sums()), "seed {seed}");
    }
}

/// Under some schedule each is an error that says what is wrong; every error has its line.
#[test]
fn bugs_of_shared_pipelines() {
    let cases = [
        ("NO_EMPTY_WAIT", "more arrivals at an mbarrier"),
        ("OWN_READERS_ALONE", "unwritten memory"),
        ("NO_FIRST_MEETING", "no mbarrier was initialised here in block"),
        ("NO_FENCE", "no fence made known"),
        ("OWN_BYTES_ALONE", "read of unwritten memory"),
        ("WRONG_MASK", "of block 4 of a cluster, which has 4"),
        ("NOT_TO_ALL", "deadlock"),
        ("WRONG_SHARE", "read of unwritten memory"),
        ("NO_FULL_WAIT", "read of unwritten memory"),
        ("NO_LAST_MEETING", "of the cluster ends before this arrival reaches it"),
        ("LEAVES_EARLY", "ends before this arrival reaches it"),
    ];
    let mut missed = Vec::new();
    for (planted, what) in cases {
        let found: Vec<Result<Vec<f32>>> = (0..12).map(|seed| shared_pipeline(seed, planted)).collect();
        let errors: Vec<String> =
            found.iter().filter_map(|found| found.as_ref().err()).map(ToString::to_string).collect();
        if !errors.iter().any(|error| error.contains(what)) {
            missed.push(format!("{planted}: {errors:?}"));
        }
        assert!(errors.iter().all(|error| error.contains("clusters.cu:")), "{planted}: {errors:?}");
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// What a driver refuses at once.
#[test]
fn wrong_clusters_are_refused() {
    let refused = |capability, grid: [u32; 3], cluster: [u32; 3], reason: &str| {
        let emulator = Emulator::new(EmulatorOptions { capability, memory: 1 << 20, ..options() })
            .expect("a C++ compiler");
        let job = kernels::cuda::compile::Job {
            source: SOURCE,
            expressions: vec!["ranks".to_string()],
            defines: Vec::new(),
        };
        let kernel = emulator.load(&emulator.compile(&job).expect("it compiles")).expect("a kernel")[0];
        let arena = emulator.allocate(1 << 20).expect("memory");
        emulator.name_region(arena, 1024, "out");
        let stream = emulator.new_stream().expect("a stream");
        let grid = Grid { blocks: grid, threads: [1; 3], shared: 0 };
        let (clusters, args) = (Clusters { grid, blocks: cluster }, Args::new().pointer(arena));
        // SAFETY: the emulator checks arguments and every access.
        let error = unsafe { emulator.launch_clusters(stream, kernel, &clusters, &args) }.expect_err(reason);
        assert!(!error.is_sticky() && error.to_string().contains(reason), "{error}");
    };
    refused((9, 0), [6, 1, 1], [4, 1, 1], "in clusters of [4, 1, 1]");
    refused((9, 0), [16, 1, 1], [16, 1, 1], "clusters of 16 blocks");
    refused((9, 0), [6, 1, 1], [0, 1, 1], "clusters of 0 blocks");
    refused((8, 0), [4, 1, 1], [2, 1, 1], "clusters on compute capability 8.0");
}
