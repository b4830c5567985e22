"""The world outside two executors: scripts whose every effect is a line in a log that nobody else writes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
CHILD = TESTS / "integration/executor_child.py"
# the effect comes late, as a reboot does, and is had as often as it is asked for
_REBOOT = """#!/bin/sh
sleep {delay}
echo "$GPUVIGIL_ACTION $1 $GPUVIGIL_GENERATION" >> {folder}/log
"""
# "ours": any collector's mark on the node; a second mark would be a second line
_FENCED = """#!/bin/sh
exec 9>{folder}/lock; flock 9
highest=$(cat {folder}/generation 2>/dev/null || echo 0)
if [ "$GPUVIGIL_GENERATION" -lt "$highest" ]; then
  echo "$GPUVIGIL_ACTION $1" >> {folder}/stale; exit 2
fi
echo "$GPUVIGIL_GENERATION" > {folder}/generation
sleep {delay}
echo "$GPUVIGIL_ACTION $1 $GPUVIGIL_GENERATION" >> {folder}/log
"""
_LOOK = """#!/bin/sh
grep -q "^{who} $1 " {folder}/log 2>/dev/null && exit 0
exit 1
"""


@dataclass(frozen=True)
class Outside:
    """The folder with the scripts and the log."""

    folder: Path

    def log(self) -> list[tuple[str, str, int]]:
        """Every effect: (action id, node, generation), oldest first."""
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(a, node, int(generation)) for a, node, generation in (line.split() for line in lines)]

    def stale(self) -> int:
        """How often the script refused a generation that is over."""
        path = self.folder / "stale"
        return len(path.read_text().splitlines()) if path.exists() else 0


def outside(folder: Path, *, fenced: bool, delay: float) -> Outside:
    """Write the scripts."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"apply": _FENCED if fenced else _REBOOT, "look": _LOOK}
    who = "[^ ]*" if fenced else '"$GPUVIGIL_ACTION"'
    for name, text in texts.items():
        (folder / name).write_text(text.format(folder=folder, delay=delay, who=who.replace('"', '""')))
        (folder / name).chmod(0o755)
    return Outside(folder)


def child(*arguments: object) -> subprocess.Popen[str]:
    """Start executor_child.py."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([p for p in sys.path if p] + [str(TESTS)])}
    argv = [sys.executable, str(CHILD), *map(str, arguments)]
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)


def repair(world: Outside, kill_at: int, name: str) -> tuple[int, list[str]]:
    """Run one `repair` to its end; return its exit status and what it printed."""
    with child("repair", world.folder, kill_at, name) as process:
        try:
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, said.split()


def killed_then_resumed(folder: Path, moments: tuple[int, ...]) -> list[tuple[str, str, int]]:
    """Repair n1 and be killed at each of `moments` in turn, then once more to the end; return the log.

    Each run takes up what was left and then, as the brain would, proposes an action of a new id.
    """
    world = outside(folder, fenced=False, delay=0.3)
    names = [f"a{attempt}" for attempt in range(len(moments) + 1)]
    for moment, name in zip((*moments, 0), names, strict=True):
        status, said = repair(world, moment, name)
        assert status == (-signal.SIGKILL if moment else 0), f"killed at {moment}: {status} {said}"
    ended = dict(pair.split(":") for pair in said[1:])
    lines = world.log()
    for name in names:
        times = sum(line[0] == name for line in lines)
        assert times <= 1, f"{name} was had {times} times"
        if ended.get(name) is not None:
            assert (ended[name] == "done") == (times == 1), (
                f"{name} is {ended[name]} and was had {times} times"
            )
    assert not {"intended", "issued", "ambiguous"} & set(ended.values()), "none is left open"
    return lines


def stopped_leaders(directory: Path, stops: int, seed: int) -> dict[str, int]:
    """Two collectors; the one that leads is stopped for longer than its lease, again and again.

    Returns what was seen; raises AssertionError on a node marked twice or a mark by a stale leader.
    """
    chance = random.Random(seed)
    world = outside(directory / "shared", fenced=True, delay=0.05)
    children = {name: child("lead", directory / name, world.folder) for name in ("ann", "bob")}
    takeovers = 0
    try:
        _wait(lambda: len(world.log()) >= 2, 30)
        for _ in range(stops):
            time.sleep(chance.uniform(0, 0.5))
            before = world.log()
            leader = children[before[-1][0].split("-")[0]]
            leader.send_signal(signal.SIGSTOP)
            _wait(lambda seen=before: world.log()[-1][2] > seen[-1][2], 30)
            takeovers += 1
            time.sleep(chance.uniform(0, 0.2))
            leader.send_signal(signal.SIGCONT)
            time.sleep(chance.uniform(0.2, 0.6))
    finally:
        for one in children.values():
            one.send_signal(signal.SIGCONT)
            one.kill()
            one.communicate()
    time.sleep(1.2)  # a script that was begun before ends, or is killed, within its deadline
    lines = world.log()
    twice = [node for node, times in Counter(node for _, node, _ in lines).items() if times > 1]
    assert twice == [], f"marked twice: {[line for line in lines if line[1] in twice]}"
    generations = [generation for _, _, generation in lines]
    assert generations == sorted(generations), "a leader acted after its successor"
    return {"effects": len(lines), "takeovers": takeovers, "refused_as_stale": world.stale()}


def _wait(so, seconds):
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.02)
