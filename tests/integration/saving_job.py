"""A tiny deterministic data-parallel job that saves: gloo, CPU, any number of ranks; faults by environment.

usage (under torchrun): saving_job.py DIRECTORY STEPS LOSS_FILE
FAULT=KIND:RANK:STEP, in the first attempt alone: kill, stop, hang, corrupt, save_fails, save_hangs,
save_kills
SAVE_EVERY: steps between saves that nobody asked for (0). STEP_S: seconds a step sleeps. TIMEOUT_S: of a
collective (1800). SAVE_TIMEOUT_S: how long a rank waits for the others' parts (20).
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from gpuvigil import monitor
from gpuvigil.saver import Saver

DIRECTORY, STEPS, LOSSES = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
FIRST = os.environ.get("GPUVIGIL_ATTEMPT", "0") == "0"
KIND, AT_RANK, AT_STEP = (os.environ.get("FAULT", "none:0:0") if FIRST else "none:0:0").split(":")
STEP_S = float(os.environ.get("STEP_S", "0.02"))


def fault(kind: str, rank: int, step: int) -> bool:
    """Whether this fault is due here and now."""
    return (KIND, int(AT_RANK), int(AT_STEP)) == (kind, rank, step)


def suffer(rank: int, step: int) -> None:
    """Die, stop or hang where that is due between two steps."""
    if fault("kill", rank, step):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault("stop", rank, step):
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault("hang", rank, step):
        time.sleep(3600)


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> torch.Tensor:
    """Make one step on this rank's share of the data; return the sum of all ranks' losses."""
    rank, size = dist.get_rank(), dist.get_world_size()
    with monitor.step(step) as s:
        data = torch.Generator().manual_seed(1000 * step + rank)
        inputs = torch.randn(16, 8, generator=data)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= size
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        s.log(loss=total / size, tokens=16)
    return total


def join() -> int:
    """Join the others; return this rank."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=float(os.environ.get("TIMEOUT_S", "1800")))
    dist.init_process_group("gloo", timeout=timeout)
    return dist.get_rank()


def main() -> None:
    """Train, save, and write down each step's loss to the last bit."""
    rank = join()
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    now = [0]

    def save(folder: Path) -> None:
        if fault("save_fails", rank, now[0]):
            raise OSError("the test's disk is full")
        if fault("save_hangs", rank, now[0]):
            time.sleep(3600)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, folder / f"rank{rank}.pt")
        if fault("save_kills", rank, now[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    def load(folder: Path) -> None:
        state = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    interval, patience = int(os.environ.get("SAVE_EVERY", "0")), float(os.environ.get("SAVE_TIMEOUT_S", "20"))
    saver = Saver(DIRECTORY, save, every=5, interval=interval, timeout_s=patience)
    for step in range(saver.resume(load), STEPS):
        now[0] = step
        total = train_step(model, optimizer, step)
        if rank == 0:
            with LOSSES.open("a") as file:
                file.write(f"{step} {float(total).hex()}\n")
        time.sleep(STEP_S)
        suffer(rank, step)
        outcome = saver.step(step)
        if outcome is not None and outcome.word == "saved" and fault("corrupt", rank, step):
            newest = Path(outcome.path) / "rank0.pt"
            newest.write_bytes(newest.read_bytes()[:-1] + b"x")
            os.kill(os.getpid(), signal.SIGKILL)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
