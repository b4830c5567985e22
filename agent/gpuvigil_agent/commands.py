"""Commands of the collector. This agent knows none yet; an unknown verb is answered, never ignored."""

from __future__ import annotations

from gpuvigil_agent.wire import clean
from gpuvigil_protos import log
from gpuvigil_protos.v1 import stream_pb2 as pb

_log = log.get("commands")


def answer(command: pb.Command) -> pb.CommandResult:
    """Refuse a verb this agent does not have, by name."""
    verb = clean(command.verb, 40)
    _log.warning("command_refused", verb=verb)
    return pb.CommandResult(id=command.id[:100], accepted=False, outcome=f"unknown verb {verb!r}")
