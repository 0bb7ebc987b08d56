"""Reference values for NAD on the tiny network of tsbd.py, computed with PyTorch.

Makes golden/nad/*.safetensors and golden/nad/golden.json:

    python tools/reference/nad.py

Written from the published description. All 24 images are one batch; there is no augmentation. The student's map and its
pooled features are computed by further passes from the images, in training mode, as the released code does: so the first
batch norm moves its running estimates three times a batch, the second one twice.

- teacher: the state dict after three epochs of fine-tuning (SGD 0.01, momentum 0.9, weight decay 5e-4, cosine over 100).
- step, student: state dicts after one and after four epochs of distillation (the same SGD at a constant rate).
- once: as student, with one pass for all outputs, so that every running estimate moves once a batch.
- attention: the attentions `[24, 16]` and `[24, 1]` of the backdoored network in evaluation mode.
- golden.json: the cross-entropy and both attention terms (without their weights of 1000) before each step of `student`.
"""

import json
from pathlib import Path

import torch
from tiny import backdoored, block, clean, write
from torch.nn import functional as F

GOLDEN = Path(__file__).parent / "golden" / "nad"


def attention(x):
    m = x.abs().pow(2).sum(1, keepdim=True)
    return m / (torch.norm(m, dim=(2, 3), keepdim=True) + 1e-6)


def difference(a, b):
    return (attention(a) - attention(b)).pow(2).mean()


def pooled(model, x):
    return F.relu(model.bn2(block(model, x))).mean((2, 3), keepdim=True)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def teacher(x, y):
    model = backdoored().train()
    optimiser = sgd(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=100)
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def distil(teacher, x, y, epochs, passes):
    student = backdoored().train()
    optimiser = sgd(student)
    terms = []
    for _ in range(epochs):
        if passes == "several":
            logits, early, late = student(x), block(student, x), pooled(student, x)
        else:
            early = block(student, x)
            late = F.relu(student.bn2(early)).mean((2, 3), keepdim=True)
            logits = student.linear(late.flatten(1))
        with torch.no_grad():
            wanted = block(teacher, x), pooled(teacher, x)
        parts = [F.cross_entropy(logits, y), difference(early, wanted[0]), difference(late, wanted[1])]
        optimiser.zero_grad()
        (parts[0] + 1000 * parts[1] + 1000 * parts[2]).backward()
        optimiser.step()
        terms.append([part.item() for part in parts])
    return student, terms


def main():
    x, y = clean()
    model = backdoored().eval()
    with torch.no_grad():
        maps = {"block": attention(block(model, x)).flatten(1), "features": attention(pooled(model, x)).flatten(1)}
    write(GOLDEN, "attention", maps)
    fixed = teacher(x, y)
    write(GOLDEN, "teacher", fixed.state_dict())
    write(GOLDEN, "step", distil(fixed, x, y, 1, "several")[0].state_dict())
    student, terms = distil(fixed, x, y, 4, "several")
    write(GOLDEN, "student", student.state_dict())
    write(GOLDEN, "once", distil(fixed, x, y, 4, "one")[0].state_dict())
    (GOLDEN / "golden.json").write_text(json.dumps({"terms": terms}, indent=1) + "\n")
    print(terms)


main()
