"""Reference values for WaNet's warp and for what happens to its batches, computed with PyTorch.

Makes golden/wanet/{32,64}.safetensors and golden/wanet/augmentation.safetensors:

    python tools/reference/wanet.py

Needs torch and safetensors. Images have the 8-bit values (7919 i + 13) mod 256 in the order [image, row, column, channel]
and are normalised with CIFAR-10's mean and deviation; images are written [image, row, column, channel]. The rules are
those of BackdoorBench's WaNet, written anew. torchvision's rotation is done with affine_grid and grid_sample, which is
what it is made of. Made with PyTorch 2.15 on a CPU.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

GOLDEN = Path(__file__).parent / "golden" / "wanet"
MEAN = torch.tensor([0.4914, 0.4822, 0.4465])
STD = torch.tensor([0.247, 0.243, 0.261])


def images(count, size):
    """[count, 3, size, size], normalised."""
    levels = (torch.arange(count * size * size * 3) * 7919 + 13) % 256
    pixels = levels.view(count, size, size, 3).float() / 255
    return ((pixels - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def nhwc(x):
    return x.permute(0, 2, 3, 1).contiguous()


def truncated(x):
    """What torchvision's two Normalize and ToPILImage make of a normalised tensor."""
    inverse = torch.tensor([1 / s for s in (0.247, 0.243, 0.261)])
    back = x / inverse[:, None, None] - (-MEAN)[:, None, None]
    return nhwc((back * 255).to(torch.int64).to(torch.uint8))


def warp(size, strength=0.5, rescale=1.0, points=4):
    generator = torch.Generator().manual_seed(size)
    field = torch.rand(1, 2, points, points, generator=generator) * 2 - 1
    scaled = field / field.abs().mean()
    smooth = F.interpolate(scaled, size=size, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    line = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    identity = torch.stack((columns, rows), 2)[None]
    grid = torch.clamp((identity + strength * smooth / size) * rescale, -1, 1)
    return field, grid


def sample(x, grid):
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), mode="bilinear", padding_mode="zeros", align_corners=True)


def warps():
    for size in (32, 64):
        field, grid = warp(size)
        _, zoomed = warp(size, strength=1.5, rescale=0.9)
        x = images(1, size)
        warped = sample(x, grid)
        tensors = {"field": field[0], "grid": grid[0], "warped": nhwc(warped), "truncated": truncated(warped)}
        tensors["zoomed.row"] = zoomed[0, size // 3].contiguous()
        noise = torch.rand(1, size, size, 2, generator=torch.Generator().manual_seed(1))
        noisy = torch.clamp(grid + (noise * 2 - 1) / size, -1, 1)
        tensors |= {"noise": noise, "noisily_warped": nhwc(sample(x, noisy))}
        save_file(tensors, GOLDEN / f"{size}.safetensors")


def rotate(x, degrees):
    angle = math.radians(degrees)
    theta = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    grid = F.affine_grid(theta[None].expand(len(x), -1, -1), x.shape, align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def augmentations():
    x = images(2, 16)
    tensors = {}
    for name, crop, degrees, flip in [
        ("crop", (0, 10), None, False),
        ("rotation", None, 7.25, False),
        ("flip", None, None, True),
        ("all", (8, 3), -9.5, True),
    ]:
        y = x
        if crop:
            y = F.pad(y, [5] * 4)[:, :, crop[0] : crop[0] + 16, crop[1] : crop[1] + 16]
        if degrees is not None:
            y = rotate(y, degrees)
        if flip:
            y = y.flip(-1)
        tensors[name] = nhwc(y)
    save_file(tensors, GOLDEN / "augmentation.safetensors")


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    warps()
    augmentations()
