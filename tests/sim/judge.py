"""The outside judge: counts real effects in true time by the words of the design, with its own arithmetic.

It imports nothing of the kernel. `slack` is by how much two collectors' clocks differ: windows are judged so
much shorter, which is what the product states.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .world import DAY, HOUR, LEASE_S, MINUTE, SECOND, Effect, World

TAKES = ("hold", "reset_gpu", "reboot")
ENDS = ("stop_job", "move_job", "reset_gpu", "reboot")


@dataclass(slots=True)
class Judge:
    """What was wrong, with the effect that showed it."""

    world: World
    jobs_an_hour: int = 1
    slack: int = 0
    wrong: list[str] = field(default_factory=list)

    def _says(self, bad: object, what: str) -> None:
        if bad:
            self.wrong.append(what)

    def before(self, effect: Effect, proposal: object, honest: bool) -> None:
        """Judge an effect by the truth as it is just before it."""
        world, kind = self.world, effect.kind
        self._says(effect.node not in world.nodes, f"{kind} on {effect.node!r}, which is no node")
        if effect.node not in world.nodes:
            return
        node = world.nodes[effect.node]
        self._says(effect.id in {each.id for each in world.effects}, f"{effect.id} twice")
        self._says(node.maintenance, f"{kind} in maintenance")
        self._says(node.protected, f"{kind} on a protected node")
        self._says(world.paused, f"{kind} while paused")
        mode = world.partition_modes.get(node.partition, world.mode)
        self._says(mode == "observe" or (mode == "recommend" and not effect.approved), f"{kind} in {mode}")
        self._evidence(effect, proposal)
        self._lease(effect)
        if kind == "checkpoint":
            return
        self._says(not honest, f"{kind} on bad state")
        self._says(node.mark == "foreign" or node.remediator or world.others, f"{kind} on what is others'")
        needs_hold = kind in ("reset_gpu", "reboot", "validate", "release")
        self._says(needs_hold and node.mark != "ours", f"{kind} on what we do not hold")
        self._says(kind == "validate" and world.live_on(effect.node), "validated under a running job")
        self._storm(effect)
        self._blind(effect)
        self._workload(effect)
        if kind in (*TAKES, *ENDS):
            self._interrupted(effect)
            self._taken(effect)
            self._attempts(effect)

    def _evidence(self, effect: Effect, proposal: object) -> None:
        signals = proposal.evidence
        self._says(proposal.synthetic or any(s.synthetic for s in signals), f"{effect.kind} for a drill")
        if effect.kind in ("validate", "release"):
            return
        whose = {{"fabric": "host"}.get(s.origin, s.origin) for s in signals if s.origin != "statistics"}
        enough = len(whose) > 1 or any(s.fatal and s.origin == "driver" for s in signals)
        if effect.kind in ("move_job", "stop_job"):
            enough = enough or whose == {"job"}
        enough = bool(signals) if effect.kind == "checkpoint" else enough
        self._says(not enough, f"{effect.kind} on too little evidence {sorted(whose)}")

    def _lease(self, effect: Effect) -> None:
        """An effect lands within the lease of who asked for it, by true time."""
        lease = self.world.lease
        renewed = lease.renewed.get(effect.by)
        late = renewed is None or effect.at > renewed + LEASE_S * SECOND
        self._says(late, f"{effect.kind} by a leader whose lease had ended")

    def _hit(self, now: int) -> tuple[Counter, bool]:
        """Nodes with a finding of the last ten minutes by domain, and whether they are a storm."""
        nodes, window = self.world.nodes, 10 * MINUTE - self.slack
        hit = {n for n, at in self.world.findings if now - at < window and not nodes[n].maintenance}
        domains = Counter(nodes[n].domain for n in hit)
        return domains, len(hit) >= 3 and 10 * len(hit) >= len(nodes) and len(domains) > 1

    def noticed(self, trips: bool) -> None:
        """A storm that can be seen trips the breaker at the next question, and nothing else does."""
        self._says(trips is not self._hit(self.world.now)[1], f"the breaker trips: {trips}")

    def _storm(self, effect: Effect) -> None:
        world, nodes = self.world, self.world.nodes
        domains, storm = self._hit(effect.at)
        self._says(storm, f"{effect.kind} in a storm")
        self._says(world.tripped, f"{effect.kind} with the breaker open")
        mine = nodes[effect.node].domain
        in_domain = sum(node.domain == mine for node in nodes.values())
        faulty = domains[mine]
        self._says(faulty >= 3 and 10 * faulty >= in_domain, f"{effect.kind} in a domain's fault")

    def _blind(self, effect: Effect) -> None:
        nodes = self.world.nodes
        silent = sum(node.silent and not node.maintenance for node in nodes.values())
        self._says(silent >= 2 and 5 * silent >= len(nodes), f"{effect.kind} blind: {silent} silent")
        here = nodes[effect.node]
        self._says(here.silent and not here.dead, f"{effect.kind} on a silent node")

    def _workload(self, effect: Effect) -> None:
        world = self.world
        lost = effect.kind in ("stop_job", "move_job") and effect.job not in world.jobs
        self._says(lost, f"{effect.kind} of {effect.job!r}, which is no job")
        if effect.kind not in ENDS or lost:
            return
        jobs = {job.name: job for job in world.live_on(effect.node)}
        if effect.kind in ("stop_job", "move_job"):
            jobs = {effect.job: world.jobs[effect.job]}
            self._says(effect.node not in world.jobs[effect.job].nodes, "a job that runs elsewhere")
        for job in jobs.values():
            self._says(job.refusals, f"{effect.kind} against a refusal")
            unsaved = job.live and job.checkpoint not in ("saved", "impossible")
            self._says(unsaved, f"{effect.kind} without a checkpoint")
            where = [world.nodes[name] for name in job.nodes]
            self._says(any(n.protected or n.maintenance for n in where), f"{effect.kind}: a job's other node")

    def _interrupted(self, effect: Effect) -> None:
        """Running jobs and GPUs an hour, stops of a job."""
        world = self.world
        hour = [e for e in world.effects if effect.at - e.at < HOUR - self.slack]
        before = [job for e in hour for job in e.ended]
        if effect.ended:
            self._says(len(before) + len(effect.ended) > self.jobs_an_hour, "too many jobs an hour")
            gpus = sum(size for _, size in (*before, *effect.ended))
            share = max(sum(node.gpus for node in world.nodes.values()) / 100, world.nodes[effect.node].gpus)
            alone = not before and effect.approved
            self._says(gpus > share + 1e-6 and not alone, f"{gpus} GPUs an hour of {share}")
            self._says(
                max(size for _, size in effect.ended) > 64 and not effect.approved, "a big job unasked"
            )
        for name, _ in effect.ended:
            stops = [e.at for e in world.effects if any(job == name for job, _ in e.ended)]
            self._says(any(effect.at - at < HOUR - self.slack for at in stops), "a job twice an hour")
            self._says(sum(effect.at - at < DAY - self.slack for at in stops) > 2, "a job four times a day")

    def _taken(self, effect: Effect) -> None:
        """Nodes held, in all and in the partition; one a domain in half an hour."""
        nodes, here = self.world.nodes, self.world.nodes[effect.node]
        if effect.kind == "hold":
            for group in (list(nodes.values()), [n for n in nodes.values() if n.partition == here.partition]):
                held = sum(node.mark == "ours" for node in group) + 1
                self._says(held > 1 and (held > 10 or 20 * held > len(group)), f"{held} of {len(group)} held")
        if effect.kind in TAKES:
            first: dict[tuple[str, str], int] = {}
            for e in self.world.effects:
                if e.kind in TAKES and nodes[e.node].domain == here.domain:
                    first.setdefault((e.case, e.node), e.at)
            if (effect.case, effect.node) not in first:
                near = [at for at in first.values() if effect.at - at < 30 * MINUTE - self.slack]
                self._says(near, "two nodes of a domain in half an hour")

    def _attempts(self, effect: Effect) -> None:
        today = [
            e for e in self.world.effects if e.node == effect.node and effect.at - e.at < DAY - self.slack
        ]
        same = sum(e.kind == effect.kind for e in today)
        cases = {e.case for e in today if e.kind in (*TAKES, *ENDS)} | {effect.case}
        self._says(
            len(cases) > 3 or same > 3, f"attempts at a node: {len(cases)} cases, {same + 1} of a kind"
        )
        if effect.job:
            starts = [e for e in self.world.effects if e.job == effect.job and e.kind == effect.kind]
            same = sum(effect.at - e.at < DAY - self.slack for e in starts)
            self._says(same > 2, "a job started four times a day")
