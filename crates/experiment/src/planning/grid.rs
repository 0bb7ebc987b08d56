//! `[grid]`: the axes, and the points they span.

use crate::diagnostic::{Place, Problems, suggest};
use crate::document::{Content, Node, Table, set};

use tsbd_analysis::Needs;

use super::methods::{ATTACK, DEFENSE, Family, MEASURE};
use super::section::require_table;

/// The axes of a grid.
pub(super) struct Grid {
    /// Names of attacks with their places.
    pub attacks: Vec<(String, Place)>,
    /// Names of defenses with their places.
    pub defenses: Vec<(String, Place)>,
    /// Names of measurements with their places.
    pub measures: Vec<(String, Place)>,
    /// Other axes: dotted key and values, in the file's order.
    pub axes: Vec<(String, Vec<Node>)>,
}

/// Sections whose keys may be axes.
const SECTIONS: &[&str] = &["data", "model", "training"];
/// Tables of methods whose keys may be axes.
const METHOD_TABLES: &[&str] = &["attack", "attacks", "defense", "defenses", "measures"];

pub(super) fn read(root: &Table, start: &Place, problems: &mut Problems) -> Grid {
    let mut grid = Grid { attacks: Vec::new(), defenses: Vec::new(), measures: Vec::new(), axes: Vec::new() };
    let Some(node) = root.get("grid") else {
        let hint = "write [grid] with attack = [\"badnets\"] and defense = [\"none\", \"tsbd\"]";
        problems.add(start, "grid", None, "an experiment needs a grid", hint);
        return grid;
    };
    let Some(table) = require_table(node, "grid", problems) else { return grid };
    let mut axes = Vec::new();
    flatten("", table, &mut axes);
    // `attack.poisoning_ratio = [..]` without quotes makes a table `attack`, and names no attack.
    let [attacks, defenses, measures] =
        [&ATTACK, &DEFENSE, &MEASURE].map(|family| axes.iter().any(|(path, _)| path == family.shared));
    for (path, node) in axes {
        match path.as_str() {
            "attack" => grid.attacks = names(&ATTACK, node, problems),
            "defense" => grid.defenses = names(&DEFENSE, node, problems),
            "measure" => grid.measures = names(&MEASURE, node, problems),
            "seed" | "seeds" => {
                let hint = "write seeds = [0, 1] above the tables";
                problems.add(&node.key_place, format!("grid.{path}"), None, "seeds are no axis of the grid", hint);
            }
            _ => {
                let table = path.split_once('.').map(|(table, _)| table);
                if table.is_some_and(|table| SECTIONS.contains(&table) || METHOD_TABLES.contains(&table)) {
                    let values = values(&path, node, problems);
                    grid.axes.push((path, values));
                } else {
                    let key = format!("grid.{path}");
                    problems.add(&node.key_place, key, None, "there is no such axis", meant(&path));
                }
            }
        }
    }
    if !attacks {
        let hint = "write attack = [\"none\", \"badnets\"]; `tsbd list attacks` prints all";
        problems.add(&node.key_place, "grid.attack", None, "a grid needs attacks", hint);
    }
    if !defenses {
        grid.defenses.push(("none".into(), node.key_place.clone()));
    }
    if !measures {
        grid.measures.push((NO_MEASURE.into(), node.key_place.clone()));
    }
    // Measurements start from what defenses do, whether those are in the grid or not.
    let measures = grid.measures.iter().any(|(name, _)| name != NO_MEASURE);
    for (axis, values) in &grid.axes {
        refuse_unread(axis, values, problems);
        for (family, chosen) in [(&ATTACK, &grid.attacks), (&DEFENSE, &grid.defenses), (&MEASURE, &grid.measures)] {
            let method = axis.strip_prefix(family.own).and_then(|rest| rest.strip_prefix('.')?.split('.').next());
            let (Some(method), Some(value)) = (method, values.first()) else { continue };
            let is_chosen = chosen.iter().any(|(name, _)| name == method);
            if family.names().contains(&method) && !is_chosen && !(measures && family.own == DEFENSE.own) {
                let reason = format!("`{method}` is not in the grid, so the axis changes nothing");
                let hint = "add it to the grid, or remove the axis";
                problems.add(&value.key_place, format!("grid.{axis}"), None, reason, hint);
            }
        }
    }
    grid
}

/// The way out for a key of `[grid]` that is no axis.
fn meant(path: &str) -> String {
    const EXAMPLE: &str = "a dotted key, as `\"model.width\" = [16, 64]`";
    match path.split_once('.') {
        Some((table, _)) => {
            let hint = suggest(table, SECTIONS.iter().chain(METHOD_TABLES).copied());
            format!("{hint}; an axis is `attack`, `defense`, `measure`, or a dotted key")
        }
        None if SECTIONS.contains(&path) => format!("write {EXAMPLE}"),
        None => {
            let hint = suggest(path, [ATTACK.shared, DEFENSE.shared, MEASURE.shared]);
            format!("{hint}; any other axis is {EXAMPLE}")
        }
    }
}

/// Tells an axis of a method that nothing reads, as its key is told in the method's own table.
fn refuse_unread(axis: &str, values: &[Node], problems: &mut Problems) {
    for value in values {
        let mut alone = Table::new();
        set(&mut alone, axis, value.clone());
        for family in [&ATTACK, &DEFENSE, &MEASURE] {
            family.refuse_unknown(&alone, problems);
        }
    }
}

/// `a.b = [..]` in a file is a table in a table; `"a.b" = [..]` is a key with a dot. Both mean the same axis.
fn flatten<'a>(prefix: &str, table: &'a Table, axes: &mut Vec<(String, &'a Node)>) {
    for (key, node) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match &node.content {
            Content::Table(inner) => flatten(&path, inner, axes),
            _ => axes.push((path, node)),
        }
    }
}

/// The values of an axis: a list, or one value alone.
fn values(path: &str, node: &Node, problems: &mut Problems) -> Vec<Node> {
    let items = match &node.content {
        Content::List(items) => items.clone(),
        _ => vec![node.clone()],
    };
    let key = format!("grid.{path}");
    if items.is_empty() {
        problems.add(
            &node.place,
            key.as_str(),
            Some("[]".into()),
            "an axis without values has no points",
            "give a value",
        );
    }
    for (position, item) in items.iter().enumerate() {
        if items[..position].iter().any(|other| other.to_json() == item.to_json()) {
            problems.add(&item.place, key.as_str(), Some(item.written()), "this value is there twice", "remove one");
        }
    }
    // What is wrong with a value is told about the value, and what is wrong with the key about the axis.
    items.into_iter().map(|item| Node { key_place: node.key_place.clone(), ..item }).collect()
}

fn names(family: &Family, node: &Node, problems: &mut Problems) -> Vec<(String, Place)> {
    let known = family.names();
    let mut names = Vec::new();
    for item in values(family.shared, node, problems) {
        match &item.content {
            Content::Text(name) if known.contains(&name.as_str()) => names.push((name.clone(), item.place)),
            Content::Text(name) => {
                let reason = format!("there is no such {}", family.what);
                let hint = suggest(name, known.iter().copied());
                problems.add(&item.place, format!("grid.{}", family.shared), Some(item.written()), reason, hint);
            }
            _ => {
                let reason = format!("{} where the name of {} is expected", item.kind(), an(family.what));
                let hint = format!("`tsbd list {}` prints the names", family.own);
                problems.add(&item.place, format!("grid.{}", family.shared), Some(item.written()), reason, hint);
            }
        }
    }
    names
}

fn an(what: &str) -> String {
    if what.starts_with('a') { format!("an {what}") } else { format!("a {what}") }
}

/// One choice of a value for each axis other than attack, defense and seed.
#[derive(Clone)]
pub(super) struct Choice<'a> {
    pub values: Vec<(&'a str, &'a Node)>,
}

/// The name of a method, and where it stands in the grid.
pub(super) type Named<'a> = (&'a str, &'a Place);

impl Grid {
    /// Every attack with every defense and every measurement, attacks outermost.
    pub fn methods(&self) -> impl Iterator<Item = (Named<'_>, Named<'_>, Named<'_>)> {
        fn named((name, place): &(String, Place)) -> Named<'_> {
            (name, place)
        }
        self.attacks.iter().flat_map(move |attack| {
            self.defenses.iter().flat_map(move |defense| {
                self.measures.iter().map(move |measure| (named(attack), named(defense), named(measure)))
            })
        })
    }

    /// Every choice, the first axis outermost; one empty choice without axes.
    pub fn choices(&self) -> Vec<Choice<'_>> {
        let mut choices = vec![Choice { values: Vec::new() }];
        for (path, values) in &self.axes {
            choices = choices
                .iter()
                .flat_map(|choice| {
                    values.iter().map(move |value| {
                        let mut choice = choice.clone();
                        choice.values.push((path, value));
                        choice
                    })
                })
                .collect();
        }
        choices
    }
}

impl Choice<'_> {
    /// The experiment with the values of this choice.
    pub fn apply(&self, root: &Table) -> Table {
        let mut root = root.clone();
        for (path, value) in &self.values {
            // A value for all methods is one for each of them, whatever was written for it alone.
            for family in [&ATTACK, &DEFENSE] {
                if let Some(field) = path.strip_prefix(family.shared).and_then(|rest| rest.strip_prefix('.')) {
                    family.forget_own(&mut root, field);
                }
            }
            set(&mut root, path, (*value).clone());
        }
        root
    }
}

/// The name in `measure` that stands for the model and its rates.
pub(super) const NO_MEASURE: &str = "none";

/// Whether an axis changes anything about a point with these methods: another method's parameters do not, nor does
/// anything shared by all attacks where there is none. What a measurement needs is made by defenses.
pub(super) fn applies(axis: &str, attack: &str, defense: &str, (measure, needs): (&str, &Needs)) -> bool {
    let mut parts = axis.split('.');
    let unlearns = needs.unlearning || needs.unlearned || needs.poison_unlearned.is_some();
    match (parts.next(), parts.next(), parts.next()) {
        (Some("attack"), ..) => attack != "none",
        (Some("attacks"), Some(name), _) => name == attack,
        (Some("defense"), ..) => defense != "none" || unlearns || !needs.scores.is_empty(),
        (Some("defenses"), Some(name), field) => {
            let numbers = field.is_some_and(|field| UNLEARNING.contains(&field));
            name == defense || needs.scores.iter().any(|score| score == name) || name == "tsbd" && unlearns && numbers
        }
        (Some("measures"), Some(name), _) => name == measure,
        _ => true,
    }
}

/// What of TSBD's parameters (its own, and shared ones in its own table) its unlearning depends on.
const UNLEARNING: &[&str] = &[
    "clean_ratio",
    "batch_size",
    "unlearning_learning_rate",
    "unlearning_momentum",
    "unlearning_accuracy",
    "unlearning_epochs",
];
