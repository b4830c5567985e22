"""Named instants at which a test may stop a worker; the product passes a hook that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

AFTER_RECEIVE: Final = "after_receive"
BEFORE_SEGMENT_FSYNC: Final = "before_segment_fsync"
AFTER_RENAME_BEFORE_LEDGER: Final = "after_rename_before_ledger"
AFTER_LEDGER_BEFORE_ACK: Final = "after_ledger_before_ack"
POINTS: Final = (AFTER_RECEIVE, BEFORE_SEGMENT_FSYNC, AFTER_RENAME_BEFORE_LEDGER, AFTER_LEDGER_BEFORE_ACK)

Hook = Callable[[str], None]


def no_hook(_point: str) -> None:
    """Do nothing."""
