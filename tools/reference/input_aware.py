"""Reference values for Input-aware's generators, losses and steps, computed with PyTorch in double precision.

Makes golden/input_aware/*.safetensors:

    python tools/reference/input_aware.py

Needs torch and safetensors. A generator of width 2 and a classifier of one convolution, on images of 16 x 16 pixels (and of
32 and 64) with the 8-bit values (7919 i + 13 + 101 k) mod 256 in the order [image, row, column, channel] for the k-th of
two batches, normalised with CIFAR-10's mean and deviation. Images are written [image, row, column, channel]. The rules are those of
BackdoorBench's attack, written anew. Made with PyTorch 2.15 on a CPU.

begin        both generators before any step (their running estimates are not the initial ones)
classifier   the classifier
mask         both generators after one step of the mask phase
step1, step2 both generators after one and two steps of the classifier phase, gradients accumulated
cleared      the same after two steps with gradients cleared
values       outputs, losses and the classifier's gradients
32, 64       the same of images of that size, beginning with the same networks: losses and the classifier's gradients whole,
             of everything else a product with a sequence (`product`); of a generator one for each entry of its state
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

GOLDEN = Path(__file__).parent / "golden" / "input_aware"
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).double().view(1, 3, 1, 1)
STD = torch.tensor([0.247, 0.243, 0.261]).double().view(1, 3, 1, 1)
EPSILON = 1e-7
SIZE, WIDTH, CLASSES, POISONED, TARGET = 16, 2, 4, 2, 3


def images(batch, size=SIZE):
    """[6, 3, size, size], normalised in single precision."""
    levels = (torch.arange(6 * size * size * 3) * 7919 + 13 + 101 * batch) % 256
    pixels = (levels.view(6, size, size, 3).float() / 255).permute(0, 3, 1, 2)
    return ((pixels - MEAN.float()) / STD.float()).double()


def nhwc(x):
    return x.detach().permute(0, 2, 3, 1).contiguous()


class Block(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.conv2d = nn.Conv2d(a, b, 3, 1, 1)
        self.batch_norm = nn.BatchNorm2d(b, momentum=0.05)

    def forward(self, x):
        return self.batch_norm(self.conv2d(x))


class Generator(nn.Module):
    DOWN = [(0, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4)]
    UP = [(4, 4), (4, 2), (2, 2), (2, 1), (1, 1)]

    def __init__(self, outputs):
        super().__init__()
        width = lambda factor: factor * WIDTH if factor else 3
        for place, (a, b) in enumerate(self.DOWN):
            setattr(self, f"convblock_down_{place}", Block(width(a), width(b)))
        self.convblock_middle = Block(width(4), width(4))
        for place, (a, b) in enumerate(self.UP):
            setattr(self, f"convblock_up_{place}", Block(width(a), width(b)))
        self.convblock_up_5 = Block(WIDTH, outputs)

    def forward(self, x):
        for place in range(6):
            x = getattr(self, f"convblock_down_{place}")(x).relu()
            if place % 2:
                x = F.max_pool2d(x, 2)
        x = self.convblock_middle(x).relu()
        for place in range(5):
            if place % 2 == 0:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = getattr(self, f"convblock_up_{place}")(x).relu()
        x = self.convblock_up_5(x).tanh()
        return x.tanh() / (2 + EPSILON) + 0.5


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.linear(self.bn1(self.conv1(x)).relu().mean((2, 3)))


def threshold(x):
    return torch.tanh(x * 20 - 10) / (2 + EPSILON) + 0.5


def distance(a, b):
    return ((a - b) ** 2).mean((1, 2, 3)).sqrt()


def diversity(a, b, of_a, of_b):
    return (distance(a, b) / (distance(of_a, of_b) + EPSILON)).mean()


def networks():
    torch.manual_seed(0)
    pattern, mask = Generator(3).double(), Generator(1).double()
    # Weights that single precision holds too, and running estimates of some batches.
    for network in (pattern, mask):
        network.train()
        for batch in (0, 1):
            network(images(batch))
        network.load_state_dict({k: v.float().to(v.dtype) for k, v in network.state_dict().items()})
    return pattern, mask


def product(tensor):
    """The sum of a tensor's values, each times the sine of 0.7548 times its number, from 1 on."""
    flat = tensor.detach().double().flatten()
    return (flat * torch.sin(0.7548 * torch.arange(1, len(flat) + 1).double())).sum()


def products(network):
    return torch.stack([product(value) for value in network.state_dict().values()])


def save(name, pattern, mask):
    state = {f"netG.{k}": v for k, v in pattern.state_dict().items()}
    state |= {f"netM.{k}": v for k, v in mask.state_dict().items()}
    save_file({k: v.contiguous().clone() for k, v in state.items()}, GOLDEN / f"{name}.safetensors")


def mask_phase(size, record):
    pattern, mask = networks()
    optimizer = torch.optim.Adam(mask.parameters(), 0.01, (0.5, 0.9))
    x1, x2 = images(0, size), images(1, size)
    mask.train()
    mask(x1)
    m1, m2 = threshold(mask(x1)), threshold(mask(x2))
    excess = F.relu(m1 - 0.032).mean()
    diverse = diversity(x1, x2, m1, m2)
    loss = 100 * excess + 1.5 * (1.5 * diverse)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    record.images("mask.m1", m1)
    record.numbers("mask.losses", torch.stack([excess, diverse, loss]))
    record.state("mask", pattern, mask)


def classifier_phase(size, record, classifier, accumulate):
    pattern, mask = networks()
    mask.eval()
    pattern.train()
    classifier.train()
    optimizer = torch.optim.Adam(pattern.parameters(), 0.01, (0.5, 0.9))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    given = torch.cat([torch.full((POISONED,), TARGET), labels[POISONED:]])
    for step in (1, 2):
        x1, x2 = images(step - 1, size), images(2 - step, size)
        own, cross, giver = x1[:POISONED], x1[POISONED : 2 * POISONED], x2[POISONED : 2 * POISONED]
        own_pattern, cross_pattern = (pattern(own) - MEAN) / STD, (pattern(giver) - MEAN) / STD
        triggered = own + (own_pattern - own) * threshold(mask(own))
        crossed = cross + (cross_pattern - cross) * threshold(mask(giver))
        total = torch.cat([triggered, crossed, x1[2 * POISONED :]])
        entropy = F.cross_entropy(classifier(total), given)
        diverse = diversity(own, giver, own_pattern, cross_pattern)
        loss = entropy + 1.5 * diverse
        classifier.zero_grad()
        if not accumulate:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if accumulate:
            record.state(f"step{step}", pattern, mask)
            record.numbers(f"step{step}.losses", torch.stack([entropy, diverse]))
            record.numbers(f"step{step}.conv1", classifier.conv1.weight.grad.clone())
            if step == 1:
                record.images("step1.pattern", own_pattern)
                record.images("step1.mask", threshold(mask(own)))
                record.images("step1.images", total)
    if not accumulate:
        record.state("cleared", pattern, mask)


def measured(size, record):
    pattern, mask = networks()
    pattern.eval()
    mask.eval()
    x = images(0, size)[:2]
    p = (pattern(x) - MEAN) / STD
    record.images("eval.triggered", x + (p - x) * threshold(mask(x)))


class Whole:
    """Keeps everything: networks in files of their own."""

    def __init__(self):
        self.values = {}

    def numbers(self, name, values):
        self.values[name] = values.detach()

    def images(self, name, images):
        self.values[name] = nhwc(images)

    def state(self, name, pattern, mask):
        save(name, pattern, mask)


class Products(Whole):
    """Keeps a number of each tensor."""

    def images(self, name, images):
        self.values[name] = product(nhwc(images))

    def state(self, name, pattern, mask):
        self.values |= {f"{name}.netG": products(pattern), f"{name}.netM": products(mask)}


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    classifier = Classifier().double()
    classifier.load_state_dict({k: v.float().to(v.dtype) for k, v in classifier.state_dict().items()})
    save_file(classifier.state_dict(), GOLDEN / "classifier.safetensors")
    save("begin", *networks())
    for size, record, name in ((SIZE, Whole(), "values"), (32, Products(), "32"), (64, Products(), "64")):
        mask_phase(size, record)
        # The classifier itself makes no step, and its running estimates play no part in training.
        classifier_phase(size, record, classifier, accumulate=True)
        classifier_phase(size, record, classifier, accumulate=False)
        measured(size, record)
        save_file(record.values, GOLDEN / f"{name}.safetensors")
