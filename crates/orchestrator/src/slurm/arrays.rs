//! Which cells make an array, what it waits for, and its script.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fs_err as fs;
use tsbd_experiment::{CellKey, Plan, SlurmParameters, Store};

use super::{SlurmError, nameable};
use crate::dispatcher::RunOptions;

/// Cells that are submitted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Array {
    /// In the order of their indices.
    pub cells: Vec<CellKey>,
    /// Positions of earlier arrays that make what these cells start from.
    pub after: BTreeSet<usize>,
}

/// Arrays of at most `largest` cells: first those that start from no other of `cells`, then wave by wave those that start
/// from earlier ones. `cells` has parents first; `parents` gives the cells that a cell starts from, among which those that are
/// not in `cells` hold nothing up.
pub(super) fn arrays<'a>(cells: &[CellKey], parents: impl Fn(&CellKey) -> &'a [CellKey], largest: usize) -> Vec<Array> {
    let mut waves: Vec<Vec<&CellKey>> = Vec::new();
    let mut wave_of: BTreeMap<&CellKey, usize> = BTreeMap::new();
    for key in cells {
        let earlier = parents(key).iter().filter_map(|parent| wave_of.get(parent)).max();
        let wave = earlier.map_or(0, |earlier| earlier + 1);
        wave_of.insert(key, wave);
        if wave == waves.len() {
            waves.push(Vec::new());
        }
        waves[wave].push(key);
    }
    let mut arrays: Vec<Array> = Vec::new();
    let mut array_of: BTreeMap<&CellKey, usize> = BTreeMap::new();
    for cells in waves.iter().flat_map(|wave| wave.chunks(largest.max(1))) {
        let after = cells.iter().flat_map(|key| parents(key)).filter_map(|parent| array_of.get(parent).copied());
        let array = Array { cells: cells.iter().map(|key| (*key).clone()).collect(), after: after.collect() };
        array_of.extend(cells.iter().map(|key| (*key, arrays.len())));
        arrays.push(array);
    }
    arrays
}

/// What all job scripts of a run have in common.
#[derive(Debug, Clone)]
pub(super) struct Template {
    pub parameters: SlurmParameters,
    /// Of the experiment, in letters that the name of a job may have.
    pub experiment: String,
    results: PathBuf,
    program: PathBuf,
    data: Option<PathBuf>,
}

impl Template {
    /// Creates the results folder, which has to be there when its path is made absolute.
    pub fn new(plan: &Plan, store: &Store, options: &RunOptions) -> Result<Self, SlurmError> {
        if plan.slurm.gpus > 0 && !cfg!(feature = "cuda") {
            return Err(SlurmError::WithoutCuda { gpus: plan.slurm.gpus });
        }
        fs::create_dir_all(store.root())?;
        let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
        Ok(Self {
            parameters: plan.slurm.clone(),
            experiment: plan.experiment.name.chars().map(plain).collect(),
            results: nameable(store.root())?,
            program: nameable(&options.program)?,
            data: options.data.as_deref().map(nameable).transpose()?,
        })
    }

    /// The script of an array whose `cells` are listed in the file `cells` of `folder`, which takes what they say as
    /// `<index>.out` and what they write on standard error as `<index>.err`.
    pub fn script(&self, folder: &Path, cells: usize) -> String {
        let throttle = self.parameters.at_once.map_or(String::new(), |most| format!("%{most}"));
        let folder = folder.display();
        let mut script = self.head();
        for line in [
            format!("--array=0-{}{throttle}", cells - 1),
            format!("--output=\"{folder}/%a.out\""),
            format!("--error=\"{folder}/%a.err\""),
            "--open-mode=append".to_owned(),
            "--requeue".to_owned(),
        ] {
            script.push_str(&format!("#SBATCH {line}\n"));
        }
        script.push('\n');
        for line in &self.parameters.setup {
            script.push_str(&format!("{line}\n"));
        }
        let data = self.data.as_ref().map_or(String::new(), |data| format!(" --data {}", quoted(data)));
        let threads = self.parameters.cpus;
        // The GPU that Slurm gave is the only one that the job sees.
        let device = if self.parameters.gpus > 0 { "cuda:0" } else { "cpu" };
        script.push_str(&format!(
            r#"# Cells that are done say so and end; the same cell may run twice without harm.
folder={folder}
results={results}
if [ ! -d "$results" ]; then
  echo "the results folder $results is not there on $(hostname): it has to be on a file system that all nodes share" >&2
  exit 1
fi
key=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$folder/cells")
export RAYON_NUM_THREADS={threads}
exec {program} cell "$key" --results "$results"{data} --device {device} --threads {threads}
"#,
            folder = quoted(Path::new(&folder.to_string())),
            results = quoted(&self.results),
            program = quoted(&self.program),
        ));
        script
    }

    /// A script that asks for the same and does nothing: whether Slurm would take it is asked before anything is submitted.
    pub fn trial(&self) -> String {
        self.head() + "\ntrue\n"
    }

    /// What jobs ask for.
    fn head(&self) -> String {
        let SlurmParameters { partition, account, qos, time, memory, cpus, gpus, flags, .. } = &self.parameters;
        let named = [("partition", partition), ("account", account), ("qos", qos), ("time", time), ("mem", memory)];
        let named = named.into_iter().filter_map(|(flag, value)| Some(format!("--{flag}={}", value.as_ref()?)));
        let mut lines = vec![format!("--job-name=tsbd-{}", self.experiment)];
        lines.extend(named);
        lines.extend(["--nodes=1".to_owned(), "--ntasks=1".to_owned(), format!("--cpus-per-task={cpus}")]);
        lines.extend((*gpus > 0).then(|| format!("--gres=gpu:{gpus}")));
        lines.extend(flags.iter().cloned());
        let lines: String = lines.iter().map(|line| format!("#SBATCH {line}\n")).collect();
        format!("#!/bin/bash\n{lines}")
    }
}

/// A path as a shell reads it.
pub(super) fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: usize) -> CellKey {
        format!("{number:032x}").parse().unwrap()
    }

    /// Cell `i` has the earlier cells as parents that the bits of `shape[i]` say.
    fn cells(shape: &[u16]) -> (Vec<CellKey>, BTreeMap<CellKey, Vec<CellKey>>) {
        let keys: Vec<CellKey> = (0..shape.len()).map(key).collect();
        let parents = |position: usize| (0..position).filter(move |earlier| shape[position] & (1 << earlier) != 0);
        let parents = keys.iter().enumerate().map(|(position, key)| {
            (key.clone(), parents(position).take(2).map(|earlier| keys[earlier].clone()).collect())
        });
        (keys.clone(), parents.collect())
    }

    proptest! {
        #[test]
        fn every_cell_is_in_one_array_after_all_arrays_of_its_parents(
            shape in proptest::collection::vec(any::<u16>(), 1..16),
            largest in 1_usize..6,
        ) {
            let (keys, parents) = cells(&shape);
            let arrays = arrays(&keys, |key| &parents[key], largest);
            let mut array_of = BTreeMap::new();
            for (position, array) in arrays.iter().enumerate() {
                prop_assert!(!array.cells.is_empty() && array.cells.len() <= largest);
                prop_assert!(array.after.iter().all(|earlier| *earlier < position));
                for cell in &array.cells {
                    prop_assert!(array_of.insert(cell.clone(), position).is_none());
                }
            }
            prop_assert_eq!(array_of.len(), keys.len());
            for (cell, position) in &array_of {
                let after = &arrays[*position].after;
                prop_assert!(parents[cell].iter().all(|parent| after.contains(&array_of[parent])));
            }
        }
    }

    #[test]
    fn a_model_and_its_repairs_are_two_waves_and_parents_with_results_hold_nothing_up() {
        let (keys, parents) = cells(&[0, 0, 0b01, 0b10, 0b11]);
        let all = arrays(&keys, |key| &parents[key], 1000);
        assert_eq!(all.iter().map(|array| array.cells.len()).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(all[1].after, BTreeSet::from([0]));
        let rest = arrays(&keys[2..], |key| &parents[key], 2);
        assert_eq!(rest.iter().map(|array| array.cells.len()).collect::<Vec<_>>(), [2, 1]);
        assert!(rest.iter().all(|array| array.after.is_empty()));
    }

    #[test]
    fn a_script_asks_for_what_the_section_says_and_quotes_its_paths() {
        let template = Template {
            parameters: SlurmParameters {
                partition: Some("gpu".into()),
                time: Some("2:00:00".into()),
                memory: Some("8G".into()),
                cpus: 4,
                gpus: 1,
                at_once: Some(20),
                flags: vec!["--exclusive".into()],
                setup: vec!["module load gcc".into()],
                ..SlurmParameters::default()
            },
            experiment: "table1".into(),
            results: "/home/it's me/results".into(),
            program: "/opt/tsbd".into(),
            data: Some("/data".into()),
        };
        let script = template.script(Path::new("/home/it's me/results/slurm/1"), 100);
        for line in [
            "#!/bin/bash",
            "#SBATCH --job-name=tsbd-table1",
            "#SBATCH --partition=gpu",
            "#SBATCH --time=2:00:00",
            "#SBATCH --mem=8G",
            "#SBATCH --cpus-per-task=4",
            "#SBATCH --gres=gpu:1",
            "#SBATCH --exclusive",
            "#SBATCH --array=0-99%20",
            "#SBATCH --output=\"/home/it's me/results/slurm/1/%a.out\"",
            "#SBATCH --requeue",
            "module load gcc",
            " --device cuda:0 --threads 4",
            r"results='/home/it'\''s me/results'",
        ] {
            assert!(script.contains(line), "`{line}` is not in:\n{script}");
        }
        assert!(script.lines().all(|line| !line.starts_with("#SBATCH") || line.find("module").is_none()));
        let checked = std::process::Command::new("bash").args(["-n", "-c", &script]).status().unwrap();
        assert!(checked.success());
    }
}
