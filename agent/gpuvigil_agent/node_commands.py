"""Commands that change or look at this node: hold, supervised jobs, and orders to the privileged helper.

boot             incident or action, unit   boot id, holds, pause; with action or unit what the helper sees
hold, unhold     incident, action, generation, reason   the node takes no new supervised jobs
supervise_start  job, action, generation, attempt      start a job that the config names
supervise_stop   job, generation                       end it
supervise_look   job                                   how it stands here
helper           order, signature                      passed on to the helper as it is
verdict          text, signature, generation           put where Slurm's scripts look; no text takes it away
validate         name                                  begin to prove that this node is fit for work
validation       name                                  how that stands: `state detail`

While the node is paused only boot, supervise_look and validation are answered. One effect at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil_agent import helper_link, verdict_file
from gpuvigil_agent.config import AgentConfig
from gpuvigil_agent.hold import OURS, Hold, Holds, StaleError
from gpuvigil_agent.hook_peer import Refused
from gpuvigil_agent.identity import kernel_boot_id
from gpuvigil_agent.supervisor import Supervisor, UnfitError
from gpuvigil_agent.validation import Validation
from gpuvigil_agent.wire import clean
from gpuvigil_protos import pause

_REASON: Final = "bad_command"
_NUMBER_MAX: Final = (1 << 63) - 1
_NAME_MAX: Final = 256
_SHOWN_MAX: Final = 60
_Arguments = Mapping[str, str]


class NodeCommands:
    """Called from worker threads. let_go: the agent's driver process lets go of the GPUs or takes them."""

    def __init__(self, config: AgentConfig, let_go: Callable[[bool], bool]) -> None:
        state = Path(config.state_directory)
        self._helper, self._let_go = config.helper, let_go
        self._verdicts = config.verdict.directory
        self._holds = Holds(state / "hold.json")
        self._supervisor = Supervisor(config.supervisor, state / "supervised", config.hook.socket)
        self._validation = Validation(config, state)
        self._one = threading.Lock()
        self._looks: dict[str, Callable[[_Arguments], str]] = {
            "boot": self._boot,
            "supervise_look": self._look,
            "validation": lambda arguments: self._validation.state(_name(arguments, "name")),
        }
        self._effects: dict[str, Callable[[_Arguments, int], str]] = {
            "hold": self._hold, "unhold": self._unhold, "supervise_start": self._start,
            "supervise_stop": self._stop, "helper": self._order, "validate": self._validate,
            "verdict": self._verdict,
        }  # fmt: skip
        self.verbs = frozenset({*self._looks, *self._effects})

    def do(self, verb: str, arguments: _Arguments, deadline_ns: int) -> str:
        """Do it and return the outcome. Raises Refused: it is not done."""
        try:
            if verb in self._looks:
                return self._looks[verb](arguments)
            if not self._one.acquire(timeout=1):
                raise Refused(_REASON, "this node is busy with another command")
            try:
                if deadline_ns <= time.time_ns():
                    raise Refused(_REASON, "deadline_ns: it has passed")
                if why := pause.paused(self._helper.pause_files):
                    raise Refused(_REASON, f"paused: {why}")
                return self._effects[verb](arguments, deadline_ns)
            finally:
                self._one.release()
        except (UnfitError, StaleError) as error:
            raise Refused(_REASON, str(error)) from None
        except OSError as error:
            raise Refused(_REASON, f"this node's disk or system: {error.strerror or error}") from None

    def notes(self) -> list[str]:
        """Return what keeps this node from new work or from every effect, for the status line."""
        found = [f"held for {hold.incident} ({hold.by})" for hold in self._holds.all()[:1]]
        if why := pause.paused(self._helper.pause_files):
            found.append(f"paused: {why}")
        return [clean(note, 120) for note in found]

    def _boot(self, arguments: _Arguments) -> str:
        action, unit = arguments.get("action", ""), arguments.get("unit", "")
        found: dict[str, object] = {"boot_id": kernel_boot_id()}
        found |= {"helper": self._seen(action, unit)} if action or unit else self._marks(arguments)
        return msgspec.json.encode(found).decode()

    def _seen(self, action: str, unit: str) -> object:
        """What the helper's ledger says of an action, or why it cannot be asked."""
        try:
            return helper_link.look(self._helper.socket, action, unit)
        except (Refused, helper_link.LostError) as error:
            return str(error)[:200]

    def _marks(self, arguments: _Arguments) -> dict[str, object]:
        holds = self._holds.all()
        shown = [
            {"incident": hold.incident[:_SHOWN_MAX], "by": hold.by[:20], "reason": hold.reason[:_SHOWN_MAX]}
            for hold in holds[:3]
        ]
        return {
            "held": shown, "paused": pause.paused(self._helper.pause_files)[:160],
            "ours": any(hold.incident == arguments.get("incident") and hold.by == OURS for hold in holds),
        }  # fmt: skip

    def _hold(self, arguments: _Arguments, _deadline_ns: int) -> str:
        incident, generation = _name(arguments, "incident"), _number(arguments, "generation")
        self._holds.check_generation(generation)
        foreign = next((hold for hold in self._holds.all() if hold.by != OURS), None)
        if foreign is not None:
            raise Refused(_REASON, f"held by {foreign.by}: {foreign.reason}")
        reason = clean(arguments.get("reason", ""), 200)
        self._holds.put(
            Hold(incident=incident, action=_name(arguments, "action"), generation=generation, reason=reason)
        )
        return f"held for {incident}"

    def _unhold(self, arguments: _Arguments, _deadline_ns: int) -> str:
        incident = _name(arguments, "incident")
        self._holds.check_generation(_number(arguments, "generation"))
        self._holds.take_back(incident)
        left = [f"{hold.incident} ({hold.by})" for hold in self._holds.all()]
        return f"not held for {incident}" + (f"; held still for {', '.join(left)}" if left else "")

    def _look(self, arguments: _Arguments) -> str:
        return msgspec.json.encode(self._supervisor.look(_name(arguments, "job"))).decode()

    def _start(self, arguments: _Arguments, _deadline_ns: int) -> str:
        job, action = _name(arguments, "job"), _name(arguments, "action")
        generation, attempt = _number(arguments, "generation"), _number(arguments, "attempt")
        self._holds.check_generation(generation)
        if holds := self._holds.all():
            raise Refused(_REASON, f"the node is held for {holds[0].incident} ({holds[0].by})")
        return self._supervisor.start(job, action, generation, attempt)

    def _stop(self, arguments: _Arguments, _deadline_ns: int) -> str:
        self._holds.check_generation(_number(arguments, "generation"))
        return self._supervisor.stop(_name(arguments, "job"))

    def _validate(self, arguments: _Arguments, _deadline_ns: int) -> str:
        try:
            return self._validation.begin(_name(arguments, "name"))
        except BlockingIOError as error:
            raise Refused(_REASON, str(error)) from None

    def _verdict(self, arguments: _Arguments, _deadline_ns: int) -> str:
        """The bytes are the collector's; the scripts that read them check who signed."""
        self._holds.check_generation(_number(arguments, "generation"))
        text = arguments.get("text", "")
        if not text:
            if self._verdicts:
                verdict_file.clear(Path(self._verdicts))
            return "none"
        if not self._verdicts:
            raise Refused(_REASON, "no verdict is kept here: [verdict] directory is empty")
        try:
            signature = bytes.fromhex(arguments.get("signature", ""))
            verdict_file.put(Path(self._verdicts), text.encode(), signature)
        except ValueError as error:
            raise Refused(_REASON, clean(str(error), 200)) from None
        return "put"

    def _order(self, arguments: _Arguments, deadline_ns: int) -> str:
        """Pass an order on. The answer is the helper's own, done or not: the collector reads it."""
        seconds = max(1.0, (deadline_ns - time.time_ns()) / 1e9)
        text, signature = arguments.get("order", ""), arguments.get("signature", "")
        try:
            said = helper_link.order(self._helper.socket, text, signature, seconds, self._let_go)
        except helper_link.LostError as error:
            said = {"accepted": False, "state": "unknown", "outcome": str(error)[:200]}
        return msgspec.json.encode(said).decode()


def _name(arguments: _Arguments, key: str) -> str:
    text = arguments.get(key, "")
    if not (0 < len(text) <= _NAME_MAX and text.isascii() and text.isprintable() and " " not in text):
        raise Refused(
            _REASON, f"{key}: expected at most {_NAME_MAX} printable characters, got {clean(text, 30)!r}"
        )
    return text


def _number(arguments: _Arguments, key: str) -> int:
    text = arguments.get(key, "")
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and 0 <= int(text) <= _NUMBER_MAX):
        raise Refused(_REASON, f"{key}: expected a whole number, got {clean(text, 30)!r}")
    return int(text)
