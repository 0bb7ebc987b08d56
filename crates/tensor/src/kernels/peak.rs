//! What the machine can do at best: the ceilings that kernels are compared with.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::simd::InstructionSet;

/// The measured ceilings of a machine; see [`machine_peak`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MachinePeak {
    /// The instructions that the arithmetic was done with.
    pub instructions: InstructionSet,
    /// Threads of the pool, which is what "all threads" means below.
    pub threads: usize,
    /// `f32` operations per second of one thread; a multiplication with its addition counts as two.
    pub one_thread_flops: f64,
    /// `f32` operations per second of all threads together.
    pub flops: f64,
    /// Bytes per second that one thread copies from memory to memory, those read plus those written.
    pub one_thread_copy: f64,
    /// Bytes per second that all threads together copy.
    pub copy: f64,
}

/// The least a round takes: long against waking threads, short enough to pass between other programs' turns.
const ROUND: Duration = Duration::from_millis(4);
/// For so long rounds are repeated, at least [`ROUNDS`] times. The fastest counts: others can only slow one down.
const REPEATED: Duration = Duration::from_millis(300);
const ROUNDS: usize = 5;

/// Elements of each buffer that is copied: far more than a core's own caches hold.
const COPIED: usize = 1 << 25;

/// Measures how fast this machine multiplies, adds and copies, which takes less than two seconds.
///
/// Arithmetic: a loop of independent multiply-adds in registers, in `f32`, with the instructions that kernels
/// use, so that neither memory nor waiting for a result limits it. Memory: copying 128 MiB, as the C library does it.
/// A direct convolution cannot be faster than the first, nor an operation that reads and writes large tensors much
/// faster than the second. Winograd's convolution can seem to be: it is compared by the operations of the direct sum,
/// of which it needs fewer; and so can products on tile registers, which are not multiply-adds in `f32`. A cache of
/// hundreds of megabytes makes the second a bandwidth of that cache.
///
/// Threads are those of the current rayon pool. Call it while nothing else runs: a busy core shows.
pub fn machine_peak() -> MachinePeak {
    let Arithmetic { instructions, operations, run } = arithmetic();
    let threads = rayon::current_num_threads();
    let one_thread_flops = best_rate(operations, run);
    let flops = best_rate(operations * threads as f64, |repetitions| {
        rayon::broadcast(|_| run(repetitions));
    });
    let source = vec![1f32; COPIED];
    let mut target = vec![2f32; COPIED];
    let bytes = 2. * size_of_val(source.as_slice()) as f64;
    let one_thread_copy = best_rate(bytes, |repetitions| {
        for _ in 0..repetitions {
            black_box(&mut target).copy_from_slice(black_box(&source));
        }
    });
    let piece = COPIED.div_ceil(threads);
    let copy = best_rate(bytes, |repetitions| {
        for _ in 0..repetitions {
            let pieces = black_box(&mut target).par_chunks_mut(piece).zip(black_box(&source).par_chunks(piece));
            pieces.for_each(|(target, source)| target.copy_from_slice(source));
        }
    });
    MachinePeak { instructions, threads, one_thread_flops, flops, one_thread_copy, copy }
}

/// Work per second: `run(n)` does `n` times `work`.
fn best_rate(work: f64, mut run: impl FnMut(u64)) -> f64 {
    let mut time = |repetitions| {
        let begin = Instant::now();
        run(repetitions);
        begin.elapsed()
    };
    let mut repetitions = 1;
    while time(repetitions) < ROUND {
        repetitions *= 2;
    }
    let begin = Instant::now();
    let (mut fastest, mut rounds) = (Duration::MAX, 0);
    while rounds < ROUNDS || begin.elapsed() < REPEATED {
        fastest = fastest.min(time(repetitions));
        rounds += 1;
    }
    work * repetitions as f64 / fastest.as_secs_f64()
}

/// A loop of multiply-adds.
struct Arithmetic {
    instructions: InstructionSet,
    /// Operations of one repetition.
    operations: f64,
    /// Does so many repetitions.
    run: fn(u64),
}

fn arithmetic() -> Arithmetic {
    #[cfg(target_arch = "x86_64")]
    {
        use super::simd::instructions;
        match instructions() {
            InstructionSet::Avx512 | InstructionSet::Amx => {
                // SAFETY: the machine has been asked for these instructions.
                let run = |repetitions| unsafe { x86::avx512(repetitions) };
                return Arithmetic { instructions: InstructionSet::Avx512, operations: 2. * 16. * 16., run };
            }
            InstructionSet::Avx2 => {
                // SAFETY: the machine has been asked for these instructions.
                let run = |repetitions| unsafe { x86::avx2(repetitions) };
                return Arithmetic { instructions: InstructionSet::Avx2, operations: 2. * 12. * 8., run };
            }
            InstructionSet::Portable => {}
        }
    }
    Arithmetic { instructions: InstructionSet::Portable, operations: 2. * 12. * 4., run: baseline }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Sixteen chains of multiply-adds on sixteen lanes: two a cycle for a latency of up to eight cycles.
    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(repetitions: u64) {
        // The values stay between 0 and 16: nothing overflows or becomes subnormal.
        let (factor, addend) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        let mut chains: [__m512; 16] = std::array::from_fn(|chain| _mm512_set1_ps(black_box(chain as f32)));
        for _ in 0..repetitions {
            for chain in &mut chains {
                *chain = _mm512_fmadd_ps(*chain, factor, addend);
            }
        }
        black_box(chains);
    }

    /// Twelve chains on eight lanes, as there are sixteen registers.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(repetitions: u64) {
        let (factor, addend) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
        let mut chains: [__m256; 12] = std::array::from_fn(|chain| _mm256_set1_ps(black_box(chain as f32)));
        for _ in 0..repetitions {
            for chain in &mut chains {
                *chain = _mm256_fmadd_ps(*chain, factor, addend);
            }
        }
        black_box(chains);
    }
}

/// Twelve chains on four lanes, left to the compiler: fused where every machine of the architecture can, else a
/// multiplication and an addition.
fn baseline(repetitions: u64) {
    let (factor, addend) = (black_box(0.5f32), black_box(0.25f32));
    let mut chains: [[f32; 4]; 12] = std::array::from_fn(|chain| [black_box(chain as f32); 4]);
    for _ in 0..repetitions {
        for lane in chains.iter_mut().flatten() {
            *lane = if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                lane.mul_add(factor, addend)
            } else {
                *lane * factor + addend
            };
        }
    }
    black_box(chains);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_work_over_time() {
        let rate = best_rate(3., |repetitions| std::thread::sleep(Duration::from_micros(500) * repetitions as u32));
        // Sleeping takes at least as long as asked for, and on a busy machine much longer.
        assert!((1. ..=6000.).contains(&rate), "{rate} instead of at most 6000 a second");
    }

    #[test]
    fn the_loop_of_multiply_adds_takes_time_in_proportion_to_its_length() {
        // A loop that the compiler removed or folded would take no time at all.
        let Arithmetic { run, .. } = arithmetic();
        let fastest = |repetitions: u64| {
            let time = || {
                let begin = Instant::now();
                run(repetitions);
                begin.elapsed()
            };
            (0..5).map(|_| time()).min().unwrap()
        };
        let (short, long) = (fastest(100_000), fastest(1_000_000));
        assert!(long > 3 * short, "{short:?} for a tenth of {long:?}");
        assert!(short > Duration::from_micros(50), "{short:?} for 100,000 repetitions");
    }
}
