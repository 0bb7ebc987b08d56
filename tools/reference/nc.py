"""Reference values for Neural Cleanse, computed with PyTorch and numpy.

Makes golden/nc/*.safetensors and golden/nc/golden.json:

    python tools/reference/nc.py

Written from the published description.

- search: on the tiny network of tsbd.py in evaluation mode, for class 1, batches of 16 and 8 images in order, no
  augmentation, normalised by MEAN and STD: mask `[8, 8]` and pattern `[8, 8, 3]` that are kept after 40 epochs (`mask`,
  `pattern`), with the cost raised and lowered after two epochs.
- steps: three steps on the first, the second and again the first batch in 64 bits, with costs that make the mask norm a
  small and a large part of the loss: for each (`.0` to `.2`) the gradients of the loss with respect to
  what goes into the hyperbolic tangents (`mask_gradient`, `pattern_gradient`), and the mask and pattern that the step of
  Adam leads to (`mask`, `pattern`); shapes as before.
- golden.json: `steps`: the cost, the cross-entropy, the mask norm and the loss of each of those three steps; `search`: mean accuracy, mean mask norm and cost of each of those epochs; `bookkeeping`: for made-up
  sequences of accuracies and norms the epochs whose masks are kept, the cost after each epoch, and the last epoch;
  `outliers`: for made-up norms the lower median, the normalised deviation, and the flagged classes.
- stamping: made-up masks and patterns, what save_image(normalize=True) makes of mask and mask * pattern, and images stamped
  with it.
"""

import json
import math
import random
from pathlib import Path

import numpy as np
import torch
from tiny import backdoored, clean, write
from torch.nn import functional as F

GOLDEN = Path(__file__).parent / "golden" / "nc"
MEAN, STD = (0.4, 0.5, 0.45), (0.25, 0.2, 0.3)
STEP_COSTS = (0.01, 1.0, 2.0)
DEFAULTS = dict(threshold=98.0, patience=5, multiplier=2.0, stop_threshold=0.99, stop_patience=25, cost=1e-3)


class Book:
    """The bookkeeping of a search, in the order of the released code; accuracies in percent."""

    def __init__(self, threshold, patience, multiplier, stop_threshold, stop_patience, cost):
        self.__dict__.update(locals())
        self.reg_best = self.early_stop_reg_best = math.inf
        self.early_stop_counter = self.cost_up_counter = self.cost_down_counter = 0
        self.cost_up_flag = self.cost_down_flag = False

    def epoch(self, avg_acc, avg_reg):
        keep = False
        if avg_acc >= self.threshold and avg_reg < self.reg_best:
            self.reg_best = avg_reg
            keep = True
        if self.reg_best < math.inf:
            if self.reg_best >= self.stop_threshold * self.early_stop_reg_best:
                self.early_stop_counter += 1
            else:
                self.early_stop_counter = 0
        self.early_stop_reg_best = min(self.reg_best, self.early_stop_reg_best)
        if self.cost_down_flag and self.cost_up_flag and self.early_stop_counter >= self.stop_patience:
            return keep, True
        if avg_acc >= self.threshold:
            self.cost_up_counter += 1
            self.cost_down_counter = 0
        else:
            self.cost_up_counter = 0
            self.cost_down_counter += 1
        if self.cost_up_counter >= self.patience:
            self.cost_up_counter = 0
            self.cost *= self.multiplier
            self.cost_up_flag = True
        elif self.cost_down_counter >= self.patience:
            self.cost_down_counter = 0
            self.cost /= self.multiplier**1.5
            self.cost_down_flag = True
        return keep, False


def bookkeeping():
    def wave(epoch):  # success in blocks of seven epochs, masks that first shrink and then stay
        return (99.5 if epoch // 7 % 2 == 0 else 90.0), max(300.0 - 11 * epoch, 80.0) + 5 * math.sin(epoch)

    draw = random.Random(3)
    sequences = {
        "never": [(50.0 + epoch / 10, 400.0 - epoch) for epoch in range(80)],
        "always": [(100.0, 500.0 * 0.97**epoch) for epoch in range(80)],
        "waves": [wave(epoch) for epoch in range(80)],
        "late": [(10.0, 700.0)] * 13 + [(98.0, 60.0 + 0.1 * epoch) for epoch in range(67)],
        "random": [(draw.choice([97.9, 98.0, 99.0]), draw.uniform(50, 60)) for _ in range(80)],
    }
    found = {}
    for name, sequence in sequences.items():
        book, kept, costs, last = Book(**DEFAULTS), [], [], len(sequence) - 1
        for epoch, (accuracy, norm) in enumerate(sequence):
            keep, stop = book.epoch(accuracy, norm)
            kept += [epoch] * keep
            costs.append(book.cost)
            if stop:
                last = epoch
                break
        found[name] = {"sequence": sequence, "kept": kept, "costs": costs, "last": last}
    return found


def outliers():
    found = []
    for norms in [
        [30.0, 95.0, 100.0, 105.0, 98.0, 102.0, 110.0, 97.0, 101.0, 99.0],
        [100.0, 95.0, 140.0, 105.0, 98.0, 300.0, 110.0, 97.0, 101.0, 99.0],
        [20.0, 95.0, 100.0, 10.0, 98.0, 102.0, 110.0, 97.0, 101.0, 99.0],
        [90.0, 95.0, 100.0, 105.0, 98.0],
        [50.0, 50.0, 50.0, 50.0, 10.0],
        [7.0, 3.0, 5.0],
    ]:
        norms_tensor = torch.tensor(norms, dtype=torch.float64)
        median = norms_tensor.median()
        mad = 1.4826 * (norms_tensor - median).abs().median()
        flags = [i for i, norm in enumerate(norms_tensor) if not norm > median and (norm - median).abs() / mad > 2]
        flags.sort(key=lambda i: norms[i])
        found.append({"norms": norms, "median": median.item(), "deviation": mad.item(), "flagged": flags})
    return found


def raw(x):
    return torch.tanh(x) / (2 + 1e-7) + 0.5


def normalisation(dtype):
    return (torch.tensor(v, dtype=dtype).view(3, 1, 1) for v in (MEAN, STD))


def beginning(dtype):
    """The network, the two batches, the raw mask and pattern, and their optimiser."""
    model = backdoored().eval().requires_grad_(False).to(dtype)
    mean, std = normalisation(dtype)
    x = (clean()[0].to(dtype) - mean) / std
    mask, pattern = (torch.ones(n, 8, 8, dtype=dtype, requires_grad=True) for n in (1, 3))
    return model, (x[:16], x[16:]), mask, pattern, torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))


def objective(model, batch, mask, pattern, cost):
    """Cross-entropy, mask norm and loss; the logits."""
    mean, std = normalisation(batch.dtype)
    m, p = raw(mask), (raw(pattern) - mean) / std
    logits = model((1 - m) * batch + m * p)
    cross_entropy = F.cross_entropy(logits, torch.full((len(batch),), 1))
    norm = m.abs().sum()
    return (cross_entropy, norm, cross_entropy + cost * norm), logits


def values(mask, pattern):
    return raw(mask)[0].detach().clone(), raw(pattern).permute(1, 2, 0).detach().clone()


def steps():
    model, batches, mask, pattern, optimiser = beginning(torch.float64)
    losses, out = [], {}
    for number, (batch, cost) in enumerate(zip((*batches, batches[0]), STEP_COSTS)):
        parts, _ = objective(model, batch, mask, pattern, cost)
        optimiser.zero_grad()
        parts[2].backward()
        losses.append([cost] + [part.item() for part in parts])
        out[f"mask_gradient.{number}"], out[f"pattern_gradient.{number}"] = mask.grad[0], pattern.grad.permute(1, 2, 0)
        optimiser.step()
        out[f"mask.{number}"], out[f"pattern.{number}"] = values(mask, pattern)
    write(GOLDEN, "steps", out)
    return losses


def search():
    model, batches, mask, pattern, optimiser = beginning(torch.float32)
    book, epochs, out = Book(**{**DEFAULTS, "patience": 2, "cost": 0.01}), [], {}
    for epoch in range(40):
        accuracies, norms = [], []
        for batch in batches:
            (_, norm, loss), logits = objective(model, batch, mask, pattern, book.cost)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            accuracies.append((logits.argmax(1) == 1).float().mean().item() * 100)
            norms.append(norm.item())
        keep, stop = book.epoch(np.mean(accuracies), np.mean(norms))
        epochs.append([float(np.mean(accuracies)), float(np.mean(norms)), book.cost])
        if keep or epoch == 0:
            out["mask"], out["pattern"] = values(mask, pattern)
        if stop:
            break
    write(GOLDEN, "search", out)
    return epochs


def saved(x):
    """Levels in an image file written by torchvision's save_image(normalize=True)."""
    low, high = float(x.min()), float(x.max())
    x = x.clone().clamp_(min=low, max=high).sub_(low).div_(max(high - low, 1e-5))
    return x.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


def stamping():
    g = torch.Generator().manual_seed(5)
    masks, patterns = torch.rand(3, 8, 8, generator=g) * 0.6 + 0.1, torch.rand(3, 8, 8, 3, generator=g)
    masks[2] = 0.25
    images = torch.randint(0, 256, (4, 8, 8, 3), generator=g).to(torch.uint8)
    levels, stamped = [], []
    for mask, pattern in zip(masks, patterns):
        files = [saved(mask[..., None].expand(8, 8, 3)), saved(mask[..., None] * pattern)]
        levels.append(torch.stack(files))
        m, t = (file.numpy() / 255 for file in files)
        stamped.append(np.stack([(image * (1 - m) + t * 255).astype(np.int64).astype(np.uint8) for image in images.numpy()]))
    write(
        GOLDEN,
        "stamping",
        {
            "masks": masks,
            "patterns": patterns,
            "images": images,
            "levels": torch.stack(levels),
            "stamped": torch.from_numpy(np.stack(stamped)),
        },
    )
    return sum(int((s.astype(int) < i).mean() * 100) for s, i in zip(stamped[0], images.numpy()))


def main():
    golden = {"steps": steps(), "search": search(), "bookkeeping": bookkeeping(), "outliers": outliers()}
    stamping()
    (GOLDEN / "golden.json").write_text(json.dumps(golden) + "\n")
    for row in golden["steps"] + golden["search"]:
        print(row)
    for name, found in golden["bookkeeping"].items():
        print(name, len(found["kept"]), found["last"], found["costs"][-1])
    print(golden["outliers"])


main()
