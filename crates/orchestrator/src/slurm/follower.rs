//! Follows the cells that were handed over: submits them, looks at the queue, and judges what became of each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use indexmap::IndexMap;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tsbd_experiment::{CellKey, Plan, Store, StoreError};

use super::arrays::{Template, arrays};
use super::queue::{JobId, QueueError, Scheduler, Task, TaskId, Tasks, Verdict, Word, judge};
use super::submission::{Entry, Submission, new_lines};
use crate::executor::{End, Order, Report, Start};
use crate::protocol::CellEvent;

/// What the follower is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// Follow these cells, parents first; submit those that are in no queue yet.
    Start(Vec<CellKey>),
    /// Go (`Stop`), or cancel the jobs and go (`Kill`).
    Order(Order),
}

pub(super) struct Follower<S> {
    scheduler: S,
    store: Store,
    template: Template,
    /// Most cells of an array.
    largest: usize,
    /// How often the queue is looked at.
    interval: Duration,
    /// What each cell of the plan starts from, in the plan's order. Cells are named by their positions in it.
    parents: IndexMap<CellKey, Vec<CellKey>>,
    /// The cells whose end was not told yet.
    cells: BTreeMap<usize, Followed>,
    /// Cells that ended without a result: nothing that starts from them can run.
    without_result: BTreeSet<CellKey>,
    /// Arrays that were submitted, by this coordinator or by one before it.
    submissions: BTreeMap<usize, Submission>,
    /// Those of them whose `submission.json` is to be written.
    changed: BTreeSet<usize>,
    /// Ends that are told once that is done.
    ends: Vec<(CellKey, End)>,
    reports: mpsc::Sender<Report>,
    /// Warnings that were given; each is given once.
    warned: BTreeSet<String>,
}

/// A cell that is followed.
#[derive(Debug, Default)]
struct Followed {
    /// Its array and its index in it; `None` if it is to be submitted.
    place: Option<(usize, u32)>,
    /// How often it was lost.
    lost: usize,
    /// The newest checkpoint when it was submitted.
    checkpoint: Option<SystemTime>,
    /// How much of its words was read.
    heard: u64,
    word: Word,
    /// Whether its start was told, and no end or return since.
    runs: bool,
    /// How often in a row it looked as if it had come to an end without a result.
    doubts: usize,
    /// Whether it was in the queue before this coordinator came, and has not been looked at yet.
    found: bool,
}

impl<S: Scheduler> Follower<S> {
    /// How often in a row a job has to look lost until it is: its node's last files may take a while to be seen here, and a
    /// job that Slurm puts back into the queue looks lost for a moment.
    const DOUBTS: usize = 3;
    /// After a request to stop, how long a second one is waited for, which cancels the jobs.
    pub const SECOND_THOUGHTS: Duration = Duration::from_secs(5);

    pub fn new(
        scheduler: S,
        plan: &Plan,
        store: &Store,
        template: Template,
        limit: usize,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let largest = template.parameters.array_size.unwrap_or(limit).min(limit).max(1);
        let interval = Duration::from_secs(template.parameters.poll_seconds as u64);
        Self {
            scheduler,
            store: store.clone(),
            template,
            largest,
            interval,
            parents: plan.cells.iter().map(|(key, cell)| (key.clone(), cell.parents.clone())).collect(),
            cells: BTreeMap::new(),
            without_result: BTreeSet::new(),
            submissions: BTreeMap::new(),
            changed: BTreeSet::new(),
            ends: Vec::new(),
            reports,
            warned: BTreeSet::new(),
        }
    }

    /// The same, looking that often.
    #[cfg(test)]
    pub fn every(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// Ends when nobody listens any more, or on request.
    pub async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut clock = tokio::time::interval(self.interval);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leave_at: Option<Instant> = None;
        loop {
            let leave = async {
                match leave_at {
                    Some(moment) => tokio::time::sleep_until(moment).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = requests.recv() => match request {
                    None => return,
                    Some(Request::Start(cells)) => {
                        self.take(cells).await;
                        self.look().await;
                    }
                    Some(Request::Order(Order::Stop)) => leave_at = Some(Instant::now() + Self::SECOND_THOUGHTS),
                    Some(Request::Order(Order::Kill)) => return self.cancel().await,
                },
                _ = clock.tick() => self.look().await,
                () = leave => return self.leave().await,
            }
        }
    }

    /// Takes cells over. Those that an earlier coordinator submitted are followed where they are.
    async fn take(&mut self, cells: Vec<CellKey>) {
        if self.submissions.is_empty() {
            match Submission::all(&self.store) {
                Ok(found) => self.submissions = found.into_iter().enumerate().collect(),
                Err(error) => self.warn(format!("{error}; jobs of earlier runs are not found again")).await,
            }
        }
        let mut places: BTreeMap<&CellKey, (usize, u32, usize)> = BTreeMap::new();
        for (number, submission) in &self.submissions {
            // Of a cell that was submitted several times the last one counts.
            for (index, entry) in submission.content.cells.iter().enumerate().filter(|(_, entry)| !entry.settled) {
                places.insert(&entry.key, (*number, index as u32, entry.lost));
            }
        }
        let mut found = 0;
        for key in cells {
            let position = self.position(&key);
            let followed = match places.get(&key) {
                None => Followed::default(),
                Some(&(number, index, lost)) => {
                    found += 1;
                    Followed { place: Some((number, index)), lost, found: true, ..Followed::default() }
                }
            };
            self.cells.insert(position, followed);
        }
        if found > 0 {
            self.note(format!("{found} of the cells were submitted before; their jobs are followed")).await;
        }
    }

    /// Looks at everything once: the queue, what the cells say, what is to be submitted.
    async fn look(&mut self) {
        if self.cells.is_empty() {
            return;
        }
        let tasks = match self.ask().await {
            Ok(tasks) => {
                if self.warned.remove(AWAY) {
                    self.note("Slurm's controller answers again".to_owned()).await;
                }
                tasks
            }
            // Jobs go on without the controller; so does waiting for them.
            Err(error) => {
                if self.warned.insert(AWAY.to_owned()) {
                    self.say(Report::Warning { text: format!("{error}; jobs go on, and it is asked again") }).await;
                }
                return;
            }
        };
        self.free_done(&tasks).await;
        for position in self.cells.keys().copied().collect::<Vec<_>>() {
            self.settle(position, &tasks).await;
        }
        self.tell_ends().await;
        self.submit(&tasks).await;
        self.tell_ends().await;
        self.forget(&tasks);
    }

    /// Cancels jobs that Slurm holds after a fault though their cells are done, whoever submitted them and when: they would
    /// stay in the queue for ever, and with them what comes after. What fails now is tried at the next look.
    async fn free_done(&mut self, tasks: &Tasks) {
        let mut held = Vec::new();
        for submission in self.submissions.values() {
            for (index, entry) in (0..).zip(&submission.content.cells) {
                let Some(id) = submission.task(index) else { continue };
                let is_held = tasks.get(&id).is_some_and(|task| judge(Some(task), &Word::Nothing) == Verdict::Held);
                if is_held && self.store.artefact(&entry.key, "record.json").exists() {
                    held.push(id);
                }
            }
        }
        if !held.is_empty() {
            let _ = self.scheduler.cancel(&held).await;
        }
    }

    /// What Slurm says of all arrays. Those whose number was never noted are found by their names.
    async fn ask(&mut self) -> Result<Tasks, QueueError> {
        for (number, submission) in &mut self.submissions {
            if submission.content.job.is_none()
                && let Some(job) = self.scheduler.find(&submission.content.name).await?
            {
                submission.content.job = Some(job);
                self.changed.insert(*number);
            }
        }
        let named = self
            .submissions
            .values()
            .filter_map(|submission| Some((submission.content.job?, &submission.content.name)));
        let named: BTreeSet<(JobId, &String)> = named.collect();
        let jobs: BTreeSet<JobId> = named.iter().map(|(job, _)| *job).collect();
        let mut tasks = self.scheduler.tasks(&jobs.into_iter().collect::<Vec<_>>()).await?;
        // A number may be somebody else's by now.
        tasks.retain(|id, task| named.contains(&(id.job, &task.name)));
        Ok(tasks)
    }

    /// Looks at one cell, and does what follows.
    async fn settle(&mut self, position: usize, tasks: &Tasks) {
        let key = self.key(position).clone();
        let task = self.task_of(position);
        if let Some(parent) = self.parents[&key].iter().find(|parent| self.without_result.contains(*parent)).cloned() {
            if let Some(task) = task {
                // If it cannot be cancelled it ends by itself, for want of what it starts from.
                let _ = self.scheduler.cancel(&[task]).await;
            }
            return self.end(position, End::Parent(parent));
        }
        let Some(id) = task else { return };
        self.listen(position, id).await;
        let followed = self.cells.get_mut(&position).expect("it is followed");
        let first_look = std::mem::take(&mut followed.found);
        if followed.heard > 0 && self.store.artefact(&key, "record.json").exists() {
            return self.end(position, End::Because("its record has gone again".to_owned()));
        }
        let task = tasks.get(&id);
        let verdict = judge(task, &followed.word);
        match &verdict {
            Verdict::Waits | Verdict::Runs | Verdict::HeldBySomebody => followed.doubts = 0,
            _ => followed.doubts += 1,
        }
        let in_doubt = followed.doubts < Self::DOUBTS;
        match verdict {
            Verdict::Runs => {}
            Verdict::Waits => {
                if followed.runs && task.is_some_and(|task| task.state == "PENDING") {
                    self.returned(position, "Slurm has put its job back into the queue".to_owned()).await;
                }
            }
            Verdict::HeldBySomebody => {
                let hint = format!("job {id} is held; `scontrol release {id}` lets it go, `scancel {id}` gives it up");
                self.warn(hint).await;
            }
            Verdict::Failed(reason) => self.failed(position, reason).await,
            Verdict::Cancelled if first_look => self.again(position, "its job was cancelled".to_owned()).await,
            Verdict::Cancelled => {
                let reason = format!("its job {id} was cancelled; the same command submits it again");
                self.end(position, End::Because(reason));
            }
            _ if in_doubt => {}
            Verdict::Held => self.release(position, id).await,
            Verdict::Never(reason) => {
                let _ = self.scheduler.cancel(&[id]).await;
                let reason = format!("Slurm would never start its job ({reason}); change what [slurm] asks for");
                self.end(position, End::Because(reason));
            }
            Verdict::Lost(reason) => self.lost(position, reason).await,
            Verdict::Crashed(_) if self.has_moved(position) => {
                self.again(position, "its process was killed or crashed; it goes on from its checkpoint".to_owned())
                    .await;
            }
            Verdict::Crashed(reason) => self.failed(position, reason).await,
            Verdict::OutOfTime if self.has_moved(position) => {
                self.again(position, "its job reached its limit of time; it goes on from its checkpoint".to_owned())
                    .await;
            }
            Verdict::OutOfTime => {
                let limit = self.template.parameters.time.as_ref();
                let limit = limit.map_or("that of the partition".to_owned(), |limit| format!("`time` = {limit}"));
                let reason = format!(
                    "its job reached its limit of time ({limit}) before there was a checkpoint to go on from; raise \
                     `time` in [slurm]"
                );
                self.end(position, End::Because(reason));
            }
        }
    }

    /// Passes on what a cell has said since the last look.
    async fn listen(&mut self, position: usize, id: TaskId) {
        let key = self.key(position).clone();
        let followed = self.cells.get_mut(&position).expect("it is followed");
        let Some((number, index)) = followed.place else { return };
        let submission = &self.submissions[&number];
        let lines = new_lines(&submission.events(index), &mut followed.heard);
        let log = submission.log(index);
        let mut events: Vec<CellEvent> = lines.iter().filter_map(|line| CellEvent::from_line(line)).collect();
        // Of many steps the last one tells all.
        let last = events.iter().rposition(|event| matches!(event, CellEvent::Step { .. }));
        let mut at = 0..;
        events.retain(|event| {
            let at = at.next();
            !matches!(event, CellEvent::Step { .. }) || at == last
        });
        let mut reports = Vec::new();
        for event in events {
            match &event {
                CellEvent::Started { pid, attempt, continues } => {
                    followed.word = Word::Nothing;
                    if !followed.runs {
                        followed.runs = true;
                        let (attempt, job) = (attempt.clone(), Some(id.to_string()));
                        let start = Start { pid: *pid, job, attempt, log: log.clone(), continues: *continues };
                        reports.push(Report::Started { key: key.clone(), start });
                    }
                }
                CellEvent::Failed { reason, .. } => followed.word = Word::Failed(reason.clone()),
                CellEvent::Stopped => followed.word = Word::Stopped,
                _ => {}
            }
            reports.push(Report::Said { key: key.clone(), event });
        }
        for report in reports {
            self.say(report).await;
        }
    }

    /// The cell failed. If it did because a parent had no result, its turn comes after that one's, which may have its result
    /// by now: then the reason names it.
    async fn failed(&mut self, position: usize, reason: String) {
        let key = self.key(position);
        let has_result = |parent: &CellKey| self.store.artefact(parent, "record.json").exists();
        let missing = |parent: &&CellKey| !has_result(parent) || reason.contains(parent.as_str());
        let Some(parent) = self.parents[key].iter().find(missing).cloned() else {
            return self.end(position, End::Because(reason));
        };
        let why = format!("cell {} has to be made before it", parent.short());
        if has_result(&parent) {
            self.lost(position, why).await;
        } else if self.cells.contains_key(&self.position(&parent)) {
            self.again(position, why).await;
        } else {
            self.end(position, End::Because(reason));
        }
    }

    /// The cell was lost: it is submitted again, unless that was done often enough.
    async fn lost(&mut self, position: usize, reason: String) {
        if !self.has_moved(position) {
            let followed = self.cells.get_mut(&position).expect("it is followed");
            followed.lost += 1;
            if followed.lost > self.template.parameters.resubmit {
                let times = followed.lost;
                let reason =
                    format!("it was lost {times} times, at last because {reason}; the same command tries again");
                return self.end(position, End::Because(reason));
            }
        }
        self.again(position, reason).await;
    }

    /// Lets a cell go that Slurm holds after a fault; counts as lost. While the controller is away it is tried at each look.
    async fn release(&mut self, position: usize, id: TaskId) {
        if self.cells[&position].lost < self.template.parameters.resubmit {
            match self.scheduler.release(id).await {
                Ok(()) => {
                    let followed = self.cells.get_mut(&position).expect("it is followed");
                    (followed.lost, followed.doubts) = (followed.lost + 1, 0);
                    return self.note(format!("job {id} was held after a fault, and is let go")).await;
                }
                Err(QueueError::Unreachable { .. }) => return,
                Err(_) => {}
            }
        }
        let _ = self.scheduler.cancel(&[id]).await;
        let reason = format!("Slurm holds its job {id} after a fault; `scontrol show job {id}` says more");
        self.end(position, End::Because(reason));
    }

    /// Whether the cell has a newer checkpoint than when it was submitted.
    fn has_moved(&self, position: usize) -> bool {
        newest_checkpoint(&self.store, self.key(position)) > self.cells[&position].checkpoint
    }

    /// The cell is to be submitted again.
    async fn again(&mut self, position: usize, reason: String) {
        if let Some((number, index)) = self.cells[&position].place {
            self.settled(number, index);
        }
        self.returned(position, reason).await;
        let followed = self.cells.get_mut(&position).expect("it is followed");
        *followed = Followed { lost: followed.lost, ..Followed::default() };
    }

    async fn returned(&mut self, position: usize, reason: String) {
        let key = self.key(position).clone();
        self.cells.get_mut(&position).expect("it is followed").runs = false;
        self.say(Report::Returned { key, reason }).await;
    }

    /// The cell has come to its end.
    fn end(&mut self, position: usize, end: End) {
        let key = self.key(position).clone();
        let followed = self.cells.remove(&position).expect("it is followed");
        if let Some((number, index)) = followed.place {
            self.settled(number, index);
        }
        if !self.store.artefact(&key, "record.json").exists() {
            self.without_result.insert(key.clone());
        }
        self.ends.push((key, end));
    }

    fn settled(&mut self, number: usize, index: u32) {
        let submission = self.submissions.get_mut(&number).expect("cells are placed in arrays that are known");
        submission.content.cells[index as usize].settled = true;
        self.changed.insert(number);
    }

    /// Tells the ends, after the arrays were noted to be settled: a coordinator that comes later must not take a job for
    /// news whose end was told.
    async fn tell_ends(&mut self) {
        for number in std::mem::take(&mut self.changed) {
            if let Err(error) = self.submissions[&number].write() {
                self.warn(format!("{error}; a later run may tell of jobs that were told of now")).await;
            }
        }
        for (key, end) in std::mem::take(&mut self.ends) {
            self.say(Report::Ended { key, end }).await;
        }
    }

    /// Submits what is in no array, and arrays that Slurm does not have.
    async fn submit(&mut self, tasks: &Tasks) {
        let mut live = live_jobs(tasks);
        for number in self.submissions.keys().copied().collect::<Vec<_>>() {
            // An earlier coordinator was killed before it could submit it, or the controller did not answer.
            let submission = &self.submissions[&number];
            let followed = self.cells.values().any(|cell| cell.place.is_some_and(|(place, _)| place == number));
            if submission.content.job.is_none() && followed && !self.hand_in(number, &mut live).await {
                return;
            }
        }
        let keys: Vec<CellKey> = self.due(tasks).into_iter().map(|position| self.key(position).clone()).collect();
        for array in arrays(&keys, |key| self.parents[key].as_slice(), self.largest) {
            let entries = array.cells.iter().map(|key| {
                let lost = self.cells[&self.position(key)].lost;
                Entry { key: key.clone(), lost, settled: false }
            });
            let submission = match Submission::new(&self.store, &self.template, entries.collect()) {
                Ok(submission) => submission,
                Err(error) => return self.not_submitted(&error).await,
            };
            let number = self.submissions.last_key_value().map_or(0, |(last, _)| last + 1);
            self.submissions.insert(number, submission);
            for (index, key) in array.cells.iter().enumerate() {
                let position = self.position(key);
                let checkpoint = newest_checkpoint(&self.store, key);
                let followed = self.cells.get_mut(&position).expect("it is to be submitted");
                followed.place = Some((number, index as u32));
                followed.checkpoint = checkpoint;
            }
            if !self.hand_in(number, &mut live).await {
                return;
            }
        }
    }

    /// The cells that are in no array, parents first, without those that start from a cell whose job has ended and is in
    /// doubt: if that one has to run again, they come after it.
    fn due(&self, tasks: &Tasks) -> Vec<usize> {
        let mut due = Vec::new();
        let mut held_back = BTreeSet::new();
        for (&position, cell) in &self.cells {
            let in_doubt = |parent: &CellKey| {
                let parent = self.position(parent);
                let ended = || {
                    let task = self.task_of(parent).map(|id| tasks.get(&id).is_none_or(is_over));
                    self.cells.contains_key(&parent) && task == Some(true)
                };
                held_back.contains(&parent) || ended()
            };
            if self.parents[position].iter().any(in_doubt) {
                held_back.insert(position);
            } else if cell.place.is_none() {
                due.push(position);
            }
        }
        due
    }

    async fn not_submitted(&mut self, error: &StoreError) {
        self.warn(format!("{error}; cells wait to be submitted")).await;
    }

    /// Submits an array whose folder is complete. Whether further ones may be submitted.
    async fn hand_in(&mut self, number: usize, live: &mut BTreeSet<JobId>) -> bool {
        let submission = &self.submissions[&number];
        let cells = submission.content.cells.iter().filter(|entry| !entry.settled);
        let parents = cells.clone().flat_map(|entry| self.parents.get(&entry.key).into_iter().flatten());
        let makers = parents.filter_map(|parent| {
            let (maker, _) = self.cells.get(&self.position(parent))?.place?;
            self.submissions[&maker].content.job
        });
        let after: BTreeSet<JobId> = makers.filter(|job| live.contains(job)).collect();
        let after: Vec<JobId> = after.into_iter().collect();
        let (count, script, name) = (cells.count(), submission.script(), submission.content.name.clone());
        match self.scheduler.submit(&script, &name, &after).await {
            Ok(job) => {
                live.insert(job);
                // A controller that lost its memory gives numbers again: the array that had it is gone.
                for (other, submission) in &mut self.submissions {
                    if *other != number && submission.content.job == Some(job) {
                        submission.content.job = None;
                        self.changed.insert(*other);
                    }
                }
                let submission = self.submissions.get_mut(&number).expect("it was just read");
                if let Err(error) = submission.submitted(job) {
                    // It is found by its name if need be.
                    self.warn(error.to_string()).await;
                }
                let after: Vec<String> = after.iter().map(JobId::to_string).collect();
                let after = if after.is_empty() { String::new() } else { format!(", after {}", after.join(", ")) };
                let cells = if count == 1 { "1 cell".to_owned() } else { format!("{count} cells") };
                self.note(format!("{cells} submitted as job {job}{after}")).await;
                true
            }
            Err(error @ QueueError::Refused { .. }) => {
                let in_queue = !live.is_empty();
                self.refused(number, error, in_queue).await;
                false
            }
            // Whether it was accepted is found out at the next look.
            Err(error) => {
                self.warn(format!("{error}; it is asked again")).await;
                false
            }
        }
    }

    /// Slurm does not take an array. If that is because there are too many jobs, its cells wait; else they cannot run.
    async fn refused(&mut self, number: usize, error: QueueError, in_queue: bool) {
        let positions = self.cells.iter().filter(|(_, cell)| cell.place.is_some_and(|(place, _)| place == number));
        let positions: Vec<usize> = positions.map(|(position, _)| *position).collect();
        if error.is_limit() && in_queue {
            self.warn(format!("{error}; the rest waits until there is room")).await;
        }
        for position in positions {
            if error.is_limit() && in_queue {
                self.cells.get_mut(&position).expect("it is followed").place = None;
            } else {
                self.end(position, End::Because(error.to_string()));
            }
        }
        self.changed.remove(&number);
        let submission = self.submissions.remove(&number).expect("it was just refused");
        if let Err(error) = submission.remove() {
            self.warn(error.to_string()).await;
        }
    }

    /// Removes what is kept of arrays that concern nobody any more. What ended now is kept until the next look: its logs
    /// are still read.
    fn forget(&mut self, tasks: &Tasks) {
        let live = live_jobs(tasks);
        let followed: BTreeSet<usize> =
            self.cells.values().filter_map(|cell| cell.place).map(|(number, _)| number).collect();
        let is_settled = |entry: &Entry| entry.settled || self.store.artefact(&entry.key, "record.json").exists();
        let over: Vec<usize> = self
            .submissions
            .iter()
            .filter(|(number, _)| !followed.contains(number))
            .filter(|(_, submission)| submission.content.job.is_none_or(|job| !live.contains(&job)))
            .filter(|(_, submission)| submission.is_old(Self::KEPT) && submission.content.cells.iter().all(is_settled))
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            if let Some(submission) = self.submissions.remove(&number) {
                // What cannot be removed is found again by the next run.
                let _ = submission.remove();
            }
        }
    }

    /// How long what is kept of an array stays after it was last written.
    const KEPT: Duration = Duration::from_secs(60);

    /// Goes, and leaves the jobs in the queue.
    async fn leave(mut self) {
        for position in self.cells.keys().copied().collect::<Vec<_>>() {
            let key = self.key(position).clone();
            self.ends.push((key, End::Left));
        }
        self.tell_ends().await;
    }

    /// Cancels all jobs, and goes.
    async fn cancel(mut self) {
        // Those whose numbers are not known yet.
        let known = self.ask().await;
        let tasks: Vec<TaskId> = self.cells.keys().filter_map(|position| self.task_of(*position)).collect();
        let cancelled = match known {
            Ok(_) => self.scheduler.cancel(&tasks).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &cancelled {
            let jobs: BTreeSet<String> = tasks.iter().map(|task| task.job.to_string()).collect();
            let jobs: Vec<String> = jobs.into_iter().collect();
            self.warn(format!("{error}; cancel the jobs yourself: scancel {}", jobs.join(" "))).await;
        }
        for position in self.cells.keys().copied().collect::<Vec<_>>() {
            let end = if cancelled.is_ok() { End::Stopped } else { End::Left };
            match end {
                End::Stopped => self.end(position, end),
                end => self.ends.push((self.key(position).clone(), end)),
            }
        }
        self.tell_ends().await;
    }

    fn key(&self, position: usize) -> &CellKey {
        self.parents.get_index(position).expect("positions are those of the plan").0
    }

    fn position(&self, key: &CellKey) -> usize {
        self.parents.get_index_of(key).expect("the cell is in the plan")
    }

    fn task_of(&self, position: usize) -> Option<TaskId> {
        let (number, index) = self.cells.get(&position)?.place?;
        self.submissions[&number].task(index)
    }

    async fn note(&self, text: String) {
        self.say(Report::Note { text }).await;
    }

    /// Warns of something, once.
    async fn warn(&mut self, text: String) {
        if self.warned.insert(text.clone()) {
            self.say(Report::Warning { text }).await;
        }
    }

    async fn say(&self, report: Report) {
        // Nobody listens to the end of a run that has ended.
        let _ = self.reports.send(report).await;
    }
}

/// Stands among the warnings for a controller that does not answer.
const AWAY: &str = "away";

/// Whether a task has ended for good, as far as Slurm is concerned.
fn is_over(task: &Task) -> bool {
    !matches!(
        judge(Some(task), &Word::Nothing),
        Verdict::Waits | Verdict::Runs | Verdict::Held | Verdict::HeldBySomebody | Verdict::Never(_)
    )
}

/// The arrays that have tasks which have not ended.
fn live_jobs(tasks: &Tasks) -> BTreeSet<JobId> {
    tasks.iter().filter(|(_, task)| !is_over(task)).map(|(id, _)| id.job).collect()
}

/// When the newest checkpoint of a cell was written.
fn newest_checkpoint(store: &Store, key: &CellKey) -> Option<SystemTime> {
    let attempts = store.attempts(key).unwrap_or_default();
    attempts.iter().filter_map(|id| store.checkpointed(key, id)).max()
}
