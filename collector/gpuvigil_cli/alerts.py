"""`gpuvigil test-alert`: one alert through the real path, and whether it came to Alertmanager."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from gpuvigil_cli.arguments import AsJson
from gpuvigil_cli.client import Client, Json
from gpuvigil_cli.text import duration, markup

_ASK_EVERY_S: Final = 1.0
_PATHS: Final = {
    "rules": "gpuvigil_test_alert is 1 on the metrics endpoint; the next scrape and rule evaluation fire it",
    "api": "the collector posts it to every Alertmanager",
}
Lasts = Annotated[str, typer.Option("--for", help="How long it holds: 10s to 10min.")]
Wait = Annotated[bool, typer.Option(help="Wait until every Alertmanager has it.")]


def test_alert(client: Client, lasts: Lasts = "2min", wait: Wait = True, as_json: AsJson = False) -> None:
    """Send one test alert the way incidents go. Status 1: an Alertmanager that is known did not get it."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    asked = client.test_alert(lasts)
    if not as_json:
        until = duration(max(0.0, asked["until_ns"] / 1e9 - time.time()))
        mode = str(asked["mode"])
        console.print(f"{markup(asked['alertname'])} holds for {until}; mode {markup(mode)}: ", end="")
        console.print(_PATHS.get(mode, "on its way"))
    found = _followed(client, asked) if wait and asked["alertmanagers"] else {}
    if as_json:
        print(json.dumps({"version": 1, **asked, "found": found}))
    else:
        _say(console, asked, found, wait=wait)
    if any(state != "firing" for state in found.values()):
        raise typer.Exit(1)


def _followed(client: Client, asked: Json) -> dict[str, Any]:
    """Ask until every Alertmanager has it, or until it ends."""
    while True:
        found = client.get("/api/v1/alerting")["test"]["alertmanagers"]
        if all(state == "firing" for state in found.values()) or time.time_ns() > asked["until_ns"]:
            return dict(found)
        time.sleep(_ASK_EVERY_S)


def _say(console: Console, asked: Json, found: dict[str, Any], *, wait: bool) -> None:
    for address, state in found.items():
        console.print(f"{'ok' if state == 'firing' else 'NO'}  {markup(address)}: {markup(state, 300)}")
    if not asked["alertmanagers"]:
        console.print(
            "no Alertmanager is known to the collector (alerting.alertmanagers): look there for it yourself"
        )
    elif wait and found:
        console.print("your receiver should have it now, by your route and group_wait")
