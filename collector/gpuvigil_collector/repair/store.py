"""What the desk keeps: cases and marks, as records of the action store; unreadable is None, never empty."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, TypeVar

import msgspec

from gpuvigil_collector.action import Action, Past
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.marks import Marks
from gpuvigil_protos import log

_MARKS: Final = "marks"
_CASE: Final = "case:"
_log = log.get("repair")
T = TypeVar("T")


class Records(Protocol):
    """The action store (action_store.py), as far as the desk needs it. fault: "" while it works."""

    fault: str

    def put(self, key: str, body: bytes) -> None:
        """Keep one record, on disk when this returns; a failure is in `fault`."""
        ...

    def get(self, key: str) -> bytes | None:
        """Return one record, None when there is none."""
        ...

    def drop(self, key: str) -> None:
        """Forget one record."""
        ...

    def all(self) -> Iterable[tuple[str, bytes]]:
        """Return every record with its key."""
        ...

    def past(self, now_ns: int) -> tuple[Past, ...] | None:
        """Return the actions of 28 days that had, or may have had, an effect; None when unreadable."""
        ...

    def actions(self) -> Iterable[Action]:
        """Return the newest state of the newest actions, oldest first."""
        ...

    def record(self, action: Action) -> None:
        """Keep an action as it is now, on disk when this returns."""
        ...


class Kept:
    """Cases by id and the marks, read once, written when they change."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.cases: dict[str, Case] = {}
        self.marks: Marks | None = None
        self._written: dict[str, bytes] = {}

    def load(self) -> None:
        """Read everything; marks that cannot be read stay None, and so nothing is authorised."""
        if self.records.fault:
            return
        body = self.records.get(_MARKS)
        self.marks = Marks() if body is None else self._decoded(_MARKS, body, Marks)
        for key, row in self.records.all():
            if key.startswith(_CASE):
                case = self._decoded(key, row, Case)
                if case is None:
                    self.marks = None  # a case that is lost may hold a node: a person must look
                else:
                    self.cases[case.id] = case

    def _decoded(self, key: str, body: bytes, kind: type[T]) -> T | None:
        self._written[key] = body
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            _log.error("record_unreadable", record=key, error=str(error)[:200])
            return None

    def save(self) -> None:
        """Write what has changed."""
        if self.marks is not None:
            self._put(_MARKS, msgspec.json.encode(self.marks))
        for case in self.cases.values():
            self._put(_CASE + case.id, msgspec.json.encode(case))

    def _put(self, key: str, body: bytes) -> None:
        if self._written.get(key) != body:
            self.records.put(key, body)
            if not self.records.fault:
                self._written[key] = body

    def drop(self, case: str) -> None:
        """Forget a case that has ended."""
        if self.cases.pop(case, None) is not None:
            self._written.pop(_CASE + case, None)
            self.records.drop(_CASE + case)
