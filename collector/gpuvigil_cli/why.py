"""`gpuvigil why ID`: the cause in one sentence, then every number it rests on."""

from __future__ import annotations

from rich.console import Console

from gpuvigil_cli.client import Json
from gpuvigil_cli.show import indented, kind, severity
from gpuvigil_cli.text import clock, markup, number, quantity

_ROLES = {"cause": 0, "symptom": 1}
_RANK = {"critical": 0, "warning": 1, "info": 2}


def show_why(console: Console, incident: Json) -> None:
    """Print one incident: cause, target, since when, findings with evidence, journal."""
    console.print(f"[bold]{markup(incident.get('cause', ''))}[/]")
    console.print()
    console.print(
        f"incident   {markup(incident.get('id', ''), 100)} ({markup(incident.get('state', ''), 20)})"
    )
    console.print(f"class      {kind(incident)}, {severity(incident)}")
    console.print(f"target     {markup(incident.get('target', ''), 260)}")
    console.print(
        f"since      {clock(incident.get('opened_ns'))}, last seen {clock(incident.get('seen_ns'))}"
    )
    if incident.get("resolved_ns"):
        console.print(f"resolved   {clock(incident.get('resolved_ns'))}")
    _findings(console, [row for row in incident.get("findings") or [] if isinstance(row, dict)])
    _decisions(console, [row for row in incident.get("actions") or [] if isinstance(row, dict)])
    _similar(console, [row for row in incident.get("similar") or [] if isinstance(row, dict)])
    _journal(console, [row for row in incident.get("journal") or [] if isinstance(row, dict)])


def ranked(findings: list[Json]) -> list[Json]:
    """Order findings: causes before symptoms, then by severity, then by when they began."""

    def key(row: Json) -> tuple[int, int, int]:
        start = row.get("start_ns")
        return (
            _ROLES.get(str(row.get("role")), 2),
            _RANK.get(str(row.get("severity")), 3),
            start if isinstance(start, int) else 0,
        )

    return sorted(findings, key=key)


def _findings(console: Console, findings: list[Json]) -> None:
    console.print("\nfindings" if findings else "\nno findings are recorded")
    for place, row in enumerate(ranked(findings), 1):
        says = f"{markup(row.get('detector', ''), 60)}/{markup(row.get('rule', ''), 80)}"
        console.print(
            f"{place:3}. {markup(row.get('role', ''), 20)}: {markup(row.get('sentence', ''))}",
            highlight=False,
        )
        indented(
            console, 5, f"{says} on {markup(row.get('entity', ''), 260)}, {severity(row)}, "
            f"since {clock(row.get('start_ns'))}, origin {markup(row.get('origin', ''), 40)}{_numbers(row)}",
        )  # fmt: skip
        for key, value in _evidence(row):
            console.print(f"       {markup(key, 60)}: {markup(number(value), 300)}")


def _decisions(console: Console, actions: list[Json]) -> None:
    """Print each decision about the incident with every gate's word and numbers."""
    if actions:
        console.print("\ndecisions")
    for row in sorted(actions, key=lambda one: quantity(one.get("decided_ns"))):
        target = row.get("job") or row.get("gpu") or row.get("node")
        by = f", approved by {markup(row.get('approved_by'), 80)}" if row.get("approved_by") else ""
        what = f"{markup(row.get('kind'), 40)} of {markup(target, 200)}"
        console.print(f"  {clock(row.get('decided_ns'))} {what}: "
                      f"{markup(row.get('state'), 40)}{by} [{markup(row.get('id'), 120)}]")  # fmt: skip
        if row.get("outcome"):
            indented(console, 5, markup(row.get("outcome"), 400))
        for gate in row.get("gates") or []:
            word = "ok    " if gate.get("passed") else "DENIES"
            said = markup(gate.get("detail"), 300)
            indented(console, 5, f"{word} {markup(gate.get('name'), 40)}: {said}")


def _similar(console: Console, rows: list[Json]) -> None:
    if rows:
        console.print("\nearlier or elsewhere")
    for row in rows:
        ended = f", resolved {clock(row.get('resolved_ns'))}" if row.get("resolved_ns") else ""
        console.print(f"  {clock(row.get('opened_ns'))} {markup(row.get('class'), 60)} on "
                      f"{markup(row.get('target'), 200)}{ended} [{markup(row.get('id'), 40)}]")  # fmt: skip


def _numbers(row: Json) -> str:
    words = [
        f", {name} {number(row[name])}"
        for name in ("score", "p_value")
        if isinstance(row.get(name), float | int)
    ]
    return markup("".join(words)) + (f", metric {markup(row['metric'], 120)}" if row.get("metric") else "")


def _evidence(row: Json) -> list[tuple[str, object]]:
    """Flatten one level, so that `facts: {"pci": ...}` reads as lines; empty values are left out."""
    evidence = row.get("evidence")
    lines: list[tuple[str, object]] = []
    for key, value in (evidence if isinstance(evidence, dict) else {}).items():
        if isinstance(value, dict):
            lines += [(str(name), inner) for name, inner in value.items()]
        elif key.endswith("_ns"):
            lines.append((key.removesuffix("_ns"), clock(value)))
        else:
            lines.append((str(key), value))
    return [(key, value) for key, value in lines if value not in (None, "", "-", [])]


def _journal(console: Console, journal: list[Json]) -> None:
    if journal:
        console.print("\njournal")
    for row in journal:
        what, detail = markup(row.get("what", ""), 80), markup(row.get("detail", ""), 600)
        indented(console, 2, f"{clock(row.get('time_ns'))}  {what}{'  ' + detail if detail else ''}")
