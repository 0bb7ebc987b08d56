"""References for crates/tensor, made with PyTorch.

    python tools/reference/ops.py      # writes tools/reference/golden/ops/*.safetensors

The golden files hold, per case, the inputs, the output, the gradient of the output that was sent back,
and the gradients of all inputs, in f64 and in this project's layouts: images NHWC, convolution weights
[kernel height, kernel width, in, out], linear weights [out, in]. The file's metadata names the options.
Made with PyTorch 2.15 (CPU); seeds are fixed, so the files come out the same.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

GOLDEN = Path(__file__).parent / "golden" / "ops"


def nhwc(t):
    return t.detach().permute(0, 2, 3, 1).contiguous() if t.dim() == 4 else t.detach().contiguous()


def hwio(t):
    return t.detach().permute(2, 3, 1, 0).contiguous()


def random(generator, *dims):
    return torch.randn(*dims, generator=generator, dtype=torch.float64)


def write(name, tensors, options):
    GOLDEN.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, GOLDEN / f"{name}.safetensors", {"options": json.dumps(options, sort_keys=True)})


def run(name, inputs, layouts, function, options, extra=None):
    """Runs `function` on leaves, sends a random gradient back, writes everything."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)) + 1)
    leaves = {key: value.clone().requires_grad_(True) for key, value in inputs.items()}
    output = function(**leaves)
    seed = random(generator, *output.shape) if output.dim() else torch.ones((), dtype=torch.float64)
    output.backward(seed)
    tensors = {"output": nhwc(output), "seed": nhwc(seed)}
    for key, leaf in leaves.items():
        tensors[key] = layouts.get(key, nhwc)(leaf)
        tensors[f"{key}.gradient"] = layouts.get(key, nhwc)(leaf.grad)
    tensors.update(extra() if extra else {})
    write(name, tensors, options)


def golden():
    g = torch.Generator().manual_seed(20240607)
    for name, (n, h, w, i, o, k, s, p, b) in {
        "conv_3x3": (2, 6, 5, 3, 4, 3, 1, 1, True),
        "conv_3x3_stride2": (2, 7, 6, 2, 3, 3, 2, 1, False),
        "conv_1x1_stride2": (2, 5, 8, 3, 4, 1, 2, 0, False),
        "conv_3x3_tiles": (1, 4, 8, 16, 16, 3, 1, 1, False),
    }.items():
        inputs = {"x": random(g, n, i, h, w), "weight": random(g, o, i, k, k)}
        if b:
            inputs["bias"] = random(g, o)
        run(name, inputs, {"weight": hwio}, lambda x, weight, bias=None: F.conv2d(x, weight, bias, s, p), {"stride": s, "padding": p})

    for name, training, relu in [("bn_batch", True, False), ("bn_batch_relu", True, True), ("bn_running_relu", False, True)]:
        mean, variance = random(g, 5), random(g, 5).abs() + 0.1
        running_mean, running_variance = mean.clone(), variance.clone()

        def bn(x, weight, bias):
            y = F.batch_norm(x, running_mean, running_variance, weight, bias, training, 0.1, 1e-5)
            return F.relu(y) if relu else y

        inputs = {"x": random(g, 3, 5, 4, 3) * 2 + 1, "weight": random(g, 5), "bias": random(g, 5)}
        extra = lambda: {"mean_before": mean, "variance_before": variance, "mean_after": running_mean, "variance_after": running_variance}
        run(name, inputs, {}, bn, {"training": training, "relu": relu, "epsilon": 1e-5, "momentum": 0.1}, extra)

    for name, k, s in [("2_2", 2, 2), ("3_2", 3, 2), ("2_3", 2, 3)]:
        # Small whole numbers, so that windows have ties; and exact zeros.
        x = torch.randint(-2, 3, (2, 3, 7, 8), generator=g).double()
        run(f"max_pool_{name}", {"x": x}, {}, lambda x: F.max_pool2d(x, k, s), {"kernel": k, "stride": s})
        run(f"avg_pool_{name}", {"x": x}, {}, lambda x: F.avg_pool2d(x, k, s), {"kernel": k, "stride": s})
    run("relu", {"x": torch.randint(-1, 2, (2, 3, 4, 3), generator=g).double()}, {}, lambda x: F.relu(x), {})
    run("linear", {"x": random(g, 3, 5), "weight": random(g, 4, 5), "bias": random(g, 4)}, {}, lambda x, weight, bias: F.linear(x, weight, bias), {})
    labels = torch.tensor([2, 0, 4, 1])
    for name, smoothing in [("cross_entropy", 0.0), ("cross_entropy_smoothed", 0.1)]:
        logits = random(g, 4, 5) * 3
        extra = lambda: {"labels": labels.to(torch.uint32), "per_sample": F.cross_entropy(logits, labels, reduction="none")}
        run(name, {"x": logits}, {}, lambda x: F.cross_entropy(x, labels, label_smoothing=smoothing), {"label_smoothing": smoothing}, extra)

    parameter = random(g, 6).requires_grad_(True)
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, weight_decay=0.01)
    tensors = {"before": parameter.detach().clone()}
    for step in range(3):
        parameter.grad = random(g, 6)
        tensors[f"gradient{step}"] = parameter.grad.clone()
        optimizer.step()
        tensors[f"after{step}"] = parameter.detach().clone()
    write("sgd", tensors, {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01})


if __name__ == "__main__":
    golden()
