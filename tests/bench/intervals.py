"""Bounds that stand beside every rate."""

from __future__ import annotations


def upper_bound(failures: int, n: int) -> float:
    """Return the 95 % one-sided upper bound of a rate (Clopper-Pearson by bisection)."""
    from math import comb

    low, high = failures / n, 1.0
    for _ in range(60):
        p = (low + high) / 2
        tail = sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(failures + 1))
        low, high = (p, high) if tail > 0.05 else (low, p)
    return high
