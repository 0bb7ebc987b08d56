//! Stage 2 of TSBD: activeness-aware fine-tuning.

use std::ops::ControlFlow;
use std::sync::Arc;

use tsbd_data::ImageSource;
use tsbd_nn::{Batch, LossOptions, Mode, Model, Schedule, SgdConfig, Statistics, Step, StepRule, TrainingConfig};

use super::parameters::{FineTuning, GradientNorm, Parameters};
use crate::context::Context;
use crate::entry::TracePoint;
use crate::training::Stage;
use crate::{DefenseCommon, Error};

/// Passes between two measurements on the test sets; the first and the last pass are measured in any case.
const MEASURED: usize = 10;

/// How a batch becomes an update.
#[derive(Debug, Clone, Copy)]
pub struct ActivenessStep {
    /// Share of the second gradient.
    pub alpha: f64,
    /// Length of the step to where the second gradient is taken.
    pub radius: f64,
    /// Over what the first gradient is normalised.
    pub norm: GradientNorm,
}

impl StepRule for ActivenessStep {
    /// The direction `(1 - alpha) g1 + alpha g2`, where `g1` is the gradient at the weights and `g2` the one at
    /// `weights + radius * g1 / norm(g1)`.
    ///
    /// To first order this descends the cross-entropy plus `alpha * radius` times the gradient's norm (over all
    /// parameters with [`GradientNorm::Global`], the sum of the tensors' norms with [`GradientNorm::PerTensor`]). Both
    /// gradients use the batch's own statistics and move no running estimate. A tensor whose gradient is 0 is not moved
    /// (the released code divides 0 by 0 there).
    fn compute(&mut self, model: &Model, batch: &Batch) -> tsbd_nn::Result<Step> {
        let (mode, loss) = (Mode::TrainKeepingStatistics, LossOptions::default());
        let first = model.gradients(batch, mode, &loss)?;
        if self.alpha == 0.0 {
            return Ok(first);
        }
        let scale = |norm: f64| if norm > 0.0 { self.radius / norm } else { 0.0 };
        let mut moved = model.clone();
        match self.norm {
            GradientNorm::PerTensor => {
                let norms = first.gradients.norms()?;
                moved.state.add_scaled(&first.gradients, |name| scale(norms[name]))?;
            }
            GradientNorm::Global => {
                let scale = scale(first.gradients.global_norm()?);
                moved.state.add_scaled(&first.gradients, |_| scale)?;
            }
        }
        let second = moved.gradients(batch, mode, &loss)?;
        let gradients = first.gradients.mix(1.0 - self.alpha, &second.gradients, self.alpha)?;
        Ok(Step { gradients, statistics: Statistics::default(), ..first })
    }

    /// One more forward pass in training mode, after the optimiser's step: the only one that moves running estimates.
    fn after(&mut self, model: &mut Model, batch: &Batch) -> tsbd_nn::Result<()> {
        let statistics = {
            let pass = model.pass(Mode::Train);
            pass.forward(&batch.images)?;
            pass.take_statistics()
        };
        model.absorb(&statistics)
    }

    fn describe(&self) -> String {
        format!("{self:?}")
    }
}

/// Fine-tunes `model` on clean `images`, augmented afresh in each pass and not shuffled. SGD at a constant rate, no weight
/// decay, all parameters (zeroed weights are free to grow again). `measured` says whether passes are measured on the test
/// sets. The seconds that it took.
pub fn fine_tune(
    model: &mut Model,
    images: Arc<dyn ImageSource>,
    common: &DefenseCommon,
    parameters: &Parameters,
    measured: bool,
    context: &mut Context,
    trace: &mut Vec<TracePoint>,
) -> Result<f64, Error> {
    let alpha = match parameters.fine_tuning {
        FineTuning::ActivenessAware => parameters.alpha,
        FineTuning::Vanilla => 0.0,
        FineTuning::None => return Ok(0.0),
    };
    let mut rule = ActivenessStep { alpha, radius: parameters.radius, norm: parameters.gradient_norm };
    let source = context.augmented(images, "tsbd/fine-tuning", common.batch_size);
    let passes = parameters.fine_tuning_passes;
    let stage = Stage {
        name: "fine-tuning",
        rate_parameter: "fine_tuning_learning_rate",
        config: TrainingConfig {
            epochs: passes,
            sgd: SgdConfig {
                learning_rate: parameters.fine_tuning_learning_rate,
                momentum: parameters.fine_tuning_momentum,
                weight_decay: 0.0,
            },
            schedule: Schedule::Constant,
            precision: common.precision,
        },
    };
    stage.train(&mut rule, model, &source, context, trace, &mut |report, model, context, point| {
        if measured && (report.epoch % MEASURED == 0 || report.epoch + 1 == passes) {
            point.add(&(context.evaluate)(model)?);
        }
        Ok(ControlFlow::Continue(()))
    })
}
