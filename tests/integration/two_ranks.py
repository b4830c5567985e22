"""A synchronous job of two processes for tests: both end each step together, as behind an all-reduce.

usage: two_ranks.py SOCKET; prints the process ids of both ranks. Killed with its parent.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time


def rank(number: int, barrier: object) -> None:
    """One rank: input, forward, then the wait for the other inside backward."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "GPUVIGIL_JOB": "pair"}
    from gpuvigil import monitor

    step = 0
    while True:
        step += 1
        with monitor.phase("data"):
            time.sleep(0.01)
        with monitor.step() as s:
            with monitor.phase("forward"):
                time.sleep(0.05)
            with monitor.phase("backward"):
                barrier.wait()
            s.log(loss=1.0 / step, tokens=256)


def main() -> None:
    """Start both, say who they are, wait."""
    os.environ["GPUVIGIL_SOCKET"] = sys.argv[1]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    ranks = [context.Process(target=rank, args=(number, barrier)) for number in range(2)]
    for process in ranks:
        process.start()
    print(*(process.pid for process in ranks), flush=True)
    for process in ranks:
        process.join()


if __name__ == "__main__":
    main()
