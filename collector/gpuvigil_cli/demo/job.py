"""The training job of the demo: two ranks on gloo, a saver, and a folder in which orders for rank 1 appear.

usage (under torchrun): job.py FOLDER. FOLDER/order holds slow, stop or kill; stop and kill are done once.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from gpuvigil import monitor
from gpuvigil.saver import Saver

STEP_S = 0.15
FOLDER = Path(sys.argv[1])
ORDER = FOLDER / "order"


def order() -> str:
    """Read what rank 1 is to do; what is done once is taken away first."""
    try:
        word = ORDER.read_text(encoding="utf-8")
    except OSError:
        return ""
    if word in {"stop", "kill"}:
        ORDER.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGSTOP if word == "stop" else signal.SIGKILL)
    return word


def main() -> None:
    """Fit a line, for ever."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def save(folder: Path) -> None:
        torch.save(model.state_dict(), folder / f"rank{rank}.pt")

    def load(folder: Path) -> None:
        model.load_state_dict(torch.load(folder / f"rank{rank}.pt", weights_only=True))

    saver = Saver(FOLDER / "checkpoints", save, interval=40, timeout_s=60)
    step = saver.resume(load)
    while True:
        with monitor.step(step) as s:
            with monitor.phase("data"):
                inputs = torch.randn(32, 16)
                time.sleep(0.1 * STEP_S)
            with monitor.phase("forward"):
                word = order() if rank == 1 else ""
                time.sleep(STEP_S * (1.2 if word == "slow" else 0.8))
                loss = (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean()
            with monitor.phase("backward"):
                optimizer.zero_grad()
                loss.backward()
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad)
            optimizer.step()
            s.log(loss=loss, tokens=512)
        saver.step(step)
        step += 1


if __name__ == "__main__":
    main()
