"""The demo's processes: started with a clean environment, watched, stopped by pid, never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpuvigil_cli.client import CliError
from gpuvigil_cli.text import clean

STOP_SECONDS: Final = 12.0  # the agent promises 10
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
_LOG_LINES: Final = 20
_NOTHING: Final[Mapping[str, str]] = {}


def clean_environment() -> dict[str, str]:
    """Return the environment of every child: no variable of ours, and the same modules as here."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    roots = [
        str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry
    ]
    return kept | ({"PYTHONPATH": os.pathsep.join(roots)} if roots else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One running process and where it logs."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def obituary(self) -> str:
        """Say how it died and what it said last; log lines are cleaned, they may quote anything."""
        code = self.process.returncode
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        said = "".join(f"\n    {clean(line, 300)}" for line in lines) or "\n    (it logged nothing)"
        return f"{self.name} ended by itself ({how}); its last lines:{said}"


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Deliver an interrupt only after the block: one between start and note would leave an orphan."""
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {
        number: signal.signal(number, lambda caught_one, _: caught.append(caught_one)) for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in caught[:1]:
            signal.raise_signal(late)


class Children:
    """All children of one demo. Use as a context: leaving it stops every one of them."""

    def __init__(self, stop_seconds: float = STOP_SECONDS) -> None:
        self._all: list[Child] = []
        self._stop_seconds = stop_seconds
        self._environment = clean_environment()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, module: str, config: Path, more: Mapping[str, str] = _NOTHING) -> Child:
        """Run `python -m module --config config` in the config's own directory, out of reach of Ctrl-C."""
        return self.run(name, ["-m", module, "--config", str(config)], config.with_suffix(".log"), more)

    def run(self, name: str, arguments: list[str], log: Path, more: Mapping[str, str]) -> Child:
        """Run Python with arguments in the log's own directory; `more` goes into its environment."""
        return self.program(name, [sys.executable, *arguments], log, more)

    def program(self, name: str, command: list[str], log: Path, more: Mapping[str, str]) -> Child:
        """Run any program likewise."""
        with log.open("wb") as output, _held_signals():
            process = subprocess.Popen(
                command,
                cwd=log.parent,
                env=self._environment | dict(more),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is ours; we stop them in order
            )
            child = Child(name=name, process=process, log=log)
            self._all.append(child)
        return child

    def check(self) -> None:
        """Raise CliError with the last words of every child that is no longer running."""
        dead = [child for child in self._all if child.process.poll() is not None]
        if dead:
            raise CliError("\n".join(child.obituary() for child in dead[:3]))

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to whoever is left after `stop_seconds`; returns when none runs."""
        for child in reversed(self._all):
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._stop_seconds
        for child in self._all:
            try:
                child.process.wait(timeout=max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait(timeout=STOP_SECONDS)
            # what the child itself started and did not take along is in its own group
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
        self._all.clear()
