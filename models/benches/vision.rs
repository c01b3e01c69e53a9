//! Pictures: the image processor alone, and tower with projector of MoonViT's real widths and fewer layers.
//!
//! `cargo bench -p models --bench vision`. Each is measured twice: on one thread by the processor time that the thread got (fair on
//! a shared machine), and on all threads by the clock. The best of several runs counts, against the best peak of the same run.

#[path = "../../kernels/benches/ops/clock.rs"]
mod clock;
#[path = "../../kernels/benches/ops/peak.rs"]
mod peak;

use clock::{best_time, thread_clock, wall_clock};
use kernels::{DType, Device, Tensor};
use models::kimi_vl::{KimiVlImageProcessor, SizeRule, Vision, VisionConfig};
use models::{Checkpoint, ImageProcessor, Storage};
use peak::Peak;
use scheduler::ImageInput;

/// MoonViT has 27; time grows linearly with them.
const NUM_LAYERS: usize = 3;
const PUBLISHED_LAYERS: usize = 27;

fn moonvit(num_layers: usize) -> VisionConfig {
    VisionConfig {
        patch_size: 14,
        hidden_size: 1152,
        intermediate_size: 4304,
        num_layers,
        num_heads: 16,
        table: [64, 64],
        text_hidden_size: 2048,
    }
}

fn processor(in_token_limit: usize) -> KimiVlImageProcessor {
    KimiVlImageProcessor::new(SizeRule { patch_size: 14, in_token_limit }, [0.5; 3], [0.5; 3])
}

/// Multiplications and additions of a picture of `n` patches: linear layers, then attention.
fn flop(config: &VisionConfig, n: usize) -> f64 {
    let (d, i, merged) = (config.hidden_size, config.intermediate_size, config.merged_size());
    let layer = n * (4 * d * d + 2 * d * i) + 2 * n * n * d;
    let projector = config.num_tokens(n) * merged * (merged + config.text_hidden_size);
    2.0 * (config.num_layers * layer + n * config.patch_len() * d + projector) as f64
}

/// A picture without repetition, so that nothing is easy.
fn picture(width: usize, height: usize) -> Vec<u8> {
    let byte = |i: usize| {
        let n = (i as u32).wrapping_mul(2654435761);
        ((n ^ (n >> 15)).wrapping_mul(2246822519) >> 24) as u8
    };
    (0..width * height * 3).map(byte).collect()
}

fn process(width: usize, height: usize, in_token_limit: usize, clock: fn() -> f64) {
    let (processor, rgb) = (processor(in_token_limit), picture(width, height));
    let mut image = None;
    let seconds = best_time(clock, &mut || image = processor.process(&rgb, width, height).ok());
    let num_tokens = image.map_or(0, |image| image.into_rows().num_tokens);
    println!(
        "processor {width}x{height}, limit {in_token_limit}: {:.1} ms, {num_tokens} tokens, {:.1} million pixels a second",
        seconds * 1e3,
        (width * height) as f64 / seconds / 1e6
    );
}

fn encode(device: &Device, image: &ImageInput, peak: &Peak, clock: fn() -> f64) {
    let time = |num_layers: usize| {
        let config = moonvit(num_layers);
        let vision = Vision::load(
            &Checkpoint::dummy(1),
            device,
            &Storage::floats(DType::BF16),
            &config,
            image.num_patches(),
        );
        let mut vision = vision.expect("dummy weights have every shape");
        let mut out = Tensor::zeros(device, DType::F32, &[image.num_tokens, config.text_hidden_size]);
        (best_time(clock, &mut || vision.encode(image, &mut out)), flop(&config, image.num_patches()))
    };
    let (seconds, flop) = time(NUM_LAYERS);
    let (without_layers, _) = time(0);
    let all = without_layers + (seconds - without_layers) * (PUBLISHED_LAYERS as f64 / NUM_LAYERS as f64);
    let [rows, columns] = image.grid;
    println!(
        "encode {rows}x{columns} patches, {NUM_LAYERS} layers, bfloat16: {:.1} ms, {:.2} pictures a second, {:.1} GFLOP/s, {:.0} % \
         of peak; {PUBLISHED_LAYERS} layers would take {:.2} s",
        seconds * 1e3,
        1.0 / seconds,
        flop / seconds / 1e9,
        100.0 * flop / seconds / 1e9 / peak.fma_gflop_s,
        all
    );
}

fn main() {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    println!("\n{}, one thread for the processor, by processor time", peak::processor());
    process(4000, 3000, 4096, thread_clock);
    process(4000, 3000, 16384, thread_clock);
    process(448, 448, 4096, thread_clock);
    for (threads, clock, name) in
        [(1, thread_clock as fn() -> f64, "processor time of the thread"), (all, wall_clock, "clock")]
    {
        let device = Device::cpu(Some(threads));
        let peak = Peak::measure(device.isa(), threads, clock);
        println!(
            "\n{device:?}, by {name}, peak {:.1} GFLOP/s of f32 FMA, {:.1} GB/s read",
            peak.fma_gflop_s, peak.read_gb_s
        );
        for side in [224, 448] {
            let image =
                processor(4096).process(&picture(side, side), side, side).expect("a square fits").into_rows();
            encode(&device, &image, &peak, clock);
        }
    }
}
