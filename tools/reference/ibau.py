"""Reference values for i-BAU on the tiny network of tsbd.py, computed with PyTorch's double backward.

Makes golden/ibau/*.safetensors and golden/ibau/golden.json:

    python tools/reference/ibau.py

Written from the published description: the fixed-point equation is iterated with vector-Jacobian products of the whole
step of gradient descent, not with the Hessian products that the Rust crate uses. There is no augmentation. The images are
batches of 16 and 8, or one of 24; the network is in evaluation mode.

- perturbations (f64): `round0` and `round1` `[1, 8, 8, 3]` after a pass over the two batches (SGD 10, penalty 0.001), away
  from the predictions; `labels` away from the true labels, after one pass; `fixed` the perturbation used below.
- hypergradient.N (f64, Rust's names of parameters): at `fixed`, outer objective on the batch of 8, with perturbed images
  [1, 6]; inner objective on the batch of 16 (N = 0) or of 8 (N = 1); inner step 0.1, penalty 0.001, five iterations.
- repaired (f32): the state dict after two rounds with one batch of 24 all of whose images are perturbed: Adam with AMSGrad
  0.001.
- golden.json: outer objectives of the hypergradients; inner objectives of `round0`.
"""

import json
from pathlib import Path

import torch
from tiny import backdoored, clean, write
from torch.nn import functional as F

GOLDEN = Path(__file__).parent / "golden" / "ibau"
PENALTY, STEP = 0.001, 0.1


def inner(model, delta, x, y):
    return -F.cross_entropy(model(x + delta), y) + PENALTY * (delta * delta).sum()


def perturb(model, batches, truth, start=None):
    delta = torch.zeros_like(batches[0][0][:1]) if start is None else start.clone()
    delta.requires_grad_()
    optimiser = torch.optim.SGD([delta], lr=10)
    losses = []
    for x, y in batches:
        labels = y if truth else model(x).argmax(1)
        loss = inner(model, delta, x, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return delta.detach(), losses


def hypergradient(model, delta, inner_batch, outer_batch, perturbed, iterations=5):
    parameters = list(model.parameters())
    delta = delta.clone().requires_grad_()
    x, y = outer_batch
    patch = torch.zeros_like(x)
    patch[perturbed] = patch[perturbed] + delta
    outer = F.cross_entropy(model(x + patch), y)
    through, *direct = torch.autograd.grad(outer, [delta, *parameters])
    (slope,) = torch.autograd.grad(inner(model, delta, *inner_batch), delta, create_graph=True)
    mapped = delta - STEP * slope
    v = torch.zeros_like(delta)
    for _ in range(iterations):
        (v_next,) = torch.autograd.grad(mapped, delta, grad_outputs=v, retain_graph=True)
        v_next = v_next + through
        done = (v_next - v).norm() < 1e-10
        v = v_next
        if done:
            break
    implicit = torch.autograd.grad(mapped, parameters, grad_outputs=v)
    return outer.item(), [a + b for a, b in zip(direct, implicit)]


def repair(model, batch, rounds):
    optimiser = torch.optim.Adam(model.parameters(), lr=0.001, betas=(0.9, 0.999), amsgrad=True)
    for _ in range(rounds):
        delta, _ = perturb(model, [batch], False)
        _, gradients = hypergradient(model, delta, batch, batch, list(range(24)))
        for parameter, gradient in zip(model.parameters(), gradients):
            parameter.grad = gradient
        optimiser.step()
    return model


def main():
    x, y = clean()
    write(GOLDEN, "repaired", repair(backdoored().eval(), (x, y), 2).state_dict())

    model, x = backdoored().eval().double(), x.double()
    batches = [(x[:16], y[:16]), (x[16:], y[16:])]
    nhwc = lambda delta: delta.permute(0, 2, 3, 1)
    round0, losses = perturb(model, batches, False)
    round1, _ = perturb(model, batches, False, round0)
    labels, _ = perturb(model, batches, True)
    fixed = 0.3 * torch.sin(torch.arange(3 * 64).double()).reshape(1, 3, 8, 8)
    write(GOLDEN, "perturbations", {k: nhwc(v) for k, v in dict(round0=round0, round1=round1, labels=labels, fixed=fixed).items()})
    names, outers = [name for name, _ in model.named_parameters()], []
    for number in range(2):
        outer, gradients = hypergradient(model, fixed, batches[number], batches[1], [1, 6])
        memory = lambda g: g.permute(2, 3, 1, 0) if g.dim() == 4 else g
        write(GOLDEN, f"hypergradient.{number}", {name: memory(g) for name, g in zip(names, gradients)})
        outers.append(outer)
    (GOLDEN / "golden.json").write_text(json.dumps({"outer": outers, "inner": losses}, indent=1) + "\n")
    print(outers, losses, [round0.norm().item(), labels.norm().item()])


main()
