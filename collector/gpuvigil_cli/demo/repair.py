"""The demo's repair: a job, a GPU lost beneath it, and each step until the node is back.

Plays the operator: starts the job, approves what waits, with the collector's own token. All that is shown is
what the collector's API tells.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from gpuvigil_cli.client import Client, CliError, Json
from gpuvigil_cli.demo.children import Children
from gpuvigil_cli.demo.layout import Layout
from gpuvigil_cli.demo.screen import Screen
from gpuvigil_cli.demo.site import AWAY_S, NODES, Site, with_torch, write_nodes
from gpuvigil_cli.text import duration, markup

_WORDS: Final = {
    "checkpoint": "checkpoint", "hold": "node held", "move_job": "restart elsewhere", "validate": "validate",
    "release": "return",
}  # fmt: skip
_RETURNED: Final = ("found", *_WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage as it ended: its name, when, and what the collector says of it."""

    name: str
    at_ns: int
    what: str


@dataclass(slots=True, kw_only=True)
class RepairAct:
    """Make it, `start_nodes` with the fleet, `begin` once all are up, then `look` twice a second."""

    place: Layout
    screen: Screen
    site: Site
    onset_s: float
    start_ns: int = 0
    stages: list[Stage] = field(default_factory=list)
    resumed: Json = field(default_factory=dict)
    outcome: str = ""
    _client: Client | None = None
    _started: bool = False
    _waits: str = ""
    _saved_step: int = -1
    _approved: set[str] = field(default_factory=set)

    @property
    def onset_ns(self) -> int:
        """When the GPU is lost."""
        return self.start_ns + int(self.onset_s * 1e9)

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it."""
        return bool(self.outcome) and (bool(self.resumed) or self.outcome != "returned")

    @property
    def good(self) -> bool:
        """Whether every stage was reached and the job goes on elsewhere."""
        reached = {stage.name for stage in self.stages}
        return self.outcome == "returned" and bool(self.resumed) and reached >= set(_RETURNED)

    def start_nodes(self, children: Children, seed: int, start_ns: int) -> None:
        """Start the agents of the job's nodes."""
        self.start_ns = start_ns
        written = write_nodes(self.place, self.site, seed=seed, start_ns=start_ns, onset_s=self.onset_s)
        for node, config in written.items():
            children.start(f"agent {node}", "gpuvigil_agent", config)

    def begin(self) -> None:
        """Read the collector's own token."""
        token = self.place.collector / "state" / "admin.token"
        self._client = Client(self.place.url, token=token.read_text(encoding="ascii").strip())

    def _start_job(self, client: Client) -> None:
        """Have the job started on the node that will fail; it may be too early for that."""
        try:
            asked = self.site.start(client)
        except CliError as error:
            if time.time_ns() > self.onset_ns:
                raise
            self.screen.status(f"the job cannot be started yet: {error}")
            return
        self._started = True
        self.screen.say(f"[cyan]asked[/]  {asked}")

    def close(self) -> None:
        """Close the connection and end the job: it would outlive its agent."""
        if self._client is not None:
            self._client.close()
        self.site.end()

    def look(self) -> None:
        """Approve what waits on the node, say what was done."""
        if self._client is None:
            return
        if not self._started:
            self._start_job(self._client)
        if time.time_ns() < self.onset_ns:
            return
        mine = [one for one in self._client.items("/api/v1/cases") if one.get("node") == NODES[0]]
        if not mine:
            return
        case = min(mine, key=lambda one: int(one["opened_ns"]))
        self._found(case)
        self._approve(self._client, case)
        self._follow(case)
        self._resume(self._client)
        self.outcome, self._waits = str(case.get("outcome") or ""), str(case.get("waits") or "nothing")

    def as_json(self) -> Json:
        """The object of --json."""
        return {
            "job": self.site.job, "ranks": 2 if with_torch() else 1, "node": NODES[0], "to": NODES[1],
            "onset_ns": self.onset_ns, "returned": self.good, "outcome": self.outcome,
            "resumed": self.resumed,
            "stages": [
                {"stage": stage.name, "seconds": self._after_s(stage), "what": stage.what}
                for stage in self.stages
            ],
        }  # fmt: skip

    def stands(self) -> str:
        """Say how far it came."""
        last = self.stages[-1] if self.stages else None
        return f"{self.outcome or f'waits for {self._waits}'}; " + (
            f"last {last.name}: {last.what}" if last else "not found"
        )

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, time after the onset and words of each stage, for the table at the end."""
        return [
            (_WORDS.get(stage.name, stage.name), duration(self._after_s(stage)), stage.what)
            for stage in self.stages
        ]

    def _after_s(self, stage: Stage) -> float:
        return round((stage.at_ns - self.onset_ns) / 1e9, 1)

    def _found(self, case: Json) -> None:
        if not self.stages:
            self.stages.append(
                Stage(name="found", at_ns=int(case["opened_ns"]), what=f"{case['class']} on {case['target']}")
            )

    def _approve(self, client: Client, case: Json) -> None:
        action = case.get("action")
        if not action or action in self._approved or case.get("outcome"):
            return
        if client.get(f"/api/v1/actions/{action}").get("state") != "awaiting":
            return
        if action.endswith("validate") and time.time_ns() < self.onset_ns + (AWAY_S + 1) * 1e9:
            return  # an operator says so once somebody has reseated the GPU
        try:
            client.say(f"/api/v1/actions/{action}/approve")
        except CliError as error:
            self.screen.status(f"not approved yet: {error}")  # a gate says no for now: asked again
            return
        self._approved.add(action)
        self.screen.say(f"[cyan]asked[/]  gpuvigil approve {markup(action, 80)}: the demo plays the operator")

    def _follow(self, case: Json) -> None:
        """Say each new mark of the case's trail."""
        for mark in case.get("trail", []):
            name, what = str(mark["step"]), str(mark["what"])
            stage = Stage(name=name, at_ns=int(mark["time_ns"]), what=what)
            if name == "capture_evidence" or stage in self.stages:
                continue
            self.stages.append(stage)
            self.screen.say(
                f"[green]repair[/] {markup(_WORDS.get(name, name), 60)} "
                f"[bold]{duration(self._after_s(stage))} after onset[/] ({markup(what, 200)})"
            )

    def _resume(self, client: Client) -> None:
        """Note from where the job goes on, once it makes steps on the other node."""
        row = next((one for one in client.items("/api/v1/jobs") if one.get("job") == self.site.job), None)
        if row is None or self.resumed:
            return
        nodes, step = row.get("nodes") or [], row.get("step")
        if NODES[1] not in nodes:
            self._saved_step = int((row.get("checkpoint") or {}).get("step") or -1)
        elif row.get("state") == "running" and isinstance(step, int):
            seconds = round((time.time_ns() - self.onset_ns) / 1e9, 1)
            self.resumed = {"step": step, "checkpoint_step": self._saved_step, "seconds": seconds}
            self.screen.say(
                f"[green]again[/]  job {self.site.job} makes steps on {NODES[1]}: at step {step}, "
                f"from the checkpoint of step {self._saved_step}"
            )
