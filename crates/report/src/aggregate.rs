//! Means and deviations: the points of one panel are split by place in the table and averaged over seeds.

use std::collections::{BTreeMap, HashMap};

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
    /// Per metric of the table, over the points that have it, and how many these are.
    pub(crate) metrics: Vec<Option<(Mean, usize)>>,
    /// Per metric, whether it can exist for these points.
    pub(crate) defined: Vec<bool>,
}

/// Averages over attacks by (column, metric).
pub(crate) type Means = BTreeMap<(usize, usize), Mean>;

/// What the points of a panel come to.
#[derive(Debug)]
pub(crate) struct Aggregate {
    /// By (line, column).
    pub(crate) groups: BTreeMap<(usize, usize), Group>,
    /// Per column and metric: the mean over the attacks for each seed, then mean and deviation over the seeds. The model
    /// without an attack is left out.
    pub(crate) averages: Means,
}

/// Splits and averages points that are given with their (line, column).
pub(crate) fn aggregate<'a>(
    points: impl Iterator<Item = ((usize, usize), &'a ResultRow)>,
    metrics: &[Metric],
) -> Aggregate {
    /// A group, and its values by metric.
    type Part = (Group, Vec<Vec<f64>>);
    let mut parts: BTreeMap<(usize, usize), Part> = BTreeMap::new();
    let mut over_attacks = OverAttacks::default();
    for (at, row) in points {
        let (group, values) =
            parts.entry(at).or_insert_with(|| (Group::empty(metrics), vec![Vec::new(); metrics.len()]));
        group.points += 1;
        match row.state {
            RowState::Done => group.done += 1,
            RowState::Failed(_) => group.failed += 1,
            RowState::Missing => {}
        }
        for (position, metric) in metrics.iter().enumerate() {
            group.defined[position] = group.defined[position] || metric.is_defined(row);
            let Some(value) = row.shown(&metric.name) else { continue };
            values[position].push(value);
            if row.attack != "none" {
                over_attacks.add((at.1, position), row.seed, value);
            }
        }
    }
    let finish = |(at, (mut group, values)): (_, Part)| {
        group.metrics = values.iter().map(|values| Some((mean(values)?, values.len()))).collect();
        (at, group)
    };
    Aggregate { groups: parts.into_iter().map(finish).collect(), averages: over_attacks.means() }
}

impl Group {
    fn empty(metrics: &[Metric]) -> Self {
        Self { points: 0, done: 0, failed: 0, metrics: Vec::new(), defined: vec![false; metrics.len()] }
    }
}

/// Sums over the attacks. Seeds are in the order of the points: what comes out does not depend on how a map is ordered.
#[derive(Debug, Default)]
struct OverAttacks {
    seeds: HashMap<u64, usize>,
    per_seed: BTreeMap<(usize, usize), Vec<Sum>>,
}

impl OverAttacks {
    fn add(&mut self, at: (usize, usize), seed: u64, value: f64) {
        let next = self.seeds.len();
        let seed = *self.seeds.entry(seed).or_insert(next);
        let sums = self.per_seed.entry(at).or_default();
        if sums.len() <= seed {
            sums.resize(seed + 1, Sum::default());
        }
        sums[seed].add(value);
    }

    fn means(self) -> Means {
        let over_seeds = self.per_seed.into_iter().filter_map(|(at, sums)| {
            let means: Vec<f64> = sums.iter().filter_map(Sum::mean).collect();
            Some((at, mean(&means)?))
        });
        over_seeds.collect()
    }
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

/// Mean and sample standard deviation, the latter of at least two values.
pub(crate) fn mean(values: &[f64]) -> Option<Mean> {
    let count = values.len() as f64;
    let mean = (!values.is_empty()).then(|| values.iter().sum::<f64>() / count)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((mean, (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt())))
}
