"""A small world of ranks that run collectives, for judging the judges of hangs: faults in, dumps out.

Each rank's host enqueues its program and runs ahead of its device, which works in order; a collective ends
when all members' devices have reached it, a send when both ends have. Nothing here knows any rule of a judge:
it is how collectives behave. Dumps have the form of PyTorch's Flight Recorder, version 2.9.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, field

import numpy as np

FAULTS = ("host", "device_after", "device_before", "skip", "resize", "reorder", "no_dump")
SIZES = {"all_reduce": 4096, "_all_gather_base": 1024, "_reduce_scatter_base": 4096, "broadcast": 77}


@dataclass(frozen=True)
class Step:
    """One op of a rank's program. peer: the other rank of a send or receive."""

    group: str
    name: str
    peer: int | None = None
    sends: bool = False
    size: int | None = None


@dataclass
class World:
    """tp x dp x pp ranks under permuted numbers, with overlapping groups."""

    rng: np.random.Generator
    tp: int = 2
    dp: int = 2
    pp: int = 2
    ahead: int = 12
    members: dict[str, tuple[int, ...]] = field(default_factory=dict)
    programs: dict[int, list[Step]] = field(default_factory=dict)

    def __post_init__(self):
        self.size = self.tp * self.dp * self.pp
        order = self.rng.permutation(self.size)
        self.at = order.reshape(self.pp, self.dp, self.tp)
        self._group("default_pg", sorted(order.tolist()))
        for stage in range(self.pp):
            for replica in range(self.dp):
                self._group(f"tp{stage}.{replica}", self.at[stage, replica].tolist())
            for shard in range(self.tp):
                self._group(f"dp{stage}.{shard}", self.at[stage, :, shard].tolist())
            self._group(f"ep{stage}", self.at[stage].reshape(-1).tolist())
        for replica in range(self.dp):
            for shard in range(self.tp):
                self._group(f"pp{replica}.{shard}", self.at[:, replica, shard].tolist())
        for stage, replica, shard in np.ndindex(self.pp, self.dp, self.tp):
            self.programs[int(self.at[stage, replica, shard])] = self._program(stage, replica, shard)

    def _group(self, name, ranks):
        if len(ranks) > 1:
            self.members[name] = tuple(int(rank) for rank in ranks)

    def _program(self, stage, replica, shard, steps=3, micro=3):
        def peer(towards):
            return int(self.at[towards, replica, shard])

        tp, ep = f"tp{stage}.{replica}", f"ep{stage}"
        work = [Step(tp, "_all_gather_base"), Step(ep, "all_to_all"), Step(ep, "all_to_all"),
                Step(tp, "_reduce_scatter_base")]  # fmt: skip
        pp, one = f"pp{replica}.{shard}", []
        for _ in range(micro):
            one += [Step(pp, "recv", peer(stage - 1))] if stage else []
            one += [*work, Step(tp, "broadcast")]
            one += [Step(pp, "send", peer(stage + 1), sends=True)] if stage + 1 < self.pp else []
        for _ in range(micro):
            one += [Step(pp, "recv", peer(stage + 1))] if stage + 1 < self.pp else []
            one += work[::-1]
            one += [Step(pp, "send", peer(stage - 1), sends=True)] if stage else []
        one += [Step(f"dp{stage}.{shard}", "_reduce_scatter_base"), Step("default_pg", "all_reduce"),
                Step(f"dp{stage}.{shard}", "_all_gather_base")]  # fmt: skip
        return [step for step in one * steps if step.group in self.members]

    def run(self, fault: str, culprits: tuple[int, ...], at: int) -> Trace:
        """Play until nothing moves; each culprit fails at the `at`-th op of its program."""
        trace = Trace(self, fault, culprits, at)
        while trace.advance():
            pass
        return trace


class Trace:
    """One run: how far each host and device came, and what every op's number is."""

    def __init__(self, world, fault, culprits, at):
        self.world, self.fault, self.culprits, self.at = world, fault, culprits, at
        self.programs = {r: self._faulty(r, list(p)) for r, p in world.programs.items()}
        self.numbers = {r: _numbers(p) for r, p in self.programs.items()}
        self.host = dict.fromkeys(self.programs, 0)
        self.device = dict.fromkeys(self.programs, 0)  # ops completed
        self.reached = dict.fromkeys(self.programs, 0)  # ops started
        self.where = {
            (rank, *number): place
            for rank, numbers in self.numbers.items()
            for place, number in enumerate(numbers)
        }

    def _faulty(self, rank, program):
        if rank not in self.culprits:
            return program
        at = self.at
        if self.fault == "skip":
            del program[at]
        if self.fault == "resize":
            step = program[at]
            program[at] = Step(step.group, step.name, step.peer, step.sends, size=3)
        if self.fault == "reorder":
            later = next(i for i in range(at + 1, len(program)) if program[i].group != program[at].group)
            program[at], program[later] = program[later], program[at]
        return program

    def advance(self):
        """Let every host and device do what it can; False when nothing moved."""
        before = (dict(self.host), dict(self.device), dict(self.reached))
        for rank, program in self.programs.items():
            hit = rank in self.culprits
            limit = self.at if hit and self.fault in ("host", "no_dump") else len(program)
            self.host[rank] = min(limit, len(program), self.device[rank] + self.world.ahead)
            stop = self.at if hit and self.fault == "device_before" else len(program)
            self.reached[rank] = max(self.reached[rank], min(self.host[rank], self.device[rank] + 1, stop))
        for rank in self.programs:
            at, hit = self.device[rank], rank in self.culprits
            stuck = hit and self.fault == "device_after" and at >= self.at
            if not stuck and at < self.reached[rank] and self._complete(rank, at):
                self.device[rank] += 1
        return before != (self.host, self.device, self.reached)

    def _complete(self, rank, at):
        step, number = self.programs[rank][at], self.numbers[rank][at]
        if step.peer is not None:
            ends = [(step.peer, (step.group, rank, not step.sends, number[3]))]
        else:
            ends = [(other, number) for other in self.world.members[step.group] if other != rank]
        sizes = {step.size}
        for other, its in ends:
            place = self.where.get((other, *its))
            if place is None or self.reached[other] <= place:
                return False
            twin = self.programs[other][place]
            sizes.add(twin.size)
            if twin.name != step.name and step.peer is None:
                return False
        return len(sizes) == 1

    def dumps(self, **style) -> dict[str, bytes]:
        """The files that the ranks write; ranks that a fault silences write none."""
        gone = self.culprits if self.fault == "no_dump" else ()
        return {f"dump_{rank}": dump_of(self, rank, **style) for rank in self.programs if rank not in gone}


def _numbers(program):
    """What both ends call an op: (group, sequence) of a collective; (group, peer, sends, n-th) of a pair."""
    counts: dict[tuple, int] = {}
    numbers = []
    for step in program:
        key = (step.group,) if step.peer is None else (step.group, step.peer, step.sends)
        counts[key] = counts.get(key, 0) + 1
        numbers.append((*key, counts[key]))
    return numbers


def dump_of(trace, rank, *, active_only=False, timing=False, status=True, as_json=False):
    """One rank's dump as PyTorch would write it."""
    names = [name for name, ranks in trace.world.members.items() if rank in ranks]
    every = list(trace.world.members)
    config = {
        str(7 * every.index(name)): {
            "name": str(7 * every.index(name)), "desc": name, "ranks": str(list(trace.world.members[name])),
        }
        for name in names
    }  # fmt: skip
    local = {name: place + (3 if place else 0) for place, name in enumerate(names)}  # gloo groups took 1 to 3
    entries, counts = [], {}
    for place in range(trace.host[rank]):
        entry = _entry(trace, rank, place, counts, timing)
        group = trace.programs[rank][place].group
        entry |= {"pg_id": local[group], "process_group": (str(7 * every.index(group)), group)}
        if not (active_only and entry["state"] == "completed"):
            entries.append(entry)
    dump = {"version": "2.9", "nccl_version": "2.27.3", "pg_config": config, "entries": entries[-2000:]}
    if status:
        dump["pg_status"] = {str(local[name]): _status(trace, rank, name, timing) for name in names}
    return json.dumps(dump).encode() if as_json else pickle.dumps(dump, 2)


def _entry(trace, rank, place, counts, timing):
    step = trace.programs[rank][place]
    count = counts.setdefault(step.group, [0, 0])
    count[step.peer is not None] += 1
    state = "scheduled"
    if place < trace.device[rank]:
        state = "completed"
    elif timing and place < trace.reached[rank]:
        state = "started"
    name, ranks = step.name, trace.world.members[step.group]
    if step.peer is not None:
        arrow = "->" if step.sends else "<-"
        name = f"{step.name} {ranks.index(rank)}{arrow}{ranks.index(step.peer)}"
    shape = step.size or SIZES.get(step.name, 1000 + 13 * rank)
    return {
        "record_id": 500 + place, "collective_seq_id": count[0],
        "p2p_seq_id": count[1] * (step.peer is not None),
        "op_id": sum(count), "profiling_name": f"nccl:{name}", "is_p2p": step.peer is not None,
        "input_sizes": [[shape]], "output_sizes": [[shape]], "input_dtypes": ["BFloat16"],
        "output_dtypes": ["BFloat16"], "state": state, "retired": state == "completed", "timeout_ms": 600000,
        "time_created_ns": 10**18 + place, "time_discovered_started_ns": None,
        "time_discovered_completed_ns": 10**18 if state == "completed" else None,
    }  # fmt: skip


def _status(trace, rank, name, timing):
    """PyTorch keeps the number of the newest op, be it a collective or a send."""
    last = {"enqueued": -1, "started": -1, "completed": -1}
    counts = [0, 0]
    for place, step in enumerate(trace.programs[rank]):
        if step.group != name:
            continue
        counts[step.peer is not None] += 1
        number = counts[step.peer is not None]
        for what, far in (("enqueued", trace.host), ("started", trace.reached), ("completed", trace.device)):
            if place < far[rank] and (what != "started" or timing):
                last[what] = number
    return {f"last_{what}_collective": number for what, number in last.items()}
