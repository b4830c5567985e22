"""What the workers last said of the delivery ledger, for readers: the newest boots of each node."""

from __future__ import annotations

from gpuvigil_collector.ingest import frames
from gpuvigil_collector.store_events import BOOTS_PER_NODE


class LedgerRows:
    """One row a node, boot and class. Not thread-safe: the store holds its lock around each call."""

    def __init__(self) -> None:
        self._nodes: dict[str, dict[str, dict[str, frames.LedgerRow]]] = {}

    def put(self, row: frames.LedgerRow) -> None:
        """Take one row; of a node's boots the ones that were heard of last are kept."""
        boots = self._nodes.setdefault(row.node, {})
        rows = boots.pop(row.boot_id, {})
        rows[row.delivery_class] = row
        boots[row.boot_id] = rows
        if len(boots) > BOOTS_PER_NODE:
            del boots[next(iter(boots))]

    def rows(self) -> list[frames.LedgerRow]:
        """Return all rows, sorted by node, boot and class."""
        found = [row for boots in self._nodes.values() for rows in boots.values() for row in rows.values()]
        return sorted(found, key=lambda row: (row.node, row.boot_id, row.delivery_class))

    def forget(self, node: str) -> None:
        """Forget a node."""
        self._nodes.pop(node, None)
