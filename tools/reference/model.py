"""PreAct-ResNet18 in plain PyTorch, and golden numbers for the Rust one.

Make the goldens again with:  python tools/reference/model.py
They are computed in double precision with weights and images that both sides compute from a formula (`values`).

golden/model/preact-w{width}-s{size}.safetensors (all f64 but the labels):
  logits_train, logits_eval [4, 10]   training mode; evaluation mode with the formula's running estimates
  loss []                             mean cross-entropy in training mode
  gradients [parameters, 18]          a summary (`summary`) of each parameter's gradient, in state-dict order
  buffers [buffers, 18]               a summary of each running estimate after one training pass
  features [4, 8 width]               input of the linear layer, training mode
golden/model/pytorch-w1.safetensors   a state dict as PyTorch saves it (width 1, default initialisation)
golden/model/pytorch-w1-logits.safetensors   its logits on the formula's 16x16 images, evaluation mode
"""

import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

GOLDEN = pathlib.Path(__file__).parent / "golden" / "model"
CLASSES = 10
BATCH = 4


class Block(nn.Module):
    def __init__(self, channels, planes, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or channels != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, planes, 1, stride, bias=False))

    def forward(self, x):
        rectified = torch.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(rectified)
        return self.conv2(torch.relu(self.bn2(self.conv1(rectified)))) + residual


class PreActResNet18(nn.Module):
    def __init__(self, width, classes=CLASSES):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        channels = width
        for stage in range(4):
            planes = width << stage
            first = Block(channels, planes, 1 if stage == 0 else 2)
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, Block(planes, planes, 1)))
            channels = planes
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def features(self, x):
        x = self.conv1(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.avgpool(x).flatten(1)

    def forward(self, x):
        return self.linear(self.features(x))


def values(stream, count):
    """`count` numbers in [-1, 1): SplitMix64 of (stream, position). The Rust tests have the same few lines."""
    with np.errstate(over="ignore"):
        z = (np.uint64(stream) << np.uint64(32)) + np.arange(1, count + 1, dtype=np.uint64)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1.0


def fill(model):
    """Gives every tensor of the state dict its formula values, rounded to f32; entry k uses stream k."""
    for stream, (name, tensor) in enumerate(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        v = values(stream, tensor.numel()).reshape(tensor.shape)
        if tensor.dim() > 1:
            v = v * np.sqrt(3.0 / np.prod(tensor.shape[1:]))
        elif name.endswith("running_var") or (name.endswith("weight") and "bn" in name):
            v = 1.0 + 0.3 * v
        else:
            v = 0.2 * v
        tensor.copy_(torch.from_numpy(v.astype(np.float32)))


def images(size, batch=BATCH, stream=1000):
    """Formula images, NHWC order in the formula, NCHW as returned."""
    v = values(stream, batch * size * size * 3).astype(np.float32).astype(np.float64)
    return torch.from_numpy(v.reshape(batch, size, size, 3)).permute(0, 3, 1, 2).contiguous()


def labels(batch=BATCH):
    return torch.tensor([(3 * i + 1) % CLASSES for i in range(batch)])


def summary(tensors):
    """Per tensor: norm, dot product with the values of stream 2000, and 16 elements spread over it."""
    rows = []
    for tensor in tensors:
        flat = tensor.detach().double().flatten().numpy()
        picks = [flat[j * len(flat) // 16] for j in range(16)]
        rows.append([np.linalg.norm(flat), flat @ values(2000, len(flat)), *picks])
    return torch.tensor(rows, dtype=torch.float64)


def golden(width, size):
    model = PreActResNet18(width).double()
    fill(model)
    x, y = images(size), labels()
    out = {"logits_eval": model.eval()(x).detach()}
    model.train()
    logits = model(x)
    loss = nn.functional.cross_entropy(logits, y)
    loss.backward()
    out["logits_train"] = logits.detach()
    out["loss"] = loss.detach()
    out["gradients"] = summary([parameter.grad for parameter in model.parameters()])
    out["buffers"] = summary([b for n, b in model.named_buffers() if not n.endswith("num_batches_tracked")])
    out["features"] = model.features(x).detach()
    save_file(out, GOLDEN / f"preact-w{width}-s{size}.safetensors")


def main():
    torch.manual_seed(0)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for width in (4, 8):
        for size in (16, 13):
            golden(width, size)
    model = PreActResNet18(1)
    for _ in range(3):  # moves the running estimates and the counters away from their first values
        model(torch.randn(8, 3, 16, 16))
    save_file(model.state_dict(), GOLDEN / "pytorch-w1.safetensors")
    logits = model.double().eval()(images(16)).detach()
    save_file({"logits": logits}, GOLDEN / "pytorch-w1-logits.safetensors")


if __name__ == "__main__":
    main()
