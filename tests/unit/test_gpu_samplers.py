"""GPU samplers' arithmetic: units, the older way to read NVLink errors, what a slot keeps of a reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gpuvigil_agent.driver_budget import Budget
from gpuvigil_agent.driver_errors import BadArgument, DriverError, GpuLost, NotSupported
from gpuvigil_agent.driver_slot import Reading, Slot
from gpuvigil_agent.driver_worker import Outbox
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_agent.samplers.gpu_clocks import Clocks
from gpuvigil_agent.samplers.gpu_nvlink import NvLink
from gpuvigil_agent.samplers.gpu_power import Power
from gpuvigil_agent.samplers.gpu_thermal import Thermal
from gpuvigil_protos.catalog import GPU_POWER_WATTS, GPU_TEMPERATURE_CELSIUS


class Board:
    """A board with two links and no sensor but those a test sets."""

    uuid = "GPU-0"
    calls = type("Calls", (), {"seconds": 0.0})()

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        def answer(*_arguments: Any) -> Any:
            if name not in self._answers:
                raise NotSupported(name, "not on this board")
            return self._answers[name]

        return answer

    def fields(self, wanted: Any) -> dict[tuple[int, int], float]:
        known = self._answers.get("field_values", {})
        return {key: known[key] for key in wanted if key in known}

    def nvlink_active(self, link: int) -> bool:
        if link > 1:
            raise NotSupported("nvmlDeviceGetNvLinkState", "no such link")
        return link == 0

    def nvlink_errors(self, link: int, counter: int) -> int:
        return 100 * link + counter

    def check_uuid(self) -> bool:
        if self._answers.get("stale"):
            raise BadArgument("nvmlDeviceGetUUID", "unknown handle")
        return True


def values(sampler: Any) -> dict[tuple[str, str], float]:
    return {(sample.metric.name, sample.entity): sample.value for sample in sampler.sample()}


def test_units_are_the_catalogues() -> None:
    board = Board(power_milliwatts=451_500, energy_millijoules=2_000, sm_clock_megahertz=1980)
    assert values(Power([board]))["gpu_power_watts", "gpu:GPU-0"] == pytest.approx(451.5)
    assert values(Power([board]))["gpu_energy_joules_total", "gpu:GPU-0"] == pytest.approx(2.0)
    assert values(Clocks([board])) == {("gpu_sm_clock_hertz", "gpu:GPU-0"): pytest.approx(1.98e9)}


def test_a_memory_sensor_that_says_zero_is_none() -> None:
    assert values(Thermal([Board(field_values={(82, 0): 0.0})])) == {}
    assert list(values(Thermal([Board(field_values={(82, 0): 61.0})])).values()) == [61.0]


def test_nvlink_errors_are_read_the_older_way_where_fields_are_missing() -> None:
    found = values(NvLink([Board()]))
    assert found["gpu_nvlink_links", "gpu:GPU-0"] == 2
    assert found["gpu_nvlink_links_active", "gpu:GPU-0"] == 1
    assert found["nvlink_crc_errors_total", "nvlink:GPU-0/1"] == 102 + 103
    assert found["nvlink_recovery_errors_total", "nvlink:GPU-0/1"] == 101


def test_nvlink_errors_come_from_fields_by_link() -> None:
    found = values(NvLink([Board(field_values={(163, 0): 5.0, (161, 1): 6.0})]))
    assert found["nvlink_crc_errors_total", "nvlink:GPU-0/0"] == 5
    assert found["nvlink_replay_errors_total", "nvlink:GPU-0/1"] == 6
    assert ("nvlink_crc_errors_total", "nvlink:GPU-0/1") not in found


class Scripted:
    """A sampler that yields or raises what a test says."""

    name, period_s = "scripted", 1.0

    def __init__(self, *script: Sample | DriverError) -> None:
        self._script = script

    def sample(self) -> Iterator[Sample]:
        for step in self._script:
            if isinstance(step, DriverError):
                raise step
            yield step


WATTS = Sample(GPU_POWER_WATTS, "gpu:GPU-0", 300.0)
HEAT = Sample(GPU_TEMPERATURE_CELSIUS, "gpu:GPU-0", 60.0)


def slot(*samplers: Scripted, board: Board | None = None) -> Slot:
    found = Slot(0, Budget(100), Outbox())
    found.adopt(board or Board())  # type: ignore[arg-type]
    found._samplers = samplers
    return found


def read(found: Slot) -> dict[str, float]:
    reading = found.begin(1)
    found.read(reading, 1_000_000_000)
    return found.take(1).get("gpu:GPU-0", {})


def test_an_implausible_value_is_left_out_and_counted() -> None:
    found = slot(Scripted(Sample(GPU_POWER_WATTS, "gpu:GPU-0", 4_294_967.295), HEAT))
    assert read(found).keys() == {"gpu_temperature_celsius", "gpu_driver_call_seconds"}
    assert found.counters["implausible"] == 1


def test_one_sampler_that_fails_costs_no_other() -> None:
    found = slot(Scripted(WATTS, DriverError("nvmlX", "Unknown Error")), Scripted(HEAT))
    assert read(found).keys() >= {"gpu_power_watts", "gpu_temperature_celsius"}
    assert found.counters["errors"] == 1


def test_a_loss_ends_the_reading() -> None:
    found = slot(Scripted(GpuLost("nvmlX", "lost")), Scripted(HEAT))
    with pytest.raises(GpuLost):
        read(found)


def test_a_handle_that_means_no_board_is_a_loss() -> None:
    found = slot(Scripted(HEAT), board=Board(stale=True))
    found.verify = True
    with pytest.raises(GpuLost, match="no longer known"):
        read(found)


def test_what_comes_after_the_answer_is_dropped() -> None:
    reading = Reading(1)
    reading.add(WATTS)
    assert reading.take() == {"gpu:GPU-0": {"gpu_power_watts": 300.0}}
    reading.add(HEAT)
    assert reading.take() == {}


def test_a_dropped_board_leaves_nothing_of_its_reading() -> None:
    found = slot(Scripted(HEAT))
    found.read(found.begin(1), 1_000_000_000)
    found.drop()
    assert found.take(1) == {}
    assert found.take(2) == {}


def test_a_reading_is_never_given_to_another_tick() -> None:
    found = slot(Scripted(HEAT))
    found.read(found.begin(1), 1_000_000_000)
    assert found.take(2) == {}
    assert found.take(1)["gpu:GPU-0"]["gpu_temperature_celsius"] == 60.0


def test_slow_samplers_read_once_a_period() -> None:
    sampler = Scripted(HEAT)
    sampler.period_s = 10.0  # type: ignore[misc]
    found = slot(sampler)
    read_at = []
    for second in range(12, 42):
        found.read(found.begin(second), second * 1_000_000_000)
        if "gpu_temperature_celsius" in found.take(second).get("gpu:GPU-0", {}):
            read_at.append(second)
    assert read_at == [12, 20, 30, 40]
