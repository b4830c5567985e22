"""The commands of repair: what is being done, what waits for a person, and what a person says to it.

Exit status as elsewhere: 0 done, 1 refused with the reason, 2 not answered or not allowed.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from gpuvigil_cli import audit, local_pause
from gpuvigil_cli.arguments import AsJson
from gpuvigil_cli.client import Client, CliError, Json
from gpuvigil_cli.connection import connected
from gpuvigil_cli.drill import drill
from gpuvigil_cli.text import clean, markup, since
from gpuvigil_collector import policy as policies
from gpuvigil_protos.settings import ConfigError, parse_seconds

Why = Annotated[str, typer.Argument(metavar="WHY", help="For the journal and for your colleagues.")]
Incident = Annotated[str, typer.Argument(metavar="ID", help="An id from `gpuvigil incidents`.")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="A name from `gpuvigil nodes`.")]
ActionId = Annotated[str, typer.Argument(metavar="ACTION", help="An id from `gpuvigil actions`.")]
For = Annotated[str, typer.Option("--for", help='How long it holds, such as "2h".')]
Local = Annotated[bool, typer.Option("--local", help="This node alone, by a file: needs no collector.")]
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,300}\Z")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (
        actions, approve, reject, pause, resume, maint, drill, acknowledge, false_positive, silence,
        close_breaker, settle, start,
    ):  # fmt: skip
        app.command(command.__name__.replace("_", "-"))(connected(command))
    app.command("return")(connected(give_back))
    audit.register(app)
    book = typer.Typer(no_args_is_help=True, help="What is done about each class of fault.")
    book.command("show")(policy_show)
    book.command("check")(policy_check)
    book.command("diff")(connected(policy_diff))
    app.add_typer(book, name="policy")


def actions(client: Client, as_json: AsJson = False) -> None:
    """How repair stands: mode, what is under way, what waits for a person, what was decided."""
    stands = client.get("/api/v1/remediation")
    cases, items = client.items("/api/v1/cases"), client.items("/api/v1/actions")
    if as_json:
        _print_json(stands | {"cases": cases, "actions": items})
        return
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    _show_stands(console, stands)
    _show_cases(console, [one for one in cases if not one.get("outcome")])
    _show_actions(console, items[:30])


def approve(client: Client, action: ActionId, as_json: AsJson = False) -> None:
    """Approve an action that waits. The safety kernel judges it once more."""
    _done(client.say(f"/api/v1/actions/{_named(action)}/approve"), as_json, f"approved {action}")


def reject(client: Client, action: ActionId, why: Why, as_json: AsJson = False) -> None:
    """Reject an action that waits; its case ends."""
    _done(client.say(f"/api/v1/actions/{_named(action)}/reject", why=why), as_json, f"rejected {action}")


def pause(client: Client, why: Why = "", local: Local = False, as_json: AsJson = False) -> None:
    """Stop all actions on the whole fleet, at once, until `gpuvigil resume`."""
    if local:
        file = local_pause.hold(why)
        sentence = f"this node is paused by {file} until `gpuvigil resume --local`"
        _done({"version": 1, "done": "paused", "file": str(file)}, as_json, sentence)
        return
    _done(client.say("/api/v1/pause", why=why), as_json, "paused: nothing is done until `gpuvigil resume`")


def resume(client: Client, why: Why = "", local: Local = False, as_json: AsJson = False) -> None:
    """Lift a pause."""
    if local:
        files = [str(file) for file in local_pause.lift()]
        _done({"version": 1, "done": "resumed", "files": files}, as_json, f"removed {', '.join(files)}")
        return
    _done(client.say("/api/v1/resume", why=why), as_json, "resumed")


def settle(
    client: Client,
    action: ActionId,
    ended: Annotated[Literal["done", "failed"], typer.Argument(metavar="done|failed", help="As you saw it.")],
    why: Why,
    as_json: AsJson = False,
) -> None:
    """Say how an action ended that stays ambiguous; nobody looks for it any more. Needs the role admin."""
    said = client.say(f"/api/v1/actions/{_named(action)}/settle", what=ended, why=why)
    _done(said, as_json, f"settled {action}: {ended}")


def close_breaker(client: Client, why: Why, as_json: AsJson = False) -> None:
    """Close the storm breaker, after a person has looked at what tripped it. Needs the role admin."""
    _done(client.say("/api/v1/breaker/close", why=why), as_json, "the storm breaker is closed")


def maint(
    client: Client,
    node: Node,
    duration: Annotated[str, typer.Argument(metavar="DURATION", help='Such as "2h"; "0" ends it.')],
    why: Why = "",
    as_json: AsJson = False,
) -> None:
    """Set maintenance on a node: recorded, but no alarm, no learning, no action."""
    path = f"/api/v1/nodes/{_named(node)}/maintenance"
    if duration == "0":
        _done(client.say(f"{path}/end", why=why), as_json, f"{node} is no longer under maintenance")
        return
    said = client.say(path, why=why, seconds=_seconds(duration))
    _done(said, as_json, f"{node} is under maintenance for {duration}")


def start(
    client: Client,
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="A job of the collector's [actuators.supervised].")
    ],
    node: Annotated[str, typer.Option(help="Where; else the first node that can take it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Have an agent start a job that runs nowhere. Refused while it runs, or the node is held or paused."""
    said = client.start(job, _named(node) if node else "")
    _done(said, as_json, f"{job} on {clean(said.get('outcome'), 300)}")


def give_back(client: Client, node: Node, as_json: AsJson = False) -> None:
    """A node that we hold is mended: test it under load, wait, and return it to service."""
    _done(client.say(f"/api/v1/nodes/{_named(node)}/return"), as_json, f"{node} is proven, then returned")


def acknowledge(
    client: Client, incident: Incident, why: Why = "", hold: For = "24h", as_json: AsJson = False
) -> None:
    """Say that somebody looks after an incident."""
    _mark(client, "acknowledge", incident, why, hold, as_json)


def false_positive(
    client: Client, incident: Incident, why: Why, hold: For = "7d", as_json: AsJson = False
) -> None:
    """Say that an incident is none: what said so is believed less for a while, and precision counts it."""
    _mark(client, "false-positive", incident, why, hold, as_json)


def silence(client: Client, incident: Incident, why: Why, hold: For = "2h", as_json: AsJson = False) -> None:
    """Keep an incident from alerting; it stays open and is recorded."""
    _mark(client, "silence", incident, why, hold, as_json)


def policy_show(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A site's policy.")] = None,
) -> None:
    """What is done about each class of fault, and why."""
    found = _policy(file)
    table = Table(box=None)
    for title in ("class", "from", "playbook", "steps", "reason"):
        table.add_column(title, overflow="fold")
    for name, row in found.class_.items():
        steps = " > ".join(step.do for step in found.playbook[row.playbook].steps)
        table.add_row(name, row.severity, row.playbook, steps, markup(row.reason, 300))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def policy_check(file: Annotated[Path, typer.Argument(metavar="FILE", help="A site's policy.")]) -> None:
    """Check a policy file; status 2 with place and reason where it cannot be used."""
    _policy(file)
    print(f"{file}: usable")


def policy_diff(
    client: Client,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The policy to compare.")],
    before: Annotated[Path | None, typer.Option("--with", help="Instead of the shipped one.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a policy would have done otherwise to the incidents that the collector remembers."""
    old, new = _policy(before), _policy(file)
    changed = policies.differences(old, new)
    rows = []
    for incident in client.items("/api/v1/incidents", state="all"):
        fault, severity = str(incident.get("class")), incident.get("severity")
        if fault in new.class_ and severity in {"info", "warning", "critical"}:
            was, is_ = (one.playbook_for(fault, severity) for one in (old, new))
            if _steps(old, was) != _steps(new, is_):
                rows.append({"incident": incident["id"], "class": fault, "target": incident["target"],
                             "before": _steps(old, was), "after": _steps(new, is_)})  # fmt: skip
    if as_json:
        _print_json({"version": 1, "classes": [list(row) for row in changed], "incidents": rows})
        return
    for partition, name, was, is_ in changed:
        print(f"{name}{f' on {partition}' if partition else ''}:\n  before {was}\n  after  {is_}")
    print(f"{len(rows)} of the incidents remembered would have been treated otherwise")
    for row in rows[:50]:
        print(f"  {row['incident']} {clean(row['target'], 100)}: {row['before']} -> {row['after']}")


def _steps(policy: policies.Policy, playbook: str) -> str:
    return " > ".join(step.do for step in policy.playbook[playbook].steps)


def _mark(client: Client, what: str, incident: str, why: str, hold: str, as_json: bool) -> None:
    path = f"/api/v1/incidents/{_named(incident)}/{what}"
    said = client.say(path, why=why, seconds=_seconds(hold))
    _done(said, as_json, f"{what}: {incident} for {hold}")


def _policy(file: Path | None) -> policies.Policy:
    try:
        return policies.load(file)
    except ConfigError as error:
        raise CliError(str(error)) from None


def _seconds(text: str) -> float:
    try:
        return float(parse_seconds(text))
    except ValueError as error:
        raise CliError(f"duration: {error}") from None


def _named(text: str) -> str:
    if not _NAME.match(text):
        raise CliError(f"name: expected letters, digits and ._:-, got {clean(text, 120)!r}")
    return text


def _done(said: Json, as_json: bool, sentence: str) -> None:
    if as_json:
        _print_json(said)
    else:
        print(sentence)


def _print_json(value: object) -> None:
    print(json.dumps(value))


def _show_stands(console: Console, stands: Json) -> None:
    console.print(f"mode {markup(stands.get('mode'))}")
    paused = stands.get("paused")
    if isinstance(paused, dict):
        console.print(f"PAUSED by {markup(paused.get('by'))}: {markup(paused.get('why'))}")
    if stands.get("breaker_tripped_ns"):
        console.print("STORM BREAKER TRIPPED: look, then `gpuvigil close-breaker`")
    if stands.get("fault") or not stands.get("readable", True):
        console.print(f"NOTHING IS DONE: {markup(stands.get('fault') or 'its records cannot be read', 300)}")
    for title, key in (
        ("held by us", "nodes_held"), ("maintenance", "maintenance"),
        ("waits for `gpuvigil approve`", "awaiting_approval"),
    ):  # fmt: skip
        if stands.get(key):
            console.print(f"{title}: {markup(', '.join(map(str, stands[key])), 500)}")


def _show_cases(console: Console, cases: list[Json]) -> None:
    table = Table(box=None)
    for title in ("case", "incident", "class", "node", "playbook", "since", "waits for"):
        table.add_column(title, overflow="fold")
    for one in cases:
        told = [markup(one.get(key)) for key in ("id", "incident", "class", "node", "playbook")]
        table.add_row(*told, since(one.get("opened_ns"), time.time_ns()), markup(one.get("waits") or "", 200))
    console.print(table if cases else "no case is under way")


def _show_actions(console: Console, items: list[Json]) -> None:
    table = Table(box=None)
    for title in ("action", "what", "target", "state", "since", "outcome"):
        table.add_column(title, overflow="fold")
    for one in items:
        target = one.get("job") or one.get("gpu") or one.get("node")
        denied = f"{one['denied_by']}: " if one.get("denied_by") else ""
        told = [markup(each) for each in (one.get("id"), one.get("kind"), target, one.get("state"))]
        outcome = markup(f"{denied}{one.get('outcome', '')}", 200)
        table.add_row(*told, since(one.get("changed_ns"), time.time_ns()), outcome)
    if items:
        console.print(table)
