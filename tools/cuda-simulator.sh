#!/usr/bin/env bash
# Compiles a driver, cuBLAS and cuDNN of a GPU that does not exist, on which the CPU computes (tools/cuda/simulator):
# with them a program built for CUDA runs every line of its own on any x86-64 Linux machine. Slow, and no test of speed.
#
#   tools/cuda-simulator.sh DIR
#   CUDA_LAZY_PATH=DIR tsbd selftest --device cuda
#
# Needs g++. The kernels are those of this checkout.
set -euo pipefail

(($# == 1)) || {
  echo "usage: tools/cuda-simulator.sh DIR (see the head of the file)" >&2
  exit 1
}
sources=$(cd "$(dirname "${BASH_SOURCE[0]}")/cuda/simulator" && pwd)
emulator=$(cd "$sources/../../../crates/tensor/src/kernels/cuda/emulator" && pwd)
mkdir -p "$1"
for library in driver:libcuda.so.1 cublas:libcublas.so.13 cudnn:libcudnn.so.9; do
  g++ -std=c++17 -O2 -fPIC -shared -w -I"$emulator" -o "$1/${library#*:}" "$sources/${library%%:*}.cpp" &
done
for job in $(jobs -p); do wait "$job"; done
# Asked for by name before cuBLAS; nothing in it is called.
g++ -shared -o "$1/libcublasLt.so.13" -x c++ /dev/null
