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
use crate::groundwork::Material;
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

    fn prepare(&self, clean: &Arc<Dataset>, _: &Streams, _: Option<&Material>) -> Result<Poisoner, Error> {
        let facts = PoisonFacts {
            poison_count: Some(0),
            poison_per_class: vec![0; clean.class_names.len()],
            asr_denominator: 0,
        };
        let train = PoisonedImages::clean(Arc::clone(&clean.train));
        Ok(Poisoner { train: TrainingSource::Static(Arc::new(train)), test: None, facts })
    }

    fn trigger_picture(&self, _: usize, _: usize, _: Option<&Material>) -> Result<Option<Picture>, Error> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tsbd_data::{ImageSource, Images, Normalization};

    use super::*;

    #[test]
    fn training_images_are_the_clean_ones_and_there_is_no_triggered_test_set() {
        let images = || Images::new(vec![7; 24], vec![0, 1], (2, 2), 2);
        let clean = Arc::new(Dataset::new("test", images(), images(), &["a", "b"], Normalization::IDENTITY, false));
        let attack = (NONE.configure)(&Poisoning::default(), Value::Null).unwrap();
        let poisoner = attack.prepare(&clean, &Streams::new(0), None).unwrap();
        let TrainingSource::Static(train) = &poisoner.train else { panic!("not static") };
        assert_eq!((train.len(), train.label(1), train.image(1)), (2, 1, clean.train.image(1)));
        assert!(train.poisoned().is_empty() && poisoner.test.is_none());
        assert_eq!(poisoner.facts.poison_count, Some(0));
    }

    #[test]
    fn the_shared_parameters_make_no_difference_to_what_identifies_it() {
        let strong = Poisoning { poisoning_ratio: 0.5, ..Poisoning::default() };
        let attack = (NONE.configure)(&strong, json!({})).unwrap();
        assert_eq!(attack.parameters(), json!({}));
        assert_eq!(NONE.from_parameters(&attack.parameters()).unwrap().parameters(), json!({}));
        assert!((NONE.configure)(&strong, json!({"alpha": 1})).is_err());
    }
}
