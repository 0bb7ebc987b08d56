"""Reference values for FT-SAM on a tiny network, computed with PyTorch, and for the draw of its images, with numpy.

Makes golden/ft_sam/*:

    python tools/reference/ft_sam.py

Needs torch, numpy and safetensors, and what tools/reference/tsbd.py makes (see channel_pruning.py). Everything is written from
the published descriptions of the method.

- adaptive, plain: state dicts after six steps from `backdoored` on all 24 images in one batch: rho 0.5, SGD 0.1, momentum 0.9,
  weight decay 5e-4, label smoothing 0.1 over the other classes, cosine with T_max 4 stepped after every step. The pass at the
  perturbed weights counts no batch (PyTorch counts it, though its momentum of 0 changes no estimate).
- golden.json: losses of the adaptive steps; images of each class drawn with seed 0 from 100 images of 4 classes at a share of
  0.13.
"""

import json

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from channel_pruning import GOLDEN, backdoored, data


def loss_of(logits, labels, smoothing=0.1):
    classes = logits.shape[1]
    target = torch.full_like(logits, smoothing / (classes - 1))
    target.scatter_(1, labels[:, None], 1 - smoothing)
    return F.kl_div(logits.log_softmax(1), target, reduction="none").sum(1).mean()


def steps(adaptive, rho=0.5):
    x, y = data()
    model = backdoored()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=4)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            scale = [p.abs() if adaptive else torch.ones_like(p) for p in model.parameters()]
            norm = torch.stack([(s * p.grad).norm() for s, p in zip(scale, model.parameters())]).norm()
            moves = [rho / (norm + 1e-12) * s * s * p.grad for s, p in zip(scale, model.parameters())]
            for p, e in zip(model.parameters(), moves):
                p += e
        for norm_layer in (model.bn1, model.bn2):
            norm_layer.momentum = 0
        optimiser.zero_grad()
        loss_of(model(x), y).backward()
        with torch.no_grad():
            for p, e in zip(model.parameters(), moves):
                p -= e
        optimiser.step()
        schedule.step()
        for norm_layer in (model.bn1, model.bn2):
            norm_layer.momentum = 0.1
            norm_layer.num_batches_tracked -= 1
    return model.state_dict(), losses


def by_class():
    labels = np.array([(3 * i + i // 7) % 4 for i in range(100)])
    np.random.seed(0)
    count = int(100 * 0.13 / 4)
    drawn = [np.random.choice(np.where(labels == c)[0], count, replace=False) for c in range(4)]
    return {"labels": labels.tolist(), "drawn": np.concatenate(drawn).tolist()}


def main():
    folder = GOLDEN / "ft_sam"
    folder.mkdir(exist_ok=True)
    golden = {"by_class": by_class()}
    for name, adaptive in (("adaptive", True), ("plain", False)):
        state, golden[f"losses_{name}"] = steps(adaptive)
        save_file({key: value.detach().clone().contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")
    print(golden)


if __name__ == "__main__":
    main()
