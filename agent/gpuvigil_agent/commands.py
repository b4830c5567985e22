"""Commands of the collector: what this agent can be asked to do. An unknown verb is answered, never ignored.

save      job, number   ask the job's ranks on this node for a checkpoint, those whose owner has opted in
restart   job           ask the job's launcher on this node (`gpuvigil run`) to begin it anew
evidence  job, number   gather stacks and torch's records from the job's ranks on this node
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from gpuvigil_agent.hook_intake import HookIntake
from gpuvigil_agent.hook_peer import Refused
from gpuvigil_agent.wire import clean
from gpuvigil_protos import log
from gpuvigil_protos.entity import is_valid_job
from gpuvigil_protos.v1 import stream_pb2 as pb

_NUMBER_MAX: Final = 1 << 62
_REASON: Final = "bad_command"
_log = log.get("commands")


def answer(command: pb.Command, hook: HookIntake) -> pb.CommandResult:
    """Carry a command out, or say why not."""
    verb = clean(command.verb, 40)
    try:
        if verb not in _VERBS:
            raise Refused(_REASON, f"unknown verb {verb!r}")
        _check(command)
        outcome = _VERBS[verb](command, hook)
    except Refused as refused:
        _log.warning("command_refused", verb=verb, reason=str(refused))
        return pb.CommandResult(id=command.id[:100], accepted=False, outcome=str(refused))
    _log.info("command_done", verb=verb, outcome=outcome)
    return pb.CommandResult(id=command.id[:100], accepted=True, outcome=outcome)


def _check(command: pb.Command) -> None:
    """Check what every command has. Raises Refused."""
    if not is_valid_job(command.arguments.get("job", "")):
        raise Refused(_REASON, "job: expected letters, digits and ._:+-")
    if not (command.id.isascii() and command.id.isalnum() and len(command.id) <= 32):
        raise Refused(_REASON, "id: expected at most 32 letters and digits")
    if command.deadline_ns <= time.time_ns():
        raise Refused(_REASON, "deadline_ns: it has passed")


def _restart(command: pb.Command, hook: HookIntake) -> str:
    return hook.restart(command.arguments["job"], command.id)


def _evidence(command: pb.Command, hook: HookIntake) -> str:
    return hook.gather(command.arguments["job"], _number(command))


def _number(command: pb.Command) -> int:
    """Return the request's number. Raises Refused."""
    number = command.arguments.get("number", "")
    if not (number.isascii() and number.isdecimal() and 0 < int(number[:20]) < _NUMBER_MAX):
        raise Refused(_REASON, f"number: expected a whole number above 0, got {clean(number, 30)!r}")
    return int(number)


def _save(command: pb.Command, hook: HookIntake) -> str:
    job = command.arguments["job"]
    asked, ranks = hook.ask_to_save(job, _number(command), command.id, command.deadline_ns)
    if not ranks:
        raise Refused(_REASON, f"no rank of job {job} runs here")
    if not asked:
        raise Refused(_REASON, f"none of {ranks} ranks of job {job} saves on request")
    return f"armed {asked} of {ranks} ranks"


_VERBS: Final[dict[str, Callable[[pb.Command, HookIntake], str]]] = {
    "save": _save, "restart": _restart, "evidence": _evidence,
}  # fmt: skip
