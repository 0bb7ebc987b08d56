#!/usr/bin/env bash
# tsbd beside PyTorch on one NVIDIA GPU, in one run: whole training steps. Needs bash and Python 3, a tsbd built with
# `make build-cuda`, and, to compare with, a Python that has PyTorch for CUDA.
set -euo pipefail

usage() {
  cat <<'TEXT'
tools/bench_gpu.sh: tsbd beside PyTorch on a GPU, in one run

usage: tools/bench_gpu.sh [FLAGS]

  --quick           few steps: does everything work?
  --steps N         measured steps per run, after 20 more (100)
  --width N         width of PreAct-ResNet18 (64)
  --batches "N ..." images per step ("128 512")
  --device NAME     cuda or cuda:N, for tsbd (cuda); CUDA_VISIBLE_DEVICES chooses for both
  --only TEXT       only the variants whose name contains this (tsbd, f32, tf32, bf16, compiled, free, graphs,
                    contiguous); without tsbd's there are no ratios
  --out FILE        where the JSON lines go (bench-gpu.jsonl)

environment
  TSBD              a tsbd built with `make build-cuda` (target/release/tsbd)
  TSBD_PYTHON       a Python with PyTorch (python3), whose libraries tsbd uses, too; without PyTorch, only tsbd is measured

It begins with `tsbd selftest --device cuda`. If an operation is wrong it measures all the same, says so at the end, and fails:
what computes wrong numbers has no speed. A run that fails does not stop the others, and the whole fails. Each run is printed
when it is done, and the table at the end, however that comes.
All of it takes a quarter of an hour or more, most of it PyTorch's starts: `--only bf16 --batches 128` took two minutes on an H200.
The ratio of a line is its images per second divided by those of one model of tsbd in the same precision: above 1, tsbd is slower than
that variant. Below the lines tsbd is compared with PyTorch's fastest variant. Steps are done again from a CUDA graph, except
those called launched. Four models at once are four in one process; their images per second are added. PyTorch's tensors are
channels last, in f32 also contiguous, for which cuDNN has other algorithms.
TEXT
}

refuse() {
  echo "error: $*" >&2
  echo "hint: tools/bench_gpu.sh --help" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tsbd=${TSBD:-$root/target/release/tsbd} python=${TSBD_PYTHON:-python3}
steps=100 warmup=20 width=64 batches='128 512' device=cuda only='' out=bench-gpu.jsonl
while (($# > 0)); do
  case $1 in
    --help | -h)
      usage
      exit 0
      ;;
    --quick)
      steps=5 warmup=2 batches=128
      shift
      ;;
    --steps | --width | --batches | --device | --only | --out)
      (($# > 1)) || refuse "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    *) refuse "unknown argument '$1'" ;;
  esac
done
for number in $steps $width $batches; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || refuse "'$number' is not a whole number of at least 1"
done
[[ -x $tsbd ]] || refuse "there is no $tsbd: build it with make build-cuda, or name one in TSBD"

# tsbd looks for PyTorch's libraries in the environment that is active: here, in that of the Python named.
if [[ -n ${TSBD_PYTHON:-} || -z ${VIRTUAL_ENV:-} ]]; then
  VIRTUAL_ENV=$("$python" -c 'import sys; print(sys.prefix)') && export VIRTUAL_ENV
fi

echo "selftest of $tsbd on $device" >&2
tested=0
timeout 300 "$tsbd" selftest --device "$device" >&2 || tested=$?
((tested == 0)) || echo "the selftest failed, exit code $tested: see above" >&2

: >"$out"
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.draw --format=csv,noheader >&2 || true

# All runs so far, by batch.
table() {
  python3 - "$out" <<'PYTHON'
import json
import sys

runs = [json.loads(line) for line in open(sys.argv[1])]
for batch in sorted({run["batch"] for run in runs}):
    of = [run for run in runs if run["batch"] == batch]
    own = {run["precision"]: run["images_per_second"] for run in of if run["variant"] == f"tsbd {run['precision']}"}
    print(f"\nbatch {batch}{'':18}  images/s  ms a step  GPU MB  x tsbd")
    for run in of:
        if "failed" in run:
            print(f"{run['variant']:28}  {run['failed']}")
            continue
        speed, memory = run["images_per_second"], run.get("peak_gpu_memory_mb")
        ratio = f"{speed / own[run['precision']]:6.2f}" if run["precision"] in own else ""
        memory = f"{memory:6.0f}" if memory else "     -"
        print(f"{run['variant']:28}  {speed:8.0f}  {run['milliseconds_per_step']:9.2f}  {memory}  {ratio}")
    others = [run for run in of if run["variant"].startswith("pytorch") and "failed" not in run]
    for precision, speed in own.items():
        of_precision = [run for run in others if run["precision"] == precision]
        if of_precision:
            best = max(of_precision, key=lambda run: run["images_per_second"])
            print(f"tsbd {precision} is {speed / best['images_per_second']:.2f} times as fast as {best['variant']}")
PYTHON
}

# run NAME PROGRAM...: appends the program's JSON line, with its name, and prints it; a failure does not stop the others.
failures=0
run() {
  local name=$1 line
  shift
  line=$("$@") || {
    failures=$((failures + 1))
    echo "failed: $name: $*" >&2
  }
  [[ -n $line ]] || return 0
  python3 -c 'import json, sys; print(json.dumps({"variant": sys.argv[1], **json.loads(sys.argv[2])}))' "$name" "$line" >>"$out"
  table | grep -F -- "$name  " | tail -n 1 >&2 || true
}

pytorch=yes
if ! reason=$("$python" -c 'import sys, torch; torch.cuda.is_available() or sys.exit("it sees no GPU")' 2>&1); then
  pytorch=''
  echo "PyTorch is not measured: ${reason##*$'\n'}" >&2
fi

trap table EXIT
sizes=(--steps "$steps" --warmup "$warmup" --width "$width")
for batch in $batches; do
  for precision in f32 tf32 bf16; do
    [[ "tsbd $precision" == *"$only"* ]] || continue
    run "tsbd $precision" "$tsbd" bench train --device "$device" --precision "$precision" "${sizes[@]}" --batch "$batch" --json
    TSBD_CUDA_GRAPHS=0 run "tsbd $precision, launched" "$tsbd" bench train --device "$device" --precision "$precision" \
      "${sizes[@]}" --batch "$batch" --json
    # Convolutions in f32 on tensor cores, of split factors.
    [[ $precision != f32 ]] ||
      TSBD_CONV='split' run "tsbd $precision, split" "$tsbd" bench train --device "$device" --precision "$precision" \
        "${sizes[@]}" --batch "$batch" --json
    run "tsbd $precision, 4 at once" "$tsbd" bench train --device "$device" --precision "$precision" --models 4 \
      "${sizes[@]}" --batch "$batch" --json
  done
  [[ -n $pytorch ]] || continue
  for precision in f32 tf32 bf16; do
    for variant in eager compiled 'compiled free' graphs contiguous 'contiguous graphs'; do
      name="pytorch $precision $variant" layout=channels_last
      [[ $name == *"$only"* ]] || continue
      [[ $variant != contiguous* ]] || layout=contiguous
      [[ $layout == channels_last || $precision == f32 ]] || continue
      flags=(--device cuda --precision "$precision" --layout "$layout" --batch "$batch")
      [[ $variant != compiled* ]] || flags+=(--compile)
      [[ $variant != *graphs ]] || flags+=(--compile reduce-overhead)
      [[ $variant != *free ]] || flags+=(--free)
      run "$name" "$python" "$root/tools/reference/bench_pytorch.py" "${sizes[@]}" "${flags[@]}"
    done
  done
done

((failures == 0)) || echo "$failures runs failed: see above" >&2
((tested == 0 && failures == 0)) || exit 1
