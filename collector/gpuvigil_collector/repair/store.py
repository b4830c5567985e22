"""What the desk keeps: cases and marks, as records of the action store; unreadable is None, never empty."""

from __future__ import annotations

from typing import Final, Protocol, TypeVar

import msgspec

from gpuvigil_collector.action import Action, Past
from gpuvigil_collector.repair.case import Case
from gpuvigil_collector.repair.marks import Marks
from gpuvigil_protos import log

_MARKS: Final = "marks"
_log = log.get("repair")
T = TypeVar("T")


class Records(Protocol):
    """The action store (action_store.py), as far as the desk needs it. fault: "" while it works."""

    fault: str

    def put_case(self, case_id: str, body: str) -> bool:
        """Keep one record; True once it is on disk."""
        ...

    def forget_case(self, case_id: str) -> bool:
        """Forget one record."""
        ...

    def cases(self) -> dict[str, str] | None:
        """Return every record; None when they cannot be read."""
        ...

    def no_longer_held(self, action_id: str) -> bool:
        """Count a hold as gone; True once it is on disk."""
        ...

    def write(self, action: Action) -> bool:
        """Keep an action as it is now; True once it is on disk."""
        ...

    def get(self, action_id: str) -> Action | None:
        """Return one action."""
        ...

    def past(self, now_ns: int) -> tuple[Past, ...] | None:
        """Return the actions of 28 days that had, or may have had, an effect; None when unreadable."""
        ...


class Kept:
    """Cases by id and the marks, read once, written when they change."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.cases: dict[str, Case] = {}
        self.marks: Marks | None = None
        self._written: dict[str, str] = {}

    def load(self) -> None:
        """Read everything; marks that cannot be read stay None, and so nothing is authorised."""
        rows = self.records.cases()
        if rows is None:
            return
        body = rows.pop(_MARKS, None)
        self.marks = Marks() if body is None else self._decoded(_MARKS, body, Marks)
        for key, row in rows.items():
            case = self._decoded(key, row, Case)
            if case is None:
                self.marks = None  # a case that is lost may hold a node: a person must look
            else:
                self.cases[case.id] = case

    def _decoded(self, key: str, body: str, kind: type[T]) -> T | None:
        self._written[key] = body
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            _log.error("record_unreadable", record=key, error=str(error)[:200])
            return None

    def save(self) -> None:
        """Write what has changed."""
        if self.marks is not None:
            self._put(_MARKS, msgspec.json.encode(self.marks).decode())
        for case in self.cases.values():
            self._put(case.id, msgspec.json.encode(case).decode())

    def drop(self, case: str) -> None:
        """Forget a case that has ended."""
        if self.cases.pop(case, None) is not None:
            self._written.pop(case, None)
            self.records.forget_case(case)

    def _put(self, key: str, body: str) -> None:
        if self._written.get(key) != body and self.records.put_case(key, body):
            self._written[key] = body
