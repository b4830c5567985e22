"""Runs the fixed commands: a list of words, a deadline, bounded output; never a shell."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gpuvigil_protos.text import printable

OUTPUT_MAX: Final = 256 << 10
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a command ended. status: its exit status, None when it did not end in time."""

    status: int | None
    output: str

    @property
    def words(self) -> str:
        """Return how it ended and its first line, for people."""
        line = next(iter(self.output.splitlines()), "")[:120]
        line = printable(line)
        ended = f"exit status {self.status}" if self.status is not None else "no end in time"
        return f"{ended}{line and ': '}{line}"


def run(argv: Sequence[str], values: Mapping[str, str], deadline_s: float) -> Ran:
    """Run `argv` with {gpu} or {unit} filled in. Never raises: what failed is in the answer.

    A command that hangs is killed; one that hangs in the kernel is let go.
    """
    words = [_fill(word, values) for word in argv]
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={"PATH": _PATH, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
            )  # fmt: skip
        except OSError as error:
            return Ran(status=127, output=f"{words[0]}: {error.strerror}")
        status: int | None = None
        try:
            status = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
        output.seek(0)
        return Ran(status=status, output=output.read(OUTPUT_MAX).decode("utf-8", "replace"))


def _fill(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word
