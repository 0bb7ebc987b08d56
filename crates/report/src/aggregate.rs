//! Means and deviations: the points of one panel are split by place in the table and averaged over seeds.

use std::collections::{BTreeMap, HashMap, HashSet};

use tsbd_experiment::{ResultRow, RowState};

use crate::metric::Metric;

/// A mean and a sample standard deviation (`None` over fewer than two values), as shown.
pub(crate) type Mean = (f64, Option<f64>);

/// The points of one place in the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub(crate) points: usize,
    pub(crate) done: usize,
    pub(crate) failed: usize,
    /// Per metric of the table, over the points that are done.
    pub(crate) metrics: Vec<Option<Mean>>,
    /// Per metric, whether it can exist for these points.
    pub(crate) defined: Vec<bool>,
}

/// Averages over attacks by (column, metric).
pub(crate) type Means = BTreeMap<(usize, usize), Mean>;

/// The groups of a panel by (line, column).
pub(crate) fn groups(
    points: &[&ResultRow],
    metrics: &[Metric],
    place: impl Fn(&ResultRow) -> Option<(usize, usize)>,
) -> BTreeMap<(usize, usize), Group> {
    /// A group, and its values by metric.
    type Part = (Group, Vec<Vec<f64>>);
    let mut parts: BTreeMap<(usize, usize), Part> = BTreeMap::new();
    for (at, row) in placed(points, place) {
        let (group, values) =
            parts.entry(at).or_insert_with(|| (Group::empty(metrics), vec![Vec::new(); metrics.len()]));
        group.points += 1;
        match row.state {
            RowState::Done => group.done += 1,
            RowState::Failed(_) => group.failed += 1,
            RowState::Missing => {}
        }
        for (position, metric) in metrics.iter().enumerate() {
            values[position].extend(row.shown(&metric.name));
            group.defined[position] = group.defined[position] || metric.is_defined(row);
        }
    }
    let finish = |(at, (mut group, values)): (_, Part)| {
        group.metrics = values.iter().map(|values| mean(values)).collect();
        (at, group)
    };
    parts.into_iter().map(finish).collect()
}

impl Group {
    fn empty(metrics: &[Metric]) -> Self {
        Self { points: 0, done: 0, failed: 0, metrics: Vec::new(), defined: vec![false; metrics.len()] }
    }
}

/// Per column and metric: the mean over the attacks for each seed, then mean and deviation over the seeds. The model
/// without an attack is left out.
pub(crate) fn averages(
    points: &[&ResultRow],
    metrics: &[Metric],
    place: impl Fn(&ResultRow) -> Option<(usize, usize)>,
) -> Means {
    // Seeds in the order of the points: sums do not depend on how a map is ordered.
    let mut seeds: Vec<u64> = Vec::new();
    let mut seed_at: HashMap<u64, usize> = HashMap::new();
    let mut per_seed: BTreeMap<(usize, usize), Vec<Sum>> = BTreeMap::new();
    for ((_, column), row) in placed(points, place).filter(|(_, row)| row.attack != "none") {
        let seed = *seed_at.entry(row.seed).or_insert_with(|| {
            seeds.push(row.seed);
            seeds.len() - 1
        });
        for (position, metric) in metrics.iter().enumerate() {
            let Some(value) = row.shown(&metric.name) else { continue };
            let sums = per_seed.entry((column, position)).or_default();
            if sums.len() <= seed {
                sums.resize(seed + 1, Sum::default());
            }
            sums[seed].add(value);
        }
    }
    let over_seeds = per_seed.into_iter().filter_map(|(at, sums)| {
        let means: Vec<f64> = sums.iter().filter_map(Sum::mean).collect();
        Some((at, mean(&means)?))
    });
    over_seeds.collect()
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    sum: f64,
    count: usize,
}

impl Sum {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// The points that stand in the table with their places. A point that stands in the grid twice counts once.
fn placed<'a>(
    points: &[&'a ResultRow],
    place: impl Fn(&ResultRow) -> Option<(usize, usize)>,
) -> impl Iterator<Item = ((usize, usize), &'a ResultRow)> {
    let mut seen = HashSet::new();
    let placed = points.iter().filter_map(move |&row| Some((place(row)?, row)));
    placed.filter(move |(at, row)| seen.insert((*at, row.seed, &row.key)))
}

/// Mean and sample standard deviation, the latter of at least two values.
fn mean(values: &[f64]) -> Option<Mean> {
    let count = values.len() as f64;
    let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / count)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt())))
}
