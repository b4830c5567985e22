"""A brain over a fake store: pipeline, counts, view and the web server, without ingest."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from dataclasses import dataclass, field

from unit.fake_snapshot import Fleet
from unit.incident_help import Life
from unit.repair_world import Effects, Memory

from gpuvigil_collector.action import Fence
from gpuvigil_collector.alerting.service import Alerting
from gpuvigil_collector.alerting.settings import AlertingConfig
from gpuvigil_collector.config import SaveSettings, Web
from gpuvigil_collector.export.counts import Counts
from gpuvigil_collector.export.metrics import FleetCollector, registry_of
from gpuvigil_collector.export.view import View
from gpuvigil_collector.goodput.books import Books
from gpuvigil_collector.journal import Journal
from gpuvigil_collector.learned import Learned
from gpuvigil_collector.pipeline import Pipeline
from gpuvigil_collector.repair.build import Senses, make_repair
from gpuvigil_collector.repair.calls import AgentCalls
from gpuvigil_collector.repair.settings import Remediation
from gpuvigil_collector.retire import Retire
from gpuvigil_collector.saves.desk import SaveDesk
from gpuvigil_collector.saves.evidence import EvidenceDesk
from gpuvigil_collector.saves.foresight import Foresight
from gpuvigil_collector.web import operator, roles
from gpuvigil_collector.web.alerting import alerting_routes
from gpuvigil_collector.web.app import Sources, make_app
from gpuvigil_collector.web.server import bind, make_server
from gpuvigil_detectors.training.stage import Training
from gpuvigil_protos.settings import Tls


@dataclass
class Says:
    """A detector that finds what it is told to."""

    name: str = "rules"
    findings: list = field(default_factory=list)
    calls: int = 0
    masked: set = field(default_factory=set)
    until_ns: int | None = None

    def tick(self, _snapshot):
        self.calls += 1
        return list(self.findings)

    def mask(self, entities):
        self.masked = entities

    def status(self):
        return {"learning_until_ns": self.until_ns}


@dataclass
class FakeStore:
    """Store's read side over a fake fleet."""

    fleet: Fleet
    rows: list = field(default_factory=list)
    counted: dict = field(default_factory=dict)
    answers: list = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)

    def snapshot(self, now_ns):
        self.fleet.now_ns = now_ns
        self.arrived.clear()
        return self.fleet.snapshot()

    def mark_judged(self):
        pass

    def forget(self, node):
        return self.fleet.nodes.pop(node, None) is not None

    def wait_events(self, timeout_s):
        return self.arrived.wait(timeout_s)

    def results(self):
        found, self.answers = self.answers, []
        return found

    def ledger(self):
        return self.rows

    def counters(self):
        return {"streams": 3.0, "batches_total": 12.0, "refused_total:bad_crc": 2.0} | self.counted


def ledger_row(node, name="metrics", **more):
    return {"node": node, "boot_id": "b1", "class": name, "received": 10, "durable": 8, "duplicates": 0,
            "gap_sequences": 0, "refused": {}} | more  # fmt: skip


class Rig:
    """Everything the pipeline needs, on a fake clock; `serve` puts the real web server before it."""

    def __init__(self, directory, nodes=3, gpus=2, remediation=None):
        self.fleet = Fleet()
        for number in range(nodes):
            self.fleet.node(f"n{number}", gpus)
        self.structural, self.rules, self.statistical = Says("structural"), Says("rules"), Says("statistical")
        self.store, self.counts = FakeStore(self.fleet), Counts()
        self.sent = []
        desk = SaveDesk(SaveSettings(requests="auto"), self.sent.append)
        self.journal = Journal(directory, entries_max=1000, keep_s=1e9)
        self.effects, self.records = Effects(), Memory()
        self.repair = make_repair(
            remediation or Remediation(), directory, records=self.records, executor=self.effects, saves=desk,
            journal=self.journal, senses=Senses(fence=self._fence),
        )  # fmt: skip
        numbers = itertools.count(1)
        self.repair.desk._new_id = lambda: f"c{next(numbers)}"
        self.pipeline = Pipeline(
            store=self.store, structural=self.structural, rules=self.rules, training=Training(),
            books=Books(directory / "goodput.json"), desk=desk,
            evidence=EvidenceDesk(SaveSettings(), self.sent.append), foresight=Foresight(desk),
            calls=AgentCalls(self.sent.append), repair=self.repair,
            learned=Learned(self.statistical, directory / "learned.model", 300),
            tracker=Life().tracker, journal=self.journal, counts=self.counts,
            retire=Retire(self.store, 7 * 86_400),
            view=View(started_ns=self.fleet.now_ns, now_ns=self.fleet.now_ns),
        )  # fmt: skip
        self.alerting = Alerting(AlertingConfig(), directory, lambda: self.pipeline.view, grace_s=0)
        self.alive, self.faults, self.start = True, [], operator.no_start
        self.roles = roles.load("", directory)
        self.token = (directory / roles.ADMIN_FILE).read_text().strip()

    def _fence(self):
        return Fence(holder="rig", generation=1, until_ns=self.fleet.now_ns + 30 * 10**9, lease_s=30.0)

    def tick(self, seconds=1.0, urgent=False):
        return self.pipeline.run(self.fleet.now_ns + int(seconds * 1e9), urgent=urgent)

    def collector(self):
        return FleetCollector(
            "0.1.0",
            lambda: self.pipeline.view,
            self.counts,
            self.store.ledger,
            self.store.counters,
            lambda: self.faults,
        )

    @contextlib.contextmanager
    def serve(self, **tls):
        sources = Sources(
            view=lambda: self.pipeline.view, ledger=self.store.ledger, journal=self.journal.entries,
            registry=registry_of(self.collector()), alive=lambda: self.alive, faults=lambda: self.faults,
            ask=self.pipeline.desk.ask, say=self.repair.desk.ask, roles=self.roles,
            start=lambda *given: self.start(*given),  # noqa: PLW0108 - a test sets it later
            more=alerting_routes(self.alerting),
        )  # fmt: skip
        web = Web(address="127.0.0.1:0", tls=Tls(**tls))
        listener, server = bind(web), make_server(make_app(sources), web)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield "http{}://{}:{}".format("s" * bool(tls), *listener.getsockname())
        finally:
            server.should_exit = True
            thread.join(10)
            listener.close()
