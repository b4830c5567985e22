"""What the job asks of the machine, second by second: shared by all GPUs and all nodes of a job.

A synchronous job shows steps with communication dips, and checkpoint pauses in which GPUs wait and the local
disk writes. Checkpoints come often, so that a short run shows several.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from gpuvigil_agent.simulate import noise

Shape = Literal["training", "inference", "idle"]

_STEP_SECONDS = 2.3
_COMMUNICATION_SHARE = 0.22
_CHECKPOINT_EVERY_SECONDS = 48
_CHECKPOINT_SECONDS = 4
_REQUEST_BURST_SECONDS = 7


class Load(NamedTuple):
    """One second's demand: compute, communication, checkpoint and context each 0 to 1."""

    compute: float
    communication: float
    checkpoint: float
    context: bool


_IDLE = Load(0.0, 0.0, 0.0, False)


def load_at(shape: Shape, seed: int, second: int) -> Load:
    """Return the job's demand in one second since the start; the same for every GPU of the job."""
    if shape == "idle":
        return _IDLE
    if shape == "inference":
        return _inference(seed, second)
    offset = noise.mix(seed) % _CHECKPOINT_EVERY_SECONDS
    if (second + offset) % _CHECKPOINT_EVERY_SECONDS < _CHECKPOINT_SECONDS:
        return Load(0.03, 0.0, 1.0, True)
    in_step = ((second + 0.5) / _STEP_SECONDS) % 1.0
    communication = 1.0 if in_step > 1.0 - _COMMUNICATION_SHARE else 0.25
    compute = 0.72 if communication == 1.0 else 0.97
    return Load(compute, communication, 0.0, True)


def _inference(seed: int, second: int) -> Load:
    burst = noise.uniform(seed, second // _REQUEST_BURST_SECONDS)
    within = 0.1 * noise.uniform(seed, second, 1)
    return Load(min(1.0, 0.15 + 0.75 * burst**2 + within), 0.05, 0.0, True)
