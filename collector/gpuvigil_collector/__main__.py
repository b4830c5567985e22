"""gpuvigil-collector: the only place that wires the parts together."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from gpuvigil_collector.alerting.metrics import AlertingCollector
from gpuvigil_collector.alerting.service import Alerting
from gpuvigil_collector.anchor import Anchor
from gpuvigil_collector.brain import Brain
from gpuvigil_collector.command_line import Arguments, check_named_files, parse
from gpuvigil_collector.config import CollectorConfig, Detection
from gpuvigil_collector.export.counts import Counts
from gpuvigil_collector.export.metrics import FleetCollector, registry_of
from gpuvigil_collector.export.view import View
from gpuvigil_collector.goodput.books import Books
from gpuvigil_collector.incidents import ranking
from gpuvigil_collector.incidents.tracker import Tracker
from gpuvigil_collector.ingest import frames
from gpuvigil_collector.ingest.supervisor import Ingest, IngestError
from gpuvigil_collector.journal import Journal
from gpuvigil_collector.learned import Learned
from gpuvigil_collector.pipeline import Pipeline
from gpuvigil_collector.reload import Reloader
from gpuvigil_collector.repair.plant import Plant
from gpuvigil_collector.retire import Retire
from gpuvigil_collector.saves.desk import SaveDesk
from gpuvigil_collector.saves.evidence import EvidenceDesk
from gpuvigil_collector.saves.foresight import Foresight
from gpuvigil_collector.service import BrainFailedError, Service
from gpuvigil_collector.store import Store
from gpuvigil_collector.web import roles
from gpuvigil_collector.web.alerting import alerting_routes
from gpuvigil_collector.web.app import Sources, make_app
from gpuvigil_collector.web.server import bind, make_server
from gpuvigil_detectors.rules import Rules
from gpuvigil_detectors.structural import Structural
from gpuvigil_detectors.training.stage import Training
from gpuvigil_protos import log
from gpuvigil_protos.settings import ConfigError, effective

_ALIVE_S = 15.0  # a tick that has not ended for so long hangs
EXIT_CONFIG = 2
EXIT_BUG = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the collector until it is told to stop; 2 when it cannot start as configured, 1 on a bug."""
    parsed = parse(arguments)
    try:
        config = parsed.load()
        _check_votes(config.detection)
        check_named_files(config)
        if parsed.check_config:
            sys.stdout.write(effective(config))
            return 0
        log.configure(config.log_level)
        asyncio.run(_serve(config, parsed))
    except (ConfigError, IngestError) as error:
        sys.stderr.write(f"gpuvigil-collector: {error}\n")
        return EXIT_CONFIG
    except BrainFailedError:
        return EXIT_BUG  # the brain's thread has written its traceback
    return 0


async def _serve(config: CollectorConfig, arguments: Arguments) -> None:
    state = _state_directory(config)
    listener = bind(config.web)
    store = Store(state)
    journal = Journal(state, entries_max=config.journal.entries_max, keep_s=config.journal.keep)
    ingest = Ingest(config.ingest, state, store, log_level=config.log_level)
    plant, pipeline = _pipeline(config, store, journal, state, ingest.send)
    alerting = Alerting(config.alerting, state, lambda: pipeline.view, grace_s=config.incidents.restore_grace)
    plant.repair.silenced = alerting.silenced
    reloader = Reloader(config, arguments.load, pipeline.tracker, journal)

    def faults() -> list[str]:
        return [*_ingest_faults(config, ingest, store), *plant.faults()]

    def alive() -> bool:
        return brain.stalled_s() < _ALIVE_S

    def counters() -> dict[str, float]:
        return store.counters() | {"worker_restarts_total": float(ingest.restarts)}

    fleet = FleetCollector(_version(), lambda: pipeline.view, pipeline.counts, store.ledger, counters, faults)
    sources = Sources(
        view=lambda: pipeline.view, ledger=store.ledger, journal=journal.entries,
        registry=registry_of(fleet, AlertingCollector(alerting)), alive=alive, faults=faults,
        ask=pipeline.desk.ask, say=pipeline.repair.desk.ask, roles=roles.load(config.web.tokens, state),
        more=alerting_routes(alerting),
    )  # fmt: skip
    service = Service(ingest, make_server(make_app(sources), config.web), listener, reloader)
    brain = Brain(pipeline, config.tick, service.brain_ended)
    plant.on_end = service.brain_ended
    plant.start()
    alerting.start()
    await service.run(brain)
    alerting.stop()
    plant.stop()
    if pipeline.learned is not None:
        pipeline.learned.save()
    pipeline.books.save()
    store.close()
    journal.close()


def _ingest_faults(config: CollectorConfig, ingest: Ingest, store: Store) -> list[str]:
    dead, failing = config.ingest.workers - len(ingest.pids), store.counters().get("recordings_failing")
    told = [
        (dead, f"{dead} of {config.ingest.workers} ingest workers are down"),
        (failing, "recordings cannot be written: agents keep their data in their spools"),
    ]
    return [sentence for wrong, sentence in told if wrong]


def _version() -> str:
    """The installed distribution's version; a source tree that is not installed has none."""
    try:
        return metadata.version("gpuvigil")
    except metadata.PackageNotFoundError:
        return "source"


def _state_directory(config: CollectorConfig) -> Path:
    """Make the state directory. Raises ConfigError when it cannot be used."""
    state = Path(config.state_directory)
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"state_directory: {state} cannot be made: {error.strerror}") from None
    return state


def _pipeline(
    config: CollectorConfig, store: Store, journal: Journal, state: Path,
    send: Callable[[frames.Command], None],
) -> tuple[Plant, Pipeline]:  # fmt: skip
    now_ns = time.time_ns()
    tracker, rules = _remembered(config, journal, now_ns)
    learned = _learned(config.detection, state / "learned.model") if config.detection.statistical else None
    desk = SaveDesk(config.saves, send)
    books = Books(state / "goodput.json")
    books.load()
    plant = Plant(
        config, state, saves=desk, journal=journal, send=send, snapshot=lambda: pipeline.view.snapshot
    )
    pipeline = Pipeline(
        store=store,
        anchor=Anchor(Path(config.journal.anchor) if config.journal.anchor else state / "journal.anchor"),
        structural=Structural(),
        rules=rules,
        training=Training(),
        books=books,
        desk=desk,
        calls=plant.calls,
        repair=plant.repair,
        evidence=EvidenceDesk(config.saves, send),
        foresight=Foresight(desk) if config.saves.requests == "auto" else None,
        learned=learned,
        tracker=tracker,
        journal=journal,
        retire=Retire(store, config.nodes.forget_after),
        counts=Counts(),
        view=View(started_ns=now_ns, now_ns=now_ns),
    )
    return plant, pipeline


def _remembered(config: CollectorConfig, journal: Journal, now_ns: int) -> tuple[Tracker, Rules]:
    """Make what takes back the incidents of an earlier run."""
    tracker = Tracker(causes=ranking.load(), settings=config.incidents)
    tracker.restore(journal.load(config.incidents.resolved_max), now_ns)
    rules = Rules()
    rules.remember(finding for incident in tracker.open.values() for finding in incident.findings)
    return tracker, rules


def _learned(config: Detection, path: Path) -> Learned:
    """Make the statistical stage with what it learned before."""
    # scikit-learn costs a second and 100 MiB: imported only where it is used
    from gpuvigil_detectors.statistical import Statistical  # noqa: PLC0415

    statistical = Statistical(votes=config.votes, learn_s=config.learn)
    learned = Learned(statistical, path, config.state_save_interval)
    learned.load()
    return learned


def _check_votes(config: Detection) -> None:
    """Import the votes that are named. Raises ConfigError for one that cannot be had."""
    if not (config.statistical and config.votes):
        return
    from gpuvigil_detectors.votes import Vote, VoteError  # noqa: PLC0415 - PyOD takes seconds

    try:
        for name in config.votes:
            Vote(name)
    except VoteError as error:
        raise ConfigError(f"detection.votes: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
