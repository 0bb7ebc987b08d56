"""Golden numbers for the training loop: PyTorch's SGD and its schedulers.

Make them again with:  python tools/reference/training.py

golden/training/preact-w4-s16.safetensors (f64): PreAct-ResNet18 of `model.py`, width 4, 16x16 images, trained for four
epochs of two batches (formula streams 1000 and 1001) with SGD 0.05 / 0.9 / 5e-4 and CosineAnnealingLR(T_max=5):
  losses [4]               mean over the epoch's two batches
  rates [4]                each epoch's learning rate
  parameters [62, 18]      `model.summary` of every parameter afterwards
  buffers [32, 18]         of every running estimate afterwards
golden/training/schedules.json: learning rates of each scheduler over a fixed list of losses
"""

import json
import pathlib

import torch
from model import PreActResNet18, fill, images, labels, summary
from safetensors.torch import save_file
from torch.optim import SGD, lr_scheduler

GOLDEN = pathlib.Path(__file__).parent / "golden" / "training"


def train():
    model = PreActResNet18(4).double()
    fill(model)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    batches = [images(16, stream=1000), images(16, stream=1001)]
    losses, rates = [], []
    model.train()
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        epoch = []
        for x in batches:
            loss = torch.nn.functional.cross_entropy(model(x), labels())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch.append(loss.item())
        losses.append(sum(epoch) / len(epoch))
        scheduler.step()
    save_file(
        {
            "losses": torch.tensor(losses, dtype=torch.float64),
            "rates": torch.tensor(rates, dtype=torch.float64),
            "parameters": summary(model.parameters()),
            "buffers": summary([b for n, b in model.named_buffers() if not n.endswith("num_batches_tracked")]),
        },
        GOLDEN / "preact-w4-s16.safetensors",
    )


def rates(make, losses):
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = make(optimizer)
    found = []
    for loss in losses:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss)
        else:
            scheduler.step()
    return found


def main():
    GOLDEN.mkdir(parents=True, exist_ok=True)
    train()
    # Improves, stalls for longer than the patience of 10, improves by less than the threshold, gets worse.
    losses = [2.0, 1.5, 1.2] + [1.3] * 13 + [1.19999] * 14 + [0.7] + [0.9] * 24
    golden = {
        "losses": losses,
        "cosine-100": rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=100), losses),
        "cosine-20": rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20), losses[:21]),
        "plateau": rates(lambda o: lr_scheduler.ReduceLROnPlateau(o), losses),
        "multi-step-5-30": rates(lambda o: lr_scheduler.MultiStepLR(o, [5, 30], gamma=0.3), losses),
    }
    (GOLDEN / "schedules.json").write_text(json.dumps(golden))


if __name__ == "__main__":
    main()
