"""One stream of one node: what is known of its sender, and what waits to be told to it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from gpuvigil_collector.ingest.clock import AgentClock
from gpuvigil_collector.ingest.dictionary import Dictionary
from gpuvigil_collector.ingest.ledger import Delivery, Key
from gpuvigil_collector.ingest.refusal import RefusedError, StreamRejectedError
from gpuvigil_protos.v1 import stream_pb2 as pb

OWED_MAX_S: Final = 1.0
COMMANDS_MAX: Final = 64
ROLES: Final = {pb.ROLE_LIVE: "live", pb.ROLE_BACKLOG: "backlog"}
CLASS_NUMBERS: Final = {"metrics": pb.CLASS_METRICS, "events": pb.CLASS_EVENTS}


@dataclass(slots=True, kw_only=True)
class Session:
    """A stream that was let in. peer is the sender's host; dictionary is RefusedError when it was refused."""

    node: str
    boot_id: str
    role: str
    peer: str
    metrics: Delivery
    events: Delivery
    clock: AgentClock = field(default_factory=AgentClock)
    dictionary: Dictionary | RefusedError | None = None
    dictionary_changes: int = 0
    echo_ns: int = 0
    heard: float = field(default_factory=time.monotonic)
    answered: float = 0.0
    owed: bool = False
    ending: StreamRejectedError | None = None
    task: asyncio.Task[object] | None = None
    due: asyncio.Event = field(default_factory=asyncio.Event)
    _refusals: deque[pb.Refusal] = field(default_factory=deque)
    _commands: deque[pb.Command] = field(default_factory=lambda: deque(maxlen=COMMANDS_MAX))

    @property
    def live(self) -> bool:
        """Tell whether this stream carries data of now."""
        return self.role == "live"

    def key(self, delivery_class: str) -> Key:
        """Return the ledger's key of one class."""
        return self.node, self.boot_id, delivery_class

    def delivery(self, delivery_class: str) -> Delivery:
        """Return the ledger's state of one class."""
        return self.metrics if delivery_class == "metrics" else self.events

    def refuse(self, delivery_class: str, sequence: int, refused: RefusedError) -> None:
        """Queue a Refusal; called once the ledger holds it. The queue is bounded by what one flush holds."""
        message = pb.Refusal(sequence=sequence, reason=refused.reason, detail=refused.detail)
        setattr(message, "class", CLASS_NUMBERS[delivery_class])
        self._refusals.append(message)
        self.due.set()

    def owe(self, now: float) -> None:
        """Note that `durable` moved: told with the next answer, at once where none went out for a second."""
        self.owed = True
        if now - self.answered > OWED_MAX_S:
            self.due.set()

    def end(self, rejected: StreamRejectedError) -> None:
        """End this stream from outside its own task."""
        self.ending = rejected
        if self.task is not None:
            self.task.cancel()

    def command(self, command: pb.Command) -> None:
        """Queue a command for this agent; of what waits the newest few are kept."""
        self._commands.append(command)
        self.due.set()

    def replies(self) -> list[pb.StreamResponse]:
        """Return what is to be sent now: refusals, commands, then one Ack with the newest watermarks."""
        self.due.clear()
        self.owed = False
        self.answered = time.monotonic()
        replies = [pb.StreamResponse(refusal=refusal) for refusal in self._refusals]
        self._refusals.clear()
        replies += [pb.StreamResponse(command=command) for command in self._commands]
        self._commands.clear()
        ack = pb.Ack(watermarks=self.watermarks(), echo_ns=self.echo_ns, collector_ns=time.time_ns())
        return [*replies, pb.StreamResponse(ack=ack)]

    def welcome(self, collector: str, schema_version: int) -> pb.StreamResponse:
        """Return the answer to Hello."""
        welcome = pb.Welcome(
            schema_version=schema_version,
            collector=collector,
            echo_ns=self.echo_ns,
            collector_ns=time.time_ns(),
            watermarks=self.watermarks(),
        )
        return pb.StreamResponse(welcome=welcome)

    def watermarks(self) -> list[pb.Watermark]:
        """Return both classes' watermarks."""
        marks = []
        for number, delivery in ((pb.CLASS_METRICS, self.metrics), (pb.CLASS_EVENTS, self.events)):
            mark = pb.Watermark(received=delivery.received.watermark, durable=delivery.durable.watermark)
            setattr(mark, "class", number)
            marks.append(mark)
        return marks
