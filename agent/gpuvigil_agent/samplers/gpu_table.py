"""Every GPU sampler once, the fast ones first. They run in the driver process alone."""

from __future__ import annotations

from gpuvigil_agent.samplers.gpu_activity import Activity
from gpuvigil_agent.samplers.gpu_clocks import Clocks
from gpuvigil_agent.samplers.gpu_ecc import Ecc
from gpuvigil_agent.samplers.gpu_limits import Limits
from gpuvigil_agent.samplers.gpu_memory import Memory
from gpuvigil_agent.samplers.gpu_nvlink import NvLink
from gpuvigil_agent.samplers.gpu_pcie import Pcie
from gpuvigil_agent.samplers.gpu_power import Power
from gpuvigil_agent.samplers.gpu_processes import Processes
from gpuvigil_agent.samplers.gpu_recovery import Recovery
from gpuvigil_agent.samplers.gpu_remapped_rows import RemappedRows
from gpuvigil_agent.samplers.gpu_thermal import Thermal
from gpuvigil_protos.catalog import GPU_DRIVER_CALL_SECONDS, NODE_GPUS_EXPECTED, NODE_GPUS_SEEN

GPU_SAMPLERS = (
    Activity, Memory, Thermal, Power, Clocks,
    Recovery, Ecc, Pcie, NvLink, Processes,
    RemappedRows, Limits,
)  # fmt: skip

PERIOD_S = {metric.name: sampler.period_s for sampler in GPU_SAMPLERS for metric in sampler.metrics} | {
    metric.name: 1.0 for metric in (GPU_DRIVER_CALL_SECONDS, NODE_GPUS_EXPECTED, NODE_GPUS_SEEN)
}
"""By metric name, how often the driver client yields it."""
