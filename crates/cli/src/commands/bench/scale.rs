//! `tsbd bench scale`: how planning and tables behave with very many cells. Hidden from the help: it is for those who change
//! this program, and fills a disk with records that nobody computed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use fs_err as fs;
use serde_json::json;
use tsbd_experiment::{
    Artefact, CellRecord, Outcome, Plan, Provenance, RECORD_FORMAT, ResultRow, RowState, Store, TracePoint, result_rows,
};

use super::{at_least_one, processor_time, usage};
use crate::commands::{plan, table};
use crate::failure::{Exit, Failure, Outcome as Ended};
use crate::options::{DataFolder, Folders, Overrides};
use crate::{planning, terminal};

/// Generate the records of a large grid, and time what is done with them
#[derive(Args, Debug)]
#[command(after_help = crate::command_line::examples!(
    "tsbd bench scale --out scale --cells 100000 --rows 1000000"
    "time tsbd plan scale/scale.toml --results scale/results      the same as a whole process"
))]
pub struct Scale {
    /// Folder for the experiment and its results; what is there already is used
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// About so many cells
    #[arg(long, value_name = "N", default_value = "100000", value_parser = at_least_one)]
    cells: usize,

    /// Rows of the table that is rendered from memory
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = at_least_one)]
    rows: usize,
}

/// Cells for each seed: two attacks, each with a model, an unlearned one, and three repairs.
const PER_SEED: usize = 10;

pub(super) fn run(scale: &Scale) -> Ended {
    let seeds: Vec<usize> = (0..scale.cells.div_ceil(PER_SEED)).collect();
    let file = scale.out.join("scale.toml");
    let text = format!(
        "title = \"Many cells\"\nprofile = \"smoke\"\nseeds = {seeds:?}\n\n[grid]\nattack = [\"badnets\", \"blended\"]\n\
         defense = [\"none\", \"ft\", \"fp\", \"tsbd\"]\n"
    );
    let system = |error: std::io::Error| Failure::from_error(Exit::Failed, error);
    fs::create_dir_all(&scale.out).map_err(system)?;
    fs::write(&file, text).map_err(system)?;
    let folders = Folders { results: scale.out.join("results"), data: DataFolder { data: None } };
    let store = Store::new(&folders.results);
    let lay_out = || planning::to_look(&file, &Overrides::default(), &folders);
    let first = lay_out()?;
    store.note_images(&first.images).map_err(planning::store_failure)?;
    let clock = Clock::start();
    generate(&first, &store).map_err(system)?;
    clock.tell("records written", first.cells.len());

    let clock = Clock::start();
    let laid_out = lay_out()?;
    clock.tell("experiment laid out", laid_out.cells.len());
    let clock = Clock::start();
    let lines = plan::survey(&laid_out, &store, None)?;
    clock.tell("results folder surveyed", lines.len());
    let clock = Clock::start();
    let text = plan::render(&laid_out, &lines);
    clock.tell("plan rendered", text.len());

    let clock = Clock::start();
    let rows = result_rows(&laid_out, &store).map_err(planning::store_failure)?;
    clock.tell("rows read", rows.len());
    let rows = repeated(rows, scale.rows);
    let clock = Clock::start();
    let made = table::of_rows(&rows, &laid_out)?;
    let text = made.render(tsbd_report::Format::Text, tsbd_report::Emphasis::Star).map_err(failed)?;
    clock.tell("table rendered from rows", rows.len());
    terminal::print(&String::from_utf8_lossy(&text));
    let clock = Clock::start();
    let long = tsbd_report::long(&rows).and_then(|long| long.render(tsbd_report::Format::Csv)).map_err(failed)?;
    clock.tell("long form as CSV", long.len());
    Ok(Exit::Done)
}

fn failed(error: tsbd_report::Error) -> Failure {
    Failure::from_error(Exit::Failed, error)
}

/// When something began, on the wall and on the processor.
struct Clock {
    wall: Instant,
    processor: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { wall: Instant::now(), processor: processor_so_far() }
    }

    fn tell(self, what: &str, count: usize) {
        let (wall, processor) = (self.wall.elapsed(), processor_so_far() - self.processor);
        terminal::say(format!(
            "{what}: {:.3} s, {:.3} s of processor time ({count})",
            wall.as_secs_f64(),
            processor.as_secs_f64()
        ));
    }
}

fn processor_so_far() -> Duration {
    usage().as_ref().map(processor_time).unwrap_or_default()
}

/// The rows again and again, each time with other seeds.
fn repeated(rows: Vec<ResultRow>, count: usize) -> Vec<ResultRow> {
    let seeds = rows.iter().map(|row| row.seed).max().map_or(1, |last| last + 1);
    (0..count)
        .map(|position| {
            let (round, row) = (position / rows.len(), &rows[position % rows.len()]);
            let key = format!("{:08x}{}", round, &row.key.as_str()[8..]).parse().expect("it has as many digits");
            ResultRow { seed: row.seed + seeds * round as u64, key, state: RowState::Done, ..row.clone() }
        })
        .collect()
}

/// Records as cells of the profile leave them, without their models' contents. Not synced: nobody misses them.
fn generate(plan: &Plan, store: &Store) -> std::io::Result<()> {
    for (position, (key, cell)) in plan.cells.iter().enumerate() {
        let folder = store.cell_directory(key);
        if folder.join("record.json").exists() {
            continue;
        }
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("cell.toml"), cell.to_toml())?;
        let file = b"what was learned";
        for name in ["model.safetensors", "metrics.jsonl"] {
            fs::write(folder.join(name), file)?;
        }
        // Only lengths are looked at when plans and tables are made.
        let artefact = Artefact { bytes: file.len() as u64, blake3: "0".repeat(64) };
        let share = (position % 997) as f64 / 997.0;
        let metrics = ["acc", "asr", "ra", "der", "acc_before", "asr_before"];
        let trace = (0..15).map(|epoch| TracePoint {
            stage: "train".into(),
            epoch,
            metrics: BTreeMap::from([("mean_loss".into(), share), ("learning_rate".into(), 0.05)]),
        });
        let facts = json!({"poison_count": 500, "asr_denominator": 900, "train_images": 5000, "test_images": 1000});
        let record = CellRecord {
            format: RECORD_FORMAT,
            key: key.clone(),
            cell: cell.clone(),
            outcome: Outcome::Done,
            metrics: metrics.iter().map(|name| ((*name).to_owned(), share)).collect(),
            facts: facts.as_object().expect("it is one").clone(),
            trace: trace.collect(),
            artefacts: ["model.safetensors", "metrics.jsonl"].map(|name| (name.to_owned(), artefact.clone())).into(),
            provenance: Provenance { seconds: 1.0 + share, ..Provenance::default() },
        };
        fs::write(folder.join("record.json"), record.to_json().map_err(std::io::Error::other)?)?;
    }
    Ok(())
}
