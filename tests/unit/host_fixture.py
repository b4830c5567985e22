"""Recorded hosts as HostFiles: text below tests/fixtures/host, with changes laid over it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from gpuvigil_agent.host_files import FilesystemUse

ROOT = Path(__file__).parents[1] / "fixtures" / "host"
USE = FilesystemUse(1000, 250, 100, 40)


class FixtureFiles:
    """One recorded host. `changes` maps a path to other text, or to None for a file that is not there."""

    def __init__(self, host: str, changes: dict[str, str | None] | None = None) -> None:
        self.root = ROOT / host
        self.changes = dict(changes or {})
        self.uses: dict[str, FilesystemUse] = {}
        self.reads: list[str] = []

    def read(self, path: str) -> str:
        """Return the text, as RealHostFiles does."""
        self.reads.append(path)
        if path in self.changes:
            text = self.changes[path]
            if text is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return text
        return (self.root / path.lstrip("/")).read_bytes().decode("utf-8", "replace")

    def names(self, path: str) -> list[str]:
        """List a recorded folder."""
        return sorted(entry.name for entry in (self.root / path.lstrip("/")).iterdir())

    def usage(self, mount_point: str) -> FilesystemUse:
        """Answer with what the test set."""
        return self.uses.get(mount_point, USE)


def values(sampler: object) -> dict[tuple[str, str], float]:
    """Sample once: (metric name, entity) -> value. A series that comes twice is an error."""
    found: dict[tuple[str, str], float] = {}
    for metric, entity, value in sampler.sample():  # type: ignore[attr-defined]
        assert (metric.name, entity) not in found, f"{metric.name} of {entity} came twice"
        found[metric.name, entity] = value
    return found
