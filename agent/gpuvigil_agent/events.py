"""Events of this node: counted, numbered, spooled, and sent at once."""

from __future__ import annotations

from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.ledger import EVENTS
from gpuvigil_agent.spool import Spool
from gpuvigil_agent.spool_store import Row
from gpuvigil_agent.stream import Stream
from gpuvigil_agent.wire import event_message
from gpuvigil_protos.entity import gpu_uuid_of

_SAME_XID_NS = 2_000_000_000
_KINDS_MAX = 512


class Events:
    """Where every source's events come together. `xids`: (uuid, code) -> how often, `uuid` "" for the node.

    An Xid that driver and kernel log both tell within 2 s is counted once here; both travel, the
    collector joins them by origin.
    """

    def __init__(self, spool: Spool, stream: Stream) -> None:
        self._spool, self._stream = spool, stream
        self.made: dict[tuple[str, str], int] = {}
        self.xids: dict[tuple[str, int], int] = {}
        self.last_xid_ns: dict[str, int] = {}
        self._told_by: dict[tuple[str, int], tuple[str, int]] = {}

    def add(self, event: AgentEvent) -> None:
        """Take one event."""
        key = (event.kind, event.origin)
        self.made[key] = self.made.get(key, 0) + 1
        if event.kind == "xid":
            self._count_xid(event)
        boot_id, sequence = self._spool.memory.allocate(EVENTS)
        message = event_message(event, sequence)
        row = Row(boot_id, EVENTS, sequence, 0, 0, message.SerializeToString())
        self._spool.memory.put(row)
        self._stream.offer(row)

    def _count_xid(self, event: AgentEvent) -> None:
        uuid = gpu_uuid_of(event.entity) or ""
        key = (uuid, event.code)
        origin, time_ns = self._told_by.get(key, (event.origin, 0))
        if origin != event.origin and abs(event.time_ns - time_ns) <= _SAME_XID_NS:
            return
        if key not in self.xids and len(self.xids) >= _KINDS_MAX:
            return
        self._told_by[key] = (event.origin, event.time_ns)
        self.xids[key] = self.xids.get(key, 0) + int(event.fields.get("count", "1"))
        self.last_xid_ns[uuid] = max(event.time_ns, self.last_xid_ns.get(uuid, 0))
