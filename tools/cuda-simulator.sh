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
compile() {
  g++ -std=c++17 -fPIC -shared -w -I"$emulator" "${@:3}" -o "$1" "$sources/$2.cpp"
}
# What the libraries compute is summed in f64, and may be fused; the kernels round as they say.
compile "$1/libcuda.so.1" driver -O2 &
compile "$1/libcublas.so.13" cublas -O3 -march=native &
compile "$1/libcudnn.so.9" cudnn -O3 -march=native &
for job in $(jobs -p); do wait "$job"; done
# Asked for by name before cuBLAS; nothing in it is called.
g++ -shared -o "$1/libcublasLt.so.13" -x c++ /dev/null
