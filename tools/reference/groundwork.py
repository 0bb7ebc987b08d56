"""Reference values for the attacks LF and Trojan, computed with numpy and PyTorch.

Makes golden/groundwork/{network,lf,trojan}.safetensors and golden/groundwork/golden.json:

    python tools/reference/groundwork.py

Needs numpy, torch and safetensors. Everything is written from the published descriptions of the methods. Images are
[height, width, channel] in the files.

- network: the state dict of a tiny network with four classes, and twelve 16 x 16 images with their labels.
- lf: random values and their Gaussian smoothing at three sizes; targeted DeepFool on single images (levels from 0 to 1);
  the pattern of a whole search; images of 32 and 64 pixels with a given pattern added.
- trojan: a mask of 16 x 16 pixels and its levels after 1 and after 25 steps of projected gradient descent, and of masks of 32
  and 64 pixels that both sides compute from a formula (`patch`) the levels inside the patch after 25 steps; a weight with
  its columns by connection; images of 32 and 64 pixels with a trigger added, with and without wrapping around.
- golden.json: steps and classes of DeepFool, fooling rates of the search, values of Trojan's neurons at each size.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

GOLDEN = Path(__file__).parent / "golden" / "groundwork"
TARGET = 0
# The orders in which the Rust crate's random streams shuffle six search images: `Streams::new(0).stream("lf/order", pass)`.
ORDERS = [[5, 4, 2, 0, 1, 3], [4, 5, 0, 3, 1, 2], [2, 1, 0, 4, 5, 3]]


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 12, 3, stride=2, padding=1, bias=True)
        self.linear = nn.Linear(12, 4)

    def features(self, x):
        return self.conv2(F.relu(self.bn1(self.conv1(x)))).mean((2, 3))

    def forward(self, x):
        return self.linear(self.features(x))


def network():
    model = Tiny()
    with torch.no_grad():
        model.bn1.running_mean.uniform_(-0.2, 0.2)
        model.bn1.running_var.uniform_(0.5, 1.5)
        model.bn1.weight.uniform_(0.5, 1.5)
        model.bn1.bias.uniform_(-0.3, 0.3)
    labels = torch.arange(12) % 4
    images = torch.randint(0, 120, (12, 3, 16, 16))
    for index, label in enumerate(labels):
        images[index, label % 3] += 100 - 30 * (label // 3)
        images[index, :, : 4 + 3 * label] //= 2
    images = images.to(torch.uint8)
    x = images.float() / 255
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimiser.step()
    model.eval()
    print("training accuracy of the tiny network:", (model(x).argmax(1) == labels).float().mean().item())
    return model, images, labels


def smooth(values):
    """Of [height, width, channel], in double precision: the separable filter written as one two-dimensional sum."""
    taps = torch.exp(-0.5 * ((torch.arange(30, dtype=torch.float64) - 14.5) / 6) ** 2)
    taps /= taps.sum()
    kernel = torch.outer(taps, taps).expand(3, 1, 30, 30)
    padded = F.pad(values.double().permute(2, 0, 1)[None], (14, 15, 14, 15))
    return F.conv2d(padded, kernel, groups=3)[0].permute(1, 2, 0).float()


def logits(model, image):
    """Of an image [height, width, channel]."""
    return model(image.permute(2, 0, 1)[None])[0]


def deepfool(model, image, target, most):
    """The perturbation with its overshoot, and the number of steps."""
    before = logits(model, image).argmax().item()
    total, steps, x = torch.zeros_like(image), 0, image.clone()
    while steps < most:
        x = x.detach().requires_grad_()
        out = logits(model, x)
        if out.argmax().item() == target:
            break
        own = torch.autograd.grad(out[before], x, retain_graph=True)[0]
        wanted = torch.autograd.grad(out[target], x)[0]
        slope = wanted - own
        distance = (out[target] - out[before]).abs().detach() / slope.norm()
        total = torch.nan_to_num(total + distance * slope / slope.norm(), 0.0, 0.0, 0.0)
        steps += 1
        x = image + 1.02 * total
    return 1.02 * total, steps, before


def search(model, images, drawn, amplitude, most):
    """The pattern after one pass for each of ORDERS, and the fooling rates after each."""
    x = images.float().permute(0, 2, 3, 1) / 255
    before = [logits(model, image).argmax().item() for image in x]
    pattern, rates = torch.zeros(16, 16, 3), []
    for order in ORDERS:
        for place in order:
            index = drawn[place]
            if logits(model, x[index] + pattern).argmax().item() != before[index]:
                continue
            way, steps, _ = deepfool(model, x[index] + pattern, TARGET, most)
            if steps < most - 1:
                pattern = smooth(smooth(way) + pattern)
                span = pattern.max() - pattern.min()
                pattern = amplitude * (pattern - pattern.min()) / span if span > 0 else torch.zeros_like(pattern)
        after = [logits(model, image + pattern).argmax().item() for image in x]
        rates.append(sum(a != b for a, b in zip(after, before)) / len(before))
    return pattern, rates


def descend(model, mask, neurons, steps):
    """The mask's levels after some steps; the neurons' values before each step."""
    keep, x, values = (mask > 0).float(), mask.clone(), []
    for _ in range(steps):
        x = x.detach().requires_grad_()
        chosen = model.features((x * keep).permute(2, 0, 1)[None])[0][neurons]
        values.append(chosen.tolist())
        slope = torch.autograd.grad(((chosen - 100) ** 2).sum(), x)[0]
        x = x.detach() - 0.1 * slope.sign()
        x = torch.clamp(mask + torch.clamp(x - mask, -0.3, 0.3), 0, 1)
    return x.detach(), values


def lf_pixels(image, pattern):
    return np.clip(image.astype(np.float64) + pattern, 0, 255).astype(np.uint8)


def patch(size):
    """A mask that is black but for a patch of formula levels, some of them 0, in the bottom right; and the patch's place."""
    rows, columns = slice(7 * size // 16, 14 * size // 16), slice(8 * size // 16, 13 * size // 16)
    row, column, channel = np.mgrid[0:size, 0:size, 0:3]
    levels = (37 * row + 101 * column + 59 * channel) % 256
    mask = torch.zeros(size, size, 3, dtype=torch.uint8)
    mask[rows, columns] = torch.tensor(levels[rows, columns]).to(torch.uint8)
    return mask, (rows, columns)


def main():
    torch.manual_seed(0)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    model, images, labels = network()
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, GOLDEN / "network.safetensors")
    shown = images.permute(0, 2, 3, 1)
    golden = {"orders": ORDERS}

    lf = {"images": shown, "labels": labels.int()}
    for height, width in ((8, 8), (32, 32), (20, 33)):
        values = torch.randn(height, width, 3)
        lf[f"smoothing.{height}x{width}"], lf[f"smoothed.{height}x{width}"] = values, smooth(values)
    golden["deepfool"] = []
    for index, target, most in ((1, 0, 200), (2, 0, 200), (3, 1, 2), (4, 0, 200)):
        way, steps, before = deepfool(model, shown[index].float() / 255, target, most)
        lf[f"deepfool.{len(golden['deepfool'])}"] = way
        golden["deepfool"].append({"image": index, "target": target, "most": most, "steps": steps, "before": before})
    np.random.seed(0)
    drawn = np.random.choice(np.arange(12), 6, replace=False)
    pattern, golden["fooling_rates"] = search(model, images, drawn, 0.2, 200)
    lf["pattern"] = (pattern * 255).to(torch.uint8)
    rng = np.random.default_rng(0)
    trojan = {}
    for size in (32, 64):
        image = rng.integers(0, 256, (size, size, 3), np.uint8)
        levels = rng.integers(0, 52, (size, size, 3), np.uint8)
        trigger = rng.integers(0, 256, (size, size, 3), np.uint8)
        lf[f"image.{size}"], lf[f"given.{size}"] = torch.tensor(image), torch.tensor(levels)
        lf[f"poisoned.{size}"] = torch.tensor(lf_pixels(image, levels))
        total = image.astype(np.int64) + trigger
        trojan[f"image.{size}"], trojan[f"trigger.{size}"] = torch.tensor(image), torch.tensor(trigger)
        trojan[f"wrapped.{size}"] = torch.tensor((total % 256).astype(np.uint8))
        trojan[f"saturated.{size}"] = torch.tensor(np.minimum(total, 255).astype(np.uint8))
    save_file({name: tensor.contiguous() for name, tensor in lf.items()}, GOLDEN / "lf.safetensors")

    mask = torch.zeros(16, 16, 3, dtype=torch.uint8)
    mask[7:14, 8:13] = torch.randint(1, 256, (7, 5, 3)).to(torch.uint8)
    mask[9, 9, 1] = 0
    trojan["mask"] = mask
    neurons = [5, 2]
    for steps in (1, 25):
        levels, values = descend(model, mask.float() / 255, neurons, steps)
        trojan[f"levels.{steps}"], trojan[f"bytes.{steps}"] = levels, (levels * 255).to(torch.uint8)
    golden["values"] = {"16": [values[0], values[-1]]}
    for size in (32, 64):
        drawn, place = patch(size)
        levels, values = descend(model, drawn.float() / 255, neurons, 25)
        trojan[f"patch.{size}"] = (levels * 255).to(torch.uint8)[place]
        assert not (levels * 255).to(torch.uint8).sum() - trojan[f"patch.{size}"].sum(), "black stays black"
        golden["values"][str(size)] = [values[0], values[-1]]
    weight = torch.randn(50, 12)
    trojan["weight"] = weight
    golden["connected"] = weight.abs().sum(0).argsort(descending=True).tolist()
    save_file({name: tensor.contiguous() for name, tensor in trojan.items()}, GOLDEN / "trojan.safetensors")

    (GOLDEN / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(json.dumps(golden["deepfool"]), golden["fooling_rates"], golden["values"], golden["connected"][:3])
    print({path.name: path.stat().st_size for path in sorted(GOLDEN.iterdir())})


main()
