"""NVML's raw numbers: blanks are never values, texts are clean, calls are bounded and their errors named."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pynvml as nv
import pytest
from contract import simulated_node
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_agent import driver_errors, driver_values, nvml
from gpuvigil_agent.driver_budget import Budget
from gpuvigil_agent.driver_values import BLANKS_32, BLANKS_64


@pytest.mark.parametrize("blank", [9223372036854775794, 9223372036854775792, 2**64 - 1])
def test_64_bit_blanks_are_no_values(blank: int) -> None:
    with pytest.raises(driver_errors.NotSupported, match=str(blank)):
        driver_values.number(blank, BLANKS_64)


@pytest.mark.parametrize("blank", [0xFFFFFFFF, 0x7FFFFFF0, 0x7FFFFFF3])
def test_32_bit_blanks_are_no_values(blank: int) -> None:
    with pytest.raises(driver_errors.NotSupported):
        driver_values.number(blank, BLANKS_32)


def test_a_64_bit_counter_may_pass_a_32_bit_blank() -> None:
    assert driver_values.number(0x7FFFFFF1, BLANKS_64) == 0x7FFFFFF1
    assert driver_values.number(0, BLANKS_32) == 0


@pytest.mark.parametrize(
    ("kind", "member", "value", "expected"),
    [
        (0, "dVal", 1.5, 1.5),
        (0, "dVal", float("nan"), None),
        (0, "dVal", float("inf"), None),
        (1, "uiVal", 7, 7.0),
        (1, "uiVal", 0xFFFFFFFF, None),
        (3, "ullVal", 9223372036854775794, None),
        (4, "sllVal", 9223372036854775794, None),
        (5, "siVal", -3, -3.0),
        (99, "uiVal", 7, None),
    ],
)
def test_field_values_by_type(kind: int, member: str, value: float, expected: float | None) -> None:
    assert driver_values.field_number(0, kind, SimpleNamespace(**{member: value})) == expected


def test_a_refused_field_is_no_value() -> None:
    assert driver_values.field_number(nv.NVML_ERROR_NOT_SUPPORTED, 1, SimpleNamespace(uiVal=0)) is None


@given(st.binary(max_size=200))
def test_texts_are_printable_and_bounded(raw: bytes) -> None:
    clean = driver_values.text(raw)
    assert len(clean) <= 96
    assert all(" " <= character <= "~" for character in clean)


def test_pci_addresses_are_the_kernels() -> None:
    assert driver_values.pci_address("00000000:1B:00.0") == "0000:1b:00.0"
    assert driver_values.pci_address("00010000:1B:00.0") == "00010000:1b:00.0"


def test_our_numbers_are_pynvmls() -> None:
    assert driver_values.FIELD_MEMORY_TEMPERATURE == nv.NVML_FI_DEV_MEMORY_TEMP
    assert driver_values.FIELD_RECOVERY_ACTION == nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
    assert driver_values.FIELD_NVLINK_REPLAYS == nv.NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY
    assert driver_values.FIELD_NVLINK_RECOVERIES == nv.NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY
    assert driver_values.FIELD_NVLINK_CRC == nv.NVML_FI_DEV_NVLINK_ERROR_DL_CRC
    assert (driver_values.NVLINK_REPLAY, driver_values.NVLINK_RECOVERY) == (
        nv.NVML_NVLINK_ERROR_DL_REPLAY,
        nv.NVML_NVLINK_ERROR_DL_RECOVERY,
    )
    assert (driver_values.NVLINK_CRC_FLIT, driver_values.NVLINK_CRC_DATA) == (
        nv.NVML_NVLINK_ERROR_DL_CRC_FLIT,
        nv.NVML_NVLINK_ERROR_DL_CRC_DATA,
    )


def test_the_budget_refuses_and_refills() -> None:
    now = [0.0]
    budget = Budget(10, lambda: now[0])
    for _ in range(10):
        budget.take("nvmlX")
    with pytest.raises(driver_errors.OverBudget, match="nvmlX"):
        budget.take("nvmlX")
    now[0] = 0.5
    for _ in range(5):
        budget.take("nvmlX")
    with pytest.raises(driver_errors.OverBudget):
        budget.take("nvmlX")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (nv.NVML_ERROR_NOT_SUPPORTED, driver_errors.NotSupported),
        (nv.NVML_ERROR_NO_PERMISSION, driver_errors.NotSupported),
        (nv.NVML_ERROR_GPU_IS_LOST, driver_errors.GpuLost),
        (nv.NVML_ERROR_UNINITIALIZED, driver_errors.DriverAbsent),
        (nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH, driver_errors.DriverAbsent),
        (nv.NVML_ERROR_INVALID_ARGUMENT, driver_errors.BadArgument),
        (nv.NVML_ERROR_UNKNOWN, driver_errors.DriverError),
    ],
)
def test_every_refusal_has_its_name(code: int, kind: type[Exception]) -> None:
    def nvml_refusal() -> None:
        raise nv.NVMLError(code)

    calls = nvml.Calls(Budget(100))
    with pytest.raises(driver_errors.DriverError) as caught:
        calls.make(nvml_refusal)
    assert type(caught.value) is kind
    assert caught.value.call == "nvml_refusal"
    assert calls.in_flight is None
    assert calls.count == 1


def test_a_call_in_flight_can_be_seen() -> None:
    calls = nvml.Calls(Budget(100))
    seen = []

    def nvml_slow() -> None:
        seen.append(calls.in_flight)

    calls.make(nvml_slow)
    assert seen[0] is not None
    assert seen[0][0] == "nvml_slow"


def test_a_handle_tells_its_board_when_the_board_no_longer_can(tmp_path: Path) -> None:
    settings = simulated_node.config(tmp_path, gpus=2)
    with simulated_node.installed(settings):
        driver = nvml.Driver(nvml.Calls(Budget(100)))
        first, second = driver.open(0), driver.open(1)
    assert nvml.handle_address(first.handle) != nvml.handle_address(second.handle)
    assert nvml.handle_address(nv.c_nvmlDevice_t()) == 0
    assert ctypes.sizeof(nv.c_nvmlDevice_t) == 8
