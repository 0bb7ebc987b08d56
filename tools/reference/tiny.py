"""The tiny backdoored network and the clean images that `tsbd.py` made, for the references of other defenses."""

import json

import torch
from safetensors.torch import load_file, save_file
from tsbd import GOLDEN, Tiny

TINY = GOLDEN


def backdoored():
    model = Tiny()
    model.load_state_dict(load_file(TINY / "backdoored.safetensors"))
    return model


def clean():
    """Images `[24, 3, 8, 8]` in 0 to 1 and labels, in the order in which seed 0 draws them."""
    tensors = load_file(TINY / "images.safetensors")
    drawn = json.loads((TINY / "golden.json").read_text())["drawn"]
    return tensors["images"][drawn].permute(0, 3, 1, 2).float() / 255, tensors["labels"][drawn].long()


def block(model, x):
    """The map before the second batch norm: `block` in the Rust crate's tiny network."""
    x = torch.relu(model.bn1(model.conv1(x)))
    return model.conv2(x) + model.shortcut(x)


def write(folder, name, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    save_file(tensors, folder / f"{name}.safetensors")
