"""The operator's commands: status, nodes, incidents, why, ..., and those of repair (operator.py).

Exit status: 0 answered and well; 1 answered, and the answer is bad news (collector degraded, no such
incident, a demo fault not found or a false alarm); 2 not answered (no collector, wrong usage, a child of
the demo died); 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gpuvigil.cli import main as dispatch
from gpuvigil_cli.alerts import test_alert
from gpuvigil_cli.arguments import AsJson
from gpuvigil_cli.client import Client, CliError, Json
from gpuvigil_cli.connection import connected
from gpuvigil_cli.demo.local_slurm import check as check_slurm
from gpuvigil_cli.demo.run import Options, run_demo
from gpuvigil_cli.demo.training import available as can_train
from gpuvigil_cli.flight import judge_directory, show_verdict
from gpuvigil_cli.goodput import show_goodput
from gpuvigil_cli.operator import register
from gpuvigil_cli.saves import follow
from gpuvigil_cli.show import show_incidents, show_jobs, show_nodes, show_status
from gpuvigil_cli.why import show_why

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which node, GPU, link or job is going wrong, and why.",
)


def _print_json(value: object) -> None:
    print(json.dumps(value))


def _console() -> Console:
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def _version(asked: bool) -> None:
    if asked:
        print(f"gpuvigil {metadata.version('gpuvigil')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Which node, GPU, link or job is going wrong, and why."""


@app.command()
@connected
def status(client: Client, as_json: AsJson = False) -> None:
    """How the collector and its fleet are. Exit status 1 when degraded."""
    health = client.get("/api/v1/health")
    running = client.items("/api/v1/jobs") if health.get("jobs_running") else []
    if as_json:
        _print_json(health | {"jobs": running})
    else:
        show_status(_console(), health)
        show_jobs(_console(), [row for row in running if row.get("state") == "running"])
    if health.get("state") == "degraded":
        raise typer.Exit(1)


@app.command()
@connected
def nodes(client: Client, as_json: AsJson = False) -> None:
    """List the nodes: up or silent, GPUs seen and expected, open incidents."""
    items = client.items("/api/v1/nodes")
    if as_json:
        _print_json({"version": 1, "items": items})
    else:
        show_nodes(_console(), items, time.time_ns())


@app.command()
@connected
def jobs(client: Client, as_json: AsJson = False) -> None:
    """List the training jobs: ranks, step, time a step and its phases, loss."""
    items = client.items("/api/v1/jobs")
    if as_json:
        _print_json({"version": 1, "items": items})
    elif items:
        show_jobs(_console(), items)
    else:
        _console().print("no training job has registered; two lines in its loop do it: README, Training jobs")


@app.command()
@connected
def goodput(
    client: Client,
    job: Annotated[str, typer.Argument(metavar="JOB", help="A name from `gpuvigil jobs`.")],
    as_json: AsJson = False,
) -> None:
    """What a job's time went into, what each failure cost, and how often it should save."""
    found = client.goodput(job)
    if as_json:
        _print_json(found)
    else:
        show_goodput(_console(), found)


@app.command()
@connected
def checkpoint(
    client: Client,
    job: Annotated[str, typer.Argument(metavar="JOB", help="A name from `gpuvigil jobs`.")],
    wait: Annotated[bool, typer.Option(help="Wait until it has ended.")] = True,
    as_json: AsJson = False,
) -> None:
    """Ask a job for a checkpoint. Status 0 saved (or asked, with --no-wait), 1 refused or not saved."""
    found = _followed(client, client.ask(job, "checkpoint"), wait=wait, as_json=as_json)
    if wait and found.get("state") != "saved":
        raise typer.Exit(1)


@app.command()
@connected
def restart(
    client: Client,
    job: Annotated[str, typer.Argument(metavar="JOB", help="A name from `gpuvigil jobs`.")],
    force: Annotated[bool, typer.Option("--force", help="Also one that makes steps.")] = False,
    as_json: AsJson = False,
) -> None:
    """Restart a job that hangs from its newest checkpoint, through its `gpuvigil run`. Status 1: refused."""
    asked = client.ask(job, "restart", force=str(int(force)))
    found = _followed(client, asked, wait=True, as_json=as_json)
    if found.get("state") != "restarting":
        raise typer.Exit(1)


def _followed(client: Client, found: Json, *, wait: bool, as_json: bool) -> Json:
    """Print a request's states until it has ended."""
    shown = "" if as_json else follow(_console(), found, "")
    while wait and not found.get("ended_ns"):
        time.sleep(0.5)
        found = client.get(f"/api/v1/saves/{found['id']}")
        shown = shown if as_json else follow(_console(), found, shown)
    if as_json:
        _print_json(found)
    return found


@app.command()
@connected
def incidents(
    client: Client,
    every: Annotated[bool, typer.Option("--all", help="Resolved ones as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the incidents, each with its cause."""
    items = client.items("/api/v1/incidents", state="all" if every else "open")
    if as_json:
        _print_json({"version": 1, "items": items})
    else:
        show_incidents(_console(), items, every=every)


@app.command()
@connected
def why(
    client: Client,
    incident: Annotated[str, typer.Argument(metavar="ID", help="An id from `gpuvigil incidents`.")],
    as_json: AsJson = False,
) -> None:
    """Why an incident was opened: cause, findings with their numbers, evidence, journal."""
    found = client.incident(incident)
    if as_json:
        _print_json(found)
    else:
        show_why(_console(), found)


app.command("test-alert")(connected(test_alert))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False
)
def scan(context: typer.Context) -> None:
    """Check this node's health once; needs the agent. Status 0 ok, 1 warning, 2 critical, 3 unknown."""
    raise typer.Exit(dispatch(["scan", *context.args]))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False
)
def run(context: typer.Context) -> None:
    """Run a training command: seen without a change to it, restarted from its checkpoints."""
    raise typer.Exit(dispatch(["run", *context.args]))


@app.command("flight-recorder")
def flight_recorder(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of dumps, one file a rank.")],
    as_json: AsJson = False,
) -> None:
    """Which ranks hang, from PyTorch's Flight Recorder dumps (pickle or JSON); needs no collector."""
    verdict = judge_directory(directory)
    if as_json:
        _print_json(verdict)
    else:
        show_verdict(_console(), verdict)


@app.command()
def demo(  # noqa: PLR0913, PLR0917 each is an option of the command
    nodes: Annotated[int, typer.Option(min=1, max=64, help="Simulated nodes.")] = 16,
    gpus: Annotated[int, typer.Option(min=1, max=16, help="GPUs a simulated node.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the faults and of the simulated hardware.")] = 1,
    scenario: Annotated[Path | None, typer.Option(help="A scenario file to play instead.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running until Ctrl-C.")] = False,
    training: Annotated[
        bool, typer.Option("--training", help="And a real training job; needs torch.")
    ] = False,
    repair: Annotated[
        bool | None, typer.Option(help="And a job under an agent, repaired; default: without --scenario.")
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Repair on a real Slurm that is started here; needs its packages.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Try it out: a collector, this machine's agent and simulated nodes with faults, in under 3 minutes."""
    if training and not can_train():
        raise CliError("--training: expected torch to be installed: make demo-train, or pip install torch")
    if slurm:
        check_slurm(repair)
    options = Options(
        nodes=nodes, gpus=gpus, seed=seed, scenario=scenario, keep=keep, as_json=as_json, training=training,
        repair=(slurm or scenario is None) if repair is None else repair, slurm=slurm,
    )  # fmt: skip
    raise typer.Exit(run_demo(options))


register(app)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; no traceback for what a user can mend."""
    try:
        app(args=argv, prog_name="gpuvigil")
        sys.stdout.flush()
    except CliError as error:
        print(f"gpuvigil: {error}", file=sys.stderr)
        return error.code
    except OSError as error:  # a closed pipe, a full disk behind standard output
        return _unwritten(error)
    except SystemExit as stop:  # how typer ends every command, usage errors included
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _unwritten(error: OSError) -> int:
    """Say that the answer could not be written; Python would flush once more at its end, and say it anew."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        print(f"gpuvigil: standard output: {error.strerror}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
