//! A small grid for tests of the scheduler, the same in the test and in the program that it starts.

use std::collections::BTreeMap;

use serde_json::json;
use tsbd_experiment::{
    Augmentation, Cell, CellKey, CellKind, DatasetParameters, Experiment, GridPoint, MethodParameters, ModelParameters,
    Plan, Precision, Schedule, TableSpec, TrainingParameters,
};

/// Variable with the behaviours of cells: `badnets=fail,blended+ft=hang`.
pub const BEHAVIOURS: &str = "FAKE_BEHAVIOURS";

/// File of the results folder that a cell waits for whose behaviour ends with `-later`.
pub const GO: &str = "go";

/// Variable that makes a cell fail that finds another process on its GPU.
pub const ALONE: &str = "FAKE_ALONE_ON_A_GPU";

/// Variable with how many cells its GPU has memory for: another one that is there at the same time fails.
pub const ROOM: &str = "FAKE_ROOM_ON_A_GPU";

/// Variable with the devices that cannot be opened, and with those whose memory somebody else has.
pub const LOST: &str = "FAKE_LOST_GPU";
pub const FULL: &str = "FAKE_FULL_GPU";

/// Bytes that a cell of the behaviour `hungry` has for a while.
pub const HUNGER: usize = 256 << 20;

/// Epochs of the behaviour `patient`.
pub const EPOCHS: usize = 20;

/// Every attack, alone and with every defense.
pub fn grid(attacks: &[&str], defenses: &[&str]) -> Plan {
    let table = TableSpec::default();
    let experiment = Experiment {
        name: "test".into(),
        title: "A test".into(),
        profile: "smoke".into(),
        settings: Vec::new(),
        table,
        figure: None,
    };
    let mut plan = Plan {
        experiment,
        cells: Default::default(),
        points: Vec::new(),
        images: Default::default(),
        slurm: Default::default(),
    };
    for attack in attacks {
        let train = cell(attack);
        let key = add(&mut plan, train.clone(), "none");
        for defense in defenses {
            let defense = MethodParameters::new(*defense, 1, json!({}));
            let name = defense.name.clone();
            let cell = Cell {
                kind: CellKind::Defend,
                training: None,
                parents: vec![key.clone()],
                defense: Some(defense),
                ..train.clone()
            };
            add(&mut plan, cell, &name);
        }
    }
    plan
}

fn add(plan: &mut Plan, cell: Cell, defense: &str) -> CellKey {
    let key = cell.key();
    plan.points.push(GridPoint {
        attack: cell.attack.name.clone(),
        defense: defense.to_owned(),
        measure: "none".into(),
        seed: 0,
        axes: BTreeMap::new(),
        cell: key.clone(),
    });
    plan.cells.insert(key.clone(), cell);
    key
}

fn cell(attack: &str) -> Cell {
    Cell {
        kind: CellKind::Train,
        profile: "smoke".into(),
        seed: 0,
        data_digest: "none".into(),
        parents: Vec::new(),
        dataset: DatasetParameters::new("shapes"),
        model: Some(ModelParameters { name: "preact-resnet18".into(), width: 4 }),
        training: Some(TrainingParameters {
            epochs: EPOCHS,
            batch_size: 2,
            learning_rate: 0.1,
            momentum: 0.0,
            weight_decay: 0.0,
            schedule: Schedule::Constant,
            augmentation: Augmentation::None,
            precision: Precision::F32,
        }),
        attack: MethodParameters::new(attack, 1, json!({})),
        defense: None,
        unlearning: None,
        measurement: None,
    }
}
