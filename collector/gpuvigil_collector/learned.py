"""What the statistical stage has learned, on disk: saved now and then, taken back after a restart.

Arrays and JSON with a hash (gpuvigil_detectors.models), never pickle. A file that does not fit is put aside
in words only: learning starts afresh, which costs time and nothing else.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from gpuvigil_detectors.base import FactDetector
from gpuvigil_detectors.models import ModelError
from gpuvigil_protos import log


class StatisticalDetector(FactDetector, Protocol):
    """The statistical stage: it judges, says what it has learned, and is told what not to learn from."""

    def status(self) -> dict[str, Any]:
        """`learning_until_ns`, None once it may notify."""
        ...

    def mask(self, entities: set[str]) -> None:
        """Do not learn from these entities until the next call."""
        ...

    def dump(self) -> bytes:
        """Everything learned."""
        ...

    def load(self, data: bytes) -> None:
        """Take back what `dump` gave. Raises ModelError."""
        ...


class Learned:
    """The statistical stage and its file."""

    def __init__(self, detector: StatisticalDetector, path: Path, interval_s: float) -> None:
        self.detector, self._path, self._interval_s = detector, path, interval_s
        self._saved = time.monotonic()
        self.failures = 0

    def load(self) -> None:
        """Take back what an earlier run learned, where there is something that fits."""
        try:
            self.detector.load(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ModelError) as error:
            log.get("learned").warning("learned_state_refused", path=str(self._path), error=str(error))

    def save_when_due(self) -> None:
        """Save once an interval; cheap otherwise."""
        if time.monotonic() - self._saved >= self._interval_s:
            self.save()

    def save(self) -> None:
        """Write a new file and put it in the old one's place. A disk that fails is counted and said."""
        self._saved = time.monotonic()
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(self.detector.dump())
            fresh.replace(self._path)
        except OSError as error:
            self.failures += 1
            log.get("learned").warning("learned_state_not_saved", path=str(self._path), error=str(error))
