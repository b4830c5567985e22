"""What the driver process says becomes events once: losses, returns, hangs, recovery actions, inventory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from gpuvigil_agent import driver_frames as frames
from gpuvigil_agent.driver_episodes import Episodes
from gpuvigil_agent.driver_report import DriverReport
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.gpu_inventory import GpuInventory


def gpu(number: int, bus: int | None = None) -> frames.GpuInfo:
    return frames.GpuInfo(
        uuid=f"GPU-{number}", index=number, model="H100", pci_bus_id=f"0000:0{bus or number}:00.0"
    )


def inventory(*numbers: int, complete: bool = True) -> frames.Inventory:
    return frames.Inventory("570.1", [gpu(number) for number in numbers], complete)


def answer(readings: dict[str, dict[str, float]], *stuck: frames.Stuck) -> frames.Answer:
    return frames.Answer(1, readings, list(stuck), {"calls": 1})


class Told:
    def __init__(self, path: Path | None = None) -> None:
        self.events: list[AgentEvent] = []
        self.report = DriverReport(path, 2.0, self.events.append, lambda: 5)

    def kinds(self) -> list[tuple[str, str]]:
        found = [(event.kind, event.entity) for event in self.events]
        self.events.clear()
        return found

    def answer(self, readings: dict[str, dict[str, float]], *stuck: frames.Stuck) -> None:
        list(self.report.take_answer(answer(readings, *stuck), initialised=True))


def test_a_loss_is_told_once_though_two_ways_see_it() -> None:
    told = Told()
    told.report.take_inventory(inventory(1, 2), [])
    told.report.take_happened(frames.Happened(9, "gpu_lost", "GPU-2", call="nvmlX"))
    told.report.take_inventory(inventory(1), [])
    assert told.kinds() == [("gpu_lost", "gpu:GPU-2")]
    told.report.take_inventory(inventory(1, 2), [])
    assert told.kinds() == [("gpu_returned", "gpu:GPU-2")]


def test_an_incomplete_list_loses_nobody() -> None:
    told = Told()
    told.report.take_inventory(inventory(1, 2), [])
    told.report.take_inventory(inventory(1, complete=False), [])
    assert told.kinds() == []
    assert [g.seen for g in told.report.inventory.gpus] == [True, True]


def test_a_skipped_board_is_not_lost() -> None:
    told = Told()
    told.report.take_inventory(inventory(1, 2), [])
    told.report.take_inventory(inventory(1), [2])
    assert told.kinds() == []


def test_a_replaced_board_is_forgotten_by_its_bus_address(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    known = GpuInventory(path)
    known.update([gpu(1), gpu(2)], complete=True)
    known.update([gpu(1), gpu(7, bus=2)], complete=True)
    deadline = time.monotonic() + 10  # a thread writes the file
    while [g.uuid for g in GpuInventory(path).gpus] != ["GPU-1", "GPU-7"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(Path, "write_bytes", lambda *_: released.wait(30))
    before, began = threading.active_count(), time.monotonic()
    known = GpuInventory(tmp_path / "gpus.json")
    for number in range(1, 20):
        known.update([gpu(n) for n in range(1, number + 1)], complete=True)
    assert time.monotonic() - began < 5
    assert threading.active_count() < before + 10, "one writer, however often it is asked"
    released.set()


def test_a_spoilt_inventory_file_is_as_none(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    path.write_bytes(b'[{"uuid": 3}]')
    assert GpuInventory(path).gpus == ()
    unwritable = GpuInventory(tmp_path / "nowhere" / "gpus.json")
    unwritable.update([gpu(1)], complete=True)
    assert unwritable.seen == 1


def test_a_hang_is_told_after_its_deadline_and_three_tries() -> None:
    episodes = Episodes(2.0)
    assert episodes.observe([("gpu:1", "nvmlX", 9.0)], frozenset()) == []
    assert episodes.observe([("gpu:1", "nvmlX", 10.0)], frozenset()) == []
    [news] = episodes.observe([("gpu:1", "nvmlX", 11.0)], frozenset())
    assert news == ("driver_stuck", "gpu:1", "nvmlX", 11.0)
    assert episodes.observe([("gpu:1", "nvmlX", 12.0)], frozenset()) == []
    assert episodes.observe([], frozenset({"gpu:1"})) == []
    [ended] = episodes.observe([], frozenset())
    assert ended.kind == "driver_recovered"
    for seconds in (1.0, 1.5, 1.9, 1.99):
        assert episodes.observe([("gpu:1", "nvmlX", seconds)], frozenset()) == [], "before the deadline"


def test_every_gpu_hanging_is_the_driver_hanging() -> None:
    told = Told()
    told.report.take_inventory(inventory(1, 2), [])
    both = [frames.Stuck(f"gpu:GPU-{n}", n, "nvmlX", 3.0) for n in (1, 2)]
    for _ in range(4):
        told.answer({}, *both)
    assert told.kinds() == [("driver_stuck", "node")]
    told.answer({"gpu:GPU-1": {"gpu_power_watts": 3.0}})
    assert told.kinds() == [("driver_recovered", "node")]


def test_a_hang_while_opening_is_named_by_the_last_known_index() -> None:
    told = Told()
    told.report.take_inventory(inventory(1, 2, 3), [])
    for _ in range(3):
        told.answer({"gpu:GPU-1": {"gpu_power_watts": 3.0}}, frames.Stuck("", 2, "nvmlDeviceGetUUID", 3.0))
    assert told.kinds() == [("driver_stuck", "gpu:GPU-2")]


def test_a_hang_that_ends_in_a_loss_is_a_loss() -> None:
    told = Told()
    told.report.take_inventory(inventory(1, 2, 3), [])
    for _ in range(3):
        told.answer({"gpu:GPU-1": {"gpu_power_watts": 3.0}}, frames.Stuck("gpu:GPU-2", 2, "nvmlX", 3.0))
    told.report.take_happened(frames.Happened(9, "gpu_lost", "GPU-2", call="nvmlX"))
    told.answer({"gpu:GPU-1": {"gpu_power_watts": 3.0}})
    assert told.kinds() == [
        ("driver_stuck", "gpu:GPU-2"),
        ("gpu_lost", "gpu:GPU-2"),
        ("driver_recovered", "gpu:GPU-2"),
    ]


def test_a_recovery_action_is_told_when_it_changes() -> None:
    told = Told()
    told.report.take_inventory(inventory(1), [])
    for action in (0.0, 0.0, 2.0, 2.0, 0.0):
        told.answer({"gpu:GPU-1": {"gpu_recovery_action": action}})
    assert [(event.kind, event.code) for event in told.events] == [
        ("recovery_action", 2),
        ("recovery_action", 0),
    ]


def test_a_node_that_never_had_a_gpu_says_nothing_of_gpus() -> None:
    assert list(Told().report.node_samples()) == []
