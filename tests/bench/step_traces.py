"""Step times of simulated training jobs, with faults: the world that the judges of slowness are shown.

It knows no threshold of any judge. Times are seconds, [runs, steps].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Noise:
    """What makes a healthy step vary. jitter: standard deviation as a share. spikes: chance, least, most.

    memory: correlation of one step's jitter with the next (AR(1)). tail: degrees of freedom of Student's t,
    0 for normal; scaled to the same standard deviation.
    """

    jitter: float = 0.02
    spike_chance: float = 0.03
    spike_least: float = 0.10
    spike_most: float = 0.40
    memory: float = 0.0
    tail: int = 0


def factors(rng: np.random.Generator, runs: int, steps: int, noise: Noise) -> np.ndarray:
    """How much longer than usual each step of a healthy job takes; around 1."""
    if noise.tail:
        raw = rng.standard_t(noise.tail, (runs, steps)) / np.sqrt(noise.tail / (noise.tail - 2))
    else:
        raw = rng.standard_normal((runs, steps))
    if noise.memory:
        fresh = np.sqrt(1 - noise.memory**2)
        for step in range(1, steps):
            raw[:, step] = noise.memory * raw[:, step - 1] + fresh * raw[:, step]
    hit = rng.random((runs, steps)) < noise.spike_chance
    spikes = rng.uniform(noise.spike_least, noise.spike_most, (runs, steps))
    return np.maximum(1 + noise.jitter * raw, 0.2) * np.where(hit, 1 + spikes, 1.0)


def healthy(rng: np.random.Generator, runs: int, steps: int, noise: Noise) -> np.ndarray:
    """Jobs of different step times, each constant but for its noise."""
    return rng.uniform(0.3, 8.0, (runs, 1)) * factors(rng, runs, steps, noise)


def slowed(
    rng: np.random.Generator, runs: int, steps: int, noise: Noise, share: float, onset: np.ndarray
) -> np.ndarray:
    """The same, slower by `share` from step onset[run] on."""
    after = np.arange(steps) >= onset[:, None]
    return healthy(rng, runs, steps, noise) * np.where(after, 1 + share, 1.0)


def variable_length(
    rng: np.random.Generator, runs: int, steps: int, noise: Noise
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Jobs whose step follows its tokens and the squares of its sequence lengths: times, tokens, squares."""
    lengths = rng.choice([512, 1024, 2048, 4096, 8192], size=(runs, steps, 16), p=[0.3, 0.3, 0.2, 0.15, 0.05])
    tokens = lengths.sum(axis=2).astype(float)
    squares = (lengths.astype(float) ** 2).sum(axis=2)
    cost = 0.1 + tokens / 4e4 + squares / 3e8
    return cost * factors(rng, runs, steps, noise), tokens, squares
