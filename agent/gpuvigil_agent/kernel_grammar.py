"""What kernel lines mean: Xid, SXid, a GPU off the bus, and the rules of data/kernel_patterns.toml.

Source: the driver's and the kernel's own format strings. Every expression is anchored at the start of the
record and reads only what the kernel chose. Process names (15 bytes, any bytes), and what follows them, are
user-chosen: no code and no GPU is ever looked for there. A record may begin with a process name
("name[12]: segfault at ..."), so a form is only accepted if 15 bytes cannot spell its head.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from typing import Final, Literal

from gpuvigil_protos.text import printable

FactKind = Literal["xid", "sxid", "gpu_lost", "kernel"]

_LINE_MAX: Final = 2048  # characters of a record that are looked at
_TEXT_MAX: Final = 400  # characters of a record that go on as text for people
_MULTI_RECORD_STEPS: Final = 3  # records between a multi-line message's first and last
_PCI: Final = r"(?P<pci>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)"
_MIG: Final = r"(?: GPU-I:(?P<gpu_instance>[0-9]{2,4}))?(?: GPU-CI:(?P<compute_instance>[0-9]{2,4}))?"
_XID: Final = re.compile(rf"NVRM: Xid \((?:PCI:)?{_PCI}{_MIG}\): (?P<code>[0-9]{{1,4}})(?=,|\Z)")
_SXID: Final = re.compile(
    rf"nvidia-nvswitch(?P<switch>[0-9]{{0,3}}): SXid \(PCI:{_PCI}\): (?P<code>[0-9]{{1,5}}), "
    r"(?P<severity>Fatal|Non-fatal)(?=,|\Z)(?:, Link (?P<link>[0-9]{1,3})\b)?"
)
_LOST: Final = re.compile(
    rf"NVRM: (?:GPU at PCI:{_PCI}: |GPU {_PCI.replace('pci', 'pci2')}: )?GPU has fallen off the bus"
    rf"|NVRM: GPU at PCI:{_PCI.replace('pci', 'pci3')} has fallen off the bus"
    rf"|NVRM: The NVIDIA GPU {_PCI.replace('pci', 'pci4')}\s+(?:NVRM: )?\(PCI ID: [0-9a-fA-F:]{{9}}\)\s+"
    r"(?:NVRM: )?installed in this system has\s+(?:NVRM: )?fallen off the bus"
)
_LOST_FIRST: Final = re.compile(rf"NVRM: The NVIDIA GPU {_PCI}\s*(?:\(PCI ID: [0-9a-fA-F:]{{9}}\))?\s*\Z")
_LOST_LAST: Final = re.compile(
    r"NVRM: (?:installed in this system has )?fallen off the bus and is not responding"
)
# A name is at most 15 bytes, so no name can hold a whole detail: details begin after it or not at all.
_PROCESS: Final = (
    r"(?: pid='?(?P<pid>[0-9]{1,10}|<unknown>)'?, name=[\s\S]{0,15}?,)?(?: Ch(?:ID)? [0-9a-fA-Fx]+,)?"
)
_DETAILS: Final = {
    13: re.compile(
        _PROCESS
        + r" Graphics [A-Za-z ]{1,60} on \(GPC (?P<gpc>\d{1,3}), TPC (?P<tpc>\d{1,3}), SM (?P<sm>\d{1,3})\)"
    ),
    74: re.compile(
        _PROCESS + r" NVLink: [A-Za-z ]{1,60} link (?P<link>\d{1,3}) ?"
        r"\((?P<registers>0x[0-9a-fA-F]{1,8}(?:,? 0x[0-9a-fA-F]{1,8}){0,6})\)"
    ),
    154: re.compile(
        _PROCESS
        + r" GPU recovery action changed from (?P<from_code>0x[0-9a-f]{1,2}) \((?P<from>[A-Za-z0-9 ]{1,40})\)"
        r" to (?P<to_code>0x[0-9a-f]{1,2}) \((?P<to>[A-Za-z0-9 ]{1,40})\)"
    ),
}
_NVLINK5: Final = re.compile(
    _PROCESS + r" (?P<unit>[A-Z0-9_]{2,32})\s+(?P<severity>Fatal|Nonfatal)\s+XC(?P<cross_contain>[01])\s+"
    r"i(?P<injected>\d)\s+Link (?P<link>-?\d{1,3})"
    r"(?: \((?P<words>0x[0-9a-fA-F]{1,8}(?:,? 0x[0-9a-fA-F]{1,8}){0,7})\))?"
)
_NVLINK5_CODES: Final = range(144, 151)
_PID: Final = re.compile(_PROCESS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One parsed record. pci is lower case `dddd:bb:dd` or empty; fields hold what the kernel chose alone."""

    kind: FactKind
    code: int = 0
    pci: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    synthetic: bool = False


def normalise_pci(text: str) -> str:
    """Return `dddd:bb:dd` in lower case, without function, from any form NVML or the kernel writes.

    NVML pads the domain to 8 digits ("00000000:3B:00.0"), the kernel to 4. Other text comes back empty.
    """
    found = re.match(_PCI + r"\Z", text)
    if found is None:
        return ""
    domain, bus, device = found["pci"].lower().split(":")
    return f"{int(domain, 16):04x}:{bus}:{device.partition('.')[0]}"


def clean(text: str) -> str:
    """Return a kernel line that is safe in logs, terminals and messages: printable, one line, bounded."""
    cut = text[:_TEXT_MAX]
    return printable(cut)


class Grammar:
    """Parses records in their order; remembers only the head of a message that comes in several records."""

    def __init__(self) -> None:
        self._patterns = _load_patterns()
        self._pending_pci, self._pending_steps = "", 0

    def parse(self, text: str) -> Fact | None:
        """Return what one record of the kernel's own facility says, None when it is nothing we know."""
        line = text[:_LINE_MAX]
        if line.startswith("NVRM: "):
            return _xid(line) or self._lost(line) or self._pattern(line)
        if line.startswith("nvidia-nvswitch"):
            return _sxid(line)
        return self._pattern(line)

    def _lost(self, line: str) -> Fact | None:
        if (found := _LOST.match(line)) is not None:
            pci = next((value for value in found.groups() if value), "")
            return _fact_lost(pci)
        if (first := _LOST_FIRST.match(line)) is not None:
            self._pending_pci, self._pending_steps = first["pci"], _MULTI_RECORD_STEPS
            return None
        self._pending_steps -= 1
        if self._pending_steps >= 0 and _LOST_LAST.match(line):
            self._pending_steps = 0
            return _fact_lost(self._pending_pci)
        return None

    def _pattern(self, line: str) -> Fact | None:
        for rule, expression in self._patterns:
            if (found := expression.match(line)) is not None:
                fields = {key: value for key, value in found.groupdict().items() if value}
                pci = normalise_pci(fields.get("pci", ""))
                return Fact(kind="kernel", pci=pci, fields={"rule": rule} | fields)
        return None


def _fact_lost(pci: str) -> Fact:
    return Fact(kind="gpu_lost", pci=normalise_pci(pci), fields={"pci": pci.lower()} if pci else {})


def _xid(line: str) -> Fact | None:
    found = _XID.match(line)
    if found is None:
        return None
    code, tail = int(found["code"]), line[found.end() + 1 :]
    fields = {"pci": found["pci"].lower()}
    fields |= {key: found[key] for key in ("gpu_instance", "compute_instance") if found[key]}
    expression = _NVLINK5 if code in _NVLINK5_CODES else _DETAILS.get(code, _PID)
    detail = expression.match(tail) or _PID.match(tail)
    fields |= {key: value for key, value in detail.groupdict().items() if value} if detail else {}
    if not fields.get("pid", "0").isdecimal():
        del fields["pid"]
    injected = fields.pop("injected", "0") != "0"
    return Fact(kind="xid", code=code, pci=normalise_pci(found["pci"]), fields=fields, synthetic=injected)


def _sxid(line: str) -> Fact | None:
    """Only lines with a severity word are facts: "Severity ..." and "Data {...}" lines repeat the code."""
    found = _SXID.match(line)
    if found is None:
        return None
    fields = {key: value for key, value in found.groupdict().items() if value and key != "code"}
    fields["severity"] = fields["severity"].replace("Non-fatal", "Nonfatal")
    return Fact(kind="sxid", code=int(found["code"]), pci=normalise_pci(found["pci"]), fields=fields)


def _load_patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Read the shipped rules. A broken file is a bug of ours: it raises, and the tests read it too."""
    text = resources.files("gpuvigil_agent").joinpath("data/kernel_patterns.toml").read_text(encoding="utf-8")
    return [(row["rule"], re.compile(row["regex"])) for row in tomllib.loads(text)["pattern"]]
