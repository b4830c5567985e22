"""The ranks of a simulated node's jobs: `python -m gpuvigil_agent.simulate.job_node`, started by the agent.

One process a rank, forked from this one, so that a rank can be killed and the agent sees whose process ended;
forked, because they then share what was loaded (about 4 MiB of their own each). Each registers its own
ring with the agent as any rank does. All end with the agent.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import sys
from types import TracebackType

import msgspec

from gpuvigil_agent.config import Simulate
from gpuvigil_agent.parent_death import die_with
from gpuvigil_agent.simulate.job import Job
from gpuvigil_agent.simulate.job_effects import Effects
from gpuvigil_agent.simulate.job_rank import DeviceError, SimulatedRank
from gpuvigil_agent.simulate.job_steps import Steps
from gpuvigil_agent.simulate.truth import Truth
from gpuvigil_agent.simulate.world import World
from gpuvigil_protos.settings import ConfigError


class Order(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What the agent asks for: its simulation, its own name, its hook's socket, itself."""

    simulate: Simulate
    node: str
    socket: str
    parent: int


def environment(job: Job, world: World, place: int, rank: int, socket: str) -> dict[str, str]:
    """Return what a launcher and a scheduler put into a rank's environment."""
    slots = range(job.first_gpu, job.first_gpu + job.ranks_per_node)
    return {
        "GPUVIGIL_SOCKET": socket,
        "GPUVIGIL_JOB": job.name,
        "TORCHELASTIC_RUN_ID": job.name,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % job.ranks_per_node),
        "GROUP_RANK": str(place),
        "WORLD_SIZE": str(job.world_size),
        "LOCAL_WORLD_SIZE": str(job.ranks_per_node),
        "CUDA_VISIBLE_DEVICES": ",".join(world.uuid(slot) for slot in slots),
    }


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line of what a fault makes a rank raise, all of anything else."""
    if isinstance(error, DeviceError):
        sys.stderr.write(f"rank {os.environ['RANK']} of job {os.environ['GPUVIGIL_JOB']}: {error}\n")
    else:
        sys.__excepthook__(kind, error, trace)


def _fork(job: Job, world: World, place: int, socket: str) -> bool:
    """Make the node's ranks of one job; True in a rank that has done its work."""
    effects = Effects(world.config, job, world.node, world.scenario)
    gc.collect()
    gc.freeze()  # what is there now is not walked again, so the ranks go on sharing it
    parent = os.getpid()
    for rank in range(place * job.ranks_per_node, (place + 1) * job.ranks_per_node):
        if os.fork() == 0:
            die_with(parent)
            os.environ.update(environment(job, world, place, rank, socket))
            sys.excepthook = _say
            steps = Steps(job, effects, world.config.seed, world.start_ns)
            SimulatedRank(job, rank, steps, world.config.seed).train(effects.deaths)
            return True
    return False


def main() -> int:
    """Run the ranks of the order on standard input; 0 when all have ended, 2 with the reason."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    die_with(order.parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        world = World(order.simulate, order.node)
        for job in world.jobs:
            place = job.node_place(order.node)
            if place is not None and _fork(job, world, place, order.socket):
                return 0
        writing = Truth(world, "job").start()  # after the forks: a thread is not inherited
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    if writing is not None:
        writing.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
