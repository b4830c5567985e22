"""One GPU in the driver process: opened by index, known by UUID, read by its samplers in its own thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from gpuvigil_agent.driver_backoff import Backoff
from gpuvigil_agent.driver_budget import Budget
from gpuvigil_agent.driver_errors import (
    BadArgument,
    DriverAbsent,
    DriverError,
    GpuLost,
    NotSupported,
    OverBudget,
)
from gpuvigil_agent.driver_worker import Outbox, Worker
from gpuvigil_agent.nvml import Calls, Device, Driver
from gpuvigil_agent.samplers.base import Sample, Sampler
from gpuvigil_agent.samplers.gpu_table import GPU_SAMPLERS
from gpuvigil_protos import entity
from gpuvigil_protos.catalog import GPU_DRIVER_CALL_SECONDS

Values = dict[str, dict[str, float]]


class Reading:
    """What one tick's job has found so far; once taken, what still comes is late and dropped."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = False
        self._values: Values = {}
        self._lock = threading.Lock()

    def add(self, sample: Sample) -> None:
        """Take one sample, unless it comes too late."""
        with self._lock:
            if not self.closed:
                self._values.setdefault(sample.entity, {})[sample.metric.name] = sample.value

    def take(self) -> Values:
        """Close, and return what was in time."""
        with self._lock:
            self.closed = True
            values, self._values = self._values, {}
            return values


class Slot:
    """The thread of one index, and the board that it has open."""

    def __init__(self, index: int, budget: Budget, outbox: Outbox) -> None:
        self.index = index
        self.worker = Worker(f"gpu-{index}", Calls(budget), outbox)
        self.device: Device | None = None
        self.verify = False
        self.counters = {"errors": 0, "implausible": 0, "over_budget": 0, "backed_off": 0}
        self._backoff = Backoff()
        self._reading: Reading | None = None
        self._samplers: Sequence[Sampler] = ()
        self._read_at: dict[str, int] = {}
        self._late_seconds = 0.0

    def open(self) -> Device:
        """Open what has this index now and have it answer once. In the worker. Raises DriverError."""
        device = Driver(self.worker.calls).open(self.index)
        with contextlib.suppress(NotSupported):
            device.temperature_celsius()
        return device

    def adopt(self, device: Device) -> None:
        """Take the opened board as this slot's own. On the coordinator."""
        self.device, self._read_at, self._late_seconds = device, {}, 0.0
        self._backoff = Backoff()
        self._samplers = [sampler((device,)) for sampler in GPU_SAMPLERS]

    def drop(self) -> None:
        """Let the board go; its series cease at once."""
        self.device, self._samplers = None, ()
        if self._reading is not None:
            self._reading.take()

    def begin(self, number: int) -> Reading:
        """Start a tick's reading."""
        self._reading = Reading(number)
        return self._reading

    def reads(self, number: int) -> bool:
        """Tell whether the reading of this tick is still under way."""
        return self.worker.busy and self._reading is not None and self._reading.number == number

    def take(self, number: int) -> Values:
        """Return what the reading of this tick has found; nothing when this slot had none."""
        if self._reading is None or self._reading.number != number:
            return {}
        return self._reading.take()

    def read(self, reading: Reading, time_ns: int) -> None:
        """Run the samplers that are due, fast ones first. In the worker. Raises GpuLost, DriverAbsent."""
        device = self.device
        if device is None:
            return
        if self.verify:
            _verify(device)
            self.verify = False
        began = device.calls.seconds
        for sampler in self._samplers:
            if sampler.period_s <= 1:
                self._run(sampler, reading)
        self._backoff.note(device.calls.seconds - began, time_ns)
        self._add_call_seconds(reading, device, device.calls.seconds - began)
        for sampler in self._samplers:
            if sampler.period_s > 1 and self._due(sampler, time_ns):
                self._run(sampler, reading)

    def _add_call_seconds(self, reading: Reading, device: Device, seconds: float) -> None:
        """Report the driver's time for the fast samplers; a time that came too late is told by the next."""
        slowest = max(seconds, self._late_seconds)
        self._late_seconds = slowest if reading.closed else 0.0
        reading.add(Sample(GPU_DRIVER_CALL_SECONDS, entity.gpu(device.uuid), slowest))

    def _due(self, sampler: Sampler, time_ns: int) -> bool:
        """Tell whether the sampler's period has turned; all GPUs turn at the same tick.

        Every other period is left out and counted while the driver is far slower than it was.
        """
        period = time_ns // int(sampler.period_s * 1e9)
        if self._read_at.get(sampler.name) == period:
            return False
        self._read_at[sampler.name] = period
        left_out = self._backoff.active and period % 2 == 1
        self.counters["backed_off"] += left_out
        return not left_out

    def _run(self, sampler: Sampler, reading: Reading) -> None:
        try:
            for sample in sampler.sample():
                if sample.metric.low <= sample.value <= sample.metric.high:
                    reading.add(sample)
                else:
                    self.counters["implausible"] += 1
        except OverBudget:
            self.counters["over_budget"] += 1
        except (GpuLost, DriverAbsent):
            raise
        except DriverError:
            self.counters["errors"] += 1


def _verify(device: Device) -> None:
    """Check, after the count has changed, that the handle still is this board. Raises GpuLost."""
    try:
        same = device.check_uuid()
    except BadArgument as error:
        raise GpuLost(error.call, "the handle is no longer known") from None
    if not same:
        raise GpuLost("nvmlDeviceGetUUID", "the handle means another board")
