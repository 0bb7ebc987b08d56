#!/usr/bin/env bash
# Lays out what a build with the feature `cuda` needs on an x86-64 Linux machine without CUDA and without a GPU. No root;
# only cargo, gcc, g++ and Python 3 (with pip for `full`). What is there already is kept.
#
#   tools/cuda-env.sh full DIR    the compiler of CUDA 13.0 from NVIDIA's wheels (105 MB to fetch, 275 MB on disk): for
#                                 binaries that run on a GPU; `make build-cuda`
#   tools/cuda-env.sh check DIR   no wheel at all, a stand-in for the compiler that makes empty kernels: for cargo check,
#                                 clippy, and tests that touch no GPU; `make check-cuda`
#
# then: . DIR/env.sh && cargo build --release --workspace --features tsbd/cuda
#
# Settings: PYTHON (python3); CUDA_COMPUTE_CAP (80), the oldest GPUs that Candle's own kernels are compiled for: they are
# PTX, which the driver translates for the GPU at hand. This project's kernels need 8.0, and 9.0 no translation. `check`
# names another one: the builder of those kernels keeps what it has made for a capability, whatever compiler made it, and
# would give a real program the empty ones.
set -euo pipefail

die() {
  echo "error: $*" >&2
  exit 1
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
(($# == 2)) && [[ $1 == full || $1 == check ]] || die "usage: tools/cuda-env.sh full|check DIR (see the head of the file)"
mode=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
[[ $(uname -sm) == "Linux x86_64" ]] || die "builds for CUDA need x86-64 Linux, this is $(uname -sm)"
for tool in "$python" cargo gcc g++ ar; do
  command -v "$tool" >/dev/null || die "$tool is missing"
done

# 1. The compiler: what PyTorch 2.11 for CUDA 13.0 pins, and therefore fits its libraries. All five wheels are needed.
wheels=(
  nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
  nvidia-cuda-runtime==13.0.96
)
toolkit=$dir/wheels/nvidia/cu13
if [[ $mode == full && ! -e $dir/wheels/complete ]]; then
  rm -rf "$dir/wheels"
  PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
    --only-binary=:all: --target "$dir/wheels" "${wheels[@]}"
  [[ -x $toolkit/bin/nvcc ]] || die "the wheels hold no $toolkit/bin/nvcc"
  ln -sfn lib "$toolkit/lib64"
  touch "$dir/wheels/complete"
fi
[[ $mode == full ]] || toolkit=$dir/none
mkdir -p "$toolkit/include" "$toolkit/lib"

# 2. What the linker takes for -lcuda, -lcublas, ...: functions that look for the real library when they are first called.
metadata=$(cd "$root" && cargo metadata --quiet --locked --format-version 1 --features tsbd/cuda) ||
  die "cargo does not say where the sources of cudarc lie"
cudarc=$("$python" -c 'import json, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "cudarc":
        print(package["manifest_path"].removesuffix("/Cargo.toml"))' <<<"$metadata")
[[ -n $cudarc ]] || die "cudarc is not among the dependencies of tsbd with the feature cuda"
stamp=$(cat "$cudarc/Cargo.toml" "$root"/tools/cuda/lazy_stubs.* | cksum | cut -d' ' -f1)
if [[ ! -e $dir/stubs/$stamp-$mode ]]; then
  rm -rf "$dir/stubs"
  "$python" "$root/tools/cuda/lazy_stubs.py" "$cudarc" "$dir/stubs/lib"
  if [[ $mode == full ]]; then
    ln -s "$toolkit/lib/libcudart_static.a" "$dir/stubs/lib/libcudart.a" # looks for the driver by itself
  else
    ar crs "$dir/stubs/lib/libcudart.a"
  fi
  touch "$dir/stubs/$stamp-$mode"
fi

# 3. The variables that the build scripts of cudarc, candle-kernels and tsbd-tensor read.
cat >"$dir/env.sh" <<TEXT
# Made by tools/cuda-env.sh $mode; to be sourced.
export CUDA_HOME="$toolkit" CUDA_PATH="$toolkit"
export CUDA_ROOT="$dir/stubs"
export NVCC="$root/tools/cuda/nvcc"
export TSBD_NVCC="$([[ $mode == full ]] && echo "$toolkit/bin/nvcc")"
export CUDA_COMPUTE_CAP="$([[ $mode == full ]] && echo "${CUDA_COMPUTE_CAP:-80}" || echo 89)"
export CUDARC_CUDA_VERSION=13000
export CUDAFORGE_THREADS="\${CUDAFORGE_THREADS:-$(nproc)}"
export PATH="$root/tools/cuda:\$PATH"
TEXT
echo "cuda-env: $mode build laid out; . $dir/env.sh" >&2
