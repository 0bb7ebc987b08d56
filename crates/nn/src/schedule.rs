//! Learning rates over the epochs, as PyTorch's schedulers stepped once per epoch (one of them: once per step).

use serde::{Deserialize, Serialize};

/// How the learning rate changes from epoch to epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// Half a cosine from the full rate in epoch 0 to zero in epoch `t_max`: `CosineAnnealingLR` with `eta_min` 0.
    Cosine {
        /// The epoch in which the rate would be 0; it need not be the number of epochs.
        t_max: usize,
    },
    /// [`Schedule::Cosine`] over the optimiser's steps: down to zero in step `t_max`, then up again to the full rate, and so
    /// on: `CosineAnnealingLR` stepped after every batch.
    CosineOfSteps {
        /// The step in which the rate is 0 for the first time.
        t_max: usize,
    },
    /// Lowered when the mean training loss of an epoch has not improved for a while: `ReduceLROnPlateau`.
    Plateau {
        /// What the rate is multiplied with.
        factor: f64,
        /// How many epochs without improvement are tolerated.
        patience: usize,
        /// An improvement is a loss below `best * (1 - threshold)`.
        threshold: f64,
    },
    /// Lowered at fixed epochs: `MultiStepLR`.
    MultiStep {
        /// The first epochs with a lowered rate.
        milestones: Vec<usize>,
        /// What the rate is multiplied with at each.
        gamma: f64,
    },
}

impl Schedule {
    /// `ReduceLROnPlateau` with PyTorch's defaults.
    pub fn plateau() -> Schedule {
        Schedule::Plateau { factor: 0.1, patience: 10, threshold: 1e-4 }
    }
}

/// PyTorch's default `eps` of `ReduceLROnPlateau`: smaller changes of the rate are not made.
const SMALLEST_CHANGE: f64 = 1e-8;

/// Where a schedule stands.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleState {
    base: f64,
    /// Epochs made, or steps where the schedule counts those.
    epoch: usize,
    rate: f64,
    best: f64,
    bad_epochs: usize,
}

impl ScheduleState {
    /// The beginning of epoch 0, with the full learning rate.
    pub fn new(learning_rate: f64) -> ScheduleState {
        ScheduleState { base: learning_rate, epoch: 0, rate: learning_rate, best: f64::INFINITY, bad_epochs: 0 }
    }

    /// The learning rate of the current epoch, or step.
    pub fn learning_rate(&self) -> f64 {
        self.rate
    }

    /// Moves on to the next step within an epoch.
    pub fn step_made(&mut self, schedule: &Schedule) {
        if let Schedule::CosineOfSteps { t_max } = *schedule {
            self.epoch += 1;
            self.rate = self.cosine(t_max);
        }
    }

    fn cosine(&self, t_max: usize) -> f64 {
        let turn = std::f64::consts::PI * self.epoch as f64 / t_max as f64;
        self.base * 0.5 * (1.0 + turn.cos())
    }

    /// Moves on to the next epoch, after one whose mean training loss was `mean_loss`.
    pub fn step(&mut self, schedule: &Schedule, mean_loss: f64) {
        if matches!(schedule, Schedule::CosineOfSteps { .. }) {
            return;
        }
        self.epoch += 1;
        match *schedule {
            Schedule::Constant | Schedule::CosineOfSteps { .. } => {}
            Schedule::Cosine { t_max } => self.rate = self.cosine(t_max),
            Schedule::MultiStep { ref milestones, gamma } => {
                let passed = milestones.iter().filter(|&&milestone| milestone <= self.epoch).count();
                self.rate = self.base * gamma.powi(passed as i32);
            }
            Schedule::Plateau { factor, patience, threshold } => {
                if mean_loss < self.best * (1.0 - threshold) {
                    (self.best, self.bad_epochs) = (mean_loss, 0);
                } else {
                    self.bad_epochs += 1;
                }
                if self.bad_epochs > patience {
                    let lower = self.rate * factor;
                    if self.rate - lower > SMALLEST_CHANGE {
                        self.rate = lower;
                    }
                    self.bad_epochs = 0;
                }
            }
        }
    }

    /// The state as numbers that survive a file exactly; see [`ScheduleState::from_numbers`].
    pub(crate) fn to_numbers(&self) -> [f64; 5] {
        [self.base, self.epoch as f64, self.rate, self.best, self.bad_epochs as f64]
    }

    pub(crate) fn from_numbers([base, epoch, rate, best, bad_epochs]: [f64; 5]) -> ScheduleState {
        ScheduleState { base, epoch: epoch as usize, rate, best, bad_epochs: bad_epochs as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, base: f64, losses: &[f64]) -> Vec<f64> {
        let mut state = ScheduleState::new(base);
        losses
            .iter()
            .map(|&loss| {
                let rate = state.learning_rate();
                state.step(&schedule, loss);
                rate
            })
            .collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (epoch, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() <= 1e-12 * expected.abs(), "epoch {epoch}: {found}, not {expected}");
        }
    }

    #[test]
    fn the_last_epoch_of_100_has_almost_no_learning_rate_and_the_50th_half() {
        // attacks.md and defenses.md F.4: about 2.5e-6 in epoch 99 of T_max 100, about .00516 in epoch 49.
        let rates = rates(Schedule::Cosine { t_max: 100 }, 0.01, &[1.0; 100]);
        assert!((rates[99] - 2.467e-6).abs() < 1e-9 && (rates[49] - 0.005157).abs() < 1e-6 && rates[0] == 0.01);
    }

    #[test]
    fn a_cosine_of_steps_falls_and_rises_within_epochs_and_rests_between_them() {
        let schedule = Schedule::CosineOfSteps { t_max: 4 };
        let mut state = ScheduleState::new(1.0);
        let mut rates = vec![];
        for step in 0..10 {
            rates.push(state.learning_rate());
            state.step_made(&schedule);
            if step % 3 == 2 {
                state.step(&schedule, 0.5);
            }
        }
        let middle = std::f64::consts::FRAC_1_SQRT_2 / 2.0;
        let expected = [1.0, 0.5 + middle, 0.5, 0.5 - middle, 0.0, 0.5 - middle, 0.5, 0.5 + middle, 1.0, 0.5 + middle];
        for (found, expected) in rates.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15, "{rates:?}");
        }
        // Other schedules take no notice of steps.
        let mut epochs = ScheduleState::new(1.0);
        epochs.step_made(&Schedule::Cosine { t_max: 2 });
        assert_eq!(epochs, ScheduleState::new(1.0));
    }

    #[test]
    fn milestones_lower_the_rate_from_their_epoch_on() {
        let schedule = Schedule::MultiStep { milestones: vec![2, 4], gamma: 0.1 };
        assert_close(&rates(schedule, 1.0, &[0.0; 6]), &[1.0, 1.0, 0.1, 0.1, 0.01, 0.01]);
    }

    #[test]
    fn a_plateau_longer_than_the_patience_lowers_the_rate() {
        let schedule = Schedule::Plateau { factor: 0.5, patience: 1, threshold: 1e-4 };
        // An improvement by less than the relative threshold counts as none.
        let losses = [1.0, 0.99999, 0.99998, 0.5, 0.6, 0.6, 0.6, 0.6];
        assert_close(&rates(schedule, 1.0, &losses), &[1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]);
    }

    #[test]
    fn changes_too_small_to_matter_are_not_made() {
        let schedule = Schedule::Plateau { factor: 0.1, patience: 0, threshold: 1e-4 };
        let rates = rates(schedule, 1e-8, &[1.0; 4]);
        assert_eq!(rates, [1e-8; 4]);
    }
}
