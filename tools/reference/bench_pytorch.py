"""The training step of `tsbd bench train` in PyTorch: PreAct-ResNet18 of model.py on CPU or GPU, one line of JSON.

    python tools/reference/bench_pytorch.py --width 64 --steps 10
    python tools/reference/bench_pytorch.py --precision bf16 --layout channels_last --compile
    python tools/reference/bench_pytorch.py --inference --threads 1
    python tools/reference/bench_pytorch.py --device cuda --precision tf32 --layout channels_last --batch 512

A step is everything from 8-bit images in memory on: random crops out of 4 pixels of padding, mirroring, normalisation,
forward, backward, SGD with momentum 0.9 and weight decay 5e-4. With --inference: normalisation, forward without
gradients, predictions and loss. Every image is seen once, as in `tsbd bench`. Each part is written in the fastest
reasonable way:

- All images are padded, and mirrored too, before the clock starts; a batch is one gather out of that (8 bits a value),
  then converted and normalised in place.
- The gather writes the memory format that the network wants.
- The optimiser is PyTorch's fused SGD, gradients are dropped instead of zeroed, training accuracy is not computed.

bf16 is autocast: parameters and the optimiser stay in f32. --compile compiles network and loss with torch.compile, and with
`--compile reduce-overhead` their launches become CUDA graphs; the compilation is part of the warm-up. Where it fails (it needs a C++ compiler), the line of JSON says so under "failed",
and the exit code is 1. What oneDNN may use is up to its own variable: ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 leaves AMX out.
tools/bench_cpu.sh runs all variants beside tsbd.

On a GPU (--device cuda) the images lie in its memory before the clock starts, algorithms are chosen by trying them
(cudnn.benchmark), f32 means no TF32 anywhere, and tf32 allows it; the host reads the loss at the end of each step, as tsbd
does, and not every step with --free: then only the whole run is timed. tools/bench_gpu.sh runs all variants beside tsbd.
"""

import argparse
import json
import os
import re
import resource
import statistics
import sys
import time

sys.dont_write_bytecode = True

import torch
from model import PreActResNet18
from torch.nn.functional import cross_entropy

PADDING = 4


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16, help="channels after the first convolution")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--steps", type=int, default=20, help="steps that are measured")
    parser.add_argument("--warmup", type=int, default=3, help="steps before")
    parser.add_argument("--image-size", type=int, default=32, help="pixels per side")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, help="without it PyTorch's own choice")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--free", action="store_true", help="the host waits for the GPU only at the end")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    parser.add_argument("--layout", choices=["contiguous", "channels_last"], default="contiguous")
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="with torch.compile, in this mode")
    parser.add_argument("--inference", action="store_true", help="evaluation instead of training")
    return parser.parse_args()


class Images:
    """Random 8-bit images; batches of them, augmented, normalised, in the wanted memory format."""

    def __init__(self, options):
        self.options, size = options, options.image_size
        self.count = (options.warmup + options.steps) * options.batch
        device = options.device
        pixels = torch.randint(0, 256, (self.count, size, size, 3), dtype=torch.uint8, device=device)
        self.labels = torch.randint(0, options.classes, (self.count,), device=device)
        # The innermost dimension of what is gathered is that of the batch: channels or columns.
        nhwc = options.layout == "channels_last"
        self.pixels = pixels if nhwc else pixels.permute(0, 3, 1, 2).contiguous()
        self.mean, self.factor = torch.tensor(0.5 * 255, device=device), torch.tensor(1 / (0.25 * 255), device=device)
        if options.inference:
            self.order = torch.arange(self.count, device=device)
            return
        self.order = torch.randperm(self.count, device=device)
        rows, columns = (1, 2) if nhwc else (2, 3)
        padding = [0, 0] * nhwc + [PADDING] * 4
        padded = torch.nn.functional.pad(self.pixels, padding)
        both = torch.cat([padded, padded.flip(columns)])
        # [2 count, 9, 9, ...]: every window of every image, mirrored or not, as a view.
        windows = both.unfold(rows, size, 1).unfold(columns, size, 1)
        self.windows = windows.permute(0, 1, 2, 4, 5, 3) if nhwc else windows.permute(0, 2, 3, 1, 4, 5)

    def batch(self, step):
        begin = step * self.options.batch
        chosen = self.order[begin : begin + self.options.batch]
        if self.options.inference:
            pixels = self.pixels[begin : begin + self.options.batch]
        else:
            device = self.order.device
            mirrored = torch.randint(0, 2, (len(chosen),), device=device) * self.count
            up, left = torch.randint(0, 2 * PADDING + 1, (2, len(chosen)), device=device)
            pixels = self.windows[chosen + mirrored, up, left]
        x = pixels.to(torch.float32).sub_(self.mean).mul_(self.factor)
        return x.permute(0, 3, 1, 2) if self.options.layout == "channels_last" else x, self.labels[chosen]


def measure(options):
    """Milliseconds of all steps and of their batches, and processor milliseconds per step after the warm-up."""
    images = Images(options)
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[options.layout]
    model = PreActResNet18(options.width, options.classes).to(options.device, memory_format=layout)
    model.train(not options.inference)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)

    def forward(x, y):
        logits = model(x)
        return cross_entropy(logits, y), logits

    if options.compile:
        forward = torch.compile(forward, mode=options.compile)
    autocast = torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16")

    def train(x, y):
        with autocast:
            loss, _ = forward(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss if options.free else loss.item()

    def infer(x, y):
        with torch.inference_mode(), autocast:
            loss, logits = forward(x, y)
            correct = (logits.argmax(1) == y).sum()
            return (loss, correct) if options.free else (loss.item(), correct.item())

    def wait():
        if options.device == "cuda":
            torch.cuda.synchronize()

    step = infer if options.inference else train
    times, data = [], []
    for number in range(options.warmup + options.steps):
        if number == options.warmup:
            wait()
            processor, start = time.process_time(), time.perf_counter()
        begin = time.perf_counter()
        x, y = images.batch(number)
        data.append((time.perf_counter() - begin) * 1e3)
        step(x, y)
        times.append((time.perf_counter() - begin) * 1e3)
    wait()
    processor = (time.process_time() - processor) / options.steps * 1e3
    if options.free:  # what a step alone took nobody has measured
        times[options.warmup :] = [(time.perf_counter() - start) / options.steps * 1e3] * options.steps
    return times[options.warmup :], data[options.warmup :], processor


def main():
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.precision != "f32"
    elif options.precision == "tf32" or options.free:
        sys.exit("error: --precision tf32 and --free are for --device cuda")
    torch.manual_seed(0)
    onednn = re.search(r"oneDNN\) v(\S+)|MKL-DNN v(\S+)", torch.__config__.show())
    result = {
        "work": "inference" if options.inference else "train",
        "model": "preact-resnet18",
        "width": options.width,
        "image_size": options.image_size,
        "classes": options.classes,
        "batch": options.batch,
        "device": options.device,
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "free": options.free,
        "precision": options.precision,
        "layout": options.layout,
        "compiled": options.compile or False,
        "threads": torch.get_num_threads(),
        "steps": options.steps,
        "warmup": options.warmup,
        "pytorch": torch.__version__,
        "onednn": onednn and next(filter(None, onednn.groups())),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA"),
    }
    try:
        times, data, processor = measure(options)
    except Exception as error:
        if not options.compile:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        result["failed"] = f"{type(error).__name__}: {lines[0] if lines else ''}"
        print(json.dumps(result))
        return 1
    median = statistics.median(times)
    result |= {
        "images_per_second": options.batch / median * 1e3,
        "milliseconds_per_step": median,
        "fastest_milliseconds_per_step": min(times),
        "cpu_milliseconds_per_step": processor,
        "data_milliseconds_per_step": statistics.median(data),
        "data_share": sum(data) / sum(times),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated() / 1e6 if options.device == "cuda" else None,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
