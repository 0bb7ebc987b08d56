"""Reference values for FP with steps of several features, computed with PyTorch.

Makes golden/fp/golden.json:

    python tools/reference/fp.py

Written from the published description, on the tiny network of tsbd.py and its 24 images, which are all both for the order
of the features and for the accuracy. Steps of a quarter: three of twelve features. For both variants how many features are
pruned in each step, the accuracy with them, and the features that stay pruned, in their order. (tsbd.py makes what steps
of one feature and fine-tuning lead to.)
"""

import json
from pathlib import Path

import torch
from tiny import backdoored, clean

GOLDEN = Path(__file__).parent / "golden" / "fp"


def pruning(variant, step):
    """As the released code counts, n - 1 columns for n features, and the network that lost a tenth of its accuracy is the
    result; or, as the paper has it, n columns, and the last network that did not."""
    model = backdoored().eval()
    images, labels = clean()
    counts, accuracies, pruned = [], [], []
    with torch.no_grad():
        features = model.features(images)
        order = features.mean(0).argsort().tolist()
        for n in range(0, len(order), step):
            columns = order[: max(n - 1, 0)] if variant == "reference" else order[:n]
            weight = model.linear.weight.clone()
            weight[:, columns] = 0
            logits = features @ weight.T + model.linear.bias
            counts.append(len(columns))
            accuracies.append((logits.argmax(1) == labels).float().mean().item())
            lost = abs(accuracies[-1] - accuracies[0]) / accuracies[0] >= 0.1
            if variant == "reference" or not lost:
                pruned = columns
            if lost:
                break
    return {"counts": counts, "accuracies": accuracies, "pruned": pruned}


def main():
    golden = {variant: pruning(variant, 3) for variant in ("reference", "paper")}
    GOLDEN.mkdir(parents=True, exist_ok=True)
    (GOLDEN / "golden.json").write_text(json.dumps(golden) + "\n")
    print(golden)


main()
