"""Named instants at which a test may stop a worker; the product passes a hook that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

AFTER_RECEIVE: Final = "after_receive"
BEFORE_SEGMENT_FSYNC: Final = "before_segment_fsync"
AFTER_RENAME_BEFORE_LEDGER: Final = "after_rename_before_ledger"
AFTER_LEDGER_BEFORE_ACK: Final = "after_ledger_before_ack"
POINTS: Final = (AFTER_RECEIVE, BEFORE_SEGMENT_FSYNC, AFTER_RENAME_BEFORE_LEDGER, AFTER_LEDGER_BEFORE_ACK)
BEFORE_MERGED_FSYNC: Final = "before_merged_fsync"
AFTER_MERGED_RENAME: Final = "after_merged_rename"
BETWEEN_PARTS_DELETED: Final = "between_parts_deleted"
MERGE_POINTS: Final = (BEFORE_MERGED_FSYNC, AFTER_MERGED_RENAME, BETWEEN_PARTS_DELETED)

Hook = Callable[[str], None]


def no_hook(_point: str) -> None:
    """Do nothing."""
