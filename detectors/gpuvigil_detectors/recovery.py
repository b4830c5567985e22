"""The driver's own word on what a GPU needs: NVML's recovery action and Xid 154."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gpuvigil_detectors.base import SEVERITIES, Evidence, FactEvent, Finding, Snapshot
from gpuvigil_detectors.catalogue import RecoveryAction, RecoveryTable

_SECOND: Final = 1_000_000_000
_METRIC: Final = "gpu_recovery_action"
_AGE_MAX_S: Final = 60.0
_HOLD_S: Final = 10800.0  # a word from the log alone, with no reading after it, lapses after 3 h
_SETTLE_S: Final = 90.0  # a cause that is read once a minute must have had its time to name the class
_FRESH_MAX: Final = 500  # words said anew in one tick; in a storm they take turns
RECOVERY_XID: Final = 154


_Key = tuple[str, bool]
"""(entity, whether it is a drill): the two never meet."""


@dataclass(slots=True)
class _Word:
    """What the driver said last of one GPU, since when, and the class that went with it."""

    code: int
    since_ns: int
    heard_ns: int
    origin: str
    fault_class: str = ""
    said: Finding | None = None


class Recovery:
    """The standing recovery action of every GPU that has one."""

    def __init__(self, table: RecoveryTable) -> None:
        self._actions = {row.code: row for row in table.action}
        self._words: dict[_Key, _Word] = {}
        self._told: dict[tuple[str, str, bool], tuple[Finding, int, Finding]] = {}

    def take(self, event: FactEvent, now_ns: int) -> None:
        """Note a recovery_action event or an Xid 154; a line without a readable code is for a person.

        NVML's Xid event carries the number 154 alone: the kernel line or the next reading says what it asks.
        """
        if event.kind == "xid" and event.origin == "driver" and "to_code" not in event.fields:
            return
        code = event.code if event.kind == "recovery_action" else _hex(event.fields.get("to_code", ""))
        entity = f"{event.node}/{event.entity}"
        self._hear((entity, event.synthetic), code, min(event.time_ns, now_ns), event.origin)

    def read(self, snapshot: Snapshot) -> None:
        """Note the polled value of every GPU whose reading is newer than the last word."""
        latest = snapshot.latest(_METRIC)
        values = np.nan_to_num(latest.values, nan=-1.0, posinf=-1.0, neginf=-1.0)
        fresh = (values >= 0) & (latest.age_s <= _AGE_MAX_S)
        for row in np.flatnonzero(fresh & (values > 0)):
            time_ns = snapshot.now_ns - int(max(0.0, float(latest.age_s[row])) * _SECOND)
            self._hear((latest.entities[row], False), int(values[row]), time_ns, "driver")
        if self._words:
            self._let_go(latest.entities, fresh & (values == 0), latest.age_s, snapshot.now_ns)

    def clear(self, entity: str, *, drill: bool = False) -> None:
        """The GPU came back after a reset; in a drill, that ends the drill's word alone."""
        self._words.pop((entity, True), None)
        if not drill:
            self._words.pop((entity, False), None)

    def apply(self, findings: list[Finding], now_ns: int) -> list[Finding]:
        """Put the driver's action into Xid findings of its GPU, and add its own finding of the same class."""
        out = self._outrank(findings)
        worst = self._worst(findings)
        turns = max(1, -(-len(self._words) // _FRESH_MAX))
        for place, (key, word) in enumerate(self._words.items()):
            action = self._actions.get(word.code)
            if action is not None and action.severity == "info":
                continue
            if not word.fault_class and key in worst:
                word.fault_class, word.said = worst[key].fault_class, None
            if word.said is None or (now_ns // _SECOND + place) % turns == 0:
                word.said = self._finding(key, word, action, now_ns)
            out.append(word.said)
        return out

    def _worst(self, findings: list[Finding]) -> dict[_Key, Finding]:
        """The gravest finding that notifies of every GPU with a word; the first among equals."""
        worst: dict[_Key, Finding] = {}
        for finding in findings:
            key = (finding.entity, finding.synthetic)
            if not finding.notify or key not in self._words:
                continue
            before = worst.get(key)
            if before is None or _gravity(finding) > _gravity(before):
                worst[key] = finding
        return worst

    def _outrank(self, findings: list[Finding]) -> list[Finding]:
        """The driver's word in place of the catalogue's; what was said of the same finding is said again."""
        out, told = [], {}
        for finding in findings:
            word = self._words.get((finding.entity, finding.synthetic))
            if word is None or not finding.rule.startswith("xid_") or not finding.notify:
                out.append(finding)
                continue
            key = (finding.rule, finding.entity, finding.synthetic)
            known = self._told.get(key)
            if known is None or known[0] is not finding or known[1] != word.code:
                known = (finding, word.code, self._outranked(finding, word))
            told[key] = known
            out.append(known[2])
        self._told = told
        return out

    def _outranked(self, finding: Finding, word: _Word) -> Finding:
        action = self._actions.get(word.code)
        name = action.name if action else f"code {word.code}: for a person"
        facts = (*((k, v) for k, v in finding.evidence.facts if k != "action"), ("action", f"driver: {name}"))
        severity = finding.severity
        if action is not None and SEVERITIES.index(action.severity) > SEVERITIES.index(severity):
            severity = action.severity
        sentence = f"{finding.sentence.rpartition('; ')[0]}; the driver asks for: {name}"
        return replace(
            finding, evidence=replace(finding.evidence, facts=facts), severity=severity, sentence=sentence
        )

    def _finding(self, key: _Key, word: _Word, action: RecoveryAction | None, now_ns: int) -> Finding:
        name = action.name if action else f"action {word.code}, which is not known: ask a person"
        return Finding(
            detector="rules",
            rule="recovery_action",
            entity=key[0],
            fault_class=word.fault_class or "gpu_error",
            severity=action.severity if action else "warning",
            start_ns=word.since_ns,
            end_ns=now_ns,
            sentence=f"the driver says this GPU needs: {name}",
            metric=_METRIC,
            origin=word.origin,
            notify=bool(word.fault_class) or now_ns - word.since_ns >= _SETTLE_S * _SECOND,
            synthetic=key[1],
            evidence=Evidence(
                observed=float(word.code),
                expected=0.0,
                unit="code",
                since_ns=word.since_ns,
                facts=(("action", name),),
            ),
        )

    def _hear(self, key: _Key, code: int, time_ns: int, origin: str) -> None:
        word = self._words.get(key)
        if word is None:
            if code != 0:
                self._words[key] = _Word(code, time_ns, time_ns, origin)
        elif time_ns >= word.heard_ns:
            if code != word.code:
                word.code, word.said = code, None
            word.heard_ns = time_ns

    def _let_go(
        self, entities: tuple[str, ...], none_now: np.ndarray, age_s: np.ndarray, now_ns: int
    ) -> None:
        spoken_of = {entity for entity, _ in self._words}
        said_none = {entities[row]: now_ns - int(age_s[row] * _SECOND) for row in np.flatnonzero(none_now)
                     if entities[row] in spoken_of}  # fmt: skip
        for key, word in list(self._words.items()):
            lapsed = now_ns - word.heard_ns > _HOLD_S * _SECOND
            if lapsed or said_none.get(key[0], 0) > word.heard_ns:
                del self._words[key]


def _gravity(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


def _hex(text: str) -> int:
    """The code of "0x2"; 255, which no table knows, when it cannot be read."""
    try:
        return int(text, 16) & 0xFF
    except ValueError:
        return 255
