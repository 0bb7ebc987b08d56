//! Every distinct operation of PreAct-ResNet18, by Criterion: medians with confidence intervals, and changes against
//! the run before.
//!
//!     cargo bench --workspace --bench operations                             widths 16 and 64, batch 128
//!     cargo bench --workspace --bench operations -- 'width 16/conv 3x3'      those whose name contains this
//!     cargo bench --workspace --bench operations -- --save-baseline before
//!     cargo bench --workspace --bench operations -- --baseline before        changes against it
//!
//! The whole workspace, because cargo compiles dependencies once for each set of packages that it is asked for. One
//! thread: RAYON_NUM_THREADS=1.
//!
//! An element of the throughput is a nominal floating-point operation: Gelem/s are GFLOP/s. Operations that memory
//! limits have their throughput in bytes. `tsbd bench ops` measures the same list beside the machine's peak.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use tsbd_tensor::memory;
use tsbd_tensor::workload::{Cost, NetworkShape};

fn operations(criterion: &mut Criterion) {
    memory::keep_freed_pages();
    for width in [16, 64] {
        let mut group = criterion.benchmark_group(format!("width {width}"));
        // As many repetitions in each sample: most of these take milliseconds.
        group.sampling_mode(SamplingMode::Flat);
        for workload in (NetworkShape { width, batch: 128, image_size: 32, classes: 10 }).workloads() {
            group.throughput(match workload.cost() {
                Cost::Flops(flops) => Throughput::Elements(flops as u64),
                Cost::Bytes(bytes) => Throughput::Bytes(bytes as u64),
            });
            let name = format!("{}/{}/{}", workload.operation(), workload.shape(), workload.pass());
            group.bench_function(name, |bencher| {
                // Here, so that nothing is made for a workload that was not asked for.
                let timer = workload.prepare().expect("the shapes above fit each other");
                bencher.iter_custom(|iterations| {
                    let time = |_| timer.time().expect("the shapes above fit each other");
                    (0..iterations).map(time).sum()
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = operations
}
criterion_main!(benches);
