"""Ranks that agree on steps while their requests come late: prints the steps at which each acted, as JSON.

usage (under torchrun): agreeing_ranks.py ROUNDS SEED. A step stands for a second: the request of a round
reaches each rank 0 to 30 steps late, at random and differently.
"""

from __future__ import annotations

import json
import random
import sys

import torch
import torch.distributed as dist

from gpuvigil.agreement import Agreement, Peers

LATE_MAX = 30
EVERY = 10


def main() -> None:
    """Go round by round; every step ends with the job's own all-reduce, as in training."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rounds, seed = int(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(1000 * seed + dist.get_rank())
    peers = Peers(60.0)
    agreement = Agreement(peers.reduce, EVERY)
    acted: list[int] = []
    step, seen = 0, 0
    for number in range(1, rounds + 1):
        late = step + rng.randint(0, LATE_MAX)
        while len(acted) < number:
            dist.all_reduce(torch.ones(1))
            seen = number if step >= late else seen
            if agreement.step(seen):
                acted.append(step)
            step += 1
    every = peers.gather(acted)
    if dist.get_rank() == 0:
        print(json.dumps({"acted": every, "steps": step}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
