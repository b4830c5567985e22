"""Plain DDP, or FSDP, with the hook's two lines and a Saver that writes by torch.distributed.checkpoint.

usage (under torchrun): sharded_job.py ddp|fsdp DIRECTORY STEPS; rank 0 prints each step and its loss as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gpuvigil import monitor
from gpuvigil.saver import Saver


def main() -> None:
    """Train a small net; every fifth step is saved."""
    kind, directory, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    model = DistributedDataParallel(net) if kind == "ddp" else fully_shard(net, mesh=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def state() -> dict:
        weights, moments = get_state_dict(model, optimizer)
        return {"model": weights, "optimizer": moments}

    def load(folder: Path) -> None:
        found = state()
        dcp.load(found, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])

    saver = Saver(directory, lambda folder: dcp.save(state(), checkpoint_id=folder), interval=5, timeout_s=60)
    told = []
    for step in range(saver.resume(load), steps):
        with monitor.step(step) as s:
            data = torch.randn(16, 8, generator=torch.Generator().manual_seed(100 * step + dist.get_rank()))
            loss = model(data).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            s.log(loss=loss, tokens=16)
        outcome = saver.step(step)
        assert outcome is None or outcome.word == "saved", outcome
        told.append((step, float(loss)))
    if dist.get_rank() == 0:
        print(json.dumps(told), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
