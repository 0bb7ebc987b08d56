//! Slurm's command line, and what its words mean for a cell.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// Number of a job array.
pub(super) type JobId = u64;

/// One task of an array: the array and the index in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TaskId {
    pub job: JobId,
    pub index: u32,
}

impl std::fmt::Display for TaskId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}", self.job, self.index)
    }
}

/// What Slurm says of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    /// `PENDING`, `RUNNING`, `NODE_FAIL`, ...
    pub state: String,
    /// Why it waits, or why it ended: `Dependency`, `BeginTime`, `NonZeroExitCode`, ...
    pub reason: String,
    /// Where it runs; empty if it does not.
    pub node: String,
    /// Name of the array. Numbers are given again by a controller that lost its memory, names are not.
    pub name: String,
}

/// The tasks that Slurm knows.
pub(super) type Tasks = BTreeMap<TaskId, Task>;

/// Why Slurm did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The programs are not there.
    #[error("cannot run {program}: {reason}; run this where jobs are submitted from, or use --executor local")]
    NoProgram {
        /// `sbatch`, `squeue`, ...
        program: String,
        /// What the system says.
        reason: String,
    },
    /// The controller does not answer. Whether it did what it was asked is not known.
    #[error("Slurm's controller does not answer: {reason}")]
    Unreachable {
        /// What the program says.
        reason: String,
    },
    /// It answers, and refuses.
    #[error("Slurm refuses: {reason}; the section [slurm] of the experiment says what jobs ask for")]
    Refused {
        /// What the program says.
        reason: String,
    },
}

impl QueueError {
    /// Whether the jobs that are in the queue already are too many for another: it helps to wait.
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::Refused { reason } if {
            let reason = reason.to_lowercase();
            reason.contains("submit limit") || reason.contains("job count") || reason.contains("too many jobs")
        })
    }
}

/// What is asked of Slurm. Tests have a queue of their own.
pub(super) trait Scheduler: Send + 'static {
    /// Submits an array under a name of its own, to start after all tasks of the arrays `after` have ended.
    fn submit(
        &mut self,
        script: &Path,
        name: &str,
        after: &[JobId],
    ) -> impl Future<Output = Result<JobId, QueueError>> + Send;

    /// The array that was submitted under a name, if Slurm knows it.
    fn find(&mut self, name: &str) -> impl Future<Output = Result<Option<JobId>, QueueError>> + Send;

    /// The tasks of these arrays that Slurm still knows, those that ended a while ago included.
    fn tasks(&mut self, jobs: &[JobId]) -> impl Future<Output = Result<Tasks, QueueError>> + Send;

    /// Cancels tasks; those that have ended already are none the worse.
    fn cancel(&mut self, tasks: &[TaskId]) -> impl Future<Output = Result<(), QueueError>> + Send;

    /// Lets a task go that is held.
    fn release(&mut self, task: TaskId) -> impl Future<Output = Result<(), QueueError>> + Send;
}

/// Slurm itself.
pub(super) struct Commands;

impl Commands {
    /// A command that takes longer has not been answered.
    const PATIENCE: Duration = Duration::from_secs(60);
    /// What Slurm's programs say when the controller is not there or too busy.
    const UNREACHABLE: &[&str] = &[
        "unable to contact",
        "connection refused",
        "connection failure",
        "timed out",
        "not connected",
        "zero bytes",
        "temporarily unable",
        "temporarily unavailable",
        "backup controller",
        "no route to host",
    ];
    /// Tasks of one `scancel`: a command line has an end.
    const CANCELLED_AT_ONCE: usize = 500;

    async fn run(&self, program: &str, arguments: &[&str]) -> Result<String, QueueError> {
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        // Formats that a user set for himself.
        for variable in ["SQUEUE_FORMAT", "SQUEUE_FORMAT2", "SQUEUE_STATES", "SQUEUE_PARTITION", "SQUEUE_USERS"] {
            command.env_remove(variable);
        }
        let output = match tokio::time::timeout(Self::PATIENCE, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => {
                return Err(QueueError::NoProgram { program: program.to_owned(), reason: error.to_string() });
            }
            Err(_) => {
                let reason = format!("{program} had no answer within {} s", Self::PATIENCE.as_secs());
                return Err(QueueError::Unreachable { reason });
            }
        };
        understand(program, &output)
    }

    /// Most tasks of one array.
    pub async fn largest_array(&self) -> Result<usize, QueueError> {
        let text = self.run("scontrol", &["show", "config"]).await?;
        let line = text.lines().find_map(|line| line.strip_prefix("MaxArraySize")?.split('=').nth(1));
        // Slurm's own default, for a controller that does not say.
        Ok(line.and_then(|value| value.trim().parse().ok()).unwrap_or(1001))
    }

    /// Whether a script would be accepted. Submits nothing.
    pub async fn check(&self, script: &Path) -> Result<(), QueueError> {
        let script = script.to_string_lossy();
        self.run("sbatch", &["--test-only", &script]).await.map(drop)
    }
}

/// What a program of Slurm printed, or why it failed.
fn understand(program: &str, output: &Output) -> Result<String, QueueError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
    let reason = format!("{program}: {}", lines.join("; "));
    let folded = reason.to_lowercase();
    Err(match Commands::UNREACHABLE.iter().any(|words| folded.contains(words)) {
        true => QueueError::Unreachable { reason },
        false => QueueError::Refused { reason },
    })
}

impl Scheduler for Commands {
    async fn submit(&mut self, script: &Path, name: &str, after: &[JobId]) -> Result<JobId, QueueError> {
        let (name, script) = (format!("--job-name={name}"), script.to_string_lossy());
        let dependency = after.iter().map(|job| format!(":{job}")).collect::<String>();
        let dependency = format!("--dependency=afterany{dependency}");
        let mut arguments = vec!["--parsable", &name];
        if !after.is_empty() {
            arguments.push(&dependency);
        }
        arguments.push(&script);
        let text = self.run("sbatch", &arguments).await?;
        // `4711` or `4711;cluster`.
        let number = text.trim().split(';').next().unwrap_or_default();
        number.parse().map_err(|_| QueueError::Refused { reason: format!("sbatch printed `{}`", text.trim()) })
    }

    async fn find(&mut self, name: &str) -> Result<Option<JobId>, QueueError> {
        let text = self.run("squeue", &["-h", "-t", "all", "--name", name, "-o", "%F"]).await?;
        Ok(text.lines().find_map(|line| line.trim().parse().ok()))
    }

    async fn tasks(&mut self, jobs: &[JobId]) -> Result<Tasks, QueueError> {
        if jobs.is_empty() {
            return Ok(Tasks::new());
        }
        let jobs: Vec<String> = jobs.iter().map(JobId::to_string).collect();
        let listing = self.run("squeue", &["-h", "-r", "-a", "-t", "all", "-j", &jobs.join(","), "-o", FORMAT]).await;
        match listing {
            Ok(text) => Ok(parse(&text)),
            // It has forgotten all of them, which happens minutes after they ended.
            Err(QueueError::Refused { reason }) if reason.contains("Invalid job id") => Ok(Tasks::new()),
            Err(error) => Err(error),
        }
    }

    async fn cancel(&mut self, tasks: &[TaskId]) -> Result<(), QueueError> {
        for tasks in tasks.chunks(Self::CANCELLED_AT_ONCE) {
            let tasks: Vec<String> = tasks.iter().map(TaskId::to_string).collect();
            let mut arguments = vec!["--quiet"];
            arguments.extend(tasks.iter().map(String::as_str));
            match self.run("scancel", &arguments).await {
                // Those that have ended meanwhile.
                Ok(_) | Err(QueueError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn release(&mut self, task: TaskId) -> Result<(), QueueError> {
        self.run("scontrol", &["release", &task.to_string()]).await.map(drop)
    }
}

/// Array, index, state, reason, node, name.
const FORMAT: &str = "%F|%K|%T|%r|%N|%j";

/// The tasks in what squeue printed. Lines about anything else are left out.
pub(super) fn parse(text: &str) -> Tasks {
    let task = |line: &str| {
        let mut fields = line.trim().splitn(6, '|').map(str::to_owned);
        let id = TaskId { job: fields.next()?.parse().ok()?, index: fields.next()?.parse().ok()? };
        let (state, reason, node, name) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some((id, Task { state, reason, node, name }))
    };
    text.lines().filter_map(task).collect()
}

/// What a cell said of its own end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Word {
    /// Nothing, or nothing since it was started last.
    #[default]
    Nothing,
    /// It failed.
    Failed(String),
    /// It stopped because it was asked to.
    Stopped,
}

/// What to make of a task whose cell has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its time will come.
    Waits,
    /// It runs.
    Runs,
    /// Slurm took it back after a fault and will not start it by itself.
    Held,
    /// Somebody holds it.
    HeldBySomebody,
    /// It waits, and would for ever.
    Never(String),
    /// It has gone without the cell being to blame: it is submitted again.
    Lost(String),
    /// It reached its limit of time.
    OutOfTime,
    /// The cell failed, and would again.
    Failed(String),
    /// Its process ended without a word: it crashed, could not start, or somebody killed it.
    Crashed(String),
    /// Somebody cancelled it.
    Cancelled,
}

/// Reasons to wait that do not pass by themselves.
const NEVER: &[&str] = &[
    "AccountNotAllowed",
    "BadConstraints",
    "DeadLine",
    "InvalidAccount",
    "InvalidQOS",
    "PartitionConfig",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "QOSNotAllowed",
];

/// What became of a task whose cell has no result, by what Slurm says (`None`: it does not know the task) and what the
/// cell said itself.
pub(super) fn judge(task: Option<&Task>, word: &Word) -> Verdict {
    let Some(Task { state, reason, .. }) = task else {
        return match word {
            Word::Failed(reason) => Verdict::Failed(reason.clone()),
            _ => Verdict::Lost("Slurm no longer knows its job".to_owned()),
        };
    };
    // "CANCELLED by 0".
    match state.split_whitespace().next().unwrap_or_default() {
        "PENDING" => {
            let folded = reason.to_lowercase().replace([' ', '_'], "");
            match reason.as_str() {
                _ if folded.contains("requeuedheld") || folded.contains("requeuedinheld") => Verdict::Held,
                "JobHeldUser" | "JobHeldAdmin" => Verdict::HeldBySomebody,
                "DependencyNeverSatisfied" => Verdict::Lost("what it depends on has gone".to_owned()),
                _ if NEVER.contains(&reason.as_str()) => Verdict::Never(reason.clone()),
                _ => Verdict::Waits,
            }
        }
        "RUNNING" => Verdict::Runs,
        "REQUEUE_HOLD" | "SPECIAL_EXIT" => Verdict::Held,
        // The result may not be visible here yet; one that does not appear is lost.
        "COMPLETED" => match word {
            Word::Failed(reason) => Verdict::Failed(reason.clone()),
            _ => Verdict::Lost("its job ended without a result".to_owned()),
        },
        "FAILED" => match word {
            Word::Failed(reason) => Verdict::Failed(reason.clone()),
            Word::Stopped => Verdict::Lost("it was asked to stop".to_owned()),
            Word::Nothing => Verdict::Crashed(format!(
                "its process crashed, was killed or could not start, and gave no reason; Slurm says {reason}, the log below may say more"
            )),
        },
        "TIMEOUT" => Verdict::OutOfTime,
        "OUT_OF_MEMORY" => {
            Verdict::Failed("it needed more memory than its job has; raise `memory` in [slurm]".to_owned())
        }
        "CANCELLED" | "DEADLINE" => Verdict::Cancelled,
        "NODE_FAIL" => Verdict::Lost("its node failed".to_owned()),
        "BOOT_FAIL" => Verdict::Lost("its node did not start".to_owned()),
        "PREEMPTED" => Verdict::Lost("another job took its place".to_owned()),
        "REVOKED" => Verdict::Lost("its job was taken by another cluster".to_owned()),
        // CONFIGURING, COMPLETING, REQUEUED, RESIZING, SIGNALING, STAGE_OUT, STOPPED, SUSPENDED, and words to come.
        _ => Verdict::Waits,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    /// A task in each state. Tasks 0 to 8, 12, 19, 20 and 22 are as squeue 22.05 printed them of a real cluster; the others,
    /// which could not be produced on one machine, are in the words of its manual.
    const RECORDED: &str = include_str!("recorded/squeue.txt");

    fn verdict(index: u32, word: &Word) -> Verdict {
        judge(Some(&parse(RECORDED)[&TaskId { job: 12, index }]), word)
    }

    #[test]
    fn every_state_that_was_recorded_has_its_verdict() {
        let failed = Word::Failed("the loss is NaN".into());
        let lost = |word: &Word, index| matches!(verdict(index, word), Verdict::Lost(_));
        assert_eq!(
            verdict(0, &failed),
            Verdict::Failed("the loss is NaN".into()),
            "COMPLETED, and said that it failed"
        );
        assert!(lost(&Word::Nothing, 0), "COMPLETED without a result");
        assert_eq!(verdict(1, &failed), Verdict::Failed("the loss is NaN".into()), "FAILED NonZeroExitCode");
        assert!(lost(&Word::Stopped, 1), "FAILED with exit code 130");
        assert!(matches!(verdict(2, &Word::Nothing), Verdict::Crashed(reason) if reason.contains("JobLaunchFailure")));
        assert_eq!(verdict(3, &Word::Stopped), Verdict::OutOfTime);
        assert!(matches!(verdict(4, &Word::Nothing), Verdict::Failed(reason) if reason.contains("`memory`")));
        assert_eq!(verdict(5, &Word::Nothing), Verdict::Cancelled);
        assert!(lost(&Word::Nothing, 6), "NODE_FAIL");
        assert_eq!(verdict(7, &Word::Nothing), Verdict::Waits, "PENDING BeginTime after a requeue");
        assert!(lost(&Word::Nothing, 8), "PREEMPTED");
        assert_eq!(verdict(9, &Word::Nothing), Verdict::Held);
        assert_eq!(verdict(10, &Word::Nothing), Verdict::Held);
        assert!(lost(&Word::Nothing, 11), "DependencyNeverSatisfied");
        assert!(matches!(verdict(12, &Word::Nothing), Verdict::Never(reason) if reason == "PartitionConfig"));
        assert_eq!(verdict(13, &Word::Nothing), Verdict::Cancelled, "DEADLINE");
        for index in [14, 15, 16] {
            assert_eq!(verdict(index, &Word::Nothing), Verdict::Waits, "COMPLETING, CONFIGURING, SUSPENDED");
        }
        assert!(lost(&Word::Nothing, 17) && lost(&Word::Nothing, 18), "BOOT_FAIL, REVOKED");
        assert_eq!(verdict(19, &Word::Nothing), Verdict::Runs);
        assert_eq!(verdict(20, &Word::Nothing), Verdict::HeldBySomebody);
        assert_eq!(verdict(21, &Word::Nothing), Verdict::Waits, "a word that nobody knows");
        assert_eq!(verdict(22, &Word::Nothing), Verdict::Waits, "Dependency");
        assert_eq!(parse(RECORDED).len(), 23, "every line is read");
    }

    #[test]
    fn a_job_that_slurm_has_forgotten_is_lost_unless_it_said_why_it_failed() {
        assert!(matches!(judge(None, &Word::Nothing), Verdict::Lost(_)));
        assert!(matches!(judge(None, &Word::Stopped), Verdict::Lost(_)));
        assert_eq!(judge(None, &Word::Failed("NaN".into())), Verdict::Failed("NaN".into()));
    }

    #[test]
    fn lines_that_are_no_tasks_are_left_out() {
        let text =
            "slurm_load_jobs error\n7|N/A|RUNNING|None|n1|a\n\n7|[3-5%2]|PENDING|Resources||a\n7|2|RUNNING|None|n1|a\n";
        assert_eq!(parse(text).into_keys().collect::<Vec<_>>(), [TaskId { job: 7, index: 2 }]);
    }

    #[test]
    fn a_controller_that_is_away_is_told_from_one_that_refuses() {
        let said = |text: &str| {
            let output =
                Output { status: ExitStatus::from_raw(256), stdout: Vec::new(), stderr: text.as_bytes().to_vec() };
            understand("sbatch", &output).unwrap_err()
        };
        let away = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)";
        assert!(matches!(said(away), QueueError::Unreachable { .. }));
        assert!(matches!(said("Socket timed out on send/recv operation"), QueueError::Unreachable { .. }));
        let refused =
            said("sbatch: error: invalid partition specified: gpu\nsbatch: error: Batch job submission failed");
        assert!(matches!(&refused, QueueError::Refused { reason } if reason.contains("gpu; sbatch")), "{refused}");
        assert!(!refused.is_limit());
        let limit = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size \
                     and/or time limits)";
        assert!(said(limit).is_limit());
    }
}
