//! What people call the cells of a plan: as short as tells them apart.

use std::collections::{BTreeSet, HashMap};

use tsbd_experiment::{CellKey, GridPoint, Plan};

/// Where a point lies on the axes other than attack, defense and seed: `, trigger grid, poisoning_ratio 0.1`.
pub fn of_axes(point: &GridPoint) -> String {
    let named = point.axes.iter().map(|(axis, value)| {
        let name = axis.rsplit('.').next().unwrap_or(axis);
        format!(", {name} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    });
    named.collect()
}

/// A label for every cell: `badnets`, `badnets + tsbd`; with the other axes and the seed where cells would otherwise
/// have the same one.
pub fn of(plan: &Plan) -> HashMap<CellKey, String> {
    let mut axes: HashMap<&CellKey, String> = HashMap::new();
    for point in &plan.points {
        axes.entry(&point.cell).or_insert_with(|| of_axes(point));
    }
    let several_seeds = plan.cells.values().map(|cell| cell.seed).collect::<BTreeSet<_>>().len() > 1;
    let mut labels = HashMap::with_capacity(plan.cells.len());
    let mut uses: HashMap<String, usize> = HashMap::with_capacity(plan.cells.len());
    for (key, cell) in &plan.cells {
        let axes = axes.get(key).map_or("", String::as_str);
        let seed = if several_seeds { format!(", seed {}", cell.seed) } else { String::new() };
        let label = format!("{}{axes}{seed}", cell.label());
        *uses.entry(label.clone()).or_default() += 1;
        labels.insert(key.clone(), label);
    }
    for (key, label) in &mut labels {
        if uses[label] > 1 {
            label.push_str(&format!(" ({})", key.short()));
        }
    }
    labels
}
