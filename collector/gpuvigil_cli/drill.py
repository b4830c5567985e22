"""`gpuvigil drill xid=79 --node N`: rehearse a fault end to end; what each part made of it, with times.

The event is synthetic: judged as a real one, and never handed to an actuator.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from gpuvigil_cli.client import Client, CliError, Json
from gpuvigil_cli.text import markup, quantity, short

_WAIT_S: Final = 45.0
_EVERY_S: Final = 0.5


def drill(
    client: Client,
    what: Annotated[str, typer.Argument(metavar="xid=NUMBER", help="What to rehearse.")],
    node: Annotated[str, typer.Option(help="A node from `gpuvigil nodes` that has GPUs.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Rehearse a fault on a node: event, incident, decision. Nothing is done to it. Status 1: lost."""
    asked = client.say(f"/api/v1/nodes/{node}/drill", what=what)
    began_ns = int(quantity(asked.get("at_ns")))
    incident = _wait(lambda: _incident(client, node, began_ns))
    decided = _wait(lambda: _decided(client, str(incident.get("id")))) if incident else None
    if as_json:
        print(json.dumps({"version": 1, "asked": asked, "incident": incident, "action": decided}))
    else:
        _show(Console(highlight=False), what, node, began_ns, incident, decided)
    if incident is None:
        raise CliError(f"{what} on {node} opened no incident within {_WAIT_S:g} s", 1)


def _wait(look: Any) -> Json | None:
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        found: Json | None = look()
        if found is not None:
            return found
        time.sleep(_EVERY_S)
    return None


def _incident(client: Client, node: str, began_ns: int) -> Json | None:
    rows = client.items("/api/v1/incidents", state="all", since_ns=began_ns - 1)
    return next((row for row in rows if row.get("synthetic") and row.get("node") == node), None)


def _decided(client: Client, incident: str) -> Json | None:
    """The newest decision about a machine; where policy only tells people there is none."""
    whole = client.incident(incident)
    actions = [row for row in whole.get("actions", []) if row.get("kind") not in {"checkpoint"}]
    return max(actions, key=lambda row: quantity(row.get("decided_ns")), default=None)


def _show(
    console: Console, what: str, node: str, began_ns: int, incident: Json | None, action: Json | None
) -> None:
    console.print(f"   0.0 s  {markup(what)} on {markup(node)}: synthetic, told to the collector")
    if incident is None:
        return
    console.print(f"{_after(incident, 'opened_ns', began_ns)}  incident {markup(incident.get('id'))}: "
                  f"{markup(incident.get('class'))} on {short(incident.get('target'))}")  # fmt: skip
    console.print(f"          {markup(incident.get('cause'), 300)}")
    if action is None:
        console.print("          policy tells people and does nothing to the machine")
        return
    console.print(f"{_after(action, 'decided_ns', began_ns)}  {markup(action.get('kind'))} of "
                  f"{markup(action.get('node'))}: {markup(action.get('state'))}")  # fmt: skip
    for gate in action.get("gates", []):
        word = "ok    " if gate.get("passed") else "DENIES"
        console.print(f"          {word} {markup(gate.get('name'))}: {markup(gate.get('detail'), 200)}")
    console.print("          it was a drill: nothing was done")


def _after(row: Json, key: str, began_ns: int) -> str:
    return f"{max(0.0, (quantity(row.get(key)) - began_ns) / 1e9):6.1f} s"
