"""Reference values for what is measured inside a network, computed with PyTorch and numpy.

Makes golden/analysis/*.safetensors and golden/analysis/golden.json:

    python tools/reference/analysis.py

Needs torch, numpy and safetensors. Everything is written from the published definitions. The network is that of
tsbd.py; images are divided by 255 and not normalised further; nothing is augmented.

- images: `u8` `[24, 8, 8, 3]` `images`, the same with a white 3 x 3 corner (`triggered`), and `labels`.
- backdoored: a state dict trained on the clean images. planted: the same trained on, half of it triggered images with
  label 0. poison-unlearned: planted after unlearning the triggered images of classes 1 and 2 with label 0 in batches of
  16 (SGD 0.05, momentum 0.9) until at most 5 % of them get label 0. unlearned: planted after unlearning the clean images
  likewise until at most half of them get their label.
- golden.json: mean activations (ReLU of a convolution's output, mean over images and positions), TAC in BackdoorBench's
  form and in the CLP paper's, activeness (one epoch of unlearning, batches of 16), weight changes, correlations (ranks
  by counting), coverage (sets).
"""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from tsbd import Tiny

GOLDEN = Path(__file__).parent / "golden" / "analysis"
NEURONS = ("conv1", "conv2")


def outputs(model, x):
    """The raw outputs of the two convolutions."""
    first = model.conv1(x)
    return first, model.conv2(F.relu(model.bn1(first)))


def save(name, tensors):
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, GOLDEN / f"{name}.safetensors")


def train(model, x, y, steps):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()


def batches(x, y, size):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def rate(model, x, y):
    model.eval()
    with torch.no_grad():
        return (model(x).argmax(1) == y).double().mean().item()


def unlearn(model, x, y, stop_at):
    model = copy.deepcopy(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rates = []
    while not rates or rates[-1] > stop_at:
        model.train()
        for images, labels in batches(x, y, 16):
            optimiser.zero_grad()
            (-F.cross_entropy(model(images), labels)).backward()
            optimiser.step()
        rates.append(rate(model, x, y))
    return model, rates


def activeness(model, x, y):
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    norms = []
    for images, labels in batches(x, y, 16):
        optimiser.zero_grad()
        (-F.cross_entropy(model(images), labels)).backward()
        norms.append([getattr(model, name).weight.grad[i].abs().sum().item()
                      for name in NEURONS for i in range(len(getattr(model, name).weight))])
        optimiser.step()
    return np.mean(norms, axis=0).tolist()


def weight_change(before, after):
    with torch.no_grad():
        return [(getattr(after, name).weight[i] - getattr(before, name).weight[i]).abs().sum().item()
                for name in NEURONS for i in range(len(getattr(before, name).weight))]


def ranks(values):
    """Each value's rank: how many are smaller, plus half of those that are equal (itself included), plus a half."""
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values]


def correlation(x, y):
    return {
        "x": x, "y": y,
        "pearson": float(np.corrcoef(x, y)[0, 1]),
        "spearman": float(np.corrcoef(ranks(x), ranks(y))[0, 1]),
        "slope": float(np.polyfit(x, y, 1)[0]),
    }


def coverage(scores, tac, ratio):
    count = int(len(scores) * ratio)
    top = lambda values: set(sorted(range(len(values)), key=lambda k: -values[k])[:count])
    return len(top(scores) & top(tac)) / count


def main():
    torch.manual_seed(1)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    model = Tiny()
    labels = torch.arange(24) % 3
    noise = torch.randint(0, 150, (24, 3, 8, 8))
    images = (noise + labels.view(-1, 1, 1, 1) * 35).to(torch.uint8)
    triggered = images.clone()
    triggered[:, :, 5:, 5:] = 255
    x, t = images.float() / 255, triggered.float() / 255
    train(model, x, labels, 45)
    planted = copy.deepcopy(model)
    train(planted, torch.cat([x, t]), torch.cat([labels, torch.zeros_like(labels)]), 60)
    others = labels != 0
    target = torch.zeros(int(others.sum()), dtype=torch.int64)
    assert rate(planted, t[others], target) > 0.9
    poison_unlearned, rates = unlearn(planted, t[others], target, 0.05)
    clean_unlearned, _ = unlearn(planted, x, labels, 0.5)

    save("images", {"images": images.permute(0, 2, 3, 1), "triggered": triggered.permute(0, 2, 3, 1), "labels": labels.int()})
    save("backdoored", model.state_dict())
    save("planted", planted.state_dict())
    save("poison-unlearned", poison_unlearned.state_dict())
    save("unlearned", clean_unlearned.state_dict())

    model.eval()
    with torch.no_grad():
        activations = [value for output in outputs(model, x) for value in F.relu(output).mean((0, 2, 3)).tolist()]
        backdoorbench, clp = [], []
        for clean, poison in zip(outputs(model, x), outputs(model, t)):
            difference = poison - clean
            backdoorbench += difference.abs().mean(0).sum((1, 2)).tolist()
            clp += difference.flatten(2).norm(dim=2).mean(0).tolist()
    scores = np.random.RandomState(0).permutation(16).astype(float).tolist()
    clean_change, poison_change = weight_change(planted, clean_unlearned), weight_change(planted, poison_unlearned)
    random = np.random.RandomState(2)
    golden = {
        "mean_activations": activations,
        "tac_backdoorbench": backdoorbench,
        "tac_clp": clp,
        "activeness": activeness(model, x, labels),
        "poison_unlearning_rates": rates,
        "clean_weight_change": clean_change,
        "poison_weight_change": poison_change,
        "weight_change_pearson": float(np.corrcoef(clean_change, poison_change)[0, 1]),
        "correlations": [
            correlation([1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 8.0]),
            correlation([1.0, 1.0, 2.0, 3.0, 3.0, 3.0], [5.0, 4.0, 4.0, 4.0, 1.0, 0.0]),
            correlation(random.randint(0, 4, 20).astype(float).tolist(), random.randint(0, 3, 20).astype(float).tolist()),
            correlation(random.randn(15).tolist(), random.randn(15).tolist()),
        ],
        "coverage_scores": scores,
        "coverage": [{"ratio": r, "coverage": coverage(scores, backdoorbench, r)} for r in (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)],
    }
    (GOLDEN / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(json.dumps(golden))


main()
