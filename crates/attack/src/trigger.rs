//! Triggers that change one image at a time, and the poisoning they all share.

use std::fmt::Debug;
use std::sync::Arc;

use tsbd_data::{Dataset, ImageSource};
use tsbd_nn::random::Streams;

use crate::Error;
use crate::entry::{PoisonFacts, Poisoner, TrainingSource};
use crate::overlay::{PoisonedImages, TriggeredTest};
use crate::parameters::Poisoning;
use crate::selection::{self, Candidates};

/// A trigger that is a function of one 8-bit image: applied once, before any augmentation.
pub trait ImageTrigger: Send + Sync + Debug {
    /// Stamps `image`, `u8` `[height, width, 3]` in RGB order, in place. `index` is the image's place in its data set.
    fn apply(&self, image: &mut [u8], index: usize);
}

/// The poisoning of every attack with an [`ImageTrigger`]: selects training images, stamps and relabels them, stamps
/// the test images that count for the attack success rate.
pub fn poison(
    clean: &Arc<Dataset>,
    streams: &Streams,
    poisoning: &Poisoning,
    candidates: Candidates,
    trigger: &dyn ImageTrigger,
) -> Result<Poisoner, Error> {
    let classes = clean.class_names.len();
    let labels: Vec<u32> = (0..clean.train.len()).map(|index| clean.train.label(index)).collect();
    let selected = selection::select(poisoning, candidates, &labels, streams.seed())?;
    let train = PoisonedImages::stamp(Arc::clone(&clean.train), selected, trigger, poisoning, classes);
    let test = TriggeredTest::stamp(Arc::clone(&clean.test), trigger, poisoning, classes);
    let facts = PoisonFacts {
        poison_count: train.poisoned().len(),
        poison_per_class: train.poison_per_class(classes),
        asr_denominator: test.len(),
    };
    Ok(Poisoner { train: TrainingSource::Static(Arc::new(train)), test: Some(Arc::new(test)), facts })
}
