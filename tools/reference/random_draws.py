"""Golden draws of numpy's legacy generator and of Python's `random`, for crates/data.

Make again:  python tools/reference/random_draws.py      (any CPython >= 3.8, any numpy >= 1.17)
Writes:      tools/reference/golden/data/random_draws.json

Nothing here is computed by this project's code: the numbers are what numpy and CPython themselves draw.
"""

import json
import pathlib
import random

import numpy as np


def numpy_cases():
    """choice(n, k, replace=False) twice after one seed, and one permutation in full."""
    cases = []
    for seed, n, k in [(0, 10, 3), (0, 1, 1), (0, 2, 2), (1, 100, 100), (42, 257, 20), (4294967295, 1000, 12), (0, 50000, 5000)]:
        np.random.seed(seed)
        first = np.random.choice(np.arange(n), k, replace=False)
        second = np.random.choice(np.arange(n), k, replace=False)
        cases.append({"seed": seed, "n": n, "k": k,
                      "first": first[:20].tolist(), "first_sum": int(first.sum()),
                      "second": second[:20].tolist(), "second_sum": int(second.sum())})
    return cases


def python_cases():
    """sample(range(n), k) twice after one seed: pools, sets and the sizes at the border between the two."""
    cases = []
    sizes = [(5, 0), (1, 1), (21, 5), (22, 5), (21, 3), (10, 10), (85, 6), (86, 6), (277, 21), (278, 21), (277, 22), (1045, 85),
             (1046, 85), (1000, 1000), (3000, 150), (50000, 500), (50000, 2500), (4100, 342), (4300, 341), (65536, 100), (65537, 100)]
    for seed in [0, 1, 2**31, 2**32, 2**64 - 1]:
        for n, k in sizes:
            random.seed(seed)
            first = random.sample(range(n), k)
            second = random.sample(range(n), k)
            cases.append({"seed": seed, "n": n, "k": k,
                          "first": first[:8], "first_sum": sum(first), "second": second[:8], "second_sum": sum(second)})
    return cases


if __name__ == "__main__":
    target = pathlib.Path(__file__).parent / "golden" / "data" / "random_draws.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = lambda cases: "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]"
    target.write_text(f'{{"numpy": {rows(numpy_cases())},\n"python": {rows(python_cases())}}}\n')
    print(target, target.stat().st_size, "bytes")
