"""How many nodes ask for an action at once: what the safety kernel's storm breaker compares."""

from __future__ import annotations

from dataclasses import dataclass

from .safety_facts import Question
from .safety_limits import checked_limits
from .safety_values import Unknown, part, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """Nodes with actionable findings within the window: in all, in the target's domain, and the bounds.

    storming: they are a storm, not one fault nor one domain's.
    """

    nodes: int
    bound: float
    domains: int
    here: int
    bound_here: float
    storming: bool


def storm_of(question: Question) -> Storm:
    """Count the nodes with actionable findings, others' maintenance left out; raises Unknown."""
    limits, fleet, given = checked_limits(question.state.limits), question.fleet, question.state.actionable
    if type(given) is not tuple:
        raise Unknown("the actionable findings are not known")
    now_ns, since, recent = question.now, question.since(limits.storm_window_s), set()
    for name, at_ns in given:
        if type(at_ns) is not int or not 0 < at_ns <= now_ns:
            raise Unknown(f"an actionable finding is of {shown(at_ns)}: in the future, or no time")
        if name not in fleet:
            raise Unknown(f"an actionable finding is on {shown(name)}, which the inventory does not have")
        if at_ns > since:
            recent.add(name)
    hit = [name for name in recent if not fleet[name].maintenance]
    domains = [fleet[name].domain for name in hit]
    target = fleet.get(question.proposal.node)
    here = target.domain if target else ""
    bound = max(limits.storm_nodes, part(limits.storm_share, len(fleet)))
    return Storm(
        nodes=len(hit),
        bound=bound,
        domains=len(set(domains)),
        here=domains.count(here),
        bound_here=max(limits.storm_nodes, part(limits.storm_share, fleet.domains[here])),
        storming=len(hit) >= bound and len(set(domains)) >= limits.storm_domains,
    )
