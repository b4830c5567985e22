"""A data-parallel job on gloo whose ranks misbehave when told: what the judges of loops are tried on.

usage (under torchrun): faulty_job.py; FAULT=KIND:RANK:STEP, STEP_S: seconds of one step (0.1),
TIMEOUT_S: of a collective (1800)
kinds: hang (a loop in host code), gil (the interpreter lock held), left_out (one of the two collectives that
each step has: the others wait in another op), elsewhere (a collective of another group in its place), stop
(SIGSTOP), kill (SIGKILL), slow (10 % longer steps from then on), data (the input takes 10 % of a step longer)
"""

from __future__ import annotations

import ctypes
import datetime
import os
import signal
import time

import torch
import torch.distributed as dist

from gpuvigil import monitor

KIND, AT_RANK, AT_STEP = os.environ.get("FAULT", "none:0:0").split(":")
STEP_S = float(os.environ.get("STEP_S", "0.1"))


def hold_interpreter_lock() -> None:
    """Wait in C for ever without giving the lock back; a signal does not end it, as it would a sleep."""
    mutex = ctypes.create_string_buffer(64)  # zeros: PTHREAD_MUTEX_INITIALIZER
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def misbehave() -> None:
    """Do at once what is done once."""
    if KIND == "hang":
        while True:
            time.sleep(0.1)
    if KIND == "gil":
        hold_interpreter_lock()
    if KIND in {"stop", "kill"}:
        os.kill(os.getpid(), signal.SIGSTOP if KIND == "stop" else signal.SIGKILL)


def main() -> None:
    """Train on nothing, for ever."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=float(os.environ.get("TIMEOUT_S", "1800")))
    dist.init_process_group("gloo", timeout=timeout)
    rank = dist.get_rank()
    gradient, weights = torch.ones(1000), torch.ones(10)
    group = dist.new_group() if KIND == "elsewhere" else None
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
                if KIND == "elsewhere":
                    dist.barrier(group)
            with monitor.phase("backward"):
                if not (KIND == "left_out" and faulty and step == int(AT_STEP)):
                    dist.all_reduce(gradient)
                if KIND == "left_out":
                    dist.broadcast(weights, 0)
            s.log(loss=1.0 / (step + 1), tokens=512)
        step += 1


if __name__ == "__main__":
    main()
