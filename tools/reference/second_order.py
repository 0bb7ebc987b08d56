"""Second derivatives of a loss through PreAct-ResNet18 by PyTorch's double backward: golden numbers for the Rust ones.

Make them again with:  python tools/reference/second_order.py
The loss is that of i-BAU (Zeng et al. 2022): L(d, w) = cross-entropy of f_w(x + d) + FACTOR * |d|^2 with one
perturbation d for all images of the formula's batch; network and images are those of model.py, in double precision.

golden/second_order/preact-w4-s16.safetensors, all f64, each for "train" and "eval" mode:
  slope_{mode} []                 the derivative of L along v in d
  hessian_{mode} [1, 16, 16, 3]   the Hessian of L in d, times v
  mixed_{mode} [parameters, 18]   a summary (`model.summary`) of each parameter's gradient of the slope
"""

import pathlib

import torch
from model import PreActResNet18, fill, images, labels, summary, values
from safetensors.torch import save_file

GOLDEN = pathlib.Path(__file__).parent / "golden" / "second_order"
WIDTH, SIZE, FACTOR = 4, 16, 0.01


def pattern(stream):
    """One NHWC image of formula values, as NCHW."""
    v = torch.from_numpy(values(stream, SIZE * SIZE * 3))
    return v.reshape(1, SIZE, SIZE, 3).permute(0, 3, 1, 2).contiguous()


def main():
    model = PreActResNet18(WIDTH).double()
    x, y = images(SIZE), labels()
    direction = pattern(3001)
    out = {}
    for mode in ("train", "eval"):
        fill(model)
        model.train(mode == "train")
        d = (0.1 * pattern(3000)).requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x + d), y) + FACTOR * (d * d).sum()
        (gradient,) = torch.autograd.grad(loss, d, create_graph=True)
        slope = (gradient * direction).sum()
        hessian, *mixed = torch.autograd.grad(slope, [d, *model.parameters()])
        out[f"slope_{mode}"] = slope.detach()
        out[f"hessian_{mode}"] = hessian.permute(0, 2, 3, 1).contiguous()
        out[f"mixed_{mode}"] = summary(mixed)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    save_file(out, GOLDEN / "preact-w4-s16.safetensors")


if __name__ == "__main__":
    main()
