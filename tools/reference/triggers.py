"""Reference values for the triggers of BadNets, Blended, SIG and LF, computed with numpy and Pillow.

Makes golden/triggers/triggers.safetensors:

    python tools/reference/triggers.py

Needs numpy, Pillow and safetensors. Images are random 8-bit values from numpy's generator with seed 0. The rules are
those of BackdoorBench (patch overwrite where the trigger is not 0; blend in double precision with the picture's share in
single precision, then truncation; a signal in single precision, added in double, then truncation; a given pattern of
levels, added in double, then truncation), written anew.

With the folder of CIFAR-10's binary files it makes golden/triggers/cifar10.json, for crates/experiment/tests: SHA-256 of
all poisoned training images and of all triggered test images, of the whole data set at 32 pixels and of its first images
at 64 (no image is stored). Which images are poisoned is numpy's legacy draw.

    python tools/reference/triggers.py ~/.cache/tsbd/datasets/cifar-10-batches-bin

With the path of a JPEG it makes nothing but prints the picture's contrast at 32 x 32 and writes the decoded picture as
PNG, for the optional comparison of JPEG decoders in crates/attacks/blended:

    python tools/reference/triggers.py hello_kitty.jpeg hello_kitty.png
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden" / "triggers" / "triggers.safetensors"


def resize(picture, size):
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.BILINEAR))


def corner(grid):
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[29:, 29:] = 255
    if grid:
        for row in range(3):
            for column in range(3):
                if (row + column) % 2:
                    picture[29 + row, 29 + column] = 1
    return picture


def patch(image, trigger):
    return np.where(trigger == 0, image, trigger).astype(np.uint8)


def blend(image, picture, alpha):
    # torchvision's ToTensor, then * 255: single precision throughout.
    trigger = (picture.astype(np.float32) / np.float32(255)) * np.float32(255)
    share = trigger * np.float32(alpha)
    out = (1 - alpha) * image.astype(np.float64) + share
    return np.clip(out, 0, 255).astype(np.uint8)


def signal(image, delta, frequency):
    columns = np.arange(image.shape[1])
    levels = (delta * np.sin(2 * np.pi * columns * frequency / image.shape[1])).astype(np.float32)
    out = image.astype(np.float64) + levels[None, :, None]
    return np.clip(out, 0, 255).astype(np.uint8)


def pattern(size):
    """A given pattern for LF, of levels from 0 to 51 that both sides compute."""
    row, column, channel = np.mgrid[0:size, 0:size, 0:3]
    return (7 * row + 3 * column + 11 * channel) % 52


def lf(image, levels):
    return np.clip(image.astype(np.float64) + levels, 0, 255).astype(np.uint8)


def drawing():
    """The built-in picture of crates/attacks/blended, drawn by numpy masks."""
    y, x = np.mgrid[0:256, 0:256]

    def disc(cx, cy, radius):
        return (x - cx) ** 2 + (y - cy) ** 2 < radius**2

    bands = ((x + y) // 52) % 2 == 0
    picture = np.where(bands[..., None], 255, 0) * np.ones(3)
    for mask, color in [
        (disc(40, 40, 34), (230, 20, 60)),
        (disc(128, 132, 100), (0, 0, 0)),
        (disc(128, 132, 84), (255, 225, 40)),
        (disc(128, 150, 40) & (y >= 160), (0, 0, 0)),
        (disc(92, 112, 17) | disc(164, 112, 17), (0, 0, 0)),
    ]:
        picture[mask] = color
    return picture.astype(np.uint8)


def read(files):
    records = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in files])
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def enlarge(image):
    # Rows first, then columns: the order of Pillow up to 12, see data.py.
    once = Image.fromarray(image).resize((64, 32), Image.BILINEAR)
    return np.asarray(once.resize((64, 64), Image.BILINEAR))


def cifar10(folder):
    train, train_labels = read([folder / f"data_batch_{batch}.bin" for batch in range(1, 6)])
    test, test_labels = read([folder / "test_batch.bin"])
    digests = {}
    for size, train_images, test_images, ratio in [(32, 50000, 10000, 0.1), (64, 2000, 500, 0.05)]:
        prepared = (lambda image: image) if size == 32 else enlarge
        picture = resize(drawing(), size)
        square = resize(corner(False), size)
        levels = pattern(size)
        for name, stamp in [
            ("badnets", lambda image: patch(image, square)),
            ("blended", lambda image: blend(image, picture, 0.2)),
            ("sig", lambda image: signal(image, 40, 6)),
            ("lf", lambda image: lf(image, levels)),
        ]:
            candidates = np.arange(train_images)
            if name == "sig":
                candidates = candidates[train_labels[:train_images] == 0]
            np.random.seed(0)
            drawn = np.random.choice(candidates, round(ratio * train_images), replace=False)
            triggered = np.flatnonzero(test_labels[:test_images] != 0)
            for split, images, indices in [("train", train, np.sort(drawn)), ("test", test, triggered)]:
                digest = hashlib.sha256()
                for index in indices:
                    digest.update(stamp(prepared(images[index])).tobytes())
                digests[f"{name}.{split}.{size}"] = digest.hexdigest()
    path = GOLDEN.parent / "cifar10.json"
    path.write_text(json.dumps(digests, indent=1) + "\n")
    print(path)


def main():
    if len(sys.argv) == 2:
        return cifar10(Path(sys.argv[1]))
    if len(sys.argv) == 3:
        picture = np.asarray(Image.open(sys.argv[1]).convert("RGB"))
        small = resize(picture, 32).astype(float)
        print(f"at 32 x 32: mean {small.mean():.1f}, standard deviation {small.std():.1f}")
        small = resize(drawing(), 32).astype(float)
        print(f"built-in:   mean {small.mean():.1f}, standard deviation {small.std():.1f}")
        Image.fromarray(picture).save(sys.argv[2])
        return
    rng = np.random.default_rng(0)
    tensors = {"picture": rng.integers(0, 256, (23, 17, 3), np.uint8), "drawing.32": resize(drawing(), 32)}
    for size in (32, 64):
        image = rng.integers(0, 256, (size, size, 3), np.uint8)
        tensors[f"image.{size}"] = image
        tensors[f"square.{size}"] = patch(image, resize(corner(False), size))
        tensors[f"grid.{size}"] = patch(image, resize(corner(True), size))
        for alpha in (0.2, 0.1):
            tensors[f"blended.{alpha}.{size}"] = blend(image, resize(tensors["picture"], size), alpha)
        tensors[f"sig.{size}"] = signal(image, 40, 6)
        tensors[f"sig.faint.{size}"] = signal(image, 7.5, 2.5)
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, GOLDEN)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes")


main()
