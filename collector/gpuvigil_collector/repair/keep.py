"""Evidence kept before anything is changed: incident, node, newest readings; one JSON file a case."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from gpuvigil_collector.incidents.incident import Incident
from gpuvigil_collector.repair.case import Case
from gpuvigil_detectors.base import Snapshot
from gpuvigil_protos import catalog, log

_FILES_MAX: Final = 1000
_SERIES_MAX: Final = 5000
_WAITING_MAX: Final = 100
_log = log.get("repair")


class Evidence:
    """Writes into one folder, the newest 1,000 files, in a thread of its own: a tick never waits for a disk.

    snapshot: what the brain looks at now.
    """

    def __init__(self, folder: Path, snapshot: Callable[[], Snapshot | None]) -> None:
        self._folder, self._snapshot = folder, snapshot
        self._thread = ThreadPoolExecutor(1, "evidence")
        self._waiting = 0
        self.left_out = 0

    def keep(self, case: Case, incident: Incident | None) -> None:
        """Have what is known now written down; what finds no room, as in a storm, is said once."""
        if self._waiting >= _WAITING_MAX:
            if not self.left_out:
                _log.warning("evidence_not_kept", case=case.id, error="too much waits for the disk")
            self.left_out += 1
            return
        if self.left_out and self._waiting < _WAITING_MAX // 2:
            _log.warning("evidence_kept_again", left_out=self.left_out)
            self.left_out = 0
        self._waiting += 1
        snapshot = self._snapshot()
        body: dict[str, Any] = {
            "version": 1, "time_ns": time.time_ns(), "case": msgspec.to_builtins(case), "incident": incident,
            "node": snapshot.nodes.get(case.node) if snapshot is not None else None,
        }  # fmt: skip
        self._thread.submit(self._write, f"{case.incident}-{case.id}.json", case.node, body, snapshot)

    def close(self) -> None:
        """Wait for what is being written."""
        self._thread.shutdown()

    def _write(self, name: str, node: str, body: dict[str, Any], snapshot: Snapshot | None) -> None:
        try:
            body["readings"] = readings(snapshot, node) if snapshot is not None else {}
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(msgspec.json.encode(body, enc_hook=_plain))
            files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
            for old in files[:-_FILES_MAX]:
                old.unlink(missing_ok=True)
        except OSError as error:
            _log.error("evidence_not_kept", file=name, error=str(error))
        finally:
            self._waiting -= 1


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else str(value)


def readings(snapshot: Snapshot, node: str) -> dict[str, dict[str, float]]:
    """Return the newest value of every series of one node: metric -> entity -> value, what is fresh alone."""
    found: dict[str, dict[str, float]] = {}
    left = _SERIES_MAX
    for metric in catalog.CATALOG:
        latest = snapshot.latest(metric)
        mine = {
            entity.partition("/")[2]: float(latest.values[row])
            for row, entity in enumerate(latest.entities)
            if entity.startswith(f"{node}/") and np.isfinite(latest.values[row])
        }
        if mine and left > 0:
            left -= len(mine)
            found[metric] = mine
    return found
