//! Measures something in the model of the first parent.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tsbd_analysis::{Context, Measurement, NeuronVector, Pairs, Subject, Unlearned, UnlearnedModel, Unlearning};
use tsbd_experiment::{CellKind, CellRecord, MethodParameters, NEURONS};
use tsbd_nn::Model;

use super::defend::SCORES;
use super::unlearn::{self, Watcher, save_neurons};
use super::{ExecuteError, MODEL, Setting, other_method};
use crate::workspace::{CellError, CellWorkspace, Conclusion, Findings};

pub(super) fn run(setting: Setting, workspace: &CellWorkspace) -> Result<Conclusion, CellError> {
    let cell = workspace.cell();
    let incomplete = |part| ExecuteError::Incomplete { kind: CellKind::Measure, part };
    let measurement = configure(cell.measurement.as_ref().ok_or(incomplete("a measurement"))?)?;
    measurement.check(setting.architecture.as_ref())?;
    let parents = workspace.parents()?;
    let setting = unlearn::attacked(setting, workspace, &parents)?;
    let load = |record: &CellRecord| -> Result<Model, CellError> {
        let path = workspace.parent_artefact(&record.key, MODEL);
        Ok(Model::load(Arc::clone(&setting.architecture), path)?.to_device(&setting.device)?)
    };
    let (subject, others) = parents.split_first().ok_or(incomplete("a model among its parents"))?;
    let model = load(subject)?;
    let needs = measurement.needs();
    let is_clean = |record: &&CellRecord| record.cell.kind == CellKind::Train && record.cell.attack.name == "none";
    let clean_model = match needs.clean_model {
        true => others.iter().find(is_clean).map(load).transpose()?,
        false => None,
    };
    let unlearned = |of| unlearn::result(workspace, others, of, &setting.architecture, &setting.device);
    let (clean_unlearned, poison_unlearned) = (unlearned(Unlearned::Clean)?, unlearned(Unlearned::Poison)?);
    let numbers = cell.unlearning.as_deref().map(unlearn::configure).transpose()?;
    let train = || Arc::clone(&setting.dataset.train) as _;
    let unlearning = match &numbers {
        Some(unlearning) => Some((unlearning, unlearn::clean_images(unlearning, train(), cell.seed)?)),
        None => None,
    };
    let scores = needs.scores.iter().map(|name| Ok((name.clone(), scores(name, others, workspace)?)));

    let subject = Subject {
        model: Some(&model),
        clean_model: clean_model.as_ref(),
        unlearning,
        unlearned: clean_unlearned.as_ref(),
        poison_unlearned: poison_unlearned.as_ref(),
        pairs: setting.poisoner.test.as_ref().map(Pairs::of),
        scores: scores.collect::<Result<BTreeMap<_, _>, CellError>>()?,
    };
    let mut watcher = Watcher::new(workspace);
    let mut context = Context {
        // Those of the unlearnings, so that what is measured of one is measured of the same images.
        streams: setting.streams.child(Unlearning::STREAMS),
        device: setting.device.clone(),
        normalization: setting.dataset.normalization,
        augmentation: setting.dataset.augmentation(),
        observer: &mut watcher,
    };
    workspace.reporter().stage("measure");
    let measured = match measurement.measure(&subject, &mut context) {
        Err(tsbd_analysis::Error::Stopped { .. }) => return Ok(Conclusion::Stopped),
        result => result?,
    };
    save_neurons(&measured.vectors, &workspace.directory().join(NEURONS))?;
    let mut facts = measured.facts;
    facts.extend(told_of(clean_unlearned.as_ref(), "unlearning"));
    facts.extend(told_of(poison_unlearned.as_ref(), "poison_unlearning"));
    Ok(Conclusion::Done(Findings {
        metrics: measured.scalars,
        facts,
        trace: watcher.trace,
        artefacts: vec![NEURONS.to_owned()],
    }))
}

/// How an unlearning that the measurement starts from went.
fn told_of(unlearned: Option<&UnlearnedModel>, name: &str) -> Map<String, Value> {
    let facts = unlearned.map(|unlearned| {
        [
            (format!("{name}_epochs"), json!(unlearned.rates.len())),
            (format!("{name}_reached"), json!(unlearned.reached)),
        ]
    });
    facts.into_iter().flatten().collect()
}

fn configure(method: &MethodParameters) -> Result<Box<dyn Measurement>, CellError> {
    match tsbd_analysis::find(&method.name) {
        Some(entry) if entry.revision == method.revision => Ok((entry.configure)(&method.parameters)?),
        entry => Err(other_method("measurement", method, entry.map(|entry| entry.revision)).into()),
    }
}

/// The scores that the defense `name` left.
fn scores(name: &str, parents: &[CellRecord], workspace: &CellWorkspace) -> Result<NeuronVector, CellError> {
    let of_defense = |record: &&CellRecord| record.cell.kind == CellKind::Defend && record.cell.defense_name() == name;
    let incomplete = ExecuteError::Incomplete { kind: CellKind::Measure, part: "a defense whose scores it compares" };
    let record = parents.iter().find(of_defense).ok_or(incomplete)?;
    let mut vectors = unlearn::neurons(record, workspace)?;
    Ok(vectors.remove(SCORES).ok_or(tsbd_analysis::Error::NoScores { method: name.to_owned() })?)
}
