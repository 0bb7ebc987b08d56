"""References for crates/tensor, made with PyTorch.

    python tools/reference/ops.py      # writes tools/reference/golden/ops/*.safetensors

The golden files hold, per case, the inputs, the output, the gradient of the output that was sent back,
and the gradients of all inputs, in f64 and in this project's layouts: images NHWC, convolution weights
[kernel height, kernel width, in, out], transposed ones [kernel height, kernel width, out, in], linear weights
[out, in]. The file's metadata names the options.
Made with PyTorch 2.15 (CPU); seeds are fixed, so the files come out the same (of matrix products and
convolutions, up to the last bits on another machine).
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
    rows()
    images()
    elements()
    adam()


def rows():
    """Operations over the last dimension, and element by element."""
    g = torch.Generator().manual_seed(20240608)
    run("softmax", {"x": random(g, 2, 3, 11) * 3}, {}, lambda x: F.softmax(x, -1), {})
    run("log_softmax", {"x": random(g, 2, 3, 11) * 3}, {}, lambda x: F.log_softmax(x, -1), {})
    labels = torch.tensor([2, 0, 4, 1])
    for name, smoothing in [("cross_entropy_per_sample", 0.0), ("cross_entropy_per_sample_smoothed", 0.1)]:
        function = lambda x: F.cross_entropy(x, labels, label_smoothing=smoothing, reduction="none")
        run(name, {"x": random(g, 4, 5) * 3}, {}, function, {"label_smoothing": smoothing}, lambda: {"labels": labels.to(torch.uint32)})
    inputs = {"x": random(g, 2, 3, 11) * 2 + 1, "weight": random(g, 11), "bias": random(g, 11)}
    run("layer_norm", inputs, {}, lambda x, weight, bias: F.layer_norm(x, (11,), weight, bias, 1e-5), {"epsilon": 1e-5})
    run("gelu", {"x": torch.cat([random(g, 40) * 3, torch.zeros(1).double()])}, {}, F.gelu, {})


def images():
    """Operations on images that change their size, or read them elsewhere."""
    g = torch.Generator().manual_seed(20240609)
    identity = lambda t: t.detach().contiguous()
    for padding in ["zeros", "border"]:
        for corners in [False, True]:
            # Points inside, outside, and exactly on the corners -1 and 1.
            grid = random(g, 2, 3, 4, 2) * 0.8
            grid[:, 0, 0], grid[:, 0, 1], grid[:, 0, 2] = -1, 1, torch.tensor([-1, 0.3]).double()
            function = lambda x, grid: F.grid_sample(x, grid, "bilinear", padding, corners)
            options = {"padding": padding, "align_corners": corners}
            inputs = {"x": random(g, 2, 3, 4, 5), "grid": grid}
            run(f"grid_sample_{padding}_{'corners' if corners else 'edges'}", inputs, {"grid": identity}, function, options)
    for name, size in [("up", (7, 9)), ("down", (2, 3)), ("one", (1, 8))]:
        for corners in [False, True]:
            function = lambda x: F.interpolate(x, size, mode="bilinear", align_corners=corners)
            options = {"height": size[0], "width": size[1], "align_corners": corners}
            run(f"resize_{name}_{'corners' if corners else 'edges'}", {"x": random(g, 1, 2, 4, 6)}, {}, function, options)
    for name, (h, w, i, o, k, s, p, op, b) in {
        "conv_transpose_3x3": (3, 4, 3, 2, 3, 1, 1, 0, True),
        "conv_transpose_3x3_stride2": (3, 4, 2, 3, 3, 2, 1, 1, True),
        "conv_transpose_4x4_stride3": (2, 3, 2, 2, 4, 3, 0, 2, False),
    }.items():
        inputs = {"x": random(g, 2, i, h, w), "weight": random(g, i, o, k, k)}
        if b:
            inputs["bias"] = random(g, o)
        # The permutation (2, 3, 1, 0) of PyTorch's [in, out, kh, kw] is [kh, kw, out, in].
        function = lambda x, weight, bias=None: F.conv_transpose2d(x, weight, bias, s, p, op)
        run(name, inputs, {"weight": hwio}, function, {"stride": s, "padding": p, "output_padding": op})
    for name, k, s, p in [("2_1_1", 2, 1, 1), ("3_2_1", 3, 2, 1), ("5_3_2", 5, 3, 2)]:
        # All below zero, so that padding taken for a zero would be the maximum.
        x = torch.randint(-5, 0, (1, 2, 6, 7), generator=g).double()
        options = {"kernel": k, "stride": s, "padding": p}
        run(f"max_pool_{name}", {"x": x}, {}, lambda x: F.max_pool2d(x, k, s, p), options)
        run(f"avg_pool_{name}", {"x": x}, {}, lambda x: F.avg_pool2d(x, k, s, p), options)


def elements():
    """Operations element by element, channels side by side, and losses of values and bits."""
    g = torch.Generator().manual_seed(20240610)
    around_zero = lambda: torch.cat([random(g, 40) * 3, torch.tensor([0.0, 1e-9, -1e-9, 30, -30, 400, -400]).double()])
    run("sigmoid", {"x": around_zero()}, {}, torch.sigmoid, {})
    run("tanh", {"x": around_zero()}, {}, torch.tanh, {})
    run("abs", {"x": around_zero()}, {}, torch.abs, {})
    run("sqrt", {"x": random(g, 3, 5) ** 2 + 0.01}, {}, torch.sqrt, {})
    run("div", {"x": random(g, 3, 5), "y": random(g, 3, 5) + 3}, {}, lambda x, y: x / y, {})
    run("concat_channels", {"x": random(g, 2, 3, 4, 5), "y": random(g, 2, 2, 4, 5)}, {}, lambda x, y: torch.cat([x, y], 1), {})
    run("upsample_nearest", {"x": random(g, 2, 3, 2, 3)}, {}, lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), {})
    run("pad_zeros", {"x": random(g, 2, 3, 2, 3)}, {}, lambda x: F.pad(x, (2, 3, 0, 1)), {"border": [0, 1, 2, 3]})
    run("mean_squared_error", {"x": random(g, 3, 5), "y": random(g, 3, 5)}, {}, lambda x, y: F.mse_loss(x, y), {})
    targets = torch.rand(3, 5, generator=g, dtype=torch.float64).round(decimals=1)
    function = lambda x: F.binary_cross_entropy_with_logits(x, targets)
    run("binary_cross_entropy", {"x": random(g, 3, 5) * 20}, {}, function, {}, lambda: {"targets": targets})


def adam():
    g = torch.Generator().manual_seed(20240611)
    for name, betas, epsilon in [("adam", (0.9, 0.999), 1e-8), ("adam_other", (0.5, 0.9), 1e-3)]:
        parameter = random(g, 6).requires_grad_(True)
        optimizer = torch.optim.Adam([parameter], lr=0.1, betas=betas, eps=epsilon)
        tensors = {"before": parameter.detach().clone()}
        for step in range(5):
            parameter.grad = random(g, 6) * 10.0 ** (step - 3)
            tensors[f"gradient{step}"] = parameter.grad.clone()
            optimizer.step()
            tensors[f"after{step}"] = parameter.detach().clone()
        write(name, tensors, {"learning_rate": 0.1, "betas": betas, "epsilon": epsilon})
    # Gradients that shrink, so that the largest second moment is soon an earlier one.
    parameter = random(g, 6).requires_grad_(True)
    optimizer = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.6), eps=1e-8, amsgrad=True)
    tensors = {"before": parameter.detach().clone()}
    for step in range(7):
        parameter.grad = random(g, 6) * 2.0 ** (-abs(step - 2))
        tensors[f"gradient{step}"] = parameter.grad.clone()
        optimizer.step()
        tensors[f"after{step}"] = parameter.detach().clone()
    write("amsgrad", tensors, {"learning_rate": 0.1, "betas": [0.9, 0.6], "epsilon": 1e-8})


if __name__ == "__main__":
    golden()
