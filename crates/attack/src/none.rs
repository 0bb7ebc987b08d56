//! The attack `none`: clean training. The row of every table that shows what a defense costs a model without a
//! backdoor. It has no parameters, so one clean model serves every poisoning ratio of a grid.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tsbd_data::{Dataset, Picture};
use tsbd_nn::random::Streams;

use crate::Error;
use crate::entry::{Attack, AttackEntry, PoisonFacts, Poisoner, TrainingSource};
use crate::overlay::PoisonedImages;
use crate::parameters::{self, DatasetFacts, ParameterError, Poisoning};

/// The registry's entry.
pub static NONE: AttackEntry = AttackEntry {
    name: "none",
    title: "No attack",
    paper: "",
    summary: "clean training; attack success rate and recovery accuracy are undefined",
    revision: 1,
    schema: || schemars::schema_for!(Parameters),
    configure,
};

/// `none` has no parameters of its own, and ignores the shared ones.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {}

#[derive(Debug)]
struct NoAttack;

fn configure(_: &Poisoning, own: Value) -> Result<Box<dyn Attack>, ParameterError> {
    let Parameters {} = parameters::read(&own)?;
    Ok(Box::new(NoAttack))
}

impl Attack for NoAttack {
    fn parameters(&self) -> Value {
        Value::Object(serde_json::Map::new())
    }

    fn check(&self, _: &DatasetFacts) -> Result<(), ParameterError> {
        Ok(())
    }

    fn prepare(&self, clean: &Arc<Dataset>, _: &Streams) -> Result<Poisoner, Error> {
        let facts =
            PoisonFacts { poison_count: 0, poison_per_class: vec![0; clean.class_names.len()], asr_denominator: 0 };
        let train = PoisonedImages::clean(Arc::clone(&clean.train));
        Ok(Poisoner { train: TrainingSource::Static(Arc::new(train)), test: None, facts })
    }

    fn trigger_picture(&self, _: usize, _: usize) -> Result<Option<Picture>, Error> {
        Ok(None)
    }
}
