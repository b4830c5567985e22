"""The catalogues of faults as data: Xids, SXids, recovery actions, metric rules, structural bounds.

The files lie in `data/`. They are part of the program, so a fault in one is a bug and stops the start
(ConfigError with file, key, what was expected and what came).
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Literal, TypeVar

import msgspec

from gpuvigil_detectors.base import Severity
from gpuvigil_detectors.variants import Variant
from gpuvigil_protos import settings

T = TypeVar("T", bound=msgspec.Struct)


class CodeRow(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One row of xid.toml or sxid.toml; its head explains the fields. sticky_s None is the file's default.

    settle_s: how long to wait for a reading that tells the class; beside_rule: the metric rule that, when it
    holds for the same GPU, makes this report one of beside_class.
    """

    meaning: str
    area: str
    fault_class: str = msgspec.field(name="class")
    severity: Severity
    action: str
    investigate: str
    codes: list[int] = []
    others: str = ""
    exempt: list[str] = []
    fatal: bool = False
    notify: bool = True
    sticky_s: float | None = None
    pattern: Literal["", "same_unit", "same_gpu"] = ""
    cancels: list[int] = []
    by_word: bool = False
    settle_s: float = 0.0
    beside_rule: str = ""
    beside_class: str = ""
    variant: list[Variant] = []

    def varied(self, variant: Variant) -> CodeRow:
        """Return the row as it is where the line reads so."""
        return msgspec.structs.replace(
            self, severity=variant.severity, action=variant.action, notify=variant.notify, by_word=False,
            fault_class=variant.fault_class or self.fault_class, sticky_s=variant.sticky_s,
            settle_s=self.settle_s if variant.settle_s is None else variant.settle_s,
        )  # fmt: skip


class CodeDefaults(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """How long a report stays true, what one burst is, and how many bursts make a repeat."""

    sticky_s: float
    burst_s: float
    same_signal_s: float
    repeat_bursts: int
    repeat_window_s: float


class CodeTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A file of numbered reports: defaults, the row for numbers that are not listed, the rows."""

    default: CodeDefaults
    unknown: CodeRow
    xid: list[CodeRow]

    def by_code(self) -> dict[int, CodeRow]:
        """Map every number to its row. Raises ValueError when a number is in two rows."""
        rows: dict[int, CodeRow] = {}
        for row in self.xid:
            for code in row.codes:
                if code in rows:
                    raise ValueError(f"code {code} is in two rows")
                rows[code] = row
        return rows


class RecoveryAction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One value of the driver's recovery action."""

    code: int
    name: str
    severity: Severity


class RecoveryTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """recovery.toml."""

    action: list[RecoveryAction]


class Condition(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One test of one metric; `conditions.py` says what each test means. Windows and ages are seconds."""

    metric: str
    test: str
    value: float = 0.0
    release: float | None = None
    other: str = ""
    floor: float = 0.0
    factor: float = 1.0
    window_s: float = 60.0
    within_s: float = 0.0
    age_max_s: float = 0.0


class MetricRule(Condition, kw_only=True, frozen=True):
    """A condition that must hold for `for_s`, its guards (`when`, all), and what it then says.

    gap_s: shortest absence that restarts the count. clear_s: how long it must be gone. hold_s: how long it
    is held without any reading. target: the entity blamed. unless: rules that explain this one better.
    """

    name: str
    fault_class: str = msgspec.field(name="class")
    severity: Severity
    sentence: str
    unit: str = ""
    scale: float = 1.0
    for_s: float = 0.0
    gap_s: float = 0.0
    clear_s: float = 30.0
    hold_s: float = 300.0
    notify: bool = True
    origin: str = "driver"
    target: Literal["self", "gpu"] = "self"
    ignore: list[str] = []
    when: list[Condition] = []
    unless: list[str] = []


class MetricRules(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """metric_rules.toml."""

    rule: list[MetricRule]


class StructuralBounds(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """structural.toml; its comments say what each bound is for."""

    start_grace_s: float
    silent_s: float
    storm_share: float
    storm_nodes_min: int
    fresh_s: float
    gpu_stopped_s: float
    gpus_stopped_s: float
    count_short_s: float
    crash_hold_s: float
    lost_settle_s: float
    source_stopped_s: float
    part_gone_s: float
    part_known_s: float
    skew_s: float
    skew_hold_s: float
    frozen_s: float
    frozen_factor: float
    frozen_changes_min: int
    frozen_load_min: float
    gpu_probes: list[str]
    source_probes: list[list[str]]


@cache
def load(name: str, kind: type[T]) -> T:
    """Read `data/<name>.toml`. Raises ConfigError."""
    text = resources.files("gpuvigil_detectors").joinpath("data", f"{name}.toml").read_text(encoding="utf-8")
    return settings.convert(tomllib.loads(text), kind, f"{name}.toml")


class KernelLine(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What one rule word of the agent's kernel grammar means."""

    rule: str
    fault_class: str = msgspec.field(name="class")
    severity: Severity
    sentence: str
    notify: bool = True
    blame: Literal["node", "device"] = "node"
    sticky_s: float = 600.0


class KernelLines(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """kernel.toml."""

    line: list[KernelLine]
