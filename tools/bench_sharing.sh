#!/usr/bin/env bash
# The ways in which cells share a GPU, beside each other: the same trainings by `tsbd run --sharing`. Needs bash, Python 3 and a
# tsbd built with `make build-cuda`.
set -euo pipefail

usage() {
  cat <<'TEXT'
tools/bench_sharing.sh: the ways in which cells share a GPU, beside each other

usage: tools/bench_sharing.sh [FLAGS]

  --quick            small trainings: does everything work?
  --cells N          trainings, all at once where they share the GPU (4)
  --epochs N         epochs of each, of 50,000 images (10)
  --width N          width of PreAct-ResNet18 (64)
  --precision NAME   f32, tf32 or bf16 (bf16)
  --ways "NAME ..."  of `tsbd run --sharing` ("one-process mps turns")
  --device NAME      cuda:N (cuda:0)

environment
  TSBD               a tsbd built with `make build-cuda` (target/release/tsbd)
  TSBD_PYTHON        a Python with PyTorch, whose libraries tsbd uses, where it finds none by itself

The trainings are the same for each way, of generated images: no data set is needed. First they run one after the other, then all at
once in each way. Seconds are those of the whole run, starts and evaluations included. Memory is what tensors took on the GPU at most,
of all processes together. However they share the GPU, the models must have the same bits: where they have not, or a run fails, it says so, measures the rest and
fails.
TEXT
}

refuse() {
  echo "error: $*" >&2
  echo "hint: tools/bench_sharing.sh --help" >&2
  exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tsbd=${TSBD:-$root/target/release/tsbd}
cells=4 epochs=10 width=64 precision=bf16 ways='one-process mps turns' device=cuda:0 images=50000 size=32
while (($# > 0)); do
  case $1 in
    --help | -h)
      usage
      exit 0
      ;;
    --quick)
      cells=2 epochs=1 width=4 images=200 size=16
      shift
      ;;
    --cells | --epochs | --width | --precision | --ways | --device)
      (($# > 1)) || refuse "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    *) refuse "unknown argument '$1'" ;;
  esac
done
for number in $cells $epochs $width; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || refuse "'$number' is not a whole number of at least 1"
done
[[ -x $tsbd ]] || refuse "there is no $tsbd: build it with make build-cuda, or name one in TSBD"

# tsbd looks for PyTorch's libraries in the environment that is active.
if [[ -n ${TSBD_PYTHON:-} ]]; then
  VIRTUAL_ENV=$("$TSBD_PYTHON" -c 'import sys; print(sys.prefix)')
  export VIRTUAL_ENV
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/sharing.toml" <<TOML
title = "Trainings that share a GPU"
profile = "quick"
seeds = [$(seq -s, 0 $((cells - 1)))]

[data]
name = "shapes"
image_size = $size
train_images = $images
test_images = 1000

[model]
width = $width

[training]
epochs = $epochs
precision = "$precision"

[grid]
attack = ["badnets"]
defense = ["none"]
TOML

# timed NAME WAY AT_ONCE: the grid in a results folder of that name, and a line about it.
timed() {
  local name=$1 start=$EPOCHREALTIME
  echo "$name" >&2
  "$tsbd" run "$folder/sharing.toml" --results "$folder/$name" --device "$device" --sharing "$2" --cells-per-gpu "$3" 2>&1 |
    tee "$folder/log" >&2 || return 1
  local end=$EPOCHREALTIME
  ! grep -q "without NVIDIA's MPS" "$folder/log" || name+=', in turns'
  python3 - "$folder/$1" "$name" "$start" "$end" "$((images * epochs * cells))" "$folder/models.json" <<'PYTHON'
import json
import pathlib
import sys

results, name, start, end, images, models = sys.argv[1:]
records = [json.loads(path.read_text()) for path in pathlib.Path(results, "cells").glob("*/record.json")]
memory = [record["provenance"]["peak_gpu_memory_bytes"] for record in records]
# Cells in one process know what all of them took; those one after the other are never there together.
memory = max(memory) if "one" in name else sum(memory)
seconds = float(end) - float(start)
print(f"{name:21} {seconds:8.1f} s {int(images) / seconds:10.0f} images/s {memory / 1e6:8.0f} MB")
digests = {record["key"]: record["artefacts"]["model.safetensors"]["blake3"] for record in records}
known = pathlib.Path(models)
if not known.exists():
    known.write_text(json.dumps(digests))
elif json.loads(known.read_text()) != digests:
    sys.exit(f"error: the models of {name} have other bits than those that were trained one after the other")
PYTHON
}

failed=0
timed one-after-the-other one-process 1 || failed=1
for way in $ways; do
  timed "$way" "$way" "$cells" || failed=1
done
exit "$failed"
