//! `tsbd figure`: the figure that an experiment file asks for.

use std::path::{Path, PathBuf};

use clap::Args;
use tsbd_attack::{LEARNED_TRIGGER, TriggeredTest};
use tsbd_data::{ImageSource, Picture, write_png};
use tsbd_experiment::store::write_atomically;
use tsbd_experiment::{FigureSpec, GridPoint, Plan, Store, registry};
use tsbd_report::chart::Chart;
use tsbd_report::{GridColumn, PictureGrid};

use crate::command_line::examples;
use crate::commands::{data, table};
use crate::failure::{Exit, Failure, Outcome};
use crate::options::{Folders, Overrides};
use crate::planning;
use crate::terminal::{self, Talk};
use crate::workbench::Workbench;

/// Draw the figure of an experiment
///
/// The file says which in its section `[figure]`. `kind = "curves"` and `kind = "bars"` show the experiment's table from
/// the results there are, as SVG and as PNG: its rows along the horizontal axis, a curve or bar for each of its columns, a panel for each
/// metric. Nothing is trained for them.
///
/// `kind = "triggers"` shows what each attack of the grid does to one test image. No model is trained for it; what an attack
/// starts from is taken from the results folder, or made there. A trigger that is learned with a model is taken from the
/// results folder, and left out where it is not there.
#[derive(Args, Debug)]
#[command(after_help = examples!(
    "tsbd figure experiments/triggers.toml                      figures/triggers.png"
    "tsbd figure experiments/triggers.toml --set figure.image=7 another image"
    "tsbd figure experiments/triggers.toml --profile smoke --set 'grid.attack=[\"badnets\", \"sig\"]'"
))]
pub struct Arguments {
    /// Experiment file
    file: PathBuf,

    /// Folder for the figure, which is named after the experiment
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
    let spec = planning::to_look(&file, &overrides, &folders)?.experiment.figure;
    let path = |extension: &str| out.join(file.file_stem().unwrap_or_default()).with_extension(extension);
    let written = match spec {
        Some(FigureSpec::Triggers { image }) => {
            let plan = planning::to_run(&file, &overrides, &folders)?;
            let drawn = triggers(&plan, image, &folders, talk)?.draw();
            let path = path("png");
            make_folder(&out)?;
            write_png(&path, &drawn.pixels, (drawn.height, drawn.width)).map_err(data::failure)?;
            vec![path]
        }
        Some(FigureSpec::Curves { logarithmic }) => {
            let table = table::of(&file, &overrides, &folders)?;
            write_chart(table.curves(logarithmic), &out, path)?
        }
        Some(FigureSpec::Bars) => write_chart(table::of(&file, &overrides, &folders)?.bars(), &out, path)?,
        None => {
            return Err(Failure::refused(format!("{}: there is no section [figure]", file.display()))
                .hint("add one: [figure] kind = \"curves\", \"bars\" or \"triggers\""));
        }
    };
    written.iter().for_each(|path| terminal::print(&format!("{}\n", path.display())));
    Ok(Exit::Done)
}

fn make_folder(folder: &Path) -> Result<(), Failure> {
    fs_err::create_dir_all(folder).map_err(|error| Failure::from_error(Exit::Failed, error))
}

/// Draws a chart and writes it as SVG and as PNG.
fn write_chart(
    chart: tsbd_report::Result<Chart>,
    folder: &Path,
    path: impl Fn(&str) -> PathBuf,
) -> Result<Vec<PathBuf>, Failure> {
    /// Dots to a pixel of the PNG.
    const SCALE: f32 = 2.0;
    let failed = |error| Failure::from_error(Exit::Failed, error);
    let drawing = chart.and_then(|chart| chart.draw()).map_err(failed)?;
    let png = drawing.png(SCALE).map_err(failed)?;
    make_folder(folder)?;
    let files = [("svg", drawing.svg.into_bytes()), ("png", png)];
    let write = |(extension, bytes): (&str, Vec<u8>)| {
        let path = path(extension);
        write_atomically(&path, &bytes).map_err(planning::store_failure)?;
        Ok(path)
    };
    files.into_iter().map(write).collect()
}

/// How much the differences of images are enlarged to be seen.
const RESIDUAL: u8 = 10;

fn triggers(plan: &Plan, image: usize, folders: &Folders, talk: &Talk) -> Result<PictureGrid, Failure> {
    let mut columns = Vec::new();
    // What a defense does has no part in it.
    for point in plan.points.iter().filter(|point| point.defense == "none" && point.attack != "none") {
        let workbench = Workbench::of(&plan.leading_to(&point.cell), folders, talk)?;
        let mut poisoner = workbench.prepare()?;
        if poisoner.awaits_trigger() {
            let learned = Store::new(&folders.results).artefact(&point.cell, LEARNED_TRIGGER);
            if !learned.is_file() {
                let way_out = format!("`tsbd attack {}` trains one", point.attack);
                terminal::say(format!("{}: left out, its trigger is learned with a model; {way_out}", point.attack));
                continue;
            }
            poisoner = workbench.poison(Some(&learned))?;
        }
        let Some(test) = &poisoner.test else { continue };
        columns.push(GridColumn { title: title(point), pictures: pictures(test, image)? });
    }
    if columns.is_empty() {
        return Err(Failure::refused("no attack of the grid has a trigger to show")
            .hint("[grid] needs an attack other than \"none\" together with defense = [\"none\"]"));
    }
    let rows = ["clean".to_owned(), "triggered".to_owned(), format!("residual x {RESIDUAL}")];
    Ok(PictureGrid { title: plan.experiment.title.clone(), rows: rows.into(), columns })
}

/// The attack as papers print it, and where the point lies on the other axes.
fn title(point: &GridPoint) -> String {
    let name = registry::attack(&point.attack).map_or(point.attack.as_str(), |entry| entry.title);
    let axes = point.axes.values().map(|value| format!(" {value}"));
    std::iter::once(name.to_owned()).chain(axes).collect()
}

/// The clean image, the triggered one, and the size of their difference, enlarged.
fn pictures(test: &TriggeredTest, image: usize) -> Result<Vec<Picture>, Failure> {
    if image >= test.len() {
        let images = test.len();
        return Err(Failure::refused(format!("`figure.image` = {image}: only {images} test images are triggered"))
            .hint(format!("give a number from 0 to {}", images.saturating_sub(1))));
    }
    let (clean, triggered) = (test.beneath().image(test.index(image)), test.image(image));
    let residual = clean.iter().zip(triggered).map(|(a, b)| a.abs_diff(*b).saturating_mul(RESIDUAL)).collect();
    let picture = |pixels| Picture { pixels, height: test.height(), width: test.width() };
    Ok([clean.to_vec(), triggered.to_vec(), residual].into_iter().map(picture).collect())
}
