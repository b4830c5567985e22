"""One program, run once: a fixed list of arguments, no shell, a deadline, bounded output, little environment.

Of the actuators that call a program (scontrol, systemctl, an operator's command) each goes through `run`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gpuvigil_collector.action import AmbiguousError, Fence, RefusedError
from gpuvigil_protos.text import printable

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OUTPUT_MAX: Final = 1 << 20  # bytes kept of each stream unless told otherwise; more is thrown away
_BLOCK: Final = 1 << 16
_POLL_S: Final = 0.05  # a child of the child may hold the pipe open: so we look at the child as well
_REAP_S: Final = 1.0
_LEAST_S: Final = 0.2  # under this no program can be expected to answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a program ended. code: exit status; below 0 a signal ended it, so what it had done is not known."""

    code: int
    output: str
    errors: str

    def why(self) -> str:
        """Return the first words that the program said about its failure, for people, printable, bounded."""
        said = (self.errors.strip() or self.output.strip()).split("\n")[0]
        return printable(said[:200]) or f"exit status {self.code}"


def run(
    argv: Sequence[str],
    *,
    deadline_s: float,
    environment: Mapping[str, str] | None = None,
    output_max: int = OUTPUT_MAX,
) -> Ran:
    """Run `argv` and wait for its end; `environment` is added to PATH and LC_ALL, all that it sees of ours.

    Raises RefusedError when it could not be started: then nothing has happened. Raises AmbiguousError when it
    had not ended in time: it and its children are killed, and what it had done by then is not known. Whoever
    only looks turns both into unknown.
    """
    if not argv or not argv[0]:
        raise RefusedError("no program is named")
    if deadline_s < _LEAST_S:
        raise RefusedError(f"{argv[0]} was not started: {deadline_s:.2f} s are left for it")
    try:
        process = subprocess.Popen(
            _bounded(argv, deadline_s),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": PATH, "LC_ALL": "C.UTF-8", **(environment or {})},
            cwd="/",
            start_new_session=True,  # its whole family can be killed
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a NUL in an argument
        raise RefusedError(f"{argv[0]} could not be started: {error}") from error
    with process.stdout or contextlib.nullcontext(), process.stderr or contextlib.nullcontext():
        return _wait(process, argv[0], deadline_s, output_max)


def within(fence: Fence, deadline_s: float, now_ns: int) -> float:
    """Return how long an effect may take, s: `deadline_s`, and under half of what is left of the lease.

    A leader that stops here and wakes up later has no lease then; a program of its own must have ended by
    then too. Raises RefusedError when too little is left.
    """
    left_s = min((fence.until_ns - now_ns) / 1e9, fence.lease_s)
    if left_s * 0.49 < _LEAST_S:
        raise RefusedError(f"the lease of generation {fence.generation} ends in {left_s:.1f} s")
    return min(deadline_s, left_s * 0.49)


def _bounded(argv: Sequence[str], deadline_s: float) -> list[str]:
    """Put coreutils' timeout in front: it ends the program even while we are stopped, or were killed.

    Raises OSError where there is no such program, as starting it would have.
    """
    program = shutil.which(argv[0], path=PATH)
    if program is None:
        raise FileNotFoundError(f"no such program: {argv[0]}")
    return ["timeout", "-s", "KILL", f"{deadline_s + _POLL_S:.3f}", program, *argv[1:]]


def _wait(process: subprocess.Popen[bytes], name: str, deadline_s: float, output_max: int) -> Ran:
    end = time.monotonic() + deadline_s
    kept = {"output": bytearray(), "errors": bytearray()}
    try:
        _read(process, kept, end, output_max)
        code = process.wait(max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired as error:
        raise AmbiguousError(f"{name} did not end within {deadline_s:.1f} s and was killed") from error
    finally:
        _end(process)
    text = {which: bytes(held).decode(errors="replace") for which, held in kept.items()}
    return Ran(code=code, output=text["output"], errors=text["errors"])


def _read(
    process: subprocess.Popen[bytes], kept: Mapping[str, bytearray], end: float, output_max: int
) -> None:
    """Read both streams until they end, or the program does and nothing more waits, or time is up."""
    with selectors.DefaultSelector() as waiting:
        for stream, which in ((process.stdout, "output"), (process.stderr, "errors")):
            if stream is not None:
                waiting.register(stream, selectors.EVENT_READ, kept[which])
        while waiting.get_map() and time.monotonic() < end:
            ended = process.poll() is not None
            ready = waiting.select(0 if ended else min(_POLL_S, max(end - time.monotonic(), 0)))
            for key, _ in ready:
                if not _take(key.fd, key.data, output_max):
                    waiting.unregister(key.fileobj)
            if ended and not ready:
                return


def _take(descriptor: int, held: bytearray, output_max: int) -> bool:
    block = os.read(descriptor, _BLOCK)
    held += block[: max(output_max - len(held), 0)]
    return bool(block)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what runs still of the program's session, and collect its status."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel's hands: it stays until it returns
        process.wait(_REAP_S)
