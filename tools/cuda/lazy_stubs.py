#!/usr/bin/env python3
"""Makes archives lib<name>.a that a linker takes for -lcuda, -lcublas, ...: each function is a jump that looks for the
real library on its first call (lazy_stubs.c). A program linked with them starts on machines without a driver and without
CUDA.

    python lazy_stubs.py CUDARC OUT

CUDARC is the source folder of the crate cudarc, whose bindings name the functions; x86-64 Linux only.

A library is looked for in the folders of $CUDA_LAZY_PATH, then as the system does, then beside PyTorch's and in the usual
places of a toolkit. Where it is missing, its functions return an error of that library; CUDA_LAZY_DEBUG=1 prints what was
loaded from where.
"""

import re
import subprocess
import sys
from pathlib import Path

# Library: (cudarc's module, names of its file, files it needs and does not find, status where it is missing).
# NVRTC looks for its builtins as the system does, not beside itself; cuDNN compiles with NVRTC.
# The driver looks for its own compiler, which Candle's kernels need, as the system does.
BUILTINS = "libnvrtc-builtins.so.13.0"
COMPILER = "libnvidia-ptxjitcompiler.so.1"
LIBRARIES = {
    "cuda": ("driver", ["libcuda.so.1"], [COMPILER], 34),  # CUDA_ERROR_STUB_LIBRARY
    "nvrtc": ("nvrtc", ["libnvrtc.so.13", "libnvrtc.so.12"], [BUILTINS], 7),  # NVRTC_ERROR_BUILTIN_OPERATION_FAILURE
    "curand": ("curand", ["libcurand.so.10"], [], 203),  # CURAND_STATUS_INITIALIZATION_FAILED
    "cublas": ("cublas", ["libcublas.so.13", "libcublas.so.12"], ["libcublasLt.so.13"], 1),  # NOT_INITIALIZED
    "cublasLt": ("cublaslt", ["libcublasLt.so.13", "libcublasLt.so.12"], [], 1),  # NOT_INITIALIZED
    "cudnn": ("cudnn", ["libcudnn.so.9"], [BUILTINS, f"../../cu13/lib/{BUILTINS}"], 1001),  # NOT_INITIALIZED
}

INTEGER_REGISTERS = "rax rdi rsi rdx rcx r8 r9".split()
VECTOR_REGISTERS = range(8)


def resolver(library):
    """Calls the C function with every register that may hold an argument kept, then goes where it says."""
    lines = [".text", ".type .Lresolve,@function", ".Lresolve:", ".cfi_startproc"]

    def moves(instruction, change):
        lines.extend([instruction, f".cfi_adjust_cfa_offset {change}"])

    for register in ["r11", *INTEGER_REGISTERS]:
        moves(f"pushq %{register}", 8)
    moves("subq $136,%rsp", 136)
    lines += [f"movups %xmm{i},{16 * i}(%rsp)" for i in VECTOR_REGISTERS]
    lines += ["movq %r11,%rdi", f"call cuda_lazy_{library}_resolve", "movq %rax,%r11"]
    lines += [f"movups {16 * i}(%rsp),%xmm{i}" for i in VECTOR_REGISTERS]
    moves("addq $136,%rsp", -136)
    for register in reversed(INTEGER_REGISTERS):
        moves(f"popq %{register}", -8)
    moves("addq $8,%rsp", -8)
    return lines + ["jmp *%r11", ".cfi_endproc", ".size .Lresolve,.-.Lresolve"]


def jump(name):
    """A function in a section of its own, so that the linker drops what nobody calls."""
    return [
        f'.section .text.{name},"ax",@progbits',
        f".globl {name}",
        f".type {name},@function",
        f"{name}: jmp *.Laddress_{name}(%rip)",
        f".Lfirst_{name}: leaq .Laddress_{name}(%rip),%r11",
        "jmp .Lresolve",
        f".size {name},.-{name}",
        f'.section .data.rel.{name},"aw",@progbits',
        ".p2align 3",
        f".Laddress_{name}: .quad .Lfirst_{name}",
        f".quad .Lname_{name}",
        f'.section .rodata.{name},"a",@progbits',
        f'.Lname_{name}: .asciz "{name}"',
    ]


def main():
    cudarc, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for library, (module, sonames, before, status) in LIBRARIES.items():
        bindings = (cudarc / "src" / module / "sys" / "mod.rs").read_text()
        names = sorted(set(re.findall(r"^\s*fn (\w+)\(", bindings, re.MULTILINE)))
        if len(names) < 20:
            sys.exit(f"error: {cudarc}: found only {len(names)} functions of {library}; has cudarc changed its layout?")
        lines = resolver(library) + [line for name in names for line in jump(name)]
        assembly, objects = out / f"{library}.s", [out / f"{library}_jumps.o", out / f"{library}.o"]
        assembly.write_text("\n".join(lines + ['.section .note.GNU-stack,"",@progbits', ""]))
        quoted = lambda texts, end: "".join(f'"{text}"{end}' for text in texts)
        definitions = {
            "LIB": library,
            "SONAMES": quoted(sonames, ",").rstrip(","),
            "BEFORE": quoted(before, ","),
            "STATUS": status,
            "IS_DRIVER": int(library == "cuda"),
        }
        flags = [f"-D{name}={value}" for name, value in definitions.items()]
        source = Path(__file__).with_name("lazy_stubs.c")
        warnings = ["-Wall", "-Wno-unused-function", "-Wno-format-truncation"]
        compiled = ["-O2", "-fPIC", "-ffunction-sections", "-fdata-sections", *warnings, *flags]
        subprocess.run(["gcc", "-c", "-o", objects[0], assembly], check=True)
        subprocess.run(["gcc", "-c", *compiled, "-o", objects[1], source], check=True)
        archive = out / f"lib{library}.a"
        archive.unlink(missing_ok=True)
        subprocess.run(["ar", "crs", archive, *objects], check=True)
        for path in [assembly, *objects]:
            path.unlink()


if __name__ == "__main__":
    main()
