//! When a stage of a running cell will end.

use std::time::{Duration, Instant};

/// Less time than this tells nothing of a speed.
const LEAST: Duration = Duration::from_secs(2);

/// How fast the stage of a cell goes on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pace {
    seen: Option<Seen>,
}

/// A stage from when it was first heard of.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    stage: String,
    since: Instant,
    /// The share that was done then: what a cell continues from took no time here.
    first: f64,
    last: f64,
}

impl Pace {
    /// Hears that a share of a stage is done, in [0, 1]. The seconds until the stage ends, if it goes on as it did; `None` as long as
    /// that cannot be said. A share that falls is that of another stage of the same name.
    pub fn seconds_left(&mut self, stage: &str, share: f64, now: Instant) -> Option<f64> {
        match &mut self.seen {
            Some(seen) if seen.stage == stage && seen.last <= share => {
                seen.last = share;
                let (took, done) = (now.duration_since(seen.since), share - seen.first);
                (took >= LEAST && done > 0.0).then(|| took.as_secs_f64() * (1.0 - share).max(0.0) / done)
            }
            seen => {
                *seen = Some(Seen { stage: stage.to_owned(), since: now, first: share, last: share });
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_what_was_done_since_the_stage_was_first_heard_of() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let after = |seconds| begin + Duration::from_secs(seconds);
        // It continues at a half.
        assert_eq!(pace.seconds_left("train", 0.5, begin), None);
        assert_eq!(pace.seconds_left("train", 0.51, after(1)), None, "too early to say");
        assert_eq!(pace.seconds_left("train", 0.75, after(10)), Some(10.0));
        assert_eq!(pace.seconds_left("train", 1.0, after(20)), Some(0.0));
        // Another stage, and one more of the same name.
        assert_eq!(pace.seconds_left("fine-tuning", 0.25, after(20)), None);
        assert_eq!(pace.seconds_left("fine-tuning", 0.5, after(30)), Some(20.0));
        assert_eq!(pace.seconds_left("fine-tuning", 0.0, after(31)), None);
        assert_eq!(pace.seconds_left("fine-tuning", 0.5, after(41)), Some(10.0));
    }
}
