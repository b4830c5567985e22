"""Cause before symptom: which claim explains which, read from causes.toml.

A claim is what all findings of one class about one entity say together. Pure: no clock, no state.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Literal

from gpuvigil_detectors.base import Finding
from gpuvigil_protos import entity as names
from gpuvigil_protos.fault_classes import FAULT_CLASSES
from gpuvigil_protos.settings import parse_seconds

Reach = Literal["entity", "rank", "job", "node", "fleet"]
Key = tuple[str, str]
"""(fault class, full entity name); a drill's class has `DRILL` before it, so that it never meets a fault."""

DRILL: Final = "drill "

FLEET: Final = "fleet"
_ANY = "*"
_ALL: Final = frozenset(FAULT_CLASSES)
_BEFORE_NS: Final = 10_000_000_000  # a symptom may be seen this much before its cause, not more


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Findings of one class about one entity, all of a drill or none. statistical: no fact among them."""

    fault_class: str
    entity: str
    start_ns: int
    statistical: bool
    findings: tuple[Finding, ...]
    synthetic: bool = False

    @property
    def key(self) -> Key:
        """What tells one claim from another."""
        return (DRILL * self.synthetic + self.fault_class, self.entity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row: `cause` explains `symptoms` within reach; within_ns (from the cause's start, and a little
    before it) applies to node and fleet alone.

    statistics: also every statistical finding. lead_is_node, claim_is_node: only where that one is about the
    node itself.
    """

    cause: str
    symptoms: frozenset[str]
    reach: Reach
    within_ns: int
    statistics: bool
    lead_is_node: bool
    claim_is_node: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Widening:
    """One class on many GPUs of a node is one fault of the node."""

    fault_class: str
    count_min: int
    share_min: float


class Causes:
    """The table, indexed. Raises ValueError when it names an unknown class or orders one twice."""

    def __init__(self, document: dict[str, Any]) -> None:
        order: list[str] = document["order"]
        self._rank = {name: place for place, name in enumerate(order)}
        if len(self._rank) != len(order):
            raise ValueError("causes: a class is in `order` twice")
        self._hold_ns = {name: _ns(text) for name, text in document["hold"].items()}
        self._rules: dict[str, list[Rule]] = {}
        for row in document["explains"]:
            self._rules.setdefault(row["cause"], []).append(_rule(row))
        self.widenings = tuple(_widening(row) for row in document["widen"])
        self._check()
        self._causes = self._index()

    def _check(self) -> None:
        named = set(self._rank) | set(self._hold_ns) | set(self._rules)
        named |= {symptom for rules in self._rules.values() for rule in rules for symptom in rule.symptoms}
        named |= {row.fault_class for row in self.widenings}
        unknown = named - set(FAULT_CLASSES) - {_ANY}
        if unknown:
            raise ValueError(f"causes: unknown fault classes {sorted(unknown)}")

    def rank(self, fault_class: str) -> int:
        """Smaller is nearer to the cause; a class that the table does not know comes last."""
        return self._rank.get(fault_class, len(self._rank))

    def hold_ns(self, fault_class: str) -> int:
        """How long a claim waits for its cause before it opens an incident."""
        return self._hold_ns.get(fault_class, 0)

    def causes_of(self, claim: Claim) -> frozenset[str]:
        """Every class that could explain this claim at all: a quick no for the others."""
        return _ALL if claim.statistical else self._causes.get(claim.fault_class, self._causes[_ANY])

    def _index(self) -> dict[str, frozenset[str]]:
        rules = [rule for rules in self._rules.values() for rule in rules]
        return {
            name: frozenset(rule.cause for rule in rules if rule.symptoms & {name, _ANY})
            for name in (*FAULT_CLASSES, _ANY)
        }

    def explains(self, lead: Claim, claim: Claim) -> bool:
        """Tell whether `lead` is the cause of `claim`. Nothing explains itself, and no drill a fault."""
        if lead.key == claim.key or lead.synthetic != claim.synthetic:
            return False
        if _statistical_shadow(lead, claim, self.rank(lead.fault_class) < self.rank(claim.fault_class)):
            return True
        return any(self._applies(rule, lead, claim) for rule in self._rules.get(lead.fault_class, ()))

    def _applies(self, rule: Rule, lead: Claim, claim: Claim) -> bool:
        later = _ANY in rule.symptoms and self.rank(claim.fault_class) > self.rank(lead.fault_class)
        listed = claim.fault_class in rule.symptoms or later or (rule.statistics and claim.statistical)
        of_node = (not rule.lead_is_node or _is_node(lead)) and (not rule.claim_is_node or _is_node(claim))
        return listed and of_node and _within_reach(rule, lead, claim)


def load() -> Causes:
    """Read the table that ships with the collector."""
    text = resources.files(__package__).joinpath("causes.toml").read_text(encoding="utf-8")
    return Causes(tomllib.loads(text))


def locality(entity: str) -> tuple[str, str]:
    """Return (node, part): a GPU, its links and its PCIe are one part, `gpu:<uuid>`."""
    node, _, local = entity.partition("/")
    uuid = names.gpu_uuid_of(local)
    return node, names.gpu(uuid) if uuid is not None else local


def _is_node(claim: Claim) -> bool:
    return locality(claim.entity)[1] == names.NODE


def _statistical_shadow(lead: Claim, claim: Claim, outranks: bool) -> bool:
    """A statistical finding beside a fact about the same part, or beside a nearer cause, is its shadow."""
    if not claim.statistical or locality(lead.entity) != locality(claim.entity):
        return False
    return not lead.statistical or outranks


def _within_reach(rule: Rule, lead: Claim, claim: Claim) -> bool:
    if rule.reach == "entity":
        return locality(lead.entity) == locality(claim.entity)
    if not -_BEFORE_NS <= claim.start_ns - lead.start_ns <= rule.within_ns:
        return False
    if rule.reach == FLEET:
        return lead.entity == FLEET
    if _of_other_gpu(rule.reach, lead, claim):
        return False
    return locality(lead.entity)[0] == locality(claim.entity)[0]


def _of_other_gpu(reach: Reach, lead: Claim, claim: Claim) -> bool:
    """Tell whether a loop's claim says which GPUs it is about, and `lead` is about none of them.

    Reach `rank`: the rank's own. `job`: those of all of the job's ranks on the node, because the first to end
    is not always the one whose GPU failed.
    """
    fact = {"rank": "gpu", "job": "node_gpus"}.get(reach)
    uuid = names.gpu_uuid_of(lead.entity.partition("/")[2])
    if fact is None or uuid is None or not claim.findings:
        return False
    known = dict(claim.findings[0].evidence.facts).get(fact, "")
    return bool(known) and uuid not in known.split(",")


def _ns(text: str) -> int:
    return int(parse_seconds(text) * 1e9)


def _rule(row: dict[str, Any]) -> Rule:
    return Rule(
        cause=row["cause"],
        symptoms=frozenset(row["symptoms"]),
        reach=row["reach"],
        within_ns=_ns(row.get("within", "0s")),
        statistics=row.get("statistics", False),
        lead_is_node=row.get("lead_is_node", False),
        claim_is_node=row.get("claim_is_node", False),
    )


def _widening(row: dict[str, Any]) -> Widening:
    return Widening(
        fault_class=row["class"],
        count_min=row["count_min"],
        share_min=row["share_min"],
    )
