//! FT: fine-tuning of the whole network on the clean images, the simplest baseline.
//!
//! As BackdoorBench's `defense/ft.py`: SGD 0.01, momentum 0.9, weight decay 5e-4 on all parameters, cosine schedule of
//! period 100, 100 epochs, shuffled and augmented; the model after the last epoch.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tsbd_attack::parameters::{join, read};
use tsbd_attack::{DatasetFacts, ParameterError};
use tsbd_nn::{Architecture, CrossEntropyStep, Model};

use crate::entry::{Defense, DefenseCommon, DefenseEntry, Repaired, noted};
use crate::training::{self, FineTuning, FineTuningSchedule, nothing};
use crate::{CleanSubset, Context, Error};

/// The registry's entry.
pub static FT: DefenseEntry = DefenseEntry {
    name: "ft",
    title: "FT",
    paper: "fine-tuning as in BackdoorBench (Wu et al., NeurIPS 2022)",
    summary: "trains the whole network further on the clean images",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure: |common, own| {
        let parameters: Parameters = read(&own)?;
        let mut defense = Ft { common: common.clone(), parameters };
        let fine_tuning = defense.fine_tuning();
        common.check_ranges()?;
        fine_tuning.check()?;
        (defense.parameters.schedule, defense.parameters.cosine_period) = fine_tuning.canonical_schedule();
        Ok(Box::new(defense))
    },
    published: training::published,
};

/// FT's own parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// Passes over the clean images. Unless given 100, and 200 on Tiny ImageNet (200 classes), as BackdoorBench's
    /// configurations.
    pub epochs: usize,
    /// Learning rate of the first epoch.
    pub learning_rate: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Weight decay of all parameters.
    pub weight_decay: f64,
    /// `cosine` (the default) or `plateau` (the default on Tiny ImageNet).
    pub schedule: Option<FineTuningSchedule>,
    /// Epochs after which the cosine schedule reaches 0, whatever `epochs` is.
    pub cosine_period: usize,
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            epochs: 100,
            learning_rate: 0.01,
            momentum: 0.9,
            weight_decay: 5e-4,
            schedule: None,
            cosine_period: 100,
        }
    }
}

#[derive(Debug, Clone)]
struct Ft {
    common: DefenseCommon,
    parameters: Parameters,
}

impl Ft {
    fn fine_tuning(&self) -> FineTuning {
        let Parameters { epochs, learning_rate, momentum, weight_decay, schedule, cosine_period } = self.parameters;
        FineTuning { epochs, learning_rate, momentum, weight_decay, schedule, cosine_period }
    }
}

impl Defense for Ft {
    fn parameters(&self) -> Value {
        join(&self.common, &self.parameters)
    }

    fn common(&self) -> &DefenseCommon {
        &self.common
    }

    fn check(&self, _: &dyn Architecture, dataset: &DatasetFacts) -> Result<(), ParameterError> {
        self.common.check(dataset)
    }

    fn image_passes(&self, dataset: &DatasetFacts) -> f64 {
        self.common.passes(dataset, self.parameters.epochs as f64)
    }

    fn repair(&self, backdoored: &Model, clean: &CleanSubset, context: &mut Context) -> Result<Repaired, Error> {
        let (mut model, mut trace) = (backdoored.clone(), Vec::new());
        let source = context.shuffled(clean.images(), "ft", self.common.batch_size);
        let mut rule = CrossEntropyStep::default();
        let stage = self.fine_tuning().stage(self.common.precision);
        let seconds = stage.train(&mut rule, &mut model, &source, context, &mut trace, &mut nothing)?;
        let facts = noted([("fine_tuning_seconds", json!(seconds))]);
        Ok(Repaired { model, changed: Vec::new(), trace, facts, scores: None })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use tsbd_nn::Precision;

    use super::*;
    use crate::NoObserver;
    use crate::tiny::{self, assert_close, in_context};

    #[test]
    fn five_epochs_end_where_pytorch_ends() {
        // One batch of all images: then the order in which they are shuffled does not matter.
        let defense = (FT.configure)(&tiny::common(24), json!({"epochs": 5})).unwrap();
        let repaired =
            in_context(&mut NoObserver, |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context))
                .unwrap();
        assert_close(&repaired.model.state, &tiny::model("ft").state, 2e-6);
        assert_eq!(repaired.trace.len(), 5);
        assert!(repaired.changed.is_empty());
    }

    #[test]
    fn fine_tuning_with_rounded_factors_ends_near_that_without() {
        let tuned = |precision| {
            let defense =
                (FT.configure)(&DefenseCommon { precision, ..tiny::common(24) }, json!({"epochs": 5})).unwrap();
            in_context(&mut NoObserver, |context| defense.repair(&tiny::model("backdoored"), &tiny::clean(), context))
                .unwrap()
                .model
        };
        let [full, tf32, bf16] = Precision::ALL.map(tuned);
        assert_eq!(tf32.state.digest().unwrap(), full.state.digest().unwrap(), "a CPU has no TF32");
        assert_ne!(bf16.state.digest().unwrap(), full.state.digest().unwrap());
        assert_close(&bf16.state, &full.state, 2e-2);
        assert_eq!(bf16.precision, Precision::F32, "what is measured in it is not rounded");
    }

    #[test]
    fn a_plateau_lowers_the_rate_where_the_loss_does_not_fall_and_the_cosine_after_its_period() {
        let rates = |own: Value| {
            let stage =
                Ft { common: tiny::common(24), parameters: read(&own).unwrap() }.fine_tuning().stage(Precision::F32);
            let mut state = tsbd_nn::ScheduleState::new(stage.config.sgd.learning_rate);
            let step = |_| {
                let rate = state.learning_rate();
                state.step(&stage.config.schedule, 1.0);
                rate
            };
            (0..15).map(step).collect::<Vec<f64>>()
        };
        let plateau = rates(json!({"schedule": "plateau"}));
        assert_eq!((plateau[11], plateau[12]), (0.01, 0.001), "eleven epochs after the first");
        let cosine = rates(json!({"cosine_period": 10}));
        assert!(cosine[5] > 0.004 && cosine[10] < 1e-12, "{cosine:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_and_another_seed_other_ones() {
        let defense = (FT.configure)(&tiny::common(10), json!({"epochs": 2})).unwrap();
        let digest = |seed| {
            let repaired = in_context(&mut NoObserver, |context| {
                context.streams = tsbd_nn::Streams::new(seed);
                defense.repair(&tiny::model("backdoored"), &tiny::clean(), context).unwrap()
            });
            repaired.model.state.digest().unwrap()
        };
        assert_eq!(digest(0), digest(0));
        assert_ne!(digest(0), digest(1));
    }

    #[test]
    fn parameters_are_canonical_and_wrong_ones_are_refused_by_name() {
        let configured = (FT.configure)(&DefenseCommon::default(), json!({})).unwrap();
        let expected = json!({
            "clean_ratio": 0.05, "batch_size": 256, "epochs": 100, "learning_rate": 0.01, "momentum": 0.9,
            "weight_decay": 5e-4, "schedule": null, "cosine_period": 100,
        });
        assert_eq!(configured.parameters(), expected);
        assert_eq!(FT.from_parameters(&expected).unwrap().parameters(), expected);
        let of = |own| (FT.configure)(&DefenseCommon::default(), own).unwrap().parameters();
        assert_eq!(of(json!({"schedule": "cosine"})), expected);
        let plateau = of(json!({"schedule": "plateau"}));
        assert_eq!(
            (&plateau["schedule"], of(json!({"schedule": "plateau", "cosine_period": 7}))),
            (&json!("plateau"), plateau.clone())
        );
        for (field, value) in [
            ("epochs", json!(0)),
            ("learning_rate", json!(0.0)),
            ("epoch", json!(3)),
            ("schedule", json!("step")),
            ("cosine_period", json!(0)),
        ] {
            let error = (FT.configure)(&DefenseCommon::default(), json!({field: value})).unwrap_err();
            assert_eq!(error.field, field);
        }
    }
}
