//! The progress of a grid on standard error: bars where there is a terminal, plain lines everywhere else.
//!
//! Knows nothing of processes: it is told what happens, in the words of the cells' labels.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tsbd_experiment::CellKey;

use crate::terminal;

/// Between two lines about the same running cell, where there is no terminal.
const PATIENCE: Duration = Duration::from_secs(30);

/// How far a running cell is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Position {
    /// `train`, `unlearn`, `fine-tune`, ...
    pub stage: String,
    /// Share of the stage that is done, in [0, 1].
    pub share: f64,
    /// What the stage counts: `epoch 3 of 10`.
    pub count: String,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Speed.
    pub images_per_second: Option<f64>,
}

/// How many cells are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Cells that have to run in all.
    pub total: usize,
    /// Finished now.
    pub done: usize,
    /// Failed now.
    pub failed: usize,
    /// Not run because a parent failed.
    pub skipped: usize,
    /// Running.
    pub running: usize,
}

impl Tally {
    /// Cells that wait.
    pub fn waiting(&self) -> usize {
        self.total.saturating_sub(self.done + self.failed + self.skipped + self.running)
    }
}

/// What is shown.
pub struct Progress {
    screen: Screen,
    tally: Tally,
    begin: Instant,
}

enum Screen {
    Nothing,
    Lines { last: BTreeMap<CellKey, Instant> },
    Bars { overall: ProgressBar, cells: BTreeMap<CellKey, ProgressBar> },
}

impl Progress {
    /// The progress of `total` cells that have to run.
    pub fn new(total: usize, quiet: bool) -> Self {
        let screen = if quiet {
            Screen::Nothing
        } else if terminal::stderr_is_terminal() {
            let style = ProgressStyle::with_template("{bar:24} {pos} of {len} cells  {msg}");
            let overall = terminal::bars().add(ProgressBar::new(total as u64));
            overall.set_style(style.expect("the template is a constant that indicatif reads"));
            Screen::Bars { overall, cells: BTreeMap::new() }
        } else {
            Screen::Lines { last: BTreeMap::new() }
        };
        let progress = Self { screen, tally: Tally { total, ..Tally::default() }, begin: Instant::now() };
        progress.summarise();
        progress
    }

    /// A line of talk that belongs to no cell.
    pub fn note(&self, line: &str) {
        if !matches!(self.screen, Screen::Nothing) {
            terminal::say(line);
        }
    }

    /// A cell begins.
    pub fn started(&mut self, key: &CellKey, label: &str, resumed: bool) {
        self.tally.running += 1;
        match &mut self.screen {
            Screen::Nothing => {}
            Screen::Lines { last } => {
                last.insert(key.clone(), Instant::now());
                terminal::say(format!("{label}: {}", if resumed { "continues" } else { "starts" }));
            }
            Screen::Bars { overall, cells } => {
                let style = ProgressStyle::with_template("{bar:24.dim} {prefix}  {msg}");
                let bar = terminal::bars().insert_before(overall, ProgressBar::new(1000));
                bar.set_style(style.expect("the template is a constant that indicatif reads"));
                bar.set_prefix(label.to_owned());
                bar.tick();
                cells.insert(key.clone(), bar);
            }
        }
        self.summarise();
    }

    /// A running cell has come further.
    pub fn moved(&mut self, key: &CellKey, label: &str, position: &Position) {
        match &mut self.screen {
            Screen::Nothing => {}
            Screen::Lines { last } => {
                let now = Instant::now();
                let before = last.entry(key.clone()).or_insert(now);
                if now - *before >= PATIENCE {
                    *before = now;
                    terminal::say(format!("{label}: {}", describe(position)));
                }
            }
            Screen::Bars { cells, .. } => {
                if let Some(bar) = cells.get(key) {
                    bar.set_position((position.share.clamp(0.0, 1.0) * 1000.0) as u64);
                    bar.set_message(describe(position));
                }
            }
        }
        self.summarise();
    }

    /// A cell is done.
    pub fn finished(&mut self, key: &CellKey, label: &str, seconds: f64, metrics: &BTreeMap<String, f64>) {
        self.ended(key);
        self.tally.done += 1;
        let rates = ["acc", "asr", "ra", "der"].into_iter().filter_map(|name| Some((name, metrics.get(name)?)));
        let mut found: String =
            rates.map(|(name, rate)| format!(", {} {:.2} %", name.to_uppercase(), rate * 100.0)).collect();
        if found.is_empty() {
            // No model came out: what a groundwork or a measurement found.
            found = metrics
                .iter()
                .take(4)
                .map(|(name, value)| format!(", {} {value:.4}", name.replace('_', " ")))
                .collect();
        }
        self.note(&format!("{label}: done in {}{found}", duration(seconds)));
        self.summarise();
    }

    /// A cell failed. Said even when quiet: it is an error.
    pub fn failed(&mut self, key: &CellKey, label: &str, reason: &str) {
        self.ended(key);
        self.tally.failed += 1;
        terminal::say(format!("{label}: FAILED: {reason}"));
        self.summarise();
    }

    /// A cell waits again, and runs later.
    pub fn returned(&mut self, key: &CellKey, label: &str, reason: &str, ran: bool) {
        if ran {
            self.ended(key);
        }
        self.note(&format!("{label}: waits again, because {reason}"));
        self.summarise();
    }

    /// A cell will not run, because another one failed.
    pub fn skipped(&mut self, label: &str, parent: &str) {
        self.tally.skipped += 1;
        self.note(&format!("{label}: skipped, because {parent} failed"));
        self.summarise();
    }

    /// A running cell was stopped on request.
    pub fn stopped(&mut self, key: &CellKey) {
        self.ended(key);
        self.summarise();
    }

    /// Takes the bars away.
    pub fn clear(&mut self) {
        if let Screen::Bars { overall, cells } = &mut self.screen {
            for bar in std::mem::take(cells).into_values() {
                bar.finish_and_clear();
            }
            overall.finish_and_clear();
        }
    }

    fn ended(&mut self, key: &CellKey) {
        self.tally.running = self.tally.running.saturating_sub(1);
        match &mut self.screen {
            Screen::Nothing => {}
            Screen::Lines { last } => {
                last.remove(key);
            }
            Screen::Bars { cells, .. } => {
                if let Some(bar) = cells.remove(key) {
                    bar.finish_and_clear();
                }
            }
        }
    }

    /// Renews the line below all others.
    fn summarise(&self) {
        let Screen::Bars { overall, .. } = &self.screen else { return };
        let Tally { done, failed, skipped, running, .. } = self.tally;
        overall.set_position((done + failed + skipped) as u64);
        let mut text = format!("{running} running, {} waiting", self.tally.waiting());
        if failed > 0 {
            text.push_str(&format!(", {failed} failed"));
        }
        if let Some(left) = time_left(self.tally, self.begin.elapsed()) {
            text.push_str(&format!(", about {} left", duration(left.as_secs_f64())));
        }
        overall.set_message(text);
    }
}

/// What is left at the average speed so far; unknown before the first cell has ended.
fn time_left(tally: Tally, elapsed: Duration) -> Option<Duration> {
    let ended = tally.done + tally.failed;
    let left = tally.waiting() + tally.running;
    (ended > 0 && left > 0).then(|| elapsed.mul_f64(left as f64 / ended as f64))
}

fn describe(position: &Position) -> String {
    let Position { stage, count, loss, images_per_second, .. } = position;
    let mut text = stage.clone();
    if !count.is_empty() {
        text.push_str(&format!(", {count}"));
    }
    if let Some(loss) = loss {
        text.push_str(&format!(", loss {loss:.4}"));
    }
    if let Some(speed) = images_per_second {
        text.push_str(&format!(", {speed:.0} images/s"));
    }
    text
}

/// Seconds as people say them: `8.4 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 if seconds < 59.95 => format!("{seconds:.1} s"),
        0..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        let said = [0.04, 8.44, 59.96, 200.0, 7_500.0].map(duration);
        assert_eq!(said, ["0.0 s", "8.4 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]);
    }

    #[test]
    fn what_is_left_is_unknown_before_the_first_cell_has_ended() {
        let tally = Tally { total: 4, running: 2, ..Tally::default() };
        assert_eq!((tally.waiting(), time_left(tally, Duration::from_secs(9))), (2, None));
        let tally = Tally { done: 1, running: 1, ..tally };
        assert_eq!(time_left(tally, Duration::from_secs(10)), Some(Duration::from_secs(30)));
    }

    #[test]
    fn a_position_says_what_is_known_and_nothing_else() {
        let mut position = Position { stage: "train".into(), count: "epoch 3 of 10".into(), ..Position::default() };
        assert_eq!(describe(&position), "train, epoch 3 of 10");
        position.loss = Some(0.51234);
        position.images_per_second = Some(1234.4);
        assert_eq!(describe(&position), "train, epoch 3 of 10, loss 0.5123, 1234 images/s");
    }
}
