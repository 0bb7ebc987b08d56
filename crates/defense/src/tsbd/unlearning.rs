//! Stage 1 of TSBD: clean unlearning, which moves the weights of backdoor neurons most.

use std::ops::ControlFlow;
use std::time::Instant;

use tsbd_nn::{CrossEntropyStep, LossOptions, Mode, Model, Schedule, SgdConfig, TrainingConfig};

use super::parameters::Parameters;
use crate::Error;
use crate::clean_subset::CleanSubset;
use crate::context::Context;
use crate::entry::TracePoint;
use crate::training::{OneEpoch, Stage};

/// A model that has unlearned its clean task, and how it came about.
#[derive(Debug, Clone)]
pub struct Unlearned {
    /// The model.
    pub model: Model,
    /// Accuracy on the augmented clean images after each epoch, in evaluation mode.
    pub accuracies: Vec<f64>,
    /// Whether the accuracy fell to `unlearning_accuracy` before the epochs ran out.
    pub reached: bool,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// Gradient ascent on the cross-entropy of the clean images, until the network classifies them no better than
/// `unlearning_accuracy`.
///
/// All parameters move, batch norms use and move their statistics. Images are augmented afresh in each epoch and not
/// shuffled; after each epoch the accuracy is measured on a further augmentation of the same images.
pub fn unlearn(
    backdoored: &Model,
    clean: &CleanSubset,
    batch_size: usize,
    parameters: &Parameters,
    context: &mut Context,
    trace: &mut Vec<TracePoint>,
) -> Result<Unlearned, Error> {
    let start = Instant::now();
    let training = context.augmented(clean.images(), "tsbd/unlearning", batch_size);
    let measured = context.augmented(clean.images(), "tsbd/unlearning-accuracy", batch_size);
    let stage = Stage {
        name: "unlearning",
        rate_parameter: "unlearning_learning_rate",
        config: TrainingConfig {
            epochs: parameters.unlearning_epochs,
            sgd: SgdConfig {
                learning_rate: parameters.unlearning_learning_rate,
                momentum: parameters.unlearning_momentum,
                weight_decay: 0.0,
            },
            schedule: Schedule::Constant,
        },
    };
    let mut ascent = CrossEntropyStep { loss: LossOptions::ascent(), mode: Mode::Train };
    let mut model = backdoored.clone();
    let (mut accuracies, mut reached) = (Vec::new(), false);
    stage.train(&mut ascent, &mut model, &training, context, trace, &mut |report, model, _, point| {
        let accuracy = model.predict(&OneEpoch { source: &measured, epoch: report.epoch })?.accuracy();
        point.metrics.insert("clean_accuracy".to_owned(), accuracy);
        accuracies.push(accuracy);
        reached = accuracy <= parameters.unlearning_accuracy;
        Ok(if reached { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(Unlearned { model, accuracies, reached, seconds: start.elapsed().as_secs_f64() })
}
