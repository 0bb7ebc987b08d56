"""Loads a PreAct-ResNet18 that tsbd saved into PyTorch and prints its logits.

    python tools/reference/checkpoint.py MODEL.safetensors

Width and classes come from the file. `load_state_dict(strict=True)` must take it; the logits (evaluation mode, the
formula's 16x16 images of `model.py`) are printed as JSON. The Rust test that runs this sets $TSBD_PYTHON.
"""

import json
import sys

import torch
from model import PreActResNet18, images
from safetensors.torch import load_file

state = load_file(sys.argv[1])
model = PreActResNet18(state["conv1.weight"].shape[0], state["linear.weight"].shape[0])
model.load_state_dict(state, strict=True)
with torch.no_grad():
    print(json.dumps(model.double().eval()(images(16)).tolist()))
