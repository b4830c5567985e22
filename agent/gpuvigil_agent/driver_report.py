"""What the driver process says, as events and samples: losses, returns, hangs, Xids, recovery actions.

Keeps what outlives one driver process: the inventory, which GPUs are lost, and who hangs. No I/O but the
inventory's file, no clock but the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gpuvigil_agent import driver_frames as frames
from gpuvigil_agent.driver_episodes import Episodes, News
from gpuvigil_agent.event import AgentEvent, EventKind, Origin
from gpuvigil_agent.gpu_inventory import GpuInventory
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import CATALOG, GPU_RECOVERY_ACTION, NODE_GPUS_EXPECTED, NODE_GPUS_SEEN


class DriverReport:
    """Takes frames, yields samples, tells events."""

    def __init__(
        self,
        inventory_file: Path | None,
        call_deadline_s: float,
        on_event: Callable[[AgentEvent], None],
        now_ns: Callable[[], int],
    ) -> None:
        self.inventory = GpuInventory(inventory_file)
        self.lost: set[str] = set()
        self.hanging: list[frames.Stuck] = []
        self._episodes = Episodes(call_deadline_s)
        self._recovery: dict[str, float] = {}
        self._on_event, self._now_ns = on_event, now_ns

    @property
    def stuck(self) -> frozenset[str]:
        """Return who hangs, as told: `gpu:<uuid>` and `node`."""
        return self._episodes.stuck

    def take_inventory(self, found: frames.Inventory, skipped: Iterable[int]) -> None:
        """Compare with what the node has had: tell what is gone and what is back."""
        present = {gpu.uuid for gpu in found.gpus}
        self.inventory.update(found.gpus, complete=found.complete)
        for uuid in present & self.lost:
            self.lost.discard(uuid)
            self._tell("gpu_returned", entity.gpu(uuid), "the GPU answers again", self._facts(uuid))
        if not found.complete:
            return
        spared = {self.inventory.uuid_at(index) for index in skipped}
        for gpu in self.inventory.gpus:
            if not gpu.seen and gpu.uuid not in spared:
                self._lose(gpu.uuid, "nvmlDeviceGetHandleByIndex")

    def take_happened(self, happened: frames.Happened) -> None:
        """Tell an Xid or a loss at its own instant."""
        name = entity.gpu(happened.uuid) if happened.uuid else entity.NODE
        if happened.kind == "xid":
            text = f"Xid {happened.code}, from the driver"
            facts = self._facts(happened.uuid)
            self._tell("xid", name, text, facts, code=happened.code, time_ns=happened.time_ns)
        elif happened.kind == "gpu_lost":
            self._lose(happened.uuid, happened.call)

    def take_answer(self, answer: frames.Answer, *, initialised: bool) -> Iterator[Sample]:
        """Yield the samples, and tell who hangs. initialised: this process's init has returned."""
        self.hanging = self._folded([self._named(stuck) for stuck in answer.stuck])
        gone = {entity.gpu(uuid) for uuid in self.lost}
        silent = {name for name in self.stuck if name not in answer.readings and name not in gone}
        answers = answer.readings or not self.inventory.seen
        keep = frozenset(silent - {entity.NODE} if initialised and answers else silent)
        rows = [
            (stuck.entity, stuck.call, stuck.seconds) for stuck in self.hanging if stuck.entity not in gone
        ]
        self._tell_news(self._episodes.observe(rows, keep))
        for name, values in answer.readings.items():
            for metric, value in values.items():
                if metric == GPU_RECOVERY_ACTION.name:
                    self._take_recovery(name, value)
                yield Sample(CATALOG[metric], name, value)

    def node_samples(self) -> Iterator[Sample]:
        """Yield expected against seen; nothing on a node that never had a GPU."""
        if self.inventory.gpus:
            yield Sample(NODE_GPUS_EXPECTED, entity.NODE, len(self.inventory.gpus))
            yield Sample(NODE_GPUS_SEEN, entity.NODE, self.inventory.seen)

    def tell_hang(self, seconds: float) -> None:
        """Tell that the driver process as a whole does not answer; its successor's answer ends that."""
        self._tell_news(self._episodes.declare(entity.NODE, "driver process", seconds))

    def _tell_news(self, news: Iterable[News]) -> None:
        """Tell hangs and their ends; their origin is the agent, for the driver says nothing."""
        for kind, name, call, seconds in news:
            verb = "has not returned for" if kind == "driver_stuck" else "returned; it hung for"
            facts = {"call": call, "seconds": f"{seconds:.1f}"}
            self._tell(kind, name, f"{call} {verb} {seconds:.1f} s", facts, origin="agent")

    def tell_crash(self, reason: str) -> None:
        """Tell that the driver process died."""
        facts = {"reason": reason}
        self._tell("driver_crashed", entity.NODE, f"the driver process died: {reason}", facts, origin="agent")

    def _lose(self, uuid: str, call: str) -> None:
        if uuid in self.lost:
            return
        self.lost.add(uuid)
        self.inventory.lose(uuid)
        self._recovery.pop(entity.gpu(uuid), None)
        facts = self._facts(uuid) | {"call": call}
        self._tell("gpu_lost", entity.gpu(uuid), "the GPU no longer answers the driver", facts)

    def _take_recovery(self, name: str, action: float) -> None:
        if action != self._recovery.get(name, 0.0):
            text = f"the driver's recovery action is {action:g}"
            self._tell("recovery_action", name, text, {}, code=int(action))
        self._recovery[name] = action

    def _named(self, stuck: frames.Stuck) -> frames.Stuck:
        """Give a hang during opening the board's name by its last known index."""
        if stuck.entity:
            return stuck
        uuid = self.inventory.uuid_at(stuck.index)
        name = entity.gpu(uuid) if uuid else entity.NODE
        return frames.Stuck(name, stuck.index, stuck.call, stuck.seconds)

    def _folded(self, hanging: list[frames.Stuck]) -> list[frames.Stuck]:
        """Say `node` once where every GPU hangs: then it is the driver, and not one board."""
        boards = [stuck for stuck in hanging if stuck.entity != entity.NODE]
        if len(boards) < 2 or len(boards) < self.inventory.seen:
            return hanging
        longest = max(boards, key=lambda stuck: stuck.seconds)
        return [frames.Stuck(entity.NODE, -1, longest.call, longest.seconds)]

    def _facts(self, uuid: str) -> dict[str, str]:
        known = next((gpu for gpu in self.inventory.gpus if gpu.uuid == uuid), None)
        return {"pci": known.pci_bus_id, "index": str(known.index)} if known else {}

    def _tell(
        self, kind: EventKind, name: str, text: str, facts: dict[str, str], *,
        code: int = 0, time_ns: int = 0, origin: Origin = "driver",
    ) -> None:  # fmt: skip
        self._on_event(
            AgentEvent(
                time_ns=time_ns or self._now_ns(),
                kind=kind,
                origin=origin,
                entity=name,
                code=code,
                text=text,
                fields=facts,
            )
        )
