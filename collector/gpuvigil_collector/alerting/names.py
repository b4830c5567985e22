"""The alerts that tell of incidents, read from alerts.toml: which fault class goes by which name."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Final

from gpuvigil_protos.fault_classes import FAULT_CLASSES

TEST_ALERT: Final = "GpuvigilTestAlert"
TEST_SUMMARY: Final = "A test: somebody ran `gpuvigil test-alert`. Nothing is wrong."


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One alert: its name, one static sentence, and the fault classes that it tells of."""

    name: str
    summary: str
    classes: tuple[str, ...]


def _load() -> tuple[Row, ...]:
    """Read the table that ships. Raises ValueError unless every fault class is in it once."""
    text = resources.files(__package__).joinpath("alerts.toml").read_text(encoding="utf-8")
    rows = tuple(
        Row(name=row["name"], summary=row["summary"], classes=tuple(row["classes"]))
        for row in tomllib.loads(text)["alert"]
    )
    named = [fault_class for row in rows for fault_class in row.classes]
    if sorted(named) != sorted(FAULT_CLASSES):
        wrong = set(named) ^ set(FAULT_CLASSES) or {name for name in named if named.count(name) > 1}
        raise ValueError(f"alerts.toml: expected every fault class once, got wrong: {sorted(wrong)}")
    return rows


ROWS: Final = _load()
BY_CLASS: Final = {fault_class: row for row in ROWS for fault_class in row.classes}
