"""Put the simulated NVML library below pynvml, so that the real samplers run on a machine without GPUs."""

from __future__ import annotations

import time

import pynvml

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.simulate import cost
from gpuvigil_agent.simulate.library import SimulatedLibrary
from gpuvigil_agent.simulate.truth import Truth
from gpuvigil_agent.simulate.world import Clock, World


def install(config: Simulate, node: str, clock: Clock = time.time_ns) -> SimulatedLibrary:
    """Make pynvml speak to a simulated node's driver, and begin to write its faults' truth.

    Call before `pynvml.nvmlInit`. Raises ConfigError when the scenario or the profile cannot be used.
    """
    world = World(config, node, clock)
    library = SimulatedLibrary(world)
    pynvml.nvmlLib = library
    pynvml._nvmlGetFunctionPointer_cache.clear()
    Truth(world, "driver").start()
    return library


def cost_seconds() -> float:
    """CPU seconds the simulation has taken in this process (driver and host files together)."""
    return cost.seconds()
