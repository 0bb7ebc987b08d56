"""Golden values of image preparation, for crates/data.

Make again:  python tools/reference/data.py       (needs torch, numpy, Pillow, safetensors)
Writes:      tools/reference/golden/data/resize.safetensors   Pillow's bilinear resize on random RGB images
             tools/reference/golden/data/normalize.safetensors   v/255, minus mean, over std, as torch computes it in float32

Pillow's `Image.resize(size, BILINEAR)` is what torchvision's `Resize` calls on a PIL image; ToTensor is `uint8 -> float32, div(255)`
and Normalize is `sub_(mean).div_(std)` with float32 tensors: the three lines are repeated here, so torchvision is not needed.
"""

import pathlib

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

GOLDEN = pathlib.Path(__file__).parent / "golden" / "data"

# (input height, input width, output height, output width): down, up, both at once, one axis alone, extreme ratios.
SIZES = [(32, 32, 16, 16), (16, 16, 32, 32), (38, 31, 32, 32), (47, 53, 20, 61), (9, 40, 9, 17), (40, 9, 13, 9),
         (60, 60, 7, 7), (3, 5, 24, 24), (1, 1, 8, 8), (32, 32, 33, 31)]

NORMALIZATIONS = {
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]),
    "shapes": ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25]),
}


def resize():
    rng = np.random.default_rng(20240611)
    tensors = {}
    for index, (height, width, to_height, to_width) in enumerate(SIZES):
        # Half noise, half saturated blocks: rounding and clipping are both exercised.
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image[: height // 2] = np.where(image[: height // 2] > 127, 255, 0)
        # Pillow up to 12 resizes the rows first, then the columns, rounding to 8 bits in between; Pillow 13 takes the columns first
        # where that is faster, which moves some pixels by one level. One call per axis gives the older order, that of every
        # published result, with any version.
        resized = Image.fromarray(image).resize((to_width, height), Image.BILINEAR).resize((to_width, to_height), Image.BILINEAR)
        tensors[f"{index}.input"] = image
        tensors[f"{index}.output"] = np.asarray(resized)
    save_file(tensors, GOLDEN / "resize.safetensors")


def normalize():
    tensors = {}
    levels = torch.arange(256, dtype=torch.uint8)
    image = levels.expand(3, 1, 256).contiguous()
    for name, (mean, std) in NORMALIZATIONS.items():
        value = image.to(torch.float32).div(255)
        value = value.sub_(torch.tensor(mean).view(-1, 1, 1)).div_(torch.tensor(std).view(-1, 1, 1))
        tensors[name] = value[:, 0].numpy()
    save_file(tensors, GOLDEN / "normalize.safetensors")


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    resize()
    normalize()
    for path in sorted(GOLDEN.glob("*.safetensors")):
        print(path, path.stat().st_size, "bytes")
