"""The life of incidents: each tick's findings open, feed, re-lead, merge, resolve and reopen them.

Level-triggered: a finding that stops coming has cleared, and an incident without findings for `clear_after`
resolves. Stickiness and hysteresis are the detectors' own.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from gpuvigil_collector.config import IncidentSettings
from gpuvigil_collector.incidents.crowd import crowd_claim
from gpuvigil_collector.incidents.grouping import claims_of, widen
from gpuvigil_collector.incidents.incident import Incident, fingerprint, lead_with, with_claim
from gpuvigil_collector.incidents.open_set import OpenSet
from gpuvigil_collector.incidents.ranking import Causes, Claim, Key, locality
from gpuvigil_collector.topology import Topology
from gpuvigil_detectors.base import Finding

_CLAIMS_PER_INCIDENT = 10

What = Literal["opened", "reopened", "cause_changed", "severity_raised", "merged", "resolved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line for the journal: what happened to which incident, with the numbers in `detail`."""

    time_ns: int
    what: What
    incident: Incident
    detail: str


def short_id() -> str:
    """Make an incident id: 8 hex digits, random so that a lost journal never repeats one."""
    return secrets.token_hex(4)


@dataclass(slots=True)
class Tracker:
    """Open and recently resolved incidents. One thread calls `tick`; what it returns is immutable."""

    causes: Causes
    settings: IncidentSettings
    new_id: Callable[[], str] = short_id
    resolved: dict[str, Incident] = field(default_factory=dict)
    not_opened: int = 0
    _set: OpenSet = field(default_factory=OpenSet)
    _crowds: dict[tuple[str, bool], list[Claim]] = field(default_factory=dict)
    _pending: dict[Key, int] = field(default_factory=dict)
    _refused: set[Key] = field(default_factory=set)
    _restored: set[str] = field(default_factory=set)
    _grace_until_ns: int = 0
    _changes: list[Change] = field(default_factory=list)

    @property
    def open(self) -> dict[str, Incident]:
        """The open incidents by id, oldest first."""
        return self._set.by_id

    def restore(self, incidents: Iterable[Incident], now_ns: int) -> None:
        """Take back what the journal holds; open ones get a full `restore_grace` to be seen again."""
        self._grace_until_ns = now_ns + int(self.settings.restore_grace * 1e9)
        for incident in incidents:
            if incident.state == "open":
                self._set.put(incident)
                self._restored.add(incident.id)
            else:
                self._keep_resolved(incident)

    def tick(self, findings: list[Finding], topology: Topology, now_ns: int) -> list[Change]:
        """Fit this instant's findings into incidents; return what changed, in order."""
        self._changes = []
        claims = widen(claims_of(f for f in findings if f.notify), self.causes, topology)
        claims.sort(key=lambda claim: (self.causes.rank(claim.fault_class), _widest(claim), claim.start_ns))
        self._crowds.clear()
        for claim in self._spread(claims):
            self._place(claim, topology, now_ns)
        for (node, _), refused in list(self._crowds.items()):
            claims.append(crowd_claim(node, refused, self.settings.node_max))
            self._place(claims[-1], topology, now_ns, crowd=True)
        for claim in claims_of(f for f in findings if not f.notify and self._concerns_open(f)):
            self._support(claim, now_ns)
        self._resolve(now_ns)
        current = {claim.key for claim in claims}
        self._pending = {key: since for key, since in self._pending.items() if key in current}
        self._refused &= current
        return self._changes

    def _spread(self, claims: list[Claim]) -> Iterator[Claim]:
        """Yield the claims, of one node not more than can matter: one that lies must not hold up the tick."""
        most, counts = self.settings.node_max * _CLAIMS_PER_INCIDENT, Counter[str]()
        for claim in claims:
            node = locality(claim.entity)[0]
            counts[node] += 1
            if counts[node] <= most:
                yield claim
            else:
                self._refuse(claim)
                self._crowds.setdefault((node, claim.synthetic), []).append(claim)

    def _refuse(self, claim: Claim) -> None:
        """Count a claim that opens nothing, once as long as it holds."""
        self.not_opened += claim.key not in self._refused
        self._refused.add(claim.key)

    def _place(self, claim: Claim, topology: Topology, now_ns: int, *, crowd: bool = False) -> None:
        home = self._home(claim)
        better = self._explaining(claim, home)
        if home is not None and claim.key != home.lead.key:
            self._feed(home, claim, now_ns)
        elif home is not None and better is not None:
            self._merge(home, better, now_ns)
            self._feed(self.open[better.id], claim, now_ns)
        elif home is not None:
            self._feed(home, claim, now_ns)
        elif better is not None:
            self._feed(better, claim, now_ns)
        else:
            self._lead(claim, topology, now_ns, crowd)

    def _home(self, claim: Claim) -> Incident | None:
        """Find the open incident that holds this claim: as its cause before as a symptom."""
        holding = self._set.holding(claim.key)
        return min(holding, key=lambda incident: incident.lead.key != claim.key, default=None)

    def _explaining(self, claim: Claim, home: Incident | None) -> Incident | None:
        """Find the open incident nearest to the cause whose lead explains this claim."""
        causes = self.causes.causes_of(claim)
        found = [
            incident
            for incident, lead in self._set.near(claim)
            if lead.fault_class in causes and incident is not home and self.causes.explains(lead, claim)
        ]
        return min(found, key=lambda i: (self.causes.rank(i.fault_class), i.opened_ns, i.id), default=None)

    def _lead(self, claim: Claim, topology: Topology, now_ns: int, crowd: bool) -> None:
        """A claim that nothing open explains: it takes over what it explains, else opens its own."""
        near = self._set.near(claim)
        captured = [incident for incident, lead in near if self.causes.explains(claim, lead)]
        if captured:
            first = min(captured, key=lambda incident: (incident.opened_ns, incident.id))
            self._take_over(first, claim, topology, now_ns)
            for other in captured:
                if other is not first:
                    self._merge(other, self.open[first.id], now_ns)
        elif now_ns - self._pending.setdefault(claim.key, now_ns) >= self.causes.hold_ns(claim.fault_class):
            self._open(claim, topology, now_ns, crowd)

    def _take_over(self, incident: Incident, claim: Claim, topology: Topology, now_ns: int) -> None:
        before = f"{incident.fault_class} on {incident.target}"
        led = lead_with(incident, claim, topology)
        after = with_claim(led, claim, now_ns, self.settings.findings_max)
        self._set.put(after)
        self._note(now_ns, "cause_changed", after, f"was {before}, now {claim.fault_class} on {claim.entity}")

    def _open(self, claim: Claim, topology: Topology, now_ns: int, crowd: bool) -> None:
        node = locality(claim.entity)[0]
        crowded = self._set.count(node) >= self.settings.node_max and not crowd
        # warnings must not keep a critical fault out: it has as much room again
        grave = claim.findings[0].severity == "critical"
        if crowded or len(self.open) >= self.settings.open_max * (2 if grave else 1):
            self._refuse(claim)
            if crowded:
                self._crowds.setdefault((node, claim.synthetic), []).append(claim)
            return
        self._pending.pop(claim.key, None)
        past = self._recent(fingerprint(*claim.key), now_ns)
        if past is not None:
            del self.resolved[past.id]
            incident = replace(past, state="open", resolved_ns=None)
        else:
            incident = self._blank(now_ns)
        incident = lead_with(incident, claim, topology)
        incident = with_claim(incident, claim, now_ns, self.settings.findings_max)
        self._set.put(incident)
        self._note(now_ns, "reopened" if past else "opened", incident, _summary(incident, now_ns))

    def _recent(self, print_: str, now_ns: int) -> Incident | None:
        """Find the incident of the same fault that resolved less than `reopen_within` ago."""
        oldest_ns = now_ns - int(self.settings.reopen_within * 1e9)
        for incident in reversed(self.resolved.values()):
            if incident.fingerprint == print_ and not incident.merged_into:
                return incident if (incident.resolved_ns or 0) >= oldest_ns else None
        return None

    def _blank(self, now_ns: int) -> Incident:
        taken = self.open.keys() | self.resolved.keys()
        id_ = self.new_id()
        while id_ in taken:
            id_ = self.new_id()
        return Incident(
            id=id_, fingerprint="", fault_class="", scope="node", severity="info", state="open", node="",
            target="", cause="", lead_start_ns=now_ns, opened_ns=now_ns, seen_ns=now_ns,
        )  # fmt: skip

    def _feed(self, incident: Incident, claim: Claim, now_ns: int) -> None:
        fed = with_claim(incident, claim, now_ns, self.settings.findings_max)
        self._set.put(fed)
        if fed.severity != incident.severity:
            detail = f"{incident.severity} -> {fed.severity}: {claim.findings[0].sentence}"
            self._note(now_ns, "severity_raised", fed, detail)

    def _concerns_open(self, finding: Finding) -> bool:
        """Tell whether an incident is open on the finding's node or the fleet: few findings, mostly."""
        return self._set.concerns(finding.entity.partition("/")[0])

    def _support(self, claim: Claim, now_ns: int) -> None:
        """Keep a finding that notifies nobody where an open incident explains it and has room: evidence."""
        home = next((i for i, lead in self._set.near(claim) if lead.key == claim.key), None)
        incident = home or self._explaining(claim, None)
        if incident is not None and len(incident.findings) < self.settings.findings_max:
            self._feed(incident, claim, now_ns)

    def _merge(self, incident: Incident, into: Incident, now_ns: int) -> None:
        """Close an incident whose cause turned out to be another's symptom."""
        self._set.drop(incident)
        self._set.put(replace(into, members=into.members | incident.members))
        done = replace(incident, state="resolved", resolved_ns=now_ns, merged_into=into.id)
        self._keep_resolved(done)
        self._note(now_ns, "merged", done, f"into {into.id}: {into.fault_class} on {into.target}")

    def _resolve(self, now_ns: int) -> None:
        clear_ns = int(self.settings.clear_after * 1e9)
        for incident in list(self.open.values()):
            if incident.id in self._restored and now_ns < self._grace_until_ns:
                continue
            if now_ns - incident.seen_ns >= clear_ns:
                self._set.drop(incident)
                done = replace(incident, state="resolved", resolved_ns=now_ns)
                self._keep_resolved(done)
                self._note(now_ns, "resolved", done, _summary(done, now_ns))

    def _keep_resolved(self, incident: Incident) -> None:
        self.resolved[incident.id] = incident
        while len(self.resolved) > self.settings.resolved_max:
            del self.resolved[next(iter(self.resolved))]

    def _note(self, now_ns: int, what: What, incident: Incident, detail: str) -> None:
        self._changes.append(Change(time_ns=now_ns, what=what, incident=incident, detail=detail))


def _widest(claim: Claim) -> int:
    """Sort a claim about the fleet or a whole node before those about its parts."""
    return 0 if "/" not in claim.entity else 1 if claim.entity.endswith("/node") else 2


def _summary(incident: Incident, now_ns: int) -> str:
    seconds = (now_ns - incident.opened_ns) / 1e9
    stake = f"{incident.gpus} GPUs, {incident.gpu_hours(now_ns):.3f} GPU-hours at stake"
    what = f"{incident.fault_class} on {incident.target}, {incident.severity}"
    return f"{what}, {len(incident.findings)} findings, {stake}, open {seconds:.1f} s"
