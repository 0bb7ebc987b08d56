"""Reference values for CLP, ANP and RNP on a tiny network, computed with PyTorch.

Makes golden/channel_pruning.json and golden/rnp/*.safetensors:

    python tools/reference/channel_pruning.py

Needs torch and safetensors, and golden/tsbd/{images,backdoored}.safetensors, which tools/reference/tsbd.py makes: 24 images
of 8 x 8 pixels without augmentation, and a network of two batch norms with 4 and 12 channels. Everything is written from the
published descriptions of the methods.

- clp: the bounds of all channels for both pairings (the module before the batch norm, or the convolution that feeds it) by
  torch.linalg.svdvals in 64 bits, and the channels above mean + u * deviation for three u.
- clp_outstanding: the same channels of a network in which one channel of each batch norm stands out, for six u.
- anp: six iterations for both variants (a perturbation that may leave its range, or is cut off): the batch's images, the
  perturbation as it is drawn (`noise`: for each batch norm masks, then biases) and after its step (`perturbation`), the loss
  and its gradients with respect to the masks, and the masks that the step leads to. In 64 bits, from draws in 32.
- anp_three_steps: three iterations of the same with perturbations of three steps.
- rnp: for both variants (without and with clipping of the gradient) accuracies and gradient norms of each epoch of
  unlearning, the masks after each epoch of recovering, and the channels whose last mask (four decimals) is at most 0.7;
  rnp/VARIANT.EPOCHS.safetensors are the state dicts after 1, 3 and all epochs of unlearning, the last of which recovering
  begins with.
- rnp_batches: the same of three epochs of unlearning in batches of 16 and 8 images, in the orders SHUFFLED: accuracies and
  rnp/batches.3.safetensors.
"""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tsbd import Tiny

GOLDEN = Path(__file__).parent / "golden"
# What the Rust crate's streams of seed 0 make of 24 images in the first three epochs of unlearning; its test compares them.
SHUFFLED = (
    (15, 8, 3, 10, 21, 1, 22, 13, 16, 9, 23, 0, 17, 12, 19, 6, 20, 18, 14, 2, 11, 5, 4, 7),
    (18, 15, 7, 1, 5, 6, 10, 0, 19, 17, 4, 13, 11, 8, 22, 3, 21, 14, 16, 12, 9, 20, 23, 2),
    (1, 21, 22, 9, 20, 10, 4, 23, 17, 12, 7, 13, 3, 11, 0, 14, 19, 18, 5, 8, 6, 15, 2, 16),
)


class NoisyNorm(nn.BatchNorm2d):
    """weight * (mask + noise) and bias * (1 + bias noise)."""

    def __init__(self, channels):
        super().__init__(channels)
        self.mask = nn.Parameter(torch.ones(channels))
        self.noise = nn.Parameter(torch.zeros(channels))
        self.bias_noise = nn.Parameter(torch.zeros(channels))
        self.noisy = False

    def forward(self, x):
        weight, bias = self.weight * self.mask, self.bias
        if self.noisy:
            weight, bias = self.weight * (self.mask + self.noise), self.bias * (1 + self.bias_noise)
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, True, 0.1, self.eps)


def data():
    tensors = load_file(GOLDEN / "tsbd" / "images.safetensors")
    random.seed(0)
    drawn = random.sample(range(24), 24)
    images = tensors["images"].permute(0, 3, 1, 2).float() / 255
    return images[drawn], tensors["labels"].long()[drawn]


def backdoored(norm=nn.BatchNorm2d):
    model = Tiny(norm)
    model.load_state_dict(load_file(GOLDEN / "tsbd" / "backdoored.safetensors"), strict=norm is nn.BatchNorm2d)
    return model.train()


def clp():
    model = backdoored().double()
    result = {}
    for variant, skipped in (("reference", ""), ("paper", "shortcut")):
        bounds, last = [], None
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and name != skipped:
                last = module
            elif isinstance(module, nn.BatchNorm2d):
                scale = (module.weight / module.running_var.sqrt()).abs()
                filters = last.weight.reshape(*last.weight.shape[:2], -1) * scale.reshape(-1, 1, 1)
                bounds.append(torch.linalg.svdvals(filters)[:, 0].detach())
        pruned = {}
        for u in (0.5, 1.0, 3.0):
            pruned[str(u)] = [[c for c, s in enumerate(layer.tolist()) if s > layer.mean() + u * layer.std()] for layer in bounds]
        result[variant] = {"bounds": [layer.tolist() for layer in bounds], "pruned": pruned}
    return result


def outstanding():
    """The backdoored network with one channel of each batch norm made 40 times as strong: what several u prune of it."""
    model = backdoored().double()
    with torch.no_grad():
        model.bn1.weight[2] *= 40
        model.bn2.weight[5] *= 40
    layers = []
    for conv, norm in ((model.conv1, model.bn1), (model.shortcut, model.bn2)):
        scale = (norm.weight / norm.running_var.sqrt()).abs()
        filters = conv.weight.reshape(*conv.weight.shape[:2], -1) * scale.reshape(-1, 1, 1)
        layers.append(torch.linalg.svdvals(filters)[:, 0].detach())
    print("outstanding", [((layer - layer.mean()) / layer.std()).max().item() for layer in layers])
    above = lambda layer, u: [c for c, s in enumerate(layer.tolist()) if s > layer.mean() + u * layer.std()]
    return {str(u): [above(layer, u) for layer in layers] for u in (1.2, 2.0, 2.5, 3.0, 3.15, 3.5)}


def anp(variant, steps=1, count=6):
    """Settings: learning rate 0.3, momentum 0.9, epsilon 0.4, alpha 0.2; batches of 16 drawn with replacement. A perturbation
    of several steps takes its gradient anew before each."""
    epsilon, alpha = 0.4, 0.2
    x, y = data()
    model, x = backdoored(NoisyNorm).double(), x.double()
    norms = [model.bn1, model.bn2]
    generator = torch.Generator().manual_seed(1)
    uniform = lambda n: (torch.rand(n, generator=generator) * 2 - 1).mul(epsilon).double()
    optimiser = torch.optim.SGD([norm.mask for norm in norms], lr=0.3, momentum=0.9)
    climber = torch.optim.SGD([p for norm in norms for p in (norm.noise, norm.bias_noise)], lr=epsilon / steps)
    iterations = []
    for _ in range(count):
        batch = torch.randint(0, 24, (16,), generator=generator)
        images, labels = x[batch], y[batch]
        drawn = []
        for norm in norms:
            norm.noise.data, norm.bias_noise.data = uniform(len(norm.mask)), uniform(len(norm.mask))
            drawn += [norm.noise.tolist(), norm.bias_noise.tolist()]
            norm.noisy = True
        for _ in range(steps):
            climber.zero_grad()
            (-F.cross_entropy(model(images), labels)).backward()
            for norm in norms:
                norm.noise.grad.sign_()
                norm.bias_noise.grad.sign_()
            climber.step()
            if variant == "paper":
                for norm in norms:
                    norm.noise.data.clamp_(-epsilon, epsilon)
                    norm.bias_noise.data.clamp_(-epsilon, epsilon)
        perturbation = [values.tolist() for norm in norms for values in (norm.noise, norm.bias_noise)]
        optimiser.zero_grad()
        perturbed = F.cross_entropy(model(images), labels)
        for norm in norms:
            norm.noisy = False
        loss = alpha * F.cross_entropy(model(images), labels) + (1 - alpha) * perturbed
        loss.backward()
        gradients = [norm.mask.grad.tolist() for norm in norms]
        optimiser.step()
        for norm in norms:
            norm.mask.data.clamp_(0, 1)
        iterations.append({
            "batch": batch.tolist(),
            "noise": drawn,
            "perturbation": perturbation,
            "loss": loss.item(),
            "gradients": gradients,
            "masks": [norm.mask.tolist() for norm in norms],
        })
    return iterations


def unlearn(variant, rate, milestone, orders, stop_at, saved):
    """In 64 bits, with momentum 0.9 and weight decay 5e-4, until the accuracy during an epoch is at most `stop_at`; `rate`
    falls to a tenth after `milestone` epochs, each of which takes the batches of one of `orders`. `saved` names the files for
    the state dicts (in 32 bits) after some numbers of epochs, and after "all". The accuracies during the epochs, and the
    gradient norm of the last batch of each."""
    x, y = data()
    x = x.double()
    model = backdoored()
    if variant == "paper":
        confused(model)
    model = model.double()
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [milestone], gamma=0.1)
    accuracies, norms = [], []
    for batches in orders:
        correct = 0
        for batch in batches:
            optimiser.zero_grad()
            logits = model(x[batch])
            (-F.cross_entropy(logits, y[batch])).backward()
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
            if variant == "paper":
                nn.utils.clip_grad_norm_(model.parameters(), 20)
            optimiser.step()
            correct += (logits.argmax(1) == y[batch]).sum().item()
        schedule.step()
        accuracies.append(correct / 24)
        norms.append(norm)
        ended = accuracies[-1] <= stop_at or len(accuracies) == len(orders)
        for after in [str(len(accuracies))] + ["all"] * ended:
            if after in saved:
                state = {name: value.float() if value.is_floating_point() else value for name, value in model.state_dict().items()}
                save_file(state, GOLDEN / "rnp" / f"{saved[after]}.safetensors")
        if ended:
            break
    return accuracies, norms


def confused(model):
    """A last layer 30 times as large, with two classes exchanged: a third of the images is right, and gradients are long."""
    with torch.no_grad():
        model.linear.weight.copy_(model.linear.weight[[1, 0, 2]] * 30)


def rnp(variant):
    """Settings: unlearning at 1, falling after epoch 7, to an accuracy of 0.7 (variant "paper", whose clipping needs
    gradients longer than 20: four epochs of the confused network at 0.01, falling after epoch 2); recovering at 0.3 (0.005) for
    6 epochs, momentum 0.9, alpha 0.2; all 24 images in one batch."""
    whole = [[list(range(24))]]
    settings = {"reference": (1.0, 7, whole * 20, 0.7), "paper": (0.01, 2, whole * 4, 0.2)}[variant]
    saved = {name: f"{variant}.{name}" for name in ("1", "3", "all")}
    accuracies, norms = unlearn(variant, *settings, saved)
    x, y = data()
    model = Tiny(NoisyNorm)
    model.load_state_dict(load_file(GOLDEN / "rnp" / f"{variant}.all.safetensors"), strict=False)
    model, x = model.double(), x.double()
    masked = [model.bn1, model.bn2]
    rate = {"reference": 0.3, "paper": 0.005}[variant]
    optimiser = torch.optim.SGD([norm.mask for norm in masked], lr=rate, momentum=0.9)
    masks = []
    for _ in range(6):
        optimiser.zero_grad()
        (0.2 * F.cross_entropy(model(x), y)).backward()
        optimiser.step()
        for norm in masked:
            norm.mask.data.clamp_(0, 1)
        masks.append([norm.mask.tolist() for norm in masked])
    pruned = [[c for c, m in enumerate(layer) if float(f"{m:.4f}") <= 0.7] for layer in masks[-1]]
    return {"accuracies": accuracies, "gradient_norms": norms, "masks": masks, "pruned": pruned}


def rnp_batches():
    """Unlearning at 1.5, falling after epoch 2."""
    orders = [[list(order[:16]), list(order[16:])] for order in SHUFFLED]
    accuracies, _ = unlearn("reference", 1.5, 2, orders, 0.2, {"3": "batches.3"})
    return {"orders": SHUFFLED, "accuracies": accuracies}


def main():
    (GOLDEN / "rnp").mkdir(exist_ok=True)
    variants = ("reference", "paper")
    golden = {
        "clp": clp(),
        "anp": {v: anp(v) for v in variants},
        "rnp": {v: rnp(v) for v in variants},
        "rnp_batches": rnp_batches(),
        "clp_outstanding": outstanding(),
        "anp_three_steps": {v: anp(v, steps=3, count=3) for v in variants},
    }
    (GOLDEN / "channel_pruning.json").write_text(json.dumps(golden) + "\n")
    for v in golden["clp"]:
        print(v, golden["clp"][v]["pruned"])
    for v in golden["anp"]:
        print(v, golden["anp"][v][-1]["masks"])
    for v in golden["rnp"]:
        print(v, {k: golden["rnp"][v][k] for k in golden["rnp"][v]})


if __name__ == "__main__":
    main()
