"""Coefficients and values of the normal distribution for crates/tensor/src/kernels/normal.rs, made with mpmath.

    python tools/reference/normal.py

Prints, for each number of coefficients, the power series in u = (4 - x) / (4 + x) of
Q(x)·exp(x²/2)·(4 + x) / 4 on x >= 0, where Q(x) = P(X > x) of the standard normal distribution: the Chebyshev
series of the function (40 digits), cut off and rewritten in powers. Then values of the distribution itself for
the test. Made with mpmath 1.3.
"""

import mpmath as mp

mp.mp.dps = 40
NODES = 120


def smooth(u):
    """Q(x)·exp(x²/2)·(4 + x) / 4; x = 4·(1 - u) / (1 + u)."""
    x = 4 * (1 - u) / (1 + u)
    if x > 1000:  # The asymptotic series: erfc and exp together would overflow.
        return (1 - 1 / x**2 + 3 / x**4 - 15 / x**6) / (x * mp.sqrt(2 * mp.pi)) * (4 + x) / 4
    return mp.erfc(x / mp.sqrt(2)) / 2 * mp.exp(x * x / 2) * (4 + x) / 4


def powers(count):
    """The first `count` terms of the Chebyshev series, as a polynomial."""
    angles = [mp.pi * (j + mp.mpf(1) / 2) / NODES for j in range(NODES)]
    values = [smooth(mp.cos(angle)) for angle in angles]
    chebyshev, result = [[1], [0, 1]], [mp.mpf(0)] * count
    while len(chebyshev) < count:
        following = [0] + [2 * c for c in chebyshev[-1]]
        for power, c in enumerate(chebyshev[-2]):
            following[power] -= c
        chebyshev.append(following)
    for degree in range(count):
        weight = mp.mpf(2 if degree else 1) / NODES * sum(v * mp.cos(degree * a) for v, a in zip(values, angles))
        for power, c in enumerate(chebyshev[degree]):
            result[power] += weight * c
    return result


for count in [12, 25]:
    print(f"{count} coefficients:", *[f"    {float(c)!r}," for c in powers(count)], sep="\n")
print("x, P(X < x):")
for x in [-37.5, -20.0, -9.25, -5.0, -2.5, -1.0, -0.125, 0.0, 0.125, 0.75, 1.5, 3.0, 8.0]:
    print(f"    ({x!r}, {float(mp.erfc(-mp.mpf(x) / mp.sqrt(2)) / 2)!r}),")
