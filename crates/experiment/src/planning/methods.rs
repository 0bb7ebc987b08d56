//! Attacks and defenses of a grid point: shared and own parameters, checked by the methods themselves.

use serde_json::{Map, Value};
use tsbd_analysis::{MEASUREMENTS, Measurement, MeasurementEntry};
use tsbd_attack::parameters::{self, field_names};
use tsbd_attack::{Attack, AttackEntry, DatasetFacts, ParameterError, Poisoning};
use tsbd_defense::{DEFENSES, Defense, DefenseCommon, DefenseEntry};
use tsbd_nn::Architecture;

use super::section::{refuse_unknown, require_table};
use crate::diagnostic::{Place, Problems, suggest};
use crate::document::{Content, Node, Table, lookup};
use crate::registry::ATTACKS;

/// The tables of one family of methods.
pub(super) struct Family {
    /// Defaults for all of them: `attack`.
    pub shared: &'static str,
    /// One table for each: `attacks`.
    pub own: &'static str,
    /// What one is called.
    pub what: &'static str,
    fields: fn() -> Vec<String>,
    names: fn() -> Vec<&'static str>,
    own_fields: fn(&str) -> Vec<String>,
}

pub(super) static ATTACK: Family = Family {
    shared: "attack",
    own: "attacks",
    what: "attack",
    fields: || field_names(&schemars::schema_for!(Poisoning)),
    names: || ATTACKS.iter().map(|entry| entry.name).collect(),
    own_fields: |name| crate::registry::attack(name).map(|entry| field_names(&(entry.schema)())).unwrap_or_default(),
};

pub(super) static DEFENSE: Family = Family {
    shared: "defense",
    own: "defenses",
    what: "defense",
    fields: || field_names(&schemars::schema_for!(DefenseCommon)),
    names: || std::iter::once("none").chain(DEFENSES.iter().map(|entry| entry.name)).collect(),
    own_fields: |name| tsbd_defense::find(name).map(|entry| field_names(&(entry.schema)())).unwrap_or_default(),
};

/// Measurements share no parameters: what they have in common is the defender's.
pub(super) static MEASURE: Family = Family {
    shared: "measure",
    own: "measures",
    what: "measurement",
    fields: Vec::new,
    names: || std::iter::once("none").chain(MEASUREMENTS.iter().map(|entry| entry.name)).collect(),
    own_fields: |name| tsbd_analysis::find(name).map(|entry| field_names(&(entry.schema)())).unwrap_or_default(),
};

impl Family {
    /// Names that a grid may use.
    pub fn names(&self) -> Vec<&'static str> {
        (self.names)()
    }

    /// Tells every key of the family's tables that nothing reads, whether the grid uses the method or not.
    pub fn refuse_unknown(&self, root: &Table, problems: &mut Problems) {
        let shared = (self.fields)();
        let shared: Vec<&str> = shared.iter().map(String::as_str).collect();
        if let Some(table) = root.get(self.shared).and_then(|node| require_table(node, self.shared, problems)) {
            refuse_unknown(table, self.shared, &shared, problems);
        }
        let Some(own) = root.get(self.own).and_then(|node| require_table(node, self.own, problems)) else { return };
        let configurable: Vec<&str> = self.names().into_iter().filter(|name| *name != "none").collect();
        for (name, node) in own {
            let path = format!("{}.{name}", self.own);
            if !configurable.contains(&name.as_str()) {
                let reason = format!("there is no such {}", self.what);
                problems.add(&node.key_place, path, None, reason, suggest(name, configurable.iter().copied()));
                continue;
            }
            if let Some(table) = require_table(node, &path, problems) {
                let fields = (self.own_fields)(name);
                let mut known: Vec<&str> = fields.iter().map(String::as_str).collect();
                known.extend(&shared);
                refuse_unknown(table, &path, &known, problems);
            }
        }
    }

    /// Forgets what was written of `field` for single methods: a later layer, or an axis of the grid, writes it for all.
    pub fn forget_own(&self, root: &mut Table, field: &str) {
        let Some(Content::Table(own)) = root.get_mut(self.own).map(|node| &mut node.content) else { return };
        for node in own.values_mut() {
            if let Content::Table(method) = &mut node.content {
                method.shift_remove(field);
            }
        }
    }

    /// Shared and own parameters of a method as JSON. Shared ones in the method's own table come before those of the
    /// shared table.
    fn parameters(&self, root: &Table, name: &str) -> (Map<String, Value>, Map<String, Value>) {
        let fields = (self.fields)();
        let mut shared = object(root.get(self.shared));
        let (overrides, own): (Map<_, _>, Map<_, _>) = object(lookup(root, &format!("{}.{name}", self.own)))
            .into_iter()
            .partition(|(key, _)| fields.contains(key));
        shared.extend(overrides);
        // What is unknown was told by `refuse_unknown`.
        let known = (self.own_fields)(name);
        shared.retain(|key, _| fields.contains(key));
        (shared, own.into_iter().filter(|(key, _)| known.contains(key)).collect())
    }

    /// Tells what a method refuses, at the place where the value was written, or at the method's name in the grid.
    fn refuse(&self, error: ParameterError, root: &Table, name: &str, asked_at: &Place, problems: &mut Problems) {
        // What a method asks of the images is no parameter of its own.
        if error.field == "image_size" {
            let node = lookup(root, "data.image_size");
            let place = node.map_or(asked_at, |node| &node.place);
            let reason = format!("{name}: {}", error.reason);
            return problems.add(place, "data.image_size", Some(error.value), reason, error.way_out);
        }
        // Nor is the method itself, whatever its parameters say.
        if error.field == self.shared {
            let key = format!("grid.{}", self.shared);
            return problems.add(asked_at, key, Some(error.value), error.reason, error.way_out);
        }
        let keys = [format!("{}.{name}.{}", self.own, error.field), format!("{}.{}", self.shared, error.field)];
        let written = keys.iter().find_map(|key| Some((key, lookup(root, key)?)));
        match written {
            Some((key, node)) => {
                problems.add(&node.place, key.as_str(), Some(node.written()), error.reason, error.way_out);
            }
            None => {
                let [own, shared] = keys;
                let key = if (self.fields)().contains(&error.field) { shared } else { own };
                let value = format!("{} (the default)", error.value);
                problems.add(asked_at, key, Some(value), error.reason, error.way_out);
            }
        }
    }

    /// Reads each field alone, so that everything that is wrong is told and not only the first.
    fn read_fields(
        &self,
        fields: &Map<String, Value>,
        read: impl Fn(Value) -> Result<(), ParameterError>,
    ) -> Vec<ParameterError> {
        let alone =
            |(key, value): (&String, &Value)| Value::Object([(key.clone(), value.clone())].into_iter().collect());
        fields.iter().filter_map(|field| read(alone(field)).err()).collect()
    }
}

fn object(node: Option<&Node>) -> Map<String, Value> {
    match node.map(Node::to_json) {
        Some(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// The attack of a grid point, configured. `asked_at` is its name in the grid.
pub(super) fn attack(
    entry: &AttackEntry,
    root: &Table,
    asked_at: &Place,
    problems: &mut Problems,
) -> Option<Box<dyn Attack>> {
    let (shared, own) = ATTACK.parameters(root, entry.name);
    let mut errors = ATTACK.read_fields(&shared, |field| {
        let poisoning: Poisoning = parameters::read(&field)?;
        poisoning.check_ranges()
    });
    errors.extend(ATTACK.read_fields(&own, |field| (entry.configure)(&Poisoning::default(), field).map(drop)));
    let configured = parameters::read(&Value::Object(shared))
        .and_then(|poisoning: Poisoning| (entry.configure)(&poisoning, Value::Object(own)));
    finish(configured, errors, &ATTACK, entry.name, root, asked_at, problems)
}

/// The defense of a grid point, configured: what is written, else what is published for the data set, else its defaults.
/// `asked_at` is its name in the grid.
pub(super) fn defense(
    entry: &DefenseEntry,
    root: &Table,
    dataset: &DatasetFacts,
    asked_at: &Place,
    problems: &mut Problems,
) -> Option<Box<dyn Defense>> {
    let (mut shared, mut own) = DEFENSE.parameters(root, entry.name);
    if let Value::Object(published) = (entry.published)(dataset) {
        let fields = (DEFENSE.fields)();
        for (field, value) in published {
            let part = if fields.contains(&field) { &mut shared } else { &mut own };
            part.entry(field).or_insert(value);
        }
    }
    let mut errors = DEFENSE.read_fields(&shared, |field| {
        let common: DefenseCommon = parameters::read(&field)?;
        common.check_ranges()
    });
    errors.extend(DEFENSE.read_fields(&own, |field| (entry.configure)(&DefenseCommon::default(), field).map(drop)));
    let configured = parameters::read(&Value::Object(shared))
        .and_then(|common: DefenseCommon| (entry.configure)(&common, Value::Object(own)));
    finish(configured, errors, &DEFENSE, entry.name, root, asked_at, problems)
}

/// The measurement of a grid point, configured. `asked_at` is its name in the grid.
pub(super) fn measurement(
    entry: &MeasurementEntry,
    root: &Table,
    asked_at: &Place,
    problems: &mut Problems,
) -> Option<Box<dyn Measurement>> {
    let (_, own) = MEASURE.parameters(root, entry.name);
    let errors = MEASURE.read_fields(&own, |field| (entry.configure)(&field).map(drop));
    let configured = (entry.configure)(&Value::Object(own));
    finish(configured, errors, &MEASURE, entry.name, root, asked_at, problems)
}

/// What a measurement can compare: what it scores itself, and the defenses that order neurons of this network.
fn comparable(entry: &MeasurementEntry, architecture: &dyn Architecture) -> Vec<String> {
    let mut names = Vec::new();
    if let Ok(usual) = (entry.configure)(&Value::Object(Map::new())) {
        let (parameters, scores) = (usual.parameters(), usual.needs().scores);
        let methods = parameters["methods"].as_array().into_iter().flatten().filter_map(Value::as_str);
        names.extend(methods.filter(|name| scores.iter().all(|score| score != name)).map(str::to_owned));
    }
    let orders_neurons = |entry: &&&DefenseEntry| {
        let usual = (entry.configure)(&DefenseCommon::default(), Value::Object(Map::new()));
        usual.is_ok_and(|defense| !defense.scored_layers(architecture).is_empty())
    };
    names.extend(DEFENSES.iter().filter(orders_neurons).map(|entry| entry.name.to_owned()));
    names
}

/// Tells that a measurement cannot compare a method, at its name in the list of methods, or at the measurement's name in
/// the grid.
pub(super) fn refuse_compared(
    entry: &MeasurementEntry,
    method: &str,
    architecture: &dyn Architecture,
    root: &Table,
    asked_at: &Place,
    problems: &mut Problems,
) {
    let key = format!("{}.{}.methods", MEASURE.own, entry.name);
    let items = match lookup(root, &key).map(|node| &node.content) {
        Some(Content::List(items)) => items.as_slice(),
        _ => &[],
    };
    let written = items.iter().find(|item| matches!(&item.content, Content::Text(name) if name == method));
    let place = written.map_or(asked_at, |item| &item.place);
    let known = comparable(entry, architecture);
    let (reason, hint) = match tsbd_defense::find(method) {
        Some(_) => ("it orders no neurons", format!("give some of {}", known.join(", "))),
        None => ("there is no such method", suggest(method, known.iter().map(String::as_str))),
    };
    problems.add(place, key, Some(format!("\"{method}\"")), reason, hint);
}

fn finish<T>(
    configured: Result<T, ParameterError>,
    errors: Vec<ParameterError>,
    family: &Family,
    name: &str,
    root: &Table,
    asked_at: &Place,
    problems: &mut Problems,
) -> Option<T> {
    match configured {
        Ok(method) => Some(method),
        Err(error) => {
            // The fields that are wrong by themselves, or else the combination that is.
            let errors = if errors.is_empty() { vec![error] } else { errors };
            for error in errors {
                family.refuse(error, root, name, asked_at, problems);
            }
            None
        }
    }
}

/// Tells what a configured method refuses of the data set or the network.
pub(super) fn check(
    result: Result<(), ParameterError>,
    family: &Family,
    name: &str,
    root: &Table,
    asked_at: &Place,
    problems: &mut Problems,
) {
    if let Err(error) = result {
        family.refuse(error, root, name, asked_at, problems);
    }
}
