//! `tsbd figure`: the figure that an experiment file asks for.

use std::path::{Path, PathBuf};

use clap::Args;
use tsbd_attack::{LEARNED_TRIGGER, TriggeredTest};
use tsbd_data::{ImageSource, Picture};
use tsbd_experiment::store::write_atomically;
use tsbd_experiment::{FigureSpec, GridPoint, Plan, RowState, Store, neuron_rows, registry, result_rows};
use tsbd_report::chart::Drawing;
use tsbd_report::{GridColumn, NeuronFigure, PictureGrid};

use crate::command_line::examples;
use crate::commands::table;
use crate::failure::{Exit, Failure, Outcome};
use crate::labels;
use crate::options::{Folders, OpenDevice, Overrides};
use crate::planning;
use crate::terminal::{self, Talk};
use crate::workbench::{self, Workbench};

/// Draw the figure of an experiment
///
/// The file says which in its section `[figure]`. From the results there are, as SVG and as PNG:
///
/// `kind = "curves"` and `"bars"` show the experiment's table: its rows along the horizontal axis, a curve or bar for each of
/// its columns, a panel for each metric.
///
/// `kind = "weight-changes"`, `"activeness"`, `"activations"` and `"coverage"` show what the measurements `nwc`, `activeness`,
/// `activations` and `coverage` found, a panel for each attack.
///
/// `kind = "triggers"` shows what each attack of the grid does to one test image. No backdoored model is trained for it; what an
/// attack starts from, such as a clean model, is taken from the results folder, or made there. A trigger that is learned with a model is taken from the
/// results folder, and left out where it is not there.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd figure experiments/fig6.toml                          figures/fig6-quick.svg and figures/fig6-quick.png"
    "tsbd figure experiments/triggers.toml                      figures/triggers-quick.png"
    "tsbd figure experiments/triggers.toml --set figure.image=7    another image"
    "tsbd figure experiments/triggers.toml --profile smoke --set 'grid.attack=[\"badnets\", \"sig\"]'"
))]
pub struct Arguments {
    /// Experiment file
    file: PathBuf,

    /// Folder for the figure, which is named after the experiment and the profile
    #[arg(long, value_name = "DIR", default_value = "figures")]
    out: PathBuf,

    #[command(flatten)]
    overrides: Overrides,

    #[command(flatten)]
    folders: Folders,
}

/// Draws and writes.
pub fn run(arguments: Arguments, talk: &Talk) -> Outcome {
    let Arguments { file, out, overrides, folders } = arguments;
    // Results that are there need no data.
    let plan = planning::to_look(&file, &overrides, &folders)?;
    let path = |extension: &str| path(&out, &plan, extension);
    let make_folder = || fs_err::create_dir_all(&out).map_err(|error| Failure::from_error(Exit::Failed, error));
    let written = match plan.experiment.figure {
        Some(FigureSpec::Triggers { image }) => {
            let plan = planning::to_run(&file, &overrides, &folders)?;
            let drawn = triggers(&plan, image, &folders, talk)?.png(&shown(&plan, image));
            let png = drawn.map_err(|error| Failure::from_error(Exit::Failed, error))?;
            make_folder()?;
            write_atomically(&path("png"), &png).map_err(planning::store_failure)?;
            vec![path("png")]
        }
        Some(spec) => {
            let drawing = draw(spec, &plan, &folders)?;
            let png = drawing.png(SCALE).map_err(|error| Failure::from_error(Exit::Failed, error))?;
            make_folder()?;
            for (extension, bytes) in [("svg", drawing.svg.as_bytes()), ("png", &png)] {
                write_atomically(&path(extension), bytes).map_err(planning::store_failure)?;
            }
            vec![path("svg"), path("png")]
        }
        None => {
            return Err(Failure::refused(format!("{}: there is no section [figure]", file.display()))
                .hint("add one: [figure] kind = \"curves\"; `tsbd figure --help` has the kinds"));
        }
    };
    written.iter().for_each(|path| terminal::print(&format!("{}\n", path.display())));
    Ok(Exit::Done)
}

/// Where the figure of an experiment is written: each profile has its own.
pub fn path(folder: &Path, plan: &Plan, extension: &str) -> PathBuf {
    folder.join(format!("{}-{}.{extension}", plan.experiment.name, plan.experiment.profile))
}

/// The picture of triggers that `tsbd figure` left, if it shows this plan's: not after `--set`, or of an earlier file.
pub fn left_picture(folder: &Path, plan: &Plan, image: usize) -> Option<Vec<u8>> {
    let png = fs_err::read(path(folder, plan, "png")).ok()?;
    (tsbd_report::remark(&png)? == shown(plan, image)).then_some(png)
}

/// What a picture of triggers shows, exactly.
fn shown(plan: &Plan, image: usize) -> String {
    let cells: Vec<&str> = with_triggers(plan).map(|point| point.cell.as_str()).collect();
    format!("tsbd triggers of test image {image}, cells {}", cells.join(" "))
}

/// The points whose triggers are shown: what a defense does has no part in it.
fn with_triggers(plan: &Plan) -> impl Iterator<Item = &GridPoint> {
    plan.points.iter().filter(|point| point.defense == "none" && point.attack != "none")
}

/// Dots to a pixel of a PNG.
const SCALE: f32 = 2.0;

/// The figure of an experiment from the results there are.
///
/// # Panics
/// If it is a picture of triggers, which are no results.
pub fn draw(spec: FigureSpec, plan: &Plan, folders: &Folders) -> Result<Drawing, Failure> {
    let store = Store::new(&folders.results);
    let rows = result_rows(plan, &store).map_err(planning::store_failure)?;
    if rows.iter().all(|row| row.state != RowState::Done) {
        let experiment = &plan.experiment.name;
        return Err(Failure::refused(format!("{experiment}: no cell has a result in {} yet", store.root().display()))
            .hint("`tsbd run` with the same file and flags makes them"));
    }
    let of_neurons = |figure: NeuronFigure| {
        let cells = neuron_rows(&rows, &store).map_err(planning::store_failure)?;
        Ok(figure.chart(&cells, &rows, &plan.experiment, &table::titles()))
    };
    let chart = match spec {
        FigureSpec::Curves { logarithmic } => table::of_rows(&rows, plan)?.curves(logarithmic),
        FigureSpec::Bars => Ok(table::of_rows(&rows, plan)?.bars()),
        FigureSpec::WeightChanges => of_neurons(NeuronFigure::WeightChanges)?,
        FigureSpec::Activeness => of_neurons(NeuronFigure::Activeness)?,
        FigureSpec::Activations => of_neurons(NeuronFigure::Activations)?,
        FigureSpec::Coverage => of_neurons(NeuronFigure::Coverage)?,
        FigureSpec::Triggers { .. } => unreachable!("a picture of triggers is no chart"),
    };
    chart.and_then(|chart| chart.draw()).map_err(|error| Failure::from_error(Exit::Failed, error))
}

/// How much the differences of images are enlarged to be seen.
const RESIDUAL: u8 = 10;

fn triggers(plan: &Plan, image: usize, folders: &Folders, talk: &Talk) -> Result<PictureGrid, Failure> {
    let mut columns = Vec::new();
    let several_seeds = plan.points.iter().any(|point| point.seed != plan.points[0].seed);
    for point in with_triggers(plan) {
        let workbench = Workbench::of(&plan.leading_to(&point.cell), folders, OpenDevice::cpu(), talk)?;
        let triggered = workbench.triggered()?;
        let Some(&index) = triggered.get(image) else {
            let (images, most) = (triggered.len(), triggered.len().saturating_sub(1));
            return Err(Failure::refused(format!("`figure.image` = {image}: only {images} test images are triggered"))
                .hint(format!("give a number from 0 to {most}")));
        };
        let workbench = workbench.with_one_test_image(index);
        let mut poisoner = workbench.prepare()?;
        if poisoner.awaits_trigger() {
            let learned = Store::new(&folders.results).artefact(&point.cell, LEARNED_TRIGGER);
            if !learned.is_file() {
                let way_out = format!("`tsbd attack {}` trains one", point.attack);
                terminal::say(format!("{}: left out, its trigger is learned with a model; {way_out}", point.attack));
                continue;
            }
            poisoner = poisoner.with_learned_trigger(&learned).map_err(workbench::failed)?;
        }
        let Some(test) = &poisoner.test else { continue };
        let seed = several_seeds.then_some(point.seed);
        columns.push(GridColumn { title: title(point, seed), pictures: pictures(test) });
    }
    if columns.is_empty() {
        return Err(Failure::refused("no attack of the grid has a trigger to show")
            .hint("[grid] needs an attack other than \"none\" together with defense = [\"none\"]"));
    }
    let rows = ["clean".to_owned(), "triggered".to_owned(), format!("residual x {RESIDUAL}")];
    Ok(PictureGrid { title: plan.experiment.title.clone(), rows: rows.into(), columns })
}

/// The attack as papers print it, and where the point lies on the other axes and among several seeds.
fn title(point: &GridPoint, seed: Option<u64>) -> String {
    let name = registry::attack(&point.attack).map_or(point.attack.as_str(), |entry| entry.title);
    let seed = seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
    format!("{name}{}{seed}", labels::of_axes(point))
}

/// The clean image, the triggered one, and the size of their difference, enlarged.
fn pictures(test: &TriggeredTest) -> Vec<Picture> {
    let (clean, triggered) = (test.beneath().image(test.index(0)), test.image(0));
    let residual = clean.iter().zip(triggered).map(|(a, b)| a.abs_diff(*b).saturating_mul(RESIDUAL)).collect();
    let picture = |pixels| Picture { pixels, height: test.height(), width: test.width() };
    [clean.to_vec(), triggered.to_vec(), residual].into_iter().map(picture).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn titles_tell_points_apart_and_print_words_without_quotes() {
        let axes = [("attacks.badnets.trigger", json!("grid")), ("attack.poisoning_ratio", json!(0.1))];
        let point = GridPoint {
            attack: "badnets".to_owned(),
            defense: "none".to_owned(),
            seed: 3,
            measure: "none".to_owned(),
            axes: axes.map(|(axis, value)| (axis.to_owned(), value)).into(),
            cell: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        };
        assert_eq!(title(&point, None), "BadNets, poisoning_ratio 0.1, trigger grid");
        assert_eq!(title(&point, Some(3)), "BadNets, poisoning_ratio 0.1, trigger grid, seed 3");
    }
}
