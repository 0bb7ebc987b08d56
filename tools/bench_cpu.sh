#!/usr/bin/env bash
# tsbd beside PyTorch on this machine's CPU, in one run: whole training steps and evaluation steps, medians over rounds.
# Needs bash and Python 3; what is compared with, a Python that has PyTorch.
set -euo pipefail

usage() {
  cat <<'TEXT'
tools/bench_cpu.sh: tsbd beside PyTorch on this machine's CPU, in one run

usage: tools/bench_cpu.sh [compare] [FLAGS]    tsbd and every PyTorch variant, in turn, round after round
       tools/bench_cpu.sh scaling [FLAGS]      tsbd alone: batch sizes, then numbers of threads
       tools/bench_cpu.sh report FILE          the tables of an earlier run again, from its JSON lines

  --quick           few steps, one round, width 16 alone: does everything work?
  --rounds N        rounds; the median over them counts (3)
  --steps N         measured steps per run, after 3 more (15 at width 16, 6 from width 64 on)
  --widths "N ..."  widths of PreAct-ResNet18 ("64 16")
  --work "W ..."    what is measured ("train inference")
  --batch N         images per step (128)
  --batches "N ..." batch sizes of `scaling` ("32 64 128 256 512")
  --threads N       threads of both programs; of `scaling`: the larger number (all cores)
  --isa NAME        the most that PyTorch's oneDNN may use (ONEDNN_MAX_CPU_ISA), as AVX512_CORE_BF16 to leave AMX out
  --only TEXT       only the PyTorch variants whose name contains this (f32, bf16, compiled); if it begins with
                    f32 or bf16, tsbd in that precision alone
  --out FILE        where the JSON lines go (bench-cpu.jsonl, or bench-cpu-scaling.jsonl)

environment
  TSBD_PYTHON       a Python with PyTorch (python3); without PyTorch, only tsbd is measured
  TSBD              a tsbd to measure; without it, one is built here: cargo build --release

examples
  TSBD_PYTHON=~/venv/bin/python tools/bench_cpu.sh
  TSBD_PYTHON=~/venv/bin/python tools/bench_cpu.sh --isa AVX512_CORE_BF16 --out without-amx.jsonl
  TSBD_PYTHON=~/venv/bin/python tools/bench_cpu.sh --quick --only bf16
  tools/bench_cpu.sh scaling --widths 16 --batches "64 128"

Run it on an otherwise idle machine. The load when it began is printed with the tables.
TEXT
}

refuse() {
  echo "error: $*" >&2
  echo "hint: tools/bench_cpu.sh --help" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${TSBD_PYTHON:-python3}
mode=compare rounds='' steps='' widths='' works='train inference' batch=128 batches='32 64 128 256 512' threads=''
isa='' only='' out='' quick=''

case ${1:-} in
  compare | scaling | report)
    mode=$1
    shift
    ;;
esac
while (($# > 0)); do
  case $1 in
    --help | -h)
      usage
      exit 0
      ;;
    --quick)
      quick=yes
      shift
      ;;
    --rounds | --steps | --widths | --work | --batch | --batches | --threads | --isa | --only | --out)
      (($# > 1)) || refuse "$1 needs a value"
      case $1 in
        --rounds) rounds=$2 ;;
        --steps) steps=$2 ;;
        --widths) widths=$2 ;;
        --work) works=$2 ;;
        --batch) batch=$2 ;;
        --batches) batches=$2 ;;
        --threads) threads=$2 ;;
        --isa) isa=$2 ;;
        --only) only=$2 ;;
        --out) out=$2 ;;
      esac
      shift 2
      ;;
    *)
      [[ $mode == report && -z $out ]] || refuse "unknown argument '$1'"
      out=$1
      shift
      ;;
  esac
done
for number in $rounds $steps $widths $batch $batches $threads; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || refuse "'$number' is not a whole number of at least 1"
done
for work in $works; do
  [[ $work == train || $work == inference ]] || refuse "--work takes train and inference, not '$work'"
done

# Reads the JSON lines of a run and prints its tables.
report() {
  python3 - "$1" <<'PYTHON'
import json
import sys
from statistics import median

lines = [json.loads(line) for line in open(sys.argv[1])]
machine = next((line for line in lines if line.get("line") == "machine"), {})
runs = [line for line in lines if line.get("line") == "run"]
if not runs:
    sys.exit(f"error: {sys.argv[1]} holds no measurement")

for name, value in machine.items():
    if name != "line" and value:
        print(f"{name.replace('_', ' ')}: {value}")
TIME, FASTEST, CPU = "milliseconds_per_step", "fastest_milliseconds_per_step", "cpu_milliseconds_per_step"


def groups(of, *names):
    found = {}
    for run in of:
        found.setdefault(tuple(run[name] for name in names), []).append(run)
    return found


def table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join(cells).rstrip())


def middle(of, name):
    return median(run[name] for run in of)


def ratios(theirs, ours, name):
    """Their time over ours, round by round."""
    mine = {run["round"]: run[name] for run in ours}
    return [run[name] / mine[run["round"]] for run in theirs if run["round"] in mine]


def compare(of):
    for (work, width), runs in groups(of, "work", "width").items():
        first = runs[0]
        isa = next((run["isa"] for run in runs if run.get("isa")), None)
        limit = f"; PyTorch's oneDNN limited to {isa}" if isa else ""
        rounds = max(run["round"] for run in runs)
        print(f"\n{work}, width {width}, batch {first['batch']}, {first['threads']} threads, rounds: {rounds}{limit}")
        variants = groups(runs, "variant")
        done = {name: [r for r in rs if "failed" not in r] for (name,), rs in variants.items()}
        rows = [["", "ms a step", "fastest", "CPU ms", "data ms", "images/s", "MB", "x tsbd", "x tsbd CPU"]]
        best = {}
        for name, rs in done.items():
            if not rs:
                continue
            time, cpu = middle(rs, TIME), middle(rs, CPU)
            row = [name, f"{time:.1f}", f"{min(r[FASTEST] for r in rs):.1f}", f"{cpu:.1f}"]
            row += [f"{middle(rs, 'data_milliseconds_per_step'):.2f}", f"{middle(rs, 'images_per_second'):.0f}"]
            row += [f"{middle(rs, 'peak_memory_mb'):.0f}"]
            ours = done.get(f"tsbd {rs[0]['precision']}", [])
            if ours:
                row += [f"{time / middle(ours, TIME):.2f}", f"{cpu / middle(ours, CPU):.2f}"]
            rows.append(row + [""] * (9 - len(row)))
            if rs[0]["program"] == "pytorch":
                key = rs[0]["precision"]
                if key not in best or time < best[key][1]:
                    best[key] = (name, time)
        table(rows)
        for precision, (name, _) in best.items():
            ours = done.get(f"tsbd {precision}", [])
            wall, cpu = ratios(done[name], ours, TIME), ratios(done[name], ours, CPU)
            if wall:
                print(
                    f"tsbd {precision} is {median(wall):.2f} times as fast as the best {precision} ({name}); "
                    f"round by round {min(wall):.2f} to {max(wall):.2f}, in processor time {median(cpu):.2f}"
                )
        for (name,), rs in variants.items():
            for message in sorted({r["failed"] for r in rs if "failed" in r}):
                print(f"failed: {name}: {message}")


def scaling(of):
    for (kind, work, width), runs in groups(of, "scaling", "work", "width").items():
        first = runs[0]
        fixed = f"{first['threads']} threads" if kind == "batch" else f"batch {first['batch']}"
        print(f"\n{work}, width {width}, tsbd f32, {fixed}, by {'batch' if kind == 'batch' else 'threads'}")
        rows = [[kind, "ms a step", "fastest", "CPU ms", "images/s", "MB", "x first"]]
        by = groups(runs, kind)
        base = None
        for (value,), rs in by.items():
            done = [r for r in rs if "failed" not in r]
            if not done:
                print(f"failed: {kind} {value}: {rs[0]['failed']}")
                continue
            rate = middle(done, "images_per_second")
            base = base or rate
            numbers = [middle(done, TIME), min(r[FASTEST] for r in done), middle(done, CPU)]
            rows.append([str(value)] + [f"{number:.1f}" for number in numbers])
            rows[-1] += [f"{rate:.0f}", f"{middle(done, 'peak_memory_mb'):.0f}", f"{rate / base:.2f}"]
        table(rows)


compare([run for run in runs if not run.get("scaling")])
scaling([run for run in runs if run.get("scaling")])
PYTHON
}

if [[ $mode == report ]]; then
  [[ -n $out ]] || refuse "report needs a file"
  [[ -r $out ]] || refuse "$out cannot be read"
  report "$out"
  exit
fi

if [[ -n $quick ]]; then
  rounds=${rounds:-1} steps=${steps:-2} widths=${widths:-16}
  [[ $mode == scaling ]] && batches='32 64'
fi
rounds=${rounds:-3} widths=${widths:-64 16}
threads=${threads:-$(getconf _NPROCESSORS_ONLN)}
if [[ -z $out ]]; then
  out=bench-cpu.jsonl
  [[ $mode == scaling ]] && out=bench-cpu-scaling.jsonl
fi

if [[ -z ${TSBD:-} ]]; then
  cargo build --release --workspace --manifest-path "$root/Cargo.toml" >&2
  TSBD=${CARGO_TARGET_DIR:-$root/target}/release/tsbd
fi
command -v "$TSBD" >/dev/null || refuse "TSBD=$TSBD is no program"

# The first line of the file: what this was measured on.
machine() {
  local revision pytorch
  revision=$(git -C "$root" describe --always --dirty 2>/dev/null || true)
  pytorch=$("$python" -c 'import torch; print(torch.__version__)' 2>/dev/null || true)
  python3 - "$("$TSBD" --version)" "$revision" "$pytorch" "$isa" <<'PYTHON'
import json
import os
import platform
import subprocess
import sys

tsbd, revision, pytorch, isa = sys.argv[1:]
found = {}
try:
    listing = subprocess.run(["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
    found = dict(line.split(":", 1) for line in listing.splitlines() if ":" in line)
except OSError:
    pass
found = {name.strip(): value.strip() for name, value in found.items()}
sets = "avx avx2 fma avx_vnni avx512f avx512_bf16 avx512_fp16 avx512_vnni amx_tile amx_bf16 amx_int8 asimd sve bf16"
flags = found.get("Flags", "").split()
print(json.dumps({
    "line": "machine",
    "processor": found.get("Model name", platform.processor()),
    "cores": f"{os.cpu_count()} ({found.get('Thread(s) per core', '?')} threads per core)",
    "caches": ", ".join(f"{name[:-6]} {found[name]}" for name in ["L1d cache", "L2 cache", "L3 cache"] if name in found),
    "instruction_sets": " ".join(name for name in sets.split() if name in flags),
    "system": platform.platform(),
    "load_at_the_beginning": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    "tsbd": f"{tsbd} ({revision})" if revision else tsbd,
    "pytorch": pytorch,
    "onednn_max_cpu_isa": isa,
}))
PYTHON
}

# add NAME=VALUE... : one run's JSON on standard input, as one line of the file with these fields; a run that printed
# none becomes a line that says so, with the last line of its standard error.
add() {
  python3 -c '
import json
import sys

text, error = sys.stdin.read(), open(sys.argv[1]).read().strip()
run = {"line": "run"}
for field in sys.argv[2:]:
    name, value = field.split("=", 1)
    run[name] = int(value) if value.isdigit() else value
try:
    run |= json.loads(text)
except ValueError:
    run["failed"] = (error.splitlines() or ["it printed nothing"])[-1]
print(json.dumps(run))
time = run.get("milliseconds_per_step")
print("failed: " + run["failed"] if time is None else f"{time:.1f} ms", file=sys.stderr)
' "$errors" "$@" >>"$out"
}

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

# Quick runs warm up less: they measure nothing anyway.
warmup=3
[[ -n $quick ]] && warmup=1

steps_of() { # WIDTH
  if [[ -n $steps ]]; then echo "$steps"; elif (($1 >= 64)); then echo 6; else echo 15; fi
}

# measure_tsbd PRECISION WORK WIDTH BATCH THREADS FIELD...
measure_tsbd() {
  local precision=$1 work=$2 width=$3 images=$4 count=$5 convolution=fast
  shift 5
  [[ $precision == bf16 ]] && convolution=bf16
  printf '%s width %s batch %s: tsbd %s, %s threads: ' "$work" "$width" "$images" "$precision" "$count" >&2
  { TSBD_CONV=$convolution "$TSBD" bench "$work" --json --width "$width" --batch "$images" --threads "$count" --steps "$(steps_of "$width")" \
    --warmup "$warmup" 2>"$errors" || true; } |
    add program=tsbd variant="tsbd $precision" precision="$precision" work="$work" width="$width" batch="$images" threads="$count" "$@"
}

# measure_pytorch WORK WIDTH ROUND PRECISION LAYOUT eager|compiled
measure_pytorch() {
  local work=$1 width=$2 round=$3 precision=$4 layout=$5 way=$6
  local variant="PyTorch $precision $layout $way"
  [[ $variant == *"$only"* ]] || return 0
  local -a flags=(--precision "$precision" --layout "$layout")
  [[ $way == compiled ]] && flags+=(--compile)
  [[ $work == inference ]] && flags+=(--inference)
  printf '%s width %s batch %s: %s: ' "$work" "$width" "$batch" "$variant" >&2
  { ${isa:+env "ONEDNN_MAX_CPU_ISA=$isa"} "$python" "$root/tools/reference/bench_pytorch.py" --width "$width" \
    --batch "$batch" --threads "$threads" --steps "$(steps_of "$width")" --warmup "$warmup" "${flags[@]}" \
    2>"$errors" || true; } |
    add program=pytorch variant="$variant" work="$work" width="$width" batch="$batch" threads="$threads" \
      round="$round" isa="$isa" precision="$precision"
}

machine >"$out"
if [[ $mode == scaling ]]; then
  for ((round = 1; round <= rounds; round++)); do
    for width in $widths; do
      for work in $works; do
        for images in $batches; do
          measure_tsbd f32 "$work" "$width" "$images" "$threads" round="$round" scaling=batch
        done
        for count in $(seq 1 "$threads"); do
          # One, two, four and so on, and all of them.
          ((count == threads || (count & (count - 1)) == 0)) || continue
          measure_tsbd f32 "$work" "$width" "$batch" "$count" round="$round" scaling=threads
        done
      done
    done
  done
else
  has_pytorch=yes
  "$python" -c 'import torch' 2>/dev/null || has_pytorch=''
  [[ -n $has_pytorch ]] || echo "PyTorch is not measured: $python does not have it (set TSBD_PYTHON)" >&2
  for ((round = 1; round <= rounds; round++)); do
    for width in $widths; do
      for work in $works; do
        for precision in f32 bf16; do
          [[ "$precision $only" != "f32 bf16"* && "$precision $only" != "bf16 f32"* ]] || continue
          measure_tsbd "$precision" "$work" "$width" "$batch" "$threads" round="$round"
        done
        [[ -n $has_pytorch ]] || continue
        for precision in f32 bf16; do
          for layout in contiguous channels_last; do
            measure_pytorch "$work" "$width" "$round" "$precision" "$layout" eager
            measure_pytorch "$work" "$width" "$round" "$precision" "$layout" compiled
          done
        done
      done
    done
  done
fi
echo "JSON lines: $out" >&2
report "$out"
