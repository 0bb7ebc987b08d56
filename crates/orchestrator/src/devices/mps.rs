//! NVIDIA's Multi-Process Service for as long as a run goes on: with it the processes on a GPU compute at the same time,
//! without it they take turns.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fs_err as fs;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The service's program, which comes with the driver.
const CONTROL: &str = "nvidia-cuda-mps-control";
/// Variable that tells processes that use a GPU where the service listens, and where it does if nobody says so.
const PIPES: &str = "CUDA_MPS_PIPE_DIRECTORY";
const USUAL_PIPES: &str = "/tmp/nvidia-mps";
/// Variable that tells the service where to write.
const LOGS: &str = "CUDA_MPS_LOG_DIRECTORY";

/// Starts the service and says so; ends it and removes its folder when standard input ends, that is with the process that
/// holds its other end, however that ends.
const KEEPER: &str = r#"
"$0" -d >"$1" 2>&1 </dev/null && {
  # That nobody listens any more is no reason to leave it alone.
  trap '' PIPE
  echo started
  cat >/dev/null
  echo quit | "$0" >/dev/null 2>&1
  rm -rf "$CUDA_MPS_PIPE_DIRECTORY"
}"#;

/// A service of ours, which ends with this.
pub(crate) struct Mps {
    keeper: Child,
    folder: TempDir,
}

/// How processes share a GPU.
pub(crate) enum Sharing {
    /// At the same time, by a service of ours.
    AtOnce(Mps),
    /// As the machine's own settings say: a service runs already.
    AsSet,
    /// In turns, for this reason.
    Turns(String),
}

impl Sharing {
    /// Starts the service, and runs `program` under it with each of the `checks`, which must end well: a service that starts may
    /// still be one that nobody can use.
    pub fn new(program: &Path, checks: &[Vec<String>]) -> Self {
        if std::env::var_os(PIPES).is_some() || Path::new(USUAL_PIPES).join("control").exists() {
            return Self::AsSet;
        }
        let tried = |mps: Mps| checks.iter().try_for_each(|check| mps.try_out(program, check)).map(|()| mps);
        match Mps::start(CONTROL.as_ref()).and_then(tried) {
            Ok(mps) => Self::AtOnce(mps),
            Err(reason) => Self::Turns(reason.to_string()),
        }
    }

    /// What a process on a GPU is told.
    pub fn environment(&self) -> Option<(&'static str, &OsStr)> {
        match self {
            Self::AtOnce(mps) => Some((PIPES, mps.folder.path().as_os_str())),
            Self::AsSet | Self::Turns(_) => None,
        }
    }
}

impl Mps {
    /// The service starts within this time, and a process under it ends.
    const PATIENCE: Duration = Duration::from_secs(60);
    /// The service ends within this time.
    const FAREWELL: Duration = Duration::from_secs(5);

    fn start(control: &OsStr) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tsbd-mps-").tempdir()?;
        let said = folder.path().join("said");
        let mut keeper = keeper(control, folder.path(), &said)?;
        let stdout = keeper.stdout.take().ok_or_else(|| io::Error::other("it has no standard output"))?;
        let mps = Self { keeper, folder };
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = sender.send(BufReader::new(stdout).read_line(&mut line).map(|_| line));
        });
        match receiver.recv_timeout(Self::PATIENCE) {
            Ok(Ok(line)) if line.trim() == "started" => Ok(mps),
            Ok(_) => Err(io::Error::other(format!("{} does not start: {}", control.display(), last_line(&said)))),
            Err(_) => {
                // With the service that hangs.
                let _ = killpg(Pid::from_raw(mps.keeper.id().cast_signed()), Signal::SIGKILL);
                Err(io::Error::other(format!("{} does not start in time", control.display())))
            }
        }
    }

    fn try_out(&self, program: &Path, arguments: &[String]) -> io::Result<()> {
        let said = self.folder.path().join("tried");
        let mut child = Command::new(program)
            .args(arguments)
            .env(PIPES, self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&said)?)
            .process_group(0)
            .spawn()?;
        match wait(&mut child, Self::PATIENCE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                let (said, server) = (last_line(&said), last_line(&self.folder.path().join("server.log")));
                let arguments = arguments.join(" ");
                Err(io::Error::other(format!("{arguments} fails under it: {status}: {said}; the service: {server}")))
            }
            None => {
                child.kill()?;
                child.wait()?;
                Err(io::Error::other(format!("{} does not end under it", arguments.join(" "))))
            }
        }
    }
}

impl Drop for Mps {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if !matches!(wait(&mut self.keeper, Self::FAREWELL), Ok(Some(_))) {
            // It cannot be helped; the system ends it with the machine at the latest.
            let _ = self.keeper.kill().and_then(|()| self.keeper.wait());
        }
    }
}

/// Starts what [`KEEPER`] says: the service's first words go to the file `said`.
fn keeper(control: &OsStr, folder: &Path, said: &Path) -> io::Result<Child> {
    Command::new("sh")
        .args([OsStr::new("-c"), KEEPER.as_ref(), control, said.as_os_str()])
        .env(PIPES, folder)
        .env(LOGS, folder)
        // It would count the GPUs that the variable names, and its users would do so once more.
        .env_remove("CUDA_VISIBLE_DEVICES")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // Ctrl-C in the terminal is not meant for it.
        .process_group(0)
        .spawn()
}

/// The last line of a file, or that there is none.
fn last_line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().last().map_or("it says nothing".to_owned(), |line| line.trim().to_owned())
}

/// How a child ended; nothing if it has not within `limit`.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let began = Instant::now();
    loop {
        match child.try_wait()? {
            None if began.elapsed() < limit => std::thread::sleep(Duration::from_millis(10)),
            ended => return Ok(ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that does what `script` says.
    fn program(folder: &Path, name: &str, script: &str) -> std::path::PathBuf {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A service that notes what it is told.
    fn service(folder: &Path) -> std::path::PathBuf {
        let notes = folder.join("notes");
        program(
            folder,
            "control",
            &format!(
                r#"{{ echo "$*"; test "$1" = -d || cat; echo "$CUDA_MPS_PIPE_DIRECTORY"; }} >>{}"#,
                notes.display()
            ),
        )
    }

    #[test]
    fn the_service_is_started_in_a_folder_of_its_own_and_told_to_quit_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let mps = Mps::start(service(folder.path()).as_os_str()).unwrap();
        let pipes = mps.folder.path().to_owned();
        let seen = folder.path().join("seen");
        let script = format!(r#"echo "$1 $CUDA_MPS_PIPE_DIRECTORY" >{}"#, seen.display());
        mps.try_out(&program(folder.path(), "tried", &script), &["it".to_owned()]).unwrap();
        assert_eq!(fs::read_to_string(seen).unwrap(), format!("it {}\n", pipes.display()));
        assert_eq!(Sharing::AtOnce(mps).environment().unwrap(), (PIPES, pipes.as_os_str()));
        let expected = format!("-d\n{pipes}\n\nquit\n{pipes}\n", pipes = pipes.display());
        assert_eq!(fs::read_to_string(folder.path().join("notes")).unwrap(), expected);
        assert!(!pipes.exists());
    }

    #[test]
    fn a_service_that_is_not_there_or_does_not_start_is_told_with_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let failing = program(folder.path(), "failing", "echo Cannot find MPS server >&2; exit 1");
        let reason = Mps::start(failing.as_os_str()).err().unwrap().to_string();
        assert!(reason.ends_with("does not start: Cannot find MPS server"), "{reason}");
        let reason = Mps::start(folder.path().join("missing").as_os_str()).err().unwrap().to_string();
        let is_missing = ["not found", "No such file"].iter().any(|words| reason.contains(words));
        assert!(reason.contains("does not start") && is_missing, "{reason}");
    }

    #[test]
    fn a_service_that_starts_when_nobody_waits_for_it_any_more_is_ended_again() {
        let folder = tempfile::tempdir().unwrap();
        let pipes = folder.path().join("pipes");
        fs::create_dir(&pipes).unwrap();
        let (go, notes) = (folder.path().join("go"), folder.path().join("notes"));
        let wait_for_go = format!("while test \"$1\" = -d -a ! -e {}; do sleep 0.01; done", go.display());
        let script = format!("{wait_for_go}; {{ echo \"$*\"; test \"$1\" = -d || cat; }} >>{}", notes.display());
        let control = program(folder.path(), "slow", &script);
        let mut keeper = keeper(control.as_os_str(), &pipes, &folder.path().join("said")).unwrap();
        // As when the program that has started it is killed.
        drop((keeper.stdin.take(), keeper.stdout.take()));
        fs::write(go, "").unwrap();
        keeper.wait().unwrap();
        assert_eq!(fs::read_to_string(notes).unwrap(), "-d\n\nquit\n");
        assert!(!pipes.exists());
    }

    #[test]
    fn a_service_that_nobody_can_use_is_ended_again() {
        let folder = tempfile::tempdir().unwrap();
        let mps = Mps::start(service(folder.path()).as_os_str()).unwrap();
        let refused = program(folder.path(), "refused", "echo no such device >&2; exit 3");
        let reason = mps.try_out(&refused, &["selftest".to_owned()]).unwrap_err().to_string();
        assert!(reason.contains("selftest fails under it: exit status: 3: no such device"), "{reason}");
        drop(mps);
        assert!(fs::read_to_string(folder.path().join("notes")).unwrap().contains("quit"));
    }
}
