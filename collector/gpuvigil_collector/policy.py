"""Policy: which fault class leads to which playbook, and which steps that has. Data, checked whole.

The default is policy.toml beside this file; a site's file is laid over it, row by row. What may do harm by
mistake is refused when it is read: a class of nobody's fault with a hold, a reset without evidence, a release
without a test, playbooks that lead to each other in a ring.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from gpuvigil_collector.action import HARMLESS, INTERRUPTS, NEEDS_HOLD, ON_JOB, Kind
from gpuvigil_detectors.base import SEVERITIES, Severity
from gpuvigil_protos import settings
from gpuvigil_protos.fault_classes import FAULT_CLASSES
from gpuvigil_protos.settings import ConfigError, Seconds

NEVER_HOLD: Final = frozenset({"xid_application", "congestion", "workload_imbalance", "monitor_fault"})
"""Classes that no machine is guilty of: their playbooks may only tell people or ask the job to save."""
ANSWERS: Final = ("hand_over", "continue")
_STEPS_MAX: Final = 20
_WITHIN_MAX_S: Final = 7 * 86400.0


class Step(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One step. within: its deadline. when: job = only while one runs on the node; idle = once none does.

    failed: hand_over, continue, or the playbook that begins instead.
    """

    do: Kind
    within: Seconds
    when: Literal["always", "job", "idle"] = "always"
    failed: str = "hand_over"


class Playbook(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Steps in order, and why these."""

    reason: str
    steps: list[Step]


class ClassRow(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What one fault class leads to, from which severity on; below it people are told."""

    playbook: str
    reason: str
    severity: Severity = "warning"


class Partition(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What is different for one partition."""

    class_: dict[str, ClassRow] = msgspec.field(name="class", default_factory=dict)


class Policy(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A whole policy, complete: every fault class has a row."""

    version: Literal[1]
    playbook: dict[str, Playbook]
    class_: dict[str, ClassRow] = msgspec.field(name="class")
    partition: dict[str, Partition] = msgspec.field(default_factory=dict)

    def row(self, fault_class: str, partition: str = "") -> ClassRow:
        """Return the row of a class on a partition. Raises KeyError for a class that does not exist."""
        special = self.partition.get(partition)
        if special is not None and fault_class in special.class_:
            return special.class_[fault_class]
        return self.class_[fault_class]

    def playbook_for(self, fault_class: str, severity: Severity, partition: str = "") -> str:
        """Name the playbook that an incident leads to: `tell` where it is not grave, or of no class."""
        if fault_class not in self.class_:  # of another version of ours
            return "tell"
        row = self.row(fault_class, partition)
        grave = SEVERITIES.index(severity) >= SEVERITIES.index(row.severity)
        return row.playbook if grave else "tell"


def load(path: Path | None = None) -> Policy:
    """Read the default with the site's file on top. Raises ConfigError."""
    raw = tomllib.loads((resources.files("gpuvigil_collector") / "policy.toml").read_text(encoding="utf-8"))
    origin = "policy.toml"
    if path is not None:
        raw, origin = _laid_over(raw, settings.read(path), str(path)), str(path)
    _check_names(raw, origin)
    policy = settings.convert(raw, Policy, origin)
    _check(policy, origin)
    return policy


def differences(before: Policy, after: Policy) -> list[tuple[str, str, str, str]]:
    """List (partition, class, steps before, steps after) of every class that would be treated otherwise."""
    found = []
    for partition in ["", *sorted({*before.partition, *after.partition})]:
        for name in FAULT_CLASSES:
            texts = [_told(policy, name, partition) for policy in (before, after)]
            everywhere = [_told(policy, name, "") for policy in (before, after)]
            if texts[0] != texts[1] and (not partition or texts != everywhere):
                found.append((partition, name, texts[0], texts[1]))
    return found


def _told(policy: Policy, fault_class: str, partition: str) -> str:
    row = policy.row(fault_class, partition)
    steps = policy.playbook[row.playbook].steps
    return f"{row.severity}: {row.playbook} ({' > '.join(step.do for step in steps)})"


def _laid_over(base: dict[str, Any], site: dict[str, Any], origin: str) -> dict[str, Any]:
    """Lay a site's tables over the default's: a playbook or a class is replaced whole."""
    merged = dict(base)
    for key, value in site.items():
        if key in {"playbook", "class", "partition"}:
            if not isinstance(value, dict):
                raise ConfigError(f"{origin}: {key}: expected a table, got {type(value).__name__}")
            merged[key] = {**base.get(key, {}), **value}
        else:
            merged[key] = value
    return merged


def _check_names(raw: Mapping[str, Any], origin: str) -> None:
    """Refuse classes that do not exist, with the nearest that does. Raises ConfigError."""
    partitions = raw.get("partition")
    tables = [("class", raw.get("class"))]
    if isinstance(partitions, dict):
        tables += [
            (f"partition.{name}.class", table.get("class"))
            for name, table in partitions.items()
            if isinstance(table, dict)
        ]
    for where, table in tables:
        for name in table if isinstance(table, dict) else ():
            if name not in FAULT_CLASSES:
                raise ConfigError(f"{origin}: {where}: unknown class {settings.unknown(name, FAULT_CLASSES)}")


def _check(policy: Policy, origin: str) -> None:
    for name, book in policy.playbook.items():
        _check_playbook(name, book, policy, f"{origin}: playbook.{name}")
    _check_ring(policy, origin)
    for name in FAULT_CLASSES:
        if name not in policy.class_:
            raise ConfigError(f"{origin}: class.{name}: expected a row, got none")
    for where, name, row in _rows(policy):
        if row.playbook not in policy.playbook:
            known = settings.unknown(row.playbook, policy.playbook)
            raise ConfigError(f"{origin}: {where}.playbook: unknown playbook {known}")
        if name in NEVER_HOLD:
            _check_never_hold(policy, row.playbook, f"{origin}: {where}.playbook")


def _rows(policy: Policy) -> Iterator[tuple[str, str, ClassRow]]:
    for name, row in policy.class_.items():
        yield f"class.{name}", name, row
    for partition, table in policy.partition.items():
        for name, row in table.class_.items():
            yield f"partition.{partition}.class.{name}", name, row


def _check_playbook(name: str, book: Playbook, policy: Policy, where: str) -> None:
    if not book.steps or len(book.steps) > _STEPS_MAX:
        raise ConfigError(f"{where}.steps: expected 1 to {_STEPS_MAX} steps, got {len(book.steps)}")
    kinds = [step.do for step in book.steps]
    if any(kind not in HARMLESS for kind in kinds) and kinds[0] != "capture_evidence":
        raise ConfigError(f"{where}.steps: expected capture_evidence as the first step, got {kinds[0]}")
    for place, step in enumerate(book.steps):
        at = f"{where}.steps[{place}]"
        before = kinds[:place]
        if not 0 < step.within <= _WITHIN_MAX_S:
            raise ConfigError(f'{at}.within: expected more than 0 and at most "7d", got {step.within:g} s')
        if step.failed not in ANSWERS and step.failed not in policy.playbook:
            raise ConfigError(
                f"{at}.failed: unknown {settings.unknown(step.failed, {*ANSWERS, *policy.playbook})}"
            )
        if step.do in NEEDS_HOLD and "hold" not in before:
            raise ConfigError(f"{at}.do: expected a hold before {step.do}, got none")
        if step.do == "release" and "validate" not in before:
            raise ConfigError(f"{at}.do: expected validate before release, got none")
        if step.do in INTERRUPTS - ON_JOB and step.when == "always":
            raise ConfigError(f'{at}.when: expected "idle" for {step.do}, got "always"')


def _check_never_hold(policy: Policy, playbook: str, where: str) -> None:
    """Follow a playbook and those that it leads to. Raises ConfigError where one takes a machine away."""
    for name in _reached(policy, playbook):
        for step in policy.playbook[name].steps:
            if step.do not in HARMLESS | {"checkpoint"}:
                raise ConfigError(
                    f"{where}: expected steps that touch no machine (it is no machine's fault), "
                    f"got {step.do} in {name}"
                )


def _reached(policy: Policy, playbook: str) -> list[str]:
    found, waiting = [], [playbook]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.append(name)
            waiting += _next(policy, name)
    return found


def _next(policy: Policy, name: str) -> list[str]:
    return [step.failed for step in policy.playbook[name].steps if step.failed not in ANSWERS]


def _check_ring(policy: Policy, origin: str) -> None:
    """Refuse playbooks that lead to themselves. Raises ConfigError that shows the ring."""
    for name in policy.playbook:
        for following in _next(policy, name):
            if name in _reached(policy, following):
                raise ConfigError(
                    f"{origin}: playbook.{name}: expected no way back to itself, got one through {following}"
                )
