"""The jobs that a scenario puts on this simulated node: one process beside the agent has their ranks.

They are no part of the agent: the ranks register over the hook's socket as real ones do, and their cost is
their own processes'. On a real node there is nothing here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import msgspec

from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.driver_child import child_environment
from gpuvigil_protos import log
from gpuvigil_protos.settings import ConfigError

_STOP_S: Final = 2.0
_log = log.get("simulate")


class SimulatedJobs:
    """Call `tend` each tick and `stop` at the end. Raises ConfigError when a job has no socket to come to."""

    def __init__(self, config: AgentConfig, node: str) -> None:
        self._order = _order(config, node)
        self._process: subprocess.Popen[bytes] | None = None

    def tend(self, ready: bool) -> None:
        """Start the ranks once GPUs are known: a rank's claim of one that is not there yet is refused."""
        if self._process is not None:
            self._process.poll()  # no zombie stays
        if self._order is None or not ready:
            return
        order, self._order = self._order, None
        try:
            self._process = _start(order)
        except OSError as error:
            _log.warning("simulated_jobs_failed", reason=error.strerror or str(error))

    def stop(self) -> None:
        """End the ranks."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _order(config: AgentConfig, node: str) -> bytes | None:
    if config.gpu.source != "simulated" or not config.simulate.scenario:
        return None
    from gpuvigil_agent.simulate.world import World  # noqa: PLC0415 - only simulations

    jobs = World(config.simulate, node).jobs
    if not jobs:
        return None
    if not config.hook.socket:
        raise ConfigError(
            f'hook.socket: expected a path, because job {jobs[0].name} of the scenario is on {node}, got ""'
        )
    fields = {"simulate": config.simulate, "node": node, "socket": config.hook.socket, "parent": os.getpid()}
    return msgspec.json.encode(fields)


def _start(order: bytes) -> subprocess.Popen[bytes]:
    """Exec the process and give it its order. Raises OSError."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gpuvigil_agent.simulate.job_node"],
        stdin=subprocess.PIPE,
        env=child_environment(),
    )
    if process.stdin is not None:  # it was asked for
        with process.stdin as pipe:
            pipe.write(order)
    return process
