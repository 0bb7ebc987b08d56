//! The progress of a grid on standard error: bars where there is a terminal, plain lines everywhere else.
//!
//! Knows nothing of processes: it is told what happens, in the words of the cells' labels.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tsbd_experiment::CellKey;
use tsbd_orchestrator::Pace;

use crate::terminal;

/// How old a forecast may be.
const FORECAST: Duration = Duration::from_secs(10);

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

/// One cell that has to run.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Work {
    /// What it costs against the others, in any unit; of one of unknown cost that of the average cell.
    weight: f64,
    state: State,
}

/// How far a cell is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Waiting,
    Running {
        since: Instant,
    },
    Done {
        /// How long it took.
        seconds: f64,
    },
    Failed,
    /// Not run, because a parent failed.
    Skipped,
}

/// What is shown.
pub struct Progress {
    screen: Screen,
    cells: BTreeMap<CellKey, Work>,
    /// Of the cells that run.
    paces: BTreeMap<CellKey, Pace>,
    begin: Instant,
    /// When what is left was last thought of, and what it was then.
    forecast: Option<(Instant, Duration)>,
}

enum Screen {
    Nothing,
    Lines { last: BTreeMap<CellKey, Instant> },
    Bars { overall: ProgressBar, cells: BTreeMap<CellKey, ProgressBar> },
}

impl Progress {
    /// The progress of the cells that have to run, with what each costs against the others, as far as it is known.
    pub fn new(cells: impl IntoIterator<Item = (CellKey, Option<f64>)>, quiet: bool) -> Self {
        let cells = weighed(cells.into_iter().collect());
        let total = cells.len();
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
        let progress = Self { screen, cells, paces: BTreeMap::new(), begin: Instant::now(), forecast: None };
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
        self.is_now(key, State::Running { since: Instant::now() });
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
        let now = Instant::now();
        let left = self.paces.entry(key.clone()).or_default().seconds_left(&position.stage, position.share, now);
        if self.forecast.is_some_and(|(then, _)| now.duration_since(then) >= FORECAST) {
            self.forecast = self.time_left().map(|left| (now, left));
        }
        match &mut self.screen {
            Screen::Nothing => {}
            Screen::Lines { last } => {
                let before = last.entry(key.clone()).or_insert(now);
                if now - *before >= PATIENCE {
                    *before = now;
                    terminal::say(format!("{label}: {}", describe(position, left)));
                }
            }
            Screen::Bars { cells, .. } => {
                if let Some(bar) = cells.get(key) {
                    bar.set_position((position.share.clamp(0.0, 1.0) * 1000.0) as u64);
                    bar.set_message(describe(position, left));
                }
            }
        }
        self.summarise();
    }

    /// A cell is done.
    pub fn finished(&mut self, key: &CellKey, label: &str, seconds: f64, metrics: &BTreeMap<String, f64>) {
        let took = match self.cells.get(key).map(|work| work.state) {
            Some(State::Running { since }) => since.elapsed().as_secs_f64(),
            _ => seconds,
        };
        self.ended(key, State::Done { seconds: took });
        self.forecast = self.time_left().map(|left| (Instant::now(), left));
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
        self.note(&format!("{label}: done in {}{found} {}", duration(seconds), self.tally()));
        self.summarise();
    }

    /// A cell failed. Said even when quiet: it is an error.
    pub fn failed(&mut self, key: &CellKey, label: &str, reason: &str) {
        self.ended(key, State::Failed);
        terminal::say(format!("{label}: FAILED: {reason} {}", self.tally()));
        self.summarise();
    }

    /// A cell waits again, and runs later.
    pub fn returned(&mut self, key: &CellKey, label: &str, reason: &str, ran: bool) {
        if ran {
            self.ended(key, State::Waiting);
        }
        self.note(&format!("{label}: waits again, because {reason}"));
        self.summarise();
    }

    /// A cell will not run, because another one failed.
    pub fn skipped(&mut self, key: &CellKey, label: &str, parent: &str) {
        self.is_now(key, State::Skipped);
        self.note(&format!("{label}: skipped, because {parent} failed {}", self.tally()));
        self.summarise();
    }

    /// A running cell was stopped on request.
    pub fn stopped(&mut self, key: &CellKey) {
        self.ended(key, State::Waiting);
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

    fn is_now(&mut self, key: &CellKey, state: State) {
        if let Some(work) = self.cells.get_mut(key) {
            work.state = state;
        }
    }

    fn ended(&mut self, key: &CellKey, state: State) {
        self.is_now(key, state);
        self.paces.remove(key);
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

    fn count(&self, is: impl Fn(&State) -> bool) -> usize {
        self.cells.values().filter(|work| is(&work.state)).count()
    }

    /// How far everything is, behind the line of a cell: `[12 of 58, 1 failed, about 2 h 10 min left]`.
    fn tally(&self) -> String {
        let done = self.count(|state| matches!(state, State::Done { .. }));
        format!("[{done} of {}{}{}]", self.cells.len(), self.without_result(), self.left())
    }

    /// `, 1 failed, 10 skipped`, as far as there are such cells.
    fn without_result(&self) -> String {
        let failed = self.count(|state| matches!(state, State::Failed));
        let skipped = self.count(|state| matches!(state, State::Skipped));
        let counts = [(failed, "failed"), (skipped, "skipped")];
        counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!(", {count} {what}")).collect()
    }

    /// `, about 2 h 10 min left`, if it is known.
    fn left(&self) -> String {
        let left = self.forecast.and_then(|(then, left)| left.checked_sub(then.elapsed()));
        left.filter(|left| !left.is_zero())
            .map_or(String::new(), |left| format!(", about {} left", duration(left.as_secs_f64())))
    }

    fn time_left(&self) -> Option<Duration> {
        time_left(self.cells.values(), self.begin.elapsed(), Instant::now())
    }

    /// Renews the line below all others.
    fn summarise(&self) {
        let Screen::Bars { overall, .. } = &self.screen else { return };
        let running = self.count(|state| matches!(state, State::Running { .. }));
        let waiting = self.count(|state| matches!(state, State::Waiting));
        overall.set_position(self.count(|state| matches!(state, State::Done { .. })) as u64);
        overall.set_message(format!("{running} running, {waiting} waiting{}{}", self.without_result(), self.left()));
    }
}

/// Cells that wait, each with its weight. Where nothing is known of any, all weigh the same.
fn weighed(cells: Vec<(CellKey, Option<f64>)>) -> BTreeMap<CellKey, Work> {
    let known: Vec<f64> = cells.iter().filter_map(|(_, seconds)| *seconds).collect();
    let average = if known.is_empty() { 1.0 } else { known.iter().sum::<f64>() / known.len() as f64 };
    let work = |known: Option<f64>| Work { weight: known.unwrap_or(average), state: State::Waiting };
    cells.into_iter().map(|(key, seconds)| (key, work(seconds))).collect()
}

/// What is left of the time that the work will probably take, at the speed so far; unknown before the first cell is done.
///
/// Work is counted in weights. How far a running cell is follows from its time and from how long the
/// cells that are done took for theirs; so it does not matter how many run beside each other.
fn time_left<'a>(cells: impl Iterator<Item = &'a Work> + Clone, elapsed: Duration, now: Instant) -> Option<Duration> {
    let done = cells.clone().filter_map(|work| match work.state {
        State::Done { seconds } => Some((work.weight, seconds)),
        _ => None,
    });
    let (done, took) = done.fold((0.0, 0.0), |(done, took), (weight, seconds)| (done + weight, took + seconds));
    if done <= 0.0 || took <= 0.0 {
        return None;
    }
    let speed = done / took;
    let (mut done, mut left) = (done, 0.0);
    for work in cells {
        match work.state {
            State::Waiting => left += work.weight,
            State::Running { since } => {
                // Nothing is done before it is.
                let part = (now.duration_since(since).as_secs_f64() * speed).min(0.95 * work.weight);
                done += part;
                left += work.weight - part;
            }
            State::Done { .. } | State::Failed | State::Skipped => {}
        }
    }
    (left > 0.0).then(|| elapsed.mul_f64(left / done))
}

/// Where a cell is, and how many seconds its stage will go on, if that is known.
fn describe(position: &Position, left: Option<f64>) -> String {
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
    if let Some(left) = left {
        text.push_str(&format!(", {} to go", duration(left)));
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

    fn work(weight: f64, state: State) -> Work {
        Work { weight, state }
    }

    #[test]
    fn what_is_left_is_unknown_before_the_first_cell_is_done_and_weighs_cells_by_what_they_take() {
        let now = Instant::now();
        let left = |cells: &[Work], elapsed| time_left(cells.iter(), Duration::from_secs(elapsed), now);
        let begun = State::Running { since: now };
        assert_eq!(left(&[work(1.0, begun), work(1.0, State::Waiting)], 9), None);
        assert_eq!(left(&[work(1.0, State::Failed), work(1.0, State::Waiting)], 9), None);
        let done = State::Done { seconds: 10.0 };
        let equal = [work(1.0, done), work(1.0, begun), work(1.0, State::Waiting), work(1.0, State::Waiting)];
        assert_eq!(left(&equal, 10), Some(Duration::from_secs(30)));
        // A training that takes ten times as long as the repair that is done.
        assert_eq!(left(&[work(5.0, done), work(50.0, State::Waiting)], 10), Some(Duration::from_secs(100)));
        assert_eq!(left(&[work(5.0, done), work(50.0, State::Skipped)], 10), None);
    }

    #[test]
    fn cells_that_run_beside_each_other_do_not_double_what_is_left() {
        let now = Instant::now() + Duration::from_secs(10);
        let begun = State::Running { since: now - Duration::from_secs(10) };
        let cells = [work(10.0, State::Done { seconds: 10.0 }), work(100.0, begun), work(90.0, State::Waiting)];
        // In 10 s two workers did 10 + 10 of 200.
        let left = time_left(cells.iter(), Duration::from_secs(10), now).unwrap();
        assert!((left.as_secs_f64() - 90.0).abs() < 1e-6, "{left:?}");
    }

    #[test]
    fn a_cell_of_unknown_cost_is_an_average_one() {
        let key = |digit: char| digit.to_string().repeat(32).parse::<CellKey>().unwrap();
        let cells = weighed(vec![(key('1'), Some(10.0)), (key('2'), Some(30.0)), (key('3'), None)]);
        assert_eq!(cells.values().map(|work| work.weight).collect::<Vec<_>>(), [10.0, 30.0, 20.0]);
        assert!(weighed(vec![(key('1'), None)]).values().all(|work| work.weight == 1.0));
    }

    #[test]
    fn the_tally_counts_what_is_done_and_what_failed() {
        let key = |digit: char| digit.to_string().repeat(32).parse::<CellKey>().unwrap();
        let mut progress = Progress::new(['1', '2', '3'].map(|digit| (key(digit), Some(60.0))), true);
        assert_eq!(progress.tally(), "[0 of 3]");
        progress.started(&key('1'), "a", false);
        progress.finished(&key('1'), "a", 60.0, &BTreeMap::new());
        progress.forecast = Some((Instant::now(), Duration::from_secs(7_830)));
        assert_eq!(progress.tally(), "[1 of 3, about 2 h 10 min left]");
        progress.is_now(&key('2'), State::Failed);
        progress.is_now(&key('3'), State::Skipped);
        progress.forecast = None;
        assert_eq!(progress.tally(), "[1 of 3, 1 failed, 1 skipped]");
    }

    #[test]
    fn a_position_says_what_is_known_and_nothing_else() {
        let mut position = Position { stage: "train".into(), count: "epoch 3 of 10".into(), ..Position::default() };
        assert_eq!(describe(&position, None), "train, epoch 3 of 10");
        position.loss = Some(0.51234);
        position.images_per_second = Some(1234.4);
        let all = describe(&position, Some(380.2));
        assert_eq!(all, "train, epoch 3 of 10, loss 0.5123, 1234 images/s, 6 min 20 s to go");
    }
}
