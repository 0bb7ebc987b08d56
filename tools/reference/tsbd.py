"""Reference values for TSBD, FP and FT on a tiny network, computed with PyTorch.

Makes golden/tsbd/*.safetensors and golden/tsbd/golden.json:

    python tools/reference/tsbd.py

Needs torch and safetensors. Everything is written from the published descriptions of the methods. State dicts have
PyTorch's names and layouts. The clean subset is `random.seed(0); random.sample(range(24), 24)` of 24 images of 8 x 8
pixels, so everything from the draw on is the same as in the Rust crate; there is no augmentation and no normalisation
beyond the division by 255.

- images: `u8` `[24, 8, 8, 3]`, and their labels.
- backdoored, unlearned: state dicts before and after clean unlearning in batches of 16 (SGD 0.05, momentum 0.9, until
  the accuracy is at most 0.8).
- zeroed.N: the convolutions after zeroing for three pairs of neuron and weight ratio.
- step.NORM: the state dict after one pass (two batches) of activeness-aware steps from `backdoored` (r 0.05, alpha 0.7,
  SGD 0.01, momentum 0.9), each followed by a forward pass in training mode.
- repaired: the state dict after unlearning, zeroing (0.5, 0.7) and three passes per tensor.
- ft, fp: state dicts after five epochs of plain fine-tuning with batches of all images (SGD 0.01, momentum 0.9, weight
  decay 5e-4, cosine over 100), without and with FP's pruning before it.
- golden.json: the draw; accuracies while unlearning; neuron weight changes; numbers of zeroed weights; FP's features by
  mean activation, and the accuracies while they are pruned one by one.
"""

import copy
import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

GOLDEN = Path(__file__).parent / "golden" / "tsbd"


class Tiny(nn.Module):
    """Two convolutions with a shortcut between them, a batch norm each, and a linear layer."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = norm(4)
        self.conv2 = nn.Conv2d(4, 12, 3, stride=2, padding=1, bias=False)
        self.shortcut = nn.Conv2d(4, 12, 1, stride=2, bias=False)
        self.bn2 = norm(12)
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


def accuracy(model, batches):
    model.eval()
    with torch.no_grad():
        correct = sum((model(x).argmax(1) == y).sum().item() for x, y in batches)
    model.train()
    return correct / sum(len(y) for _, y in batches)


def unlearn(model, batches):
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    accuracies = []
    while not accuracies or accuracies[-1] > 0.8:
        for images, labels in batches:
            optimiser.zero_grad()
            (-F.cross_entropy(model(images), labels)).backward()
            optimiser.step()
        accuracies.append(accuracy(model, batches))
    return model, accuracies


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


def activeness_steps(model, batches, norm, passes):
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    r, alpha = 0.05, 0.7
    for images, labels in batches * passes:
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


def fine_pruning(model, images, labels):
    """Features by mean activation; accuracy while one feature a step is pruned, as the released code counts (n - 1
    columns); the pruned features of the first step that loses a tenth."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        mean = model.features(images).mean(0)
        order = mean.argsort().tolist()
        mask, accuracies = torch.ones_like(model.linear.weight), []
        for n in range(len(order)):
            mask[:, order[: max(n - 1, 0)]] = 0
            logits = model.features(images) @ (model.linear.weight * mask).T + model.linear.bias
            accuracies.append((logits.argmax(1) == labels).float().mean().item())
            if abs(accuracies[-1] - accuracies[0]) / accuracies[0] >= 0.1:
                break
    return mean.tolist(), order, accuracies, order[: max(n - 1, 0)]


def fine_tune(model, images, labels, pruned):
    """Pruned columns as torch.nn.utils.prune keeps them: the weight is multiplied by a mask in every forward pass."""
    model = copy.deepcopy(model).train()
    mask = torch.ones_like(model.linear.weight)
    mask[:, pruned] = 0
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=100)
    for _ in range(5):
        logits = F.linear(model.features(images), model.linear.weight * mask, model.linear.bias)
        optimiser.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimiser.step()
        schedule.step()
    state = model.state_dict()
    state["linear.weight"] = state["linear.weight"] * mask
    return state


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
    noise = torch.randint(0, 150, (24, 3, 8, 8))
    images = (noise + labels.view(-1, 1, 1, 1) * 35).to(torch.uint8)
    random.seed(0)
    drawn = random.sample(range(24), 24)
    x, y = images[drawn].float() / 255, labels[drawn]
    batches = [(x[:16], y[:16]), (x[16:], y[16:])]
    # Some training, so that accuracies mean something.
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(45):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()

    save("images", {"images": images.permute(0, 2, 3, 1), "labels": labels.int()})
    save("backdoored", model.state_dict())
    unlearned, accuracies = unlearn(model, batches)
    save("unlearned", unlearned.state_dict())
    zeroings = []
    for number, (n, m) in enumerate([(0.2, 0.7), (0.5, 0.3), (1.0, 1.0)]):
        zero, count = zeroed(model, unlearned, n, m)
        save(f"zeroed.{number}", {f"{name}.weight": m.weight for name, m in neurons(zero)})
        zeroings.append({"neuron_ratio": n, "weight_ratio": m, "zeroed": count})
    for norm in ("per-tensor", "global"):
        save(f"step.{norm}", activeness_steps(model, batches, norm, 1).state_dict())
    zero, _ = zeroed(model, unlearned, 0.5, 0.7)
    save("repaired", activeness_steps(zero, batches, "per-tensor", 3).state_dict())
    mean, order, pruning, pruned = fine_pruning(model, x, y)
    save("ft", fine_tune(model, x, y, []))
    save("fp", fine_tune(model, x, y, pruned))
    golden = {
        "drawn": drawn,
        "unlearning_accuracies": accuracies,
        "weight_change": [change for _, _, change in weight_change(model, unlearned)],
        "zeroings": zeroings,
        "feature_means": mean,
        "feature_order": order,
        "pruning_accuracies": pruning,
        "pruned": pruned,
    }
    (GOLDEN / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(json.dumps(golden))


if __name__ == "__main__":
    main()
