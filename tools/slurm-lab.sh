#!/usr/bin/env bash
# A private, throw-away Slurm cluster on this machine, for tests: slurmctld, two slurmd ("nodes" n1, n2) and a munged of
# its own. No systemd, no cgroups, no database, no root; everything lies in DIR, and all ports are on 127.0.0.1.
#
#   tools/slurm-lab.sh up DIR      starts what does not run yet; prints what to source
#   tools/slurm-lab.sh down DIR    ends what `up` started in DIR (known by recorded process numbers), with its jobs
#
# Needs the programs of Debian's packages slurmctld, slurmd, slurm-client and munge; installs nothing.
#
#   SLURM_LAB_PORT=27800           slurmctld listens on PORT, node K on PORT+K
#   SLURM_LAB_CPUS=2               processors that each node claims to have
#   SLURM_LAB_NODES=2
#   SLURM_LAB_ARRAY=1001           MaxArraySize
#   SLURM_LAB_MIN_JOB_AGE=3600     seconds for which ended jobs are remembered
set -euo pipefail
export PATH=/usr/sbin:/sbin:$PATH

[[ $# == 2 && ($1 == up || $1 == down) ]] || {
  sed -n '2,16s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
command=$1
mkdir -p "$2"
lab=$(cd "$2" && pwd -P)
port=${SLURM_LAB_PORT:-27800}
nodes=${SLURM_LAB_NODES:-2}
host=$(hostname -s)
export SLURM_CONF=$lab/slurm.conf

die() {
  echo "slurm-lab: $*" >&2
  exit 1
}

# A dead process that nobody has waited for still has a number: its state tells.
lives() { [[ -r /proc/$1/stat ]] && [[ $(sed 's/.*) //' "/proc/$1/stat" | cut -c1) != [ZX] ]]; }

# Whether the process recorded in a file lives and is still the program that it was.
runs() {
  local pid
  pid=$(cat "$lab/run/$1.pid" 2>/dev/null) && [[ -n $pid ]] && lives "$pid" &&
    tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q -- "$2"
}

# within SECONDS WHAT COMMAND...: repeats the command until it succeeds.
within() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || die "$what did not come up; see $lab/log"
    sleep 0.1
  done
}

configure() {
  ((${#lab} <= 70)) || die "$lab: too long, as names of sockets have at most 108 characters"
  mkdir -p "$lab"/{run,log,state,spool,etc}
  chmod 700 "$lab/etc"
  [[ -s $lab/etc/munge.key ]] || (umask 077 && head -c 128 /dev/urandom >"$lab/etc/munge.key")
  [[ -s $SLURM_CONF ]] && return
  for ((k = 0; k <= nodes; k++)); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$((port + k))") 2>/dev/null; then
      die "port $((port + k)) is in use: set SLURM_LAB_PORT"
    fi
  done
  {
    cat <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$port
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# With the usual 120 s every requeued job would wait two minutes.
AuthInfo=socket=$lab/run/munge.sock,cred_expire=5
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool/%n
SlurmctldPidFile=$lab/run/slurmctld.pid
SlurmdPidFile=$lab/run/slurmd-%n.pid
SlurmctldLogFile=$lab/log/slurmctld.log
SlurmdLogFile=$lab/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU,CR_LLN
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
MaxArraySize=${SLURM_LAB_ARRAY:-1001}
MinJobAge=${SLURM_LAB_MIN_JOB_AGE:-3600}
# A node that is silent for so long is taken for dead.
SlurmdTimeout=10
MessageTimeout=5
BatchStartTimeout=10
KillWait=3
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CONF
    for ((k = 1; k <= nodes; k++)); do
      echo "NodeName=n$k NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + k)) CPUs=${SLURM_LAB_CPUS:-2} RealMemory=4000"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=10"
    echo "PartitionName=scavenge Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=5 PreemptMode=CANCEL"
    echo "PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=20 PreemptMode=OFF"
  } >"$SLURM_CONF.new"
  mv "$SLURM_CONF.new" "$SLURM_CONF"
}

up() {
  for program in munged slurmctld slurmd sbatch; do
    command -v $program >/dev/null ||
      die "$program is missing: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
  done
  configure
  if ! runs munged munged; then
    rm -f "$lab"/run/munge.sock* "$lab/run/munged.pid"
    munged --socket="$lab/run/munge.sock" --key-file="$lab/etc/munge.key" --pid-file="$lab/run/munged.pid" \
      --log-file="$lab/log/munged.log" --seed-file="$lab/etc/munge.seed" --origin=127.0.0.1 --num-threads=2
  fi
  within 10 munged sh -c "munge -n -S '$lab/run/munge.sock' | unmunge -S '$lab/run/munge.sock'"
  runs slurmctld slurmctld || slurmctld -f "$SLURM_CONF"
  within 20 slurmctld sh -c "scontrol ping | grep -q 'is UP'"
  for ((k = 1; k <= nodes; k++)); do
    runs "slurmd-n$k" slurmd && continue
    mkdir -p "$lab/spool/n$k"
    slurmd -f "$SLURM_CONF" -N "n$k"
  done
  within 40 "a node" sh -c "[ \$(sinfo -h -N -p main -t idle,alloc,mix -o '%N %T' | grep -vc '\\*') = $nodes ]"
  printf 'export SLURM_CONF=%q PATH=/usr/sbin:$PATH\n' "$SLURM_CONF" >"$lab/env.sh"
  echo "slurm-lab: $nodes nodes are up; source $lab/env.sh"
}

# finish PID: asks it to end, and kills it after 10 s.
finish() {
  kill -TERM "$1" 2>/dev/null || return 0
  for ((i = 0; i < 100; i++)); do
    lives "$1" || return 0
    sleep 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
}

# A process and everything below it.
tree() {
  local child
  for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do tree "$child"; done
  echo "$1"
}

down() {
  [[ -s $SLURM_CONF ]] || return 0
  if runs slurmctld slurmctld; then
    timeout 10 scancel --full --signal=KILL -u "$(id -un)" 2>/dev/null || true
    timeout 10 scancel -u "$(id -un)" 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do
      [[ -z $(timeout 5 squeue -h 2>/dev/null) ]] && break
      sleep 0.1
    done
  fi
  for file in "$lab"/run/slurmd-*.pid; do
    [[ -e $file ]] || continue
    name=$(basename "$file" .pid)
    if runs "$name" slurmd; then finish "$(cat "$file")"; fi
    rm -f "$file"
  done
  # What a slurmd that was killed left behind: its step daemons, known by their open logs, and their jobs' scripts, known
  # by their paths.
  for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    [[ $pid != $$ ]] || continue
    if [[ $(cat "$process/comm" 2>/dev/null) == slurmstepd ]]; then
      ls -l "$process/fd" 2>/dev/null | grep -qF -- "-> $lab/log/" || continue
    else
      { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -qF -- "$lab/spool/" || continue
    fi
    for below in $(tree "$pid"); do kill -KILL "$below" 2>/dev/null || true; done
  done
  if runs slurmctld slurmctld; then finish "$(cat "$lab/run/slurmctld.pid")"; fi
  if runs munged munged; then finish "$(cat "$lab/run/munged.pid")"; fi
  rm -f "$lab"/run/*.pid "$lab"/run/munge.sock*
  echo "slurm-lab: down"
}

$command
