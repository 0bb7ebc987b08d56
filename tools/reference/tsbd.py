"""Reference values for TSBD and FP on a tiny network, computed with PyTorch.

Makes golden/tsbd/*.safetensors and golden/tsbd/golden.json:

    python tools/reference/tsbd.py

Needs torch, numpy and safetensors. Everything is written from the published description of the method; tensors of the
files are in PyTorch's names and layouts, images `[n, height, width, channel]`. No augmentation.

- backdoored, unlearned: state dicts before and after two epochs of gradient ascent (SGD 0.05, momentum 0.9).
- zeroed.N: the state dict after zeroing for three pairs of neuron and weight ratio.
- step.NORM: the state dict after two activeness-aware steps (r 0.05, alpha 0.7, SGD 0.01, momentum 0.9) from
  `backdoored`, each followed by a forward pass in training mode.
- golden.json: neuron weight changes; FP's features by mean activation, and its accuracies while pruning.
"""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

GOLDEN = Path(__file__).parent / "golden" / "tsbd"


class Tiny(nn.Module):
    """Two convolutions with a shortcut between them, a batch norm each, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 12, 3, stride=2, padding=1, bias=False)
        self.shortcut = nn.Conv2d(4, 12, 1, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.linear = nn.Linear(12, 3)

    def features(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.conv2(x) + self.shortcut(x)
        return F.relu(self.bn2(x)).mean((2, 3))

    def forward(self, x):
        return self.linear(self.features(x))


def save(name, tensors):
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, GOLDEN / f"{name}.safetensors")


def gradients(model, images, labels):
    loss = F.cross_entropy(model(images), labels)
    return torch.autograd.grad(loss, list(model.parameters()))


def unlearn(model, batches):
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for images, labels in batches:
            optimiser.zero_grad()
            (-F.cross_entropy(model(images), labels)).backward()
            optimiser.step()
    return model


def neurons(model):
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name]


def weight_change(before, after):
    change = []
    for (name, b), (_, a) in zip(neurons(before), neurons(after)):
        for i in range(b.weight.shape[0]):
            change.append((name, i, (a.weight[i] - b.weight[i]).abs().sum().item()))
    return change


def zeroed(before, after, n, m):
    change = weight_change(before, after)
    order = sorted(range(len(change)), key=lambda k: float(f"{change[k][2]:.4f}"), reverse=True)
    top = [change[k] for k in order[: int(len(change) * n)]]
    after_modules, model = dict(after.named_modules()), copy.deepcopy(before)
    modules = dict(model.named_modules())
    difference = {name: (after_modules[name].weight - modules[name].weight).abs().detach() for name, _ in neurons(model)}
    pool = torch.cat([difference[name][i].flatten() for name, i, _ in top]).sort(descending=True).values
    threshold = pool[: int(len(pool) * m)].min()
    count = 0
    with torch.no_grad():
        for name, i, _ in top:
            mask = difference[name][i] >= threshold
            modules[name].weight[i][mask] = 0
            count += int(mask.sum())
    return model, count


def activeness_steps(model, batches, norm):
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    r, alpha = 0.05, 0.7
    for images, labels in batches:
        temporary = copy.deepcopy(model)
        first = gradients(temporary, images, labels)
        total = torch.cat([g.flatten() for g in first]).norm()
        with torch.no_grad():
            for parameter, g in zip(temporary.parameters(), first):
                parameter += r * g / (g.norm() if norm == "per-tensor" else total)
        second = gradients(temporary, images, labels)
        for parameter, g1, g2 in zip(model.parameters(), first, second):
            parameter.grad = (1 - alpha) * g1 + alpha * g2
        optimiser.step()
        with torch.no_grad():
            model(images)
    return model


def fine_pruning(model, batches):
    """Accuracy in percent of images while 1 feature a step is pruned, as the released code counts (n - 1 columns)."""
    model = copy.deepcopy(model).eval()
    images, labels = (torch.cat(part) for part in zip(*batches))
    with torch.no_grad():
        mean = model.features(images).mean(0)
        order = mean.argsort()
        mask, accuracies = torch.ones_like(model.linear.weight), []
        for n in range(len(order)):
            mask[:, order[: max(n - 1, 0)]] = 0
            logits = model.features(images) @ (model.linear.weight * mask).T + model.linear.bias
            accuracies.append((logits.argmax(1) == labels).float().mean().item())
    return mean.tolist(), order.tolist(), accuracies


def main():
    torch.manual_seed(0)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    model = Tiny()
    with torch.no_grad():
        for bn in (model.bn1, model.bn2):
            bn.running_mean.uniform_(-0.2, 0.2)
            bn.running_var.uniform_(0.5, 1.5)
            bn.weight.uniform_(0.5, 1.5)
            bn.bias.uniform_(-0.3, 0.3)
    labels = torch.arange(24) % 3
    images = torch.randn(24, 3, 8, 8) + labels.view(-1, 1, 1, 1) * 0.2
    batches = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    # Some training, so that accuracies mean something.
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        for x, y in batches:
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()

    save("batches", {"images": images.permute(0, 2, 3, 1), "labels": labels.int()})
    save("backdoored", model.state_dict())
    unlearned = unlearn(model, batches)
    save("unlearned", unlearned.state_dict())
    zeroings = []
    for number, (n, m) in enumerate([(0.2, 0.7), (0.5, 0.3), (1.0, 1.0)]):
        zero, count = zeroed(model, unlearned, n, m)
        save(f"zeroed.{number}", {name: m.weight for name, m in neurons(zero)})
        zeroings.append({"neuron_ratio": n, "weight_ratio": m, "zeroed": count})
    for norm in ("per-tensor", "global"):
        save(f"step.{norm}", activeness_steps(model, batches, norm).state_dict())
    mean, order, accuracies = fine_pruning(model, batches)
    golden = {
        "weight_change": [change for _, _, change in weight_change(model, unlearned)],
        "zeroings": zeroings,
        "feature_means": mean,
        "feature_order": order,
        "pruning_accuracies": accuracies,
    }
    (GOLDEN / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(json.dumps(golden))


main()
