"""Ask Slurm's own programs: `sinfo`, `squeue` and `scontrol`, each with a deadline, none through a shell.

slurmrestd is not used: up to 22.05 it can neither drain a node nor requeue a job.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from gpuvigil_collector import process
from gpuvigil_collector.action import AmbiguousError, RefusedError
from gpuvigil_collector.slurm import records

OUTPUT_MAX: Final = 256 << 20
_PASSED_ON: Final = ("SLURM_CONF",)
_VERSION: Final = re.compile(r"slurm\S* (\d{2})\.(\d{2})")
_NODES_BY_SCONTROL: Final = (23, 2)
_T = TypeVar("_T")


class UnknownError(Exception):
    """Slurm did not answer in time, or not sensibly: nothing is known."""


class Run(Protocol):
    """actuators/process.run: one program, a deadline. Raises RefusedError or AmbiguousError."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        environment: Mapping[str, str] | None = None,
        output_max: int = ...,
    ) -> process.Ran:
        """Run argv and wait for its end."""
        ...


def _environment() -> Mapping[str, str]:
    """Where the site's slurm.conf is; nothing that a shell may have left (SQUEUE_FORMAT, SLURM_JOB_ID)."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


@dataclass(slots=True, kw_only=True)
class SlurmClient:
    """Slurm's programs as functions that only look. Every method takes the seconds that it may last.

    folder: where the programs are; "" for the usual places.
    """

    folder: str = ""
    environment: Mapping[str, str] = field(default_factory=_environment)
    run: Run = process.run
    _version: tuple[int, int] | None = None

    def nodes(self, deadline_s: float) -> list[records.NodeRecord]:
        """Return every node. Raises UnknownError."""
        until = time.monotonic() + deadline_s
        newer = self.version(deadline_s) >= _NODES_BY_SCONTROL
        argv = ("scontrol", "--json", "show", "nodes") if newer else ("sinfo", "--all", "--json")
        return self._parsed(records.nodes, self._read(argv, until - time.monotonic()))

    def jobs(self, deadline_s: float) -> list[records.JobRecord]:
        """Return every job that Slurm still knows, ended ones too. Raises UnknownError."""
        return self._parsed(records.jobs, self._read(("squeue", "--all", "--json"), deadline_s))

    def text(self, what: str, deadline_s: float) -> str:
        """Return `scontrol show WHAT`, one record a line. Raises UnknownError."""
        return self._read(("scontrol", "--oneliner", "show", what), deadline_s)

    def version(self, deadline_s: float) -> tuple[int, int]:
        """Return (year, month) of the installed Slurm; asked once. Raises UnknownError."""
        if self._version is None:
            said = self._read(("scontrol", "--version"), deadline_s)
            if (match := _VERSION.match(said)) is None:
                raise UnknownError(f"scontrol --version: expected slurm and a version, got {said[:60]!r}")
            self._version = int(match[1]), int(match[2])
        return self._version

    def command(self, argv: Sequence[str]) -> tuple[str, ...]:
        """Return argv with the program's place."""
        return (f"{self.folder.rstrip('/')}/{argv[0]}" if self.folder else argv[0], *argv[1:])

    def _read(self, argv: Sequence[str], deadline_s: float) -> str:
        return self._good(argv[0], self._run(argv, deadline_s))

    def _run(self, argv: Sequence[str], deadline_s: float) -> process.Ran:
        try:
            return self.run(
                self.command(argv), deadline_s=deadline_s, environment=self.environment, output_max=OUTPUT_MAX
            )
        except (RefusedError, AmbiguousError) as error:
            raise UnknownError(records.clean(str(error))) from error

    def _good(self, name: str, ran: process.Ran) -> str:
        if ran.code != 0:
            raise UnknownError(f"{name}: {ran.why()}")
        return ran.output

    def _parsed(self, parse: Callable[[str], _T], raw: str) -> _T:
        try:
            return parse(raw)
        except records.NonsenseError as error:
            raise UnknownError(f"slurm answered nonsense: {error}") from error
