"""The agent's nouns as messages of the wire."""

from __future__ import annotations

import time
from typing import Final

from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.ledger import METRICS
from gpuvigil_agent.spool_store import Gap, Row
from gpuvigil_protos.entity import NODE, is_valid_entity
from gpuvigil_protos.v1 import stream_pb2 as pb

TEXT_MAX: Final = 1024
_FIELDS_MAX: Final = 20
FIELD_MAX: Final = 512


def clean(text: str, limit: int = TEXT_MAX) -> str:
    """Cut text from outside and escape what is not printable."""
    cut = text[:limit]
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode("ascii")[:limit]


def event_message(event: AgentEvent, sequence: int) -> pb.Event:
    """Turn an event into its message; a name that is no entity becomes the node's."""
    return pb.Event(
        sequence=sequence,
        time_ns=event.time_ns,
        kind=pb.EventKind.Value(f"EVENT_KIND_{event.kind.upper()}"),
        origin=pb.Origin.Value(f"ORIGIN_{event.origin.upper()}"),
        entity=event.entity if is_valid_entity(event.entity) else NODE,
        code=max(0, min(event.code, 0xFFFFFFFF)),
        text=clean(event.text),
        fields={
            clean(key, 40): clean(value, FIELD_MAX) for key, value in list(event.fields.items())[:_FIELDS_MAX]
        },
        synthetic=event.synthetic,
    )


def gap_message(gap: Gap) -> pb.Gap:
    """Turn a gap into its message."""
    message = pb.Gap(first=gap.first, last=gap.last, reason=gap.reason, samples=gap.samples)
    setattr(message, "class", gap.number)
    return message


def request(row: Row, gaps: list[Gap]) -> pb.StreamRequest:
    """Turn a spooled row into the message to send now, with the gaps it carries."""
    found = pb.StreamRequest()
    body: pb.Batch | pb.Event = found.batch if row.number == METRICS else found.event
    body.ParseFromString(row.payload)
    body.gaps.extend(gap_message(gap) for gap in gaps)
    body.sent_ns = time.time_ns()
    return found


def carrier(boot_id: str, sequence: int) -> Row:
    """Make an empty batch of a generation that is over, so that gaps can be told without a row."""
    batch = pb.Batch(sequence=sequence)
    setattr(batch, "class", METRICS)
    return Row(boot_id, METRICS, sequence, 0, 0, batch.SerializeToString())
