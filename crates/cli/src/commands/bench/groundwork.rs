//! How long a groundwork takes: told by beginning it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tsbd_attack::{DatasetFacts, Error, Groundwork, GroundworkContext, GroundworkObserver};
use tsbd_nn::Streams;

use super::steps::random_images;
use crate::failure::{Exit, Failure};
use crate::options::Computing;

/// Steps before the measurement begins: a GPU's first ones load and translate.
const WARMUP: usize = 5;
/// How long steps are measured, and how many are at least.
const MEASURED: Duration = Duration::from_secs(2);
const AT_LEAST: usize = 3;

/// Seconds that a groundwork takes at most on as many images of this size: from its first steps on random ones. Nothing, if it
/// starts from a trained network: how long a search takes there, one that is not trained does not tell.
pub fn groundwork_seconds(
    groundwork: &dyn Groundwork,
    facts: &DatasetFacts,
    device: &str,
) -> Result<Option<f64>, Failure> {
    if groundwork.needs_clean_model() {
        return Ok(None);
    }
    let device = Computing::named(device).device()?;
    let streams = Streams::new(0);
    let mut clock = Clock { begin: Instant::now(), warm: None, last: (0, 0) };
    let mut context = GroundworkContext {
        clean: &Arc::new(random_images(facts.train_images, facts.size, facts.classes, &streams)),
        model: None,
        streams,
        device: device.clone(),
        observer: &mut clock,
    };
    match groundwork.make(&mut context) {
        Ok(_) => Ok(Some(clock.begin.elapsed().as_secs_f64())),
        Err(Error::Stopped { .. }) => Ok(Some(clock.all_steps())),
        Err(error) => Err(Failure::from_error(Exit::Failed, error)),
    }
}

/// Stops when the time of a step is known.
struct Clock {
    begin: Instant,
    warm: Option<(usize, Instant)>,
    /// Steps that are done, and all.
    last: (usize, usize),
}

impl Clock {
    fn all_steps(&self) -> f64 {
        let (done, all) = self.last;
        let (before, begin) = self.warm.expect("it stops after steps that were measured");
        begin.elapsed().as_secs_f64() / (done - before) as f64 * all as f64
    }
}

impl GroundworkObserver for Clock {
    fn step(&mut self, _stage: &str, done: usize, total: usize, _loss: Option<f64>) -> ControlFlow<()> {
        self.last = (done, total);
        match self.warm {
            None if done >= WARMUP => self.warm = Some((done, Instant::now())),
            Some((before, begin)) if done >= before + AT_LEAST && begin.elapsed() >= MEASURED => {
                return ControlFlow::Break(());
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
