"""A data-parallel job on gloo whose ranks misbehave when told: what the judges of loops are tried on.

usage (under torchrun): faulty_job.py; FAULT=KIND:RANK:STEP, STEP_S: seconds of one step (0.1)
kinds: hang (a loop in host code), gil (the interpreter lock held), skip (one collective left out), stop
(SIGSTOP), kill (SIGKILL), slow (10 % longer steps from then on), data (the input takes 10 % of a step longer)
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

import torch
import torch.distributed as dist

from gpuvigil import monitor

KIND, AT_RANK, AT_STEP = os.environ.get("FAULT", "none:0:0").split(":")
STEP_S = float(os.environ.get("STEP_S", "0.1"))


def misbehave() -> None:
    """Do at once what is done once."""
    if KIND == "hang":
        while True:
            time.sleep(0.1)
    if KIND == "gil":
        ctypes.PyDLL(None).sleep(3600)
    if KIND in {"stop", "kill"}:
        os.kill(os.getpid(), signal.SIGSTOP if KIND == "stop" else signal.SIGKILL)


def main() -> None:
    """Train on nothing, for ever."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    gradient = torch.ones(1000)
    step = 0
    while True:
        faulty = rank == int(AT_RANK) and step >= int(AT_STEP)
        with monitor.phase("data"):
            time.sleep(0.1 * STEP_S + (0.1 * STEP_S if faulty and KIND == "data" else 0.0))
        with monitor.step() as s:
            with monitor.phase("forward"):
                time.sleep(0.9 * STEP_S + (0.1 * STEP_S if faulty and KIND == "slow" else 0.0))
            if faulty and step == int(AT_STEP):
                misbehave()
            with monitor.phase("backward"):
                if not (KIND == "skip" and faulty and step == int(AT_STEP)):
                    dist.all_reduce(gradient)
                if KIND == "skip" and faulty and step > int(AT_STEP):
                    dist.all_reduce(gradient)
            s.log(loss=1.0 / (step + 1), tokens=512)
        step += 1


if __name__ == "__main__":
    main()
