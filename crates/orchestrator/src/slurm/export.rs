//! The job scripts of a plan as files, for people who submit by hand.

use std::path::{Path, PathBuf};

use fs_err as fs;
use tsbd_experiment::store::write_atomically;
use tsbd_experiment::{CellKey, Plan, Store, Verification, outstanding};

use super::arrays::{Template, arrays, quoted};
use super::{SlurmError, nameable};
use crate::dispatcher::{RunError, RunOptions};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The script that submits everything.
    pub submit: PathBuf,
    /// Cells in all arrays together.
    pub cells: usize,
    /// Arrays.
    pub arrays: usize,
}

/// Largest array that every cluster takes, unless its administrator says otherwise.
const LARGEST: usize = 1000;

/// Writes the arrays of everything outstanding of `plan` into the folder `out`, with a script that submits them in their
/// order, and describes the cells in the results folder. Submits nothing, and asks no cluster.
pub fn export_slurm(plan: &Plan, store: &Store, out: &Path, options: &RunOptions) -> Result<Exported, RunError> {
    let template = Template::new(plan, store, options)?;
    let out = nameable(out)?;
    let is_empty = fs::read_dir(&out).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty {
        let reason = "there are files already, perhaps of jobs that are still in a queue".to_owned();
        return Err(SlurmError::Path { path: out, reason }.into());
    }
    store.note_images(&plan.images)?;
    store.note_run(&plan.experiment)?;
    let survey = store.survey(plan, Verification::Sizes)?;
    let todo = outstanding(plan, &survey.found);
    for key in &todo {
        store.describe(&plan.cells[key])?;
    }
    let largest = plan.slurm.array_size.unwrap_or(LARGEST);
    let arrays = arrays(&todo, |key: &CellKey| plan.cells[key].parents.as_slice(), largest);
    let mut submit = "#!/bin/bash\n# Submits every array; each waits for those that make what its cells start from.\n\
                      set -euo pipefail\n"
        .to_owned();
    for (position, array) in arrays.iter().enumerate() {
        let folder = out.join(format!("array-{}", position + 1));
        let keys: String = array.cells.iter().map(|key| format!("{key}\n")).collect();
        write_atomically(&folder.join("cells"), keys.as_bytes())?;
        write_atomically(&folder.join("job.sh"), template.script(&folder, array.cells.len()).as_bytes())?;
        let after: String = array.after.iter().map(|earlier| format!(":$job{}", earlier + 1)).collect();
        let after = if after.is_empty() { after } else { format!(" --dependency=afterany{after}") };
        let number = position + 1;
        submit.push_str(&format!("job{number}=$(sbatch --parsable{after} {})\n", quoted(&folder.join("job.sh"))));
        submit.push_str(&format!("job{number}=${{job{number}%%;*}}\n"));
        submit.push_str(&format!("echo \"{} cells submitted as job $job{number}\"\n", array.cells.len()));
    }
    let script = out.join("submit.sh");
    write_atomically(&script, submit.as_bytes())?;
    write_atomically(&out.join("README.md"), readme(plan, todo.len(), arrays.len()).as_bytes())?;
    Ok(Exported { submit: script, cells: todo.len(), arrays: arrays.len() })
}

fn readme(plan: &Plan, cells: usize, arrays: usize) -> String {
    let name = &plan.experiment.name;
    format!(
        "# {}: {cells} cells in {arrays} job arrays\n\
         \n\
         1. `bash submit.sh` submits them. An array starts after all tasks of the arrays that it depends on have ended.\n\
         2. `squeue --me` shows them. What a cell says lies in `array-N/INDEX.out`, its errors in `array-N/INDEX.err`; line\n\
         \x20  INDEX + 1 of `array-N/cells` is its key, the name of its folder in the results.\n\
         3. `tsbd table {name}.toml` makes the table of what is there at any time, from the same results folder.\n\
         \n\
         A cell that is done is never computed again, so everything may be submitted again: after a failure, export once\n\
         more into another folder, which has only what is left. `tsbd run {name}.toml --executor slurm` submits and follows\n\
         by itself instead; do not use both at the same time.\n\
         \n\
         The results folder, the data and this folder have to be on a file system that all nodes share. What jobs ask for is\n\
         the section `[slurm]` of the experiment.\n",
        plan.experiment.title
    )
}
