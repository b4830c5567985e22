"""`gpuvigil demo`: start a fleet of real processes, let faults happen, watch what the collector says.

The collector is given neither path, environment nor argument of the scenario. The verdict joins the
simulators' truth files with the collector's API by the rule of docs/demo.md.
"""

from __future__ import annotations

import json
import signal
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpuvigil_cli.client import Client, CliError
from gpuvigil_cli.demo import layout as files
from gpuvigil_cli.demo.children import Children
from gpuvigil_cli.demo.layout import Layout
from gpuvigil_cli.demo.local_slurm import LocalSlurm
from gpuvigil_cli.demo.match import as_json
from gpuvigil_cli.demo.repair import RepairAct
from gpuvigil_cli.demo.screen import Screen
from gpuvigil_cli.demo.site import NODES as REPAIR_NODES
from gpuvigil_cli.demo.site import onset_s
from gpuvigil_cli.demo.supervised import Supervised
from gpuvigil_cli.demo.training import FAULTS as TRAINING_FAULTS
from gpuvigil_cli.demo.training import LAST_S as TRAINING_LAST_S
from gpuvigil_cli.demo.training import TrainingJob
from gpuvigil_cli.demo.watch import Watch
from gpuvigil_cli.text import clean
from gpuvigil_protos.settings import parse_seconds

POLL_SECONDS: Final = 0.5
STAGGER_SECONDS: Final = 0.1  # a Python start is CPU; together they would starve each other's first ticks
START_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 10.0  # after the last verdict: time in which a false alarm may still show
TOTAL_SECONDS: Final = 164.0  # under 3 minutes with stopping the processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asked for."""

    nodes: int
    gpus: int
    seed: int
    scenario: Path | None
    keep: bool
    as_json: bool
    training: bool = False
    repair: bool = False
    slurm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the scenario file will do: how many faults, and seconds of the first and last onset.

    seconds_max: the demo ends after so long even when a limit is not over; a late onset leaves 60 s.
    """

    faults: int
    first_s: float
    last_s: float

    @property
    def seconds_max(self) -> float:
        """Return the longest it may take."""
        return max(TOTAL_SECONDS, self.last_s + 70)


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """What is looked at while it runs; None: not part of it."""

    watch: Watch
    job: TrainingJob | None
    act: RepairAct | None


def run_demo(options: Options) -> int:
    """Run one demo and return the exit status: 0 only when all is found and nothing else is."""
    with ExitStack() as stack:
        stack.enter_context(_terminated_as_interrupt())
        screen = stack.enter_context(Screen(as_json=options.as_json))
        place = files.make_layout()
        stack.callback(place.remove)
        children = stack.enter_context(Children())
        client = stack.enter_context(Client(place.url))
        act = None
        if options.repair:
            site = LocalSlurm(place) if options.slurm else Supervised(place)
            act = RepairAct(place=place, screen=screen, site=site, onset_s=onset_s(training=options.training))
            stack.callback(act.close)
        try:
            return _play(options, screen, place, children, client, act)
        except KeyboardInterrupt:
            screen.say("interrupted; stopping all processes")
            return 130


def _play(
    options: Options, screen: Screen, place: Layout, children: Children, client: Client, act: RepairAct | None
) -> int:
    scenario = files.make_scenario(
        place, nodes=options.nodes, gpus=options.gpus, seed=options.seed, own=options.scenario
    )
    plan = read_plan(scenario)
    _start_collector(screen, place, children, client, act)
    start_ns = _start_fleet(options, screen, place, children, scenario, act)
    _wait_until_up(options, screen, children, client)
    if act is not None:
        act.begin()
        plan = Plan(
            faults=plan.faults + 1,
            first_s=min(plan.first_s, act.onset_s),
            last_s=max(plan.last_s, act.onset_s),
        )
    job = TrainingJob(place, client, screen, start_ns) if options.training else None
    if job is not None:
        job.start(children)
        plan = Plan(
            faults=plan.faults + TRAINING_FAULTS,
            first_s=plan.first_s,
            last_s=max(plan.last_s, TRAINING_LAST_S),
        )
    first_in = start_ns / 1e9 + plan.first_s - time.time()
    screen.say(
        f"warm-up: rules learn this fleet's normal, the first fault comes in {first_in:.0f} s; "
        "forest and forecast join after about 2 min"
    )
    nodes = [*names(options.nodes), *(REPAIR_NODES if act is not None else ())]
    watch = Watch(place, nodes, client, screen, [job.truth] if job is not None else [])
    show = Show(watch=watch, job=job, act=act)
    _watch_until_judged(plan, start_ns, screen, children, show)
    return _finish(options, screen, place, children, show)


def _finish(options: Options, screen: Screen, place: Layout, children: Children, show: Show) -> int:
    outcome, job, act = show.watch.outcome, show.job, show.act
    screen.result(outcome, place.urls, act.rows() if act is not None else ())
    if act is not None and not act.good:
        screen.say(f"[red]NO[/]     the repair did not come to its end: {act.stands()}")
    if options.as_json:
        found = as_json(outcome, nodes=options.nodes, gpus=options.gpus, seconds=screen.elapsed())
        found |= {"resumed": job.resumed} if job is not None else {}
        print(json.dumps(found | ({"repair": act.as_json()} if act is not None else {})), flush=True)
    if options.keep:
        screen.say(f"left running; gpuvigil status --url {place.url}; Ctrl-C ends it")
        with suppress(KeyboardInterrupt):
            while True:
                children.check()
                time.sleep(POLL_SECONDS)
    again = job is None or len(job.resumed) == job.stops
    return 0 if outcome.good and again and (act is None or act.good) else 1


def names(nodes: int) -> list[str]:
    """Return the names of the simulated nodes: sim-00, sim-01, ..."""
    return [f"sim-{number:02}" for number in range(nodes)]


def read_plan(scenario: Path) -> Plan:
    """Read how many faults the file sets, and when. The simulator checks the rest. Raises CliError."""
    try:
        tables = tomllib.loads(scenario.read_text(encoding="utf-8")).get("fault", [])
        onsets = [float(parse_seconds(table["at"])) for table in tables]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CliError(
            f'scenario: expected [[fault]] tables, each with at = "60s": {clean(error, 300)}'
        ) from None
    if not onsets:
        raise CliError("scenario: expected at least one [[fault]], got none")
    return Plan(faults=len(onsets), first_s=min(onsets), last_s=max(onsets))


def _start_collector(
    screen: Screen, place: Layout, children: Children, client: Client, act: RepairAct | None
) -> None:
    if act is not None:
        screen.status("preparing where the job runs")
        act.site.prepare(children)
    screen.status("starting the collector")
    config = files.write_collector(place, act.site.collector_tables() if act is not None else {})
    children.start("collector", "gpuvigil_collector", config, act.site.environment if act is not None else {})
    _poll(lambda: _nodes_up(client) is not None, "the collector to answer", children)
    screen.say(f"collector answers at {place.url}")


def _start_fleet(
    options: Options, screen: Screen, place: Layout, children: Children, scenario: Path, act: RepairAct | None
) -> int:
    """Start this machine's agent and the simulated nodes; return the scenario's time zero."""
    start_ns = time.time_ns()
    if act is not None:
        act.start_nodes(children, options.seed, start_ns)
    children.start("agent of this machine", "gpuvigil_agent", files.write_agent(place))
    for number, node in enumerate(names(options.nodes)):
        screen.status(f"starting simulated nodes: {number + 1} of {options.nodes}")
        config = files.write_node(
            place, node, gpus=options.gpus, seed=options.seed, start_ns=start_ns, scenario=scenario
        )
        children.start(f"agent {node}", "gpuvigil_agent", config)
        time.sleep(STAGGER_SECONDS)
    return start_ns


def _wait_until_up(options: Options, screen: Screen, children: Children, client: Client) -> None:
    expected = options.nodes + 1 + (len(REPAIR_NODES) if options.repair else 0)

    def all_up() -> bool:
        up = _nodes_up(client) or 0
        screen.status(f"{up} of {expected} nodes connected")
        return up >= expected

    _poll(all_up, f"{expected} nodes to connect", children)
    screen.say(f"{options.nodes} simulated nodes of {options.gpus} GPUs and this machine are connected")


def _nodes_up(client: Client) -> int | None:
    """Return how many nodes are up; None while the collector does not answer."""
    try:
        return int(client.get("/api/v1/health").get("nodes_up") or 0)
    except CliError:
        return None


def _poll(done: Callable[[], bool], what: str, children: Children) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not done():
        children.check()
        if time.monotonic() > deadline:
            raise CliError(f"demo: waited {START_SECONDS:.0f} s for {what}")
        time.sleep(POLL_SECONDS / 2)


def _watch_until_judged(plan: Plan, start_ns: int, screen: Screen, children: Children, show: Show) -> None:
    """Look twice a second until every fault has been set and judged, and things stayed calm a while."""
    watch, job, act = show.watch, show.job, show.act
    while True:
        children.check()
        _look(watch, children)
        if job is not None:
            job.look()
        if act is not None:
            act.look()
        now_ns = time.time_ns()
        screen.status(watch.summary(plan.faults, (start_ns / 1e9 + plan.last_s) - now_ns / 1e9))
        judged = len(watch.faults) >= plan.faults and now_ns > watch.judged_ns() + SETTLE_SECONDS * 1e9
        if judged and (act is None or act.ended):
            return
        if screen.elapsed() > plan.seconds_max:
            break
        time.sleep(POLL_SECONDS)
    if len(watch.faults) < plan.faults:
        raise CliError(
            f"demo: the simulators set {len(watch.faults)} of the scenario's {plan.faults} faults; "
            "does it name nodes or GPUs that this fleet does not have?"
        )


def _look(watch: Watch, children: Children) -> None:
    """Look once; where the collector does not answer, its last words say more than a refused connection."""
    try:
        watch.look()
    except CliError:
        time.sleep(POLL_SECONDS)
        children.check()
        raise


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind like Ctrl-C, so that no child survives a closed terminal."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
