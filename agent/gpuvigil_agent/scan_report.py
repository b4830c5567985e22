"""A scan's findings for people and for programs: plain text of 80 columns, or one JSON object."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any, Final

from gpuvigil_agent.kernel_grammar import clean
from gpuvigil_agent.scan_checks import Facts, ScanFinding

VERSION: Final = 1
_WIDTH: Final = 80
_COLOURS: Final = {"critical": "\x1b[1;31m", "warning": "\x1b[33m", "info": "\x1b[36m", "ok": "\x1b[32m"}
_PLAIN: Final = "\x1b[0m"


def as_json(node: str, state: str, findings: Sequence[ScanFinding], facts: Facts) -> dict[str, Any]:
    """Return the versioned object of --json."""
    return {
        "version": VERSION,
        "node": node,
        "state": state,
        "findings": [
            {
                "code": finding.code,
                "severity": finding.severity,
                "target": finding.target,
                "evidence": clean(finding.evidence),
                "meaning": finding.meaning,
                "next_step": finding.next_step,
            }
            for finding in findings
        ],
        "checked": facts.checked,
        "unchecked": [{"area": area, "why": clean(why)} for area, why in facts.unchecked],
    }


def dumps(report: dict[str, Any]) -> str:
    """Return the object as text."""
    return json.dumps(report, indent=2)


def as_text(report: dict[str, Any], colour: bool) -> str:
    """Return the report as lines of at most 80 columns; colour only when asked for (a terminal)."""
    lines = [_paint(f"{report['node']}: {report['state']}", report["state"], colour)]
    if report["findings"]:
        lines += ["", f"{'SEVERITY':<9} {'CODE':<24} TARGET"]
    for finding in report["findings"]:
        head = f"{finding['severity']:<9} {finding['code']:<24} "
        lines.append(_paint(head, finding["severity"], colour) + finding["target"][: _WIDTH - len(head)])
        for label in ("evidence", "meaning", "next_step"):
            lines += _wrapped(label.replace("_", " "), finding[label])
    lines += ["", *_wrapped_list("checked", report["checked"])]
    for row in report["unchecked"]:
        lines += _wrapped_list("not checked", [f"{row['area']}: {row['why']}"])
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"  {label:<10} ", subsequent_indent=" " * 13, break_long_words=True
    )


def _wrapped_list(label: str, items: list[str]) -> list[str]:
    return textwrap.wrap(f"{label}: {', '.join(items) or 'nothing'}", _WIDTH, subsequent_indent="  ")


def _paint(text: str, word: str, colour: bool) -> str:
    return f"{_COLOURS[word]}{text}{_PLAIN}" if colour and word in _COLOURS else text
