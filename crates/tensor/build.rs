//! With the feature `cuda`: compiles the kernels of `src/kernels/cuda/sources` to one module, machine code for compute
//! capability 9.0 and PTX of 8.0, which the driver translates for every other GPU from 8.0 on. Without it: nothing.

use std::env;
use std::path::Path;
use std::process::Command;

const SOURCES: &str = "src/kernels/cuda/sources";
const CODE: [&str; 2] = ["arch=compute_90,code=sm_90", "arch=compute_80,code=compute_80"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["NVCC", "TSBD_NVCC"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed={SOURCES}");
    let compiler = env::var("NVCC").unwrap_or_else(|_| "nvcc".to_owned());
    let module = Path::new(&env::var("OUT_DIR").expect("set by cargo")).join("kernels.fatbin");
    let mut command = Command::new(&compiler);
    command.args(["--fatbin", "-O3", "-std=c++17", "-o"]).arg(&module);
    command.args(CODE.iter().flat_map(|code| ["-gencode", code]));
    let status = command.arg(Path::new(SOURCES).join("kernels.cu")).status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{compiler}: {status} on {SOURCES}/kernels.cu"),
        Err(error) => panic!("{compiler}: {error}; tools/cuda-env.sh lays out a compiler for CUDA"),
    }
}
