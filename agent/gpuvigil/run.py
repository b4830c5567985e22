"""`gpuvigil run -- COMMAND`: a training command, seen without a change, restarted from its checkpoints.

    gpuvigil run -- torchrun --nproc-per-node=8 train.py
    gpuvigil run -- python train.py
    gpuvigil run --checkpoints /checkpoints/run7 -- torchrun --nproc-per-node=8 train.py

With --checkpoints it starts the command again when it fails, or when an operator asks (`gpuvigil restart`):
the loop's own `Saver.resume` loads the newest valid one. Attempts that bring no newer checkpoint are counted;
after --attempts of them it stops for a person, with exit status 75.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Dict, List, Optional

from gpuvigil import checkpoints
from gpuvigil.identity import identity
from gpuvigil.launcher_link import LauncherLink

PARKED = 75  # EX_TEMPFAIL: a person must look
_NOT_FOUND = 127
_GRACE_S = 10.0
_BACKOFF_MAX_S = 1800.0
_FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SITE = Path(__file__).resolve().parent / "site"


def main(arguments: List[str]) -> int:
    """Run a command to its end; its exit status, or 75 when attempts bring nothing any more."""
    parser = argparse.ArgumentParser(
        "gpuvigil run", usage="gpuvigil run [OPTIONS] -- COMMAND ...", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--job", default="", help="name of the job; else the scheduler's or torchrun's id")
    parser.add_argument(
        "--checkpoints", type=Path, metavar="DIR", help="where the job's Saver writes: restart"
    )
    parser.add_argument("--attempts", type=int, default=3, help="attempts without a newer checkpoint (3)")
    parser.add_argument("--backoff", type=float, default=5.0, help="seconds before the second attempt (5)")
    parser.add_argument("--no-hook", action="store_true", help="do not watch the optimizer's steps")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    found = parser.parse_args(arguments)
    command = found.command[1:] if found.command[:1] == ["--"] else found.command
    if not command:
        parser.error("expected a command after --")
    if found.attempts < 1 or found.backoff < 0:
        parser.error("--attempts, --backoff: expected at least 1, and at least 0 s")
    environment = surroundings(os.environ, found.job, hook=not found.no_hook)
    return Supervisor(command, environment, found.checkpoints, found.attempts, found.backoff).run()


def surroundings(outer: "os._Environ[str]", job: str, hook: bool) -> Dict[str, str]:
    """Return the command's environment: job name, hook, and a rendezvous that survives a restart."""
    env = dict(outer)
    env["GPUVIGIL_JOB"] = job or identity(env)["job"]  # one name for the launcher and all its ranks
    # the shared store keeps dead ranks' addresses: a restart in place then hangs or fails
    env.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    env["GPUVIGIL_RUN"] = str(os.getpid())  # the command itself knows by it that it may be the training
    if hook:
        root = str(_SITE.parents[1])  # where the package itself is found, if it is not installed there
        env["PYTHONPATH"] = os.pathsep.join(
            [str(_SITE), root, *([env["PYTHONPATH"]] if env.get("PYTHONPATH") else [])]
        )
    return env


def become_subreaper() -> None:
    """Have orphans of our children become ours. Source: prctl(2), PR_SET_CHILD_SUBREAPER, Linux 3.4."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def children_of(pid: int) -> List[int]:
    """Return the living descendants of a process, zombies left out."""
    parents: Dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = (entry / "stat").read_text().rpartition(") ")[2].split()
                if words[0] != "Z":
                    parents[int(entry.name)] = int(words[1])
    found: List[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        mine = [child for child, of in parents.items() if of == parent]
        found += mine
        waiting += mine
    return found


class Supervisor:
    """Attempts at one command, one after the other."""

    def __init__(
        self, command: List[str], environment: Dict[str, str], directory: Optional[Path], attempts: int,
        backoff_s: float,
    ) -> None:  # fmt: skip
        self._command, self._environment, self._directory = command, environment, directory
        self._attempts, self._backoff_s = attempts, backoff_s
        outer = environment.get("GPUVIGIL_ATTEMPT", "")  # a supervisor that moved the job counts on
        self._first = int(outer) if outer.isdigit() else 0
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._stopping = False
        self._restart = threading.Event()
        self._link = LauncherLink(environment, self._asked)

    def run(self) -> int:
        """Run attempts until one ends well, a signal ends it, or they bring nothing."""
        for name in _FORWARDED:
            signal.signal(getattr(signal, name), self._forward)
        become_subreaper()
        if self._directory is not None:
            self._link.start()
        step, without, attempt = self._newest(), 0, 0
        while True:
            status = self._once(attempt)
            if status == 0 and not self._restart.is_set():
                return 0
            if self._stopping or self._directory is None:
                return _shell_status(status)
            reached = self._newest()
            without = 0 if reached > step else without + 1
            step, attempt = max(step, reached), attempt + 1
            if without >= self._attempts:
                self._say("parked: %d attempts brought no checkpoint newer than step %d" % (without, step))
                self._link.tell({"event": "parked", "attempts": without, "step": step})
                self._link.close()
                return PARKED
            asked = self._restart.is_set()
            self._restart.clear()
            self._wait(0.0 if asked else min(_BACKOFF_MAX_S, self._backoff_s * 2 ** max(0, without - 1)))
            if self._stopping:
                return _shell_status(status)

    def _once(self, attempt: int) -> int:
        """Run the command once; its process group goes with it."""
        environment = dict(self._environment)
        environment["GPUVIGIL_ATTEMPT"] = str(self._first + attempt)
        if attempt:
            self._say("attempt %d, from step %d" % (attempt + 1, self._newest()))
        try:
            self._process = subprocess.Popen(self._command, env=environment, start_new_session=True)
        except OSError as error:
            self._say("%s: %s" % (self._command[0], error.strerror))
            self._stopping = True
            return _NOT_FOUND
        while True:
            try:
                status = self._process.wait(0.2)
            except subprocess.TimeoutExpired:
                if self._restart.is_set():
                    self._end_group()
                continue
            self._kill_orphans()
            return status

    def _end_group(self) -> None:
        """End an attempt that hangs: asked first, then for good; a stopped rank heeds only the last."""
        assert self._process is not None
        self._say("restart: ending the attempt that runs")
        self._signal_group(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def _kill_orphans(self) -> None:
        """End what an attempt left: it must neither write the next one's files nor hold its GPUs.

        Launchers start ranks in sessions of their own; being the subreaper they become our children.
        """
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline:
            left = children_of(os.getpid())
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.05)

    def _signal_group(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _forward(self, number: int, _frame: Optional[FrameType]) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stopping = True
        if self._process is not None and self._process.poll() is None:
            self._signal_group(number)

    def _asked(self, word: Dict[str, object]) -> bool:
        """Take the agent's word; True when it is one that is acted on."""
        if word.get("command") != "restart":
            return False
        self._restart.set()
        return True

    def _newest(self) -> int:
        found = checkpoints.newest(self._directory, verify=False) if self._directory is not None else None
        return found.step if found is not None else -1

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        if seconds > 1:
            self._say("next attempt in %.0f s" % seconds)
        while not self._stopping and not self._restart.is_set() and time.monotonic() < end:
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
        self._restart.clear()

    @staticmethod
    def _say(text: str) -> None:
        print("gpuvigil run: " + text, file=sys.stderr, flush=True)  # noqa: T201 - a command line tool


def _shell_status(status: int) -> int:
    """Return what a shell says of this end: 128 and the signal's number for one by a signal."""
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
