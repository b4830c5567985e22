"""`gpuvigil audit verify`: is the journal still what was written? Asks the collector, or reads its files."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from gpuvigil_cli.arguments import AsJson
from gpuvigil_cli.client import Client, CliError, Json
from gpuvigil_cli.connection import connected
from gpuvigil_cli.text import clean
from gpuvigil_collector import anchor as anchors
from gpuvigil_collector import chain, config
from gpuvigil_protos.settings import ConfigError

_STATE: Final = Path("/var/lib/gpuvigil-collector")
_CONFIG: Final = Path("/etc/gpuvigil/collector.toml")
_ANCHOR: Final = "journal.anchor"

AnchorFile = Annotated[Path | None, typer.Option("--anchor", help="The heads as you kept them elsewhere.")]
State = Annotated[
    Path | None, typer.Option("--state", help="A collector's state directory: no API is asked.")
]
Config = Annotated[
    Path | None, typer.Option("--config", help="With --state: says how long entries are kept.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    audit = typer.Typer(no_args_is_help=True, help="The journal: what was decided and done, and by whom.")
    audit.command("verify")(connected(verify))
    app.add_typer(audit, name="audit")


def verify(
    client: Client, anchor: AnchorFile = None, state: State = None, settings: Config = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Walk the journal's hash chain and hold it against its anchor. Status 1: it was changed, and where.

    With --anchor or --state the files on this host are read; else the running collector is asked, which
    knows its own anchor alone. Whoever can write both can forge both: keep a copy of the anchor elsewhere.
    """
    offline = anchor is not None or state is not None
    found = _offline(anchor, state or _STATE, settings) if offline else client.get("/api/v1/audit")
    if as_json:
        print(json.dumps(found))
    else:
        print(_sentence(found))
    if found.get("wrong") is not None:
        raise typer.Exit(1)


def _offline(anchor: Path | None, state: Path, settings: Path | None) -> Json:
    journal = _settings(settings)
    heads = _heads(anchor or Path(journal.anchor or state / _ANCHOR), needed=anchor is not None)
    keeps = chain.Retention(entries_max=journal.entries_max, keep_s=float(journal.keep))
    try:
        walked = chain.walk_file(state / chain.FILE, heads, keeps)
    except FileNotFoundError:
        if not any(head.sequence for head in heads):
            raise CliError(f"--state: no journal in {clean(str(state), 200)}") from None
        walked = chain.Walked(anchored=len(heads), wrong=1, why="the journal is gone")
    except (sqlite3.Error, OSError) as error:
        raise CliError(
            f"{clean(str(state / chain.FILE), 200)}: cannot be read: {clean(error, 200)}"
        ) from None
    found: dict[str, Any] = msgspec.to_builtins(walked)
    return {"version": 1, **found}


def _settings(file: Path | None) -> config.JournalSettings:
    """Read the collector's [journal]; its defaults where it has no file here. Raises CliError."""
    if file is None and not _CONFIG.exists():
        return config.JournalSettings()
    try:
        return config.load(file or _CONFIG, []).journal
    except ConfigError as error:
        raise CliError(str(error)) from None


def _heads(file: Path, *, needed: bool) -> list[anchors.Head]:
    try:
        heads = anchors.read(file)
    except FileNotFoundError:
        if not needed:
            return []
        raise CliError(f"--anchor: no file {clean(str(file), 200)}") from None
    except OSError as error:
        raise CliError(f"--anchor: {clean(str(file), 200)} cannot be read: {error.strerror}") from None
    if needed and not heads:
        raise CliError(
            f"--anchor: expected lines of a collector's anchor in {clean(str(file), 200)}, got none"
        )
    return heads


def _sentence(found: Json) -> str:
    span = f"{found.get('entries')} entries, {found.get('oldest')} to {found.get('newest')}"
    if found.get("wrong") is not None:
        return f"TAMPERED at entry {found['wrong']}: {clean(found.get('why'), 300)}; {span} were read"
    anchored = found.get("anchored")
    against = (
        f"and fits {anchored} anchored heads" if anchored else "but NO ANCHOR was there to hold it against"
    )
    return f"the journal is whole: {span}, {against}; head {clean(found.get('head'), 64)}"
