"""One battery over every GPU sampler: absent is left out, blank is nothing, lost is raised."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml as nv
import pytest
from contract import simulated_node

from gpuvigil_agent.driver_budget import Budget
from gpuvigil_agent.driver_errors import GpuLost, OverBudget
from gpuvigil_agent.nvml import Calls, Device, Driver
from gpuvigil_agent.samplers.gpu_processes import Processes
from gpuvigil_agent.samplers.gpu_table import GPU_SAMPLERS, PERIOD_S
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import CATALOG

battery = pytest.mark.parametrize("kind", GPU_SAMPLERS, ids=lambda kind: kind.name)


class OneAnswer:
    """A library in which every function does the same to its arguments and returns the same code."""

    def __init__(self, code: int, fill: Callable[[Any], None] = lambda _out: None) -> None:
        self._code, self._fill = code, fill

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "nvmlErrorString":
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            for argument in arguments:
                if hasattr(argument, "_obj"):
                    self._fill(argument._obj)
            return self._code

        return call


def all_ones(out: Any) -> None:
    """NVML's "not available" in every member of an out-parameter."""
    ctypes.memset(ctypes.addressof(out), 0xFF, ctypes.sizeof(out))


def int64_blank_fields(out: Any) -> None:
    """Blanks as dcgm-exporter has shown them, in fields that claim success; else all ones."""
    if not isinstance(out, ctypes.Array):
        all_ones(out)
        return
    for field in out:
        field.nvmlReturn, field.valueType = 0, nv.NVML_VALUE_TYPE_SIGNED_LONG_LONG
        field.value.sllVal = 9223372036854775794


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Device]]:
    def put(found: Any) -> Device:
        monkeypatch.setattr(nv, "nvmlLib", found)
        nv._nvmlGetFunctionPointer_cache.clear()
        handle = nv.c_nvmlDevice_t()
        return Device(Calls(Budget(10_000)), handle, uuid="GPU-0", index=0, name="x", pci_bus_id="y")

    yield put
    nv._nvmlGetFunctionPointer_cache.clear()


@pytest.fixture(params=["h100", "a100"])
def devices(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Device]]:
    settings = simulated_node.config(tmp_path, gpus=2, profile=request.param)
    with simulated_node.installed(settings, simulated_node.Clock(30)):
        driver = Driver(Calls(Budget(10_000)))
        yield [driver.open(0), driver.open(1)]


@battery
def test_it_yields_catalogue_metrics_of_its_own_and_valid_entities(kind: Any, devices: list[Device]) -> None:
    samples = list(kind(devices).sample())
    uuids = {device.uuid for device in devices}
    assert {entity.gpu_uuid_of(sample.entity) for sample in samples} <= uuids
    assert samples or kind.name == "gpu_recovery", "only older drivers have no recovery action"
    for sample in samples:
        assert CATALOG[sample.metric.name] is sample.metric
        assert sample.metric in kind.metrics
        assert entity.is_valid_entity(sample.entity)
        assert entity.kind_of(sample.entity) == sample.metric.entity_kind
        assert sample.metric.low <= sample.value <= sample.metric.high
        assert PERIOD_S[sample.metric.name] == kind.period_s
    assert len({(sample.metric.name, sample.entity) for sample in samples}) == len(samples)


@battery
def test_it_leaves_its_devices_as_they_were(kind: Any, devices: list[Device]) -> None:
    before = [copy.copy(device.__dict__) for device in devices]
    handed = list(devices)
    first = {(s.metric.name, s.entity) for s in kind(handed).sample()}
    second = {(s.metric.name, s.entity) for s in kind(handed).sample()}
    assert first == second
    assert handed == devices
    assert [device.__dict__ for device in devices] == before


@battery
@pytest.mark.parametrize(
    "code", [nv.NVML_ERROR_NOT_SUPPORTED, nv.NVML_ERROR_FUNCTION_NOT_FOUND, nv.NVML_ERROR_NO_PERMISSION]
)
def test_what_the_board_lacks_is_left_out(kind: Any, code: int, library: Any) -> None:
    assert list(kind([library(OneAnswer(code))]).sample()) == []


# NVML gives processes as a list, which has no blank
@pytest.mark.parametrize(
    "kind", [kind for kind in GPU_SAMPLERS if kind is not Processes], ids=lambda k: k.name
)
@pytest.mark.parametrize("fill", [all_ones, int64_blank_fields])
def test_a_blank_is_no_value(kind: Any, fill: Any, library: Any) -> None:
    assert list(kind([library(OneAnswer(nv.NVML_SUCCESS, fill))]).sample()) == []


@battery
def test_a_lost_gpu_is_raised_and_nothing_yielded(kind: Any, library: Any) -> None:
    with pytest.raises(GpuLost):
        list(kind([library(OneAnswer(nv.NVML_ERROR_GPU_IS_LOST))]).sample())


@battery
def test_the_bound_on_calls_is_felt(kind: Any, devices: list[Device]) -> None:
    for device in devices:
        device.calls = Calls(Budget(0))
    with pytest.raises(OverBudget):
        list(kind(devices).sample())


def test_no_devices_no_samples() -> None:
    assert [sample for kind in GPU_SAMPLERS for sample in kind([]).sample()] == []


def test_names_are_unique_and_fast_samplers_come_first() -> None:
    names = [kind.name for kind in GPU_SAMPLERS]
    assert len(set(names)) == len(names)
    periods = [kind.period_s for kind in GPU_SAMPLERS]
    assert periods == sorted(periods)


def test_driver_calls_per_second_stay_low(devices: list[Device]) -> None:
    rate = 0.0
    for kind in GPU_SAMPLERS:
        before = devices[0].calls.count
        list(kind(devices).sample())
        rate += (devices[0].calls.count - before) / kind.period_s / len(devices)
    assert rate < 20, "driver calls per GPU and second"
