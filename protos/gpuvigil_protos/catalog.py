"""The metric catalogue: every metric once, for agent, collector, exporter and documentation.

Names carry base units and become `gpuvigil_<name>` in Prometheus. A `counter` travels as a rate per second
(`wire="rate"`) where only its speed matters, and as its running total (`wire="level"`) where the level is
the fact (ECC, remapped rows). `low` and `high` bound what hardware can say: values outside are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["gauge", "counter", "event"]
EntityKind = Literal["node", "gpu", "nvlink", "disk", "filesystem", "interface", "rank"]
Wire = Literal["level", "rate"]

_HUGE = 1e18


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: what it is called, counts, and can plausibly say. `dcgm` is dcgm-exporter's twin or None."""

    name: str
    unit: str
    kind: Kind
    entity_kind: EntityKind
    source: str
    low: float
    high: float
    help: str
    dcgm: str | None = None
    wire: Wire = "level"


CATALOG: Final[dict[str, Metric]] = {}


def _add(metric: Metric) -> Metric:
    if metric.name in CATALOG:
        raise ValueError(f"metric {metric.name} is in the catalogue twice")
    CATALOG[metric.name] = metric
    return metric


def _gauge(
    name: str, unit: str, entity: EntityKind, source: str, high: float, text: str, dcgm: str | None = None
) -> Metric:
    return _add(Metric(name=name, unit=unit, kind="gauge", entity_kind=entity, source=source, low=0.0,
                       high=high, help=text, dcgm=dcgm))  # fmt: skip


def _counter(
    name: str, unit: str, entity: EntityKind, source: str, text: str, dcgm: str | None = None,
    *, wire: Wire = "rate",
) -> Metric:  # fmt: skip
    return _add(Metric(name=name, unit=unit, kind="counter", entity_kind=entity, source=source, low=0.0,
                       high=_HUGE, help=text, dcgm=dcgm, wire=wire))  # fmt: skip


def _signed(name: str, unit: str, text: str) -> Metric:
    return _add(Metric(name=name, unit=unit, kind="gauge", entity_kind="rank", source="hook", low=-_HUGE,
                       high=_HUGE, help=text))  # fmt: skip


# fmt: off
# --- GPU activity and memory
GPU_UTILIZATION_RATIO = _gauge("gpu_utilization_ratio", "ratio", "gpu", "nvmlDeviceGetUtilizationRates",
    1, "Share of the last sample period in which a kernel was running.", "DCGM_FI_DEV_GPU_UTIL")
GPU_MEMORY_UTILIZATION_RATIO = _gauge("gpu_memory_utilization_ratio", "ratio", "gpu", "nvmlDeviceGetUtilizationRates",
    1, "Share of the last sample period in which device memory was read or written.", "DCGM_FI_DEV_MEM_COPY_UTIL")
GPU_FRAMEBUFFER_USED_BYTES = _gauge("gpu_framebuffer_used_bytes", "bytes", "gpu", "nvmlDeviceGetMemoryInfo",
    1e13, "Device memory in use.", "DCGM_FI_DEV_FB_USED")
GPU_FRAMEBUFFER_TOTAL_BYTES = _gauge("gpu_framebuffer_total_bytes", "bytes", "gpu", "nvmlDeviceGetMemoryInfo",
    1e13, "Device memory on the board.", "DCGM_FI_DEV_FB_TOTAL")
GPU_COMPUTE_PROCESSES = _gauge("gpu_compute_processes", "processes", "gpu", "nvmlDeviceGetComputeRunningProcesses_v3",
    1e6, "Processes with a compute context on the GPU.")
# --- temperature, power, energy
GPU_TEMPERATURE_CELSIUS = _gauge("gpu_temperature_celsius", "celsius", "gpu", "nvmlDeviceGetTemperature",
    150, "Core temperature.", "DCGM_FI_DEV_GPU_TEMP")
GPU_MEMORY_TEMPERATURE_CELSIUS = _gauge("gpu_memory_temperature_celsius", "celsius", "gpu", "NVML_FI_DEV_MEMORY_TEMP",
    150, "Device-memory temperature.", "DCGM_FI_DEV_MEMORY_TEMP")
GPU_POWER_WATTS = _gauge("gpu_power_watts", "watts", "gpu", "nvmlDeviceGetPowerUsage",
    5000, "Power draw of the board.", "DCGM_FI_DEV_POWER_USAGE")
GPU_POWER_LIMIT_WATTS = _gauge("gpu_power_limit_watts", "watts", "gpu", "nvmlDeviceGetEnforcedPowerLimit",
    5000, "Enforced power limit.", "DCGM_FI_DEV_ENFORCED_POWER_LIMIT")
GPU_ENERGY_JOULES_TOTAL = _counter("gpu_energy_joules_total", "joules", "gpu", "nvmlDeviceGetTotalEnergyConsumption",
    "Energy used since the driver was loaded.", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION")
# --- clocks
GPU_SM_CLOCK_HERTZ = _gauge("gpu_sm_clock_hertz", "hertz", "gpu", "nvmlDeviceGetClockInfo",
    1e10, "Clock of the streaming multiprocessors.", "DCGM_FI_DEV_SM_CLOCK")
GPU_MEMORY_CLOCK_HERTZ = _gauge("gpu_memory_clock_hertz", "hertz", "gpu", "nvmlDeviceGetClockInfo",
    1e10, "Clock of the device memory.", "DCGM_FI_DEV_MEM_CLOCK")
GPU_SM_CLOCK_MAX_HERTZ = _gauge("gpu_sm_clock_max_hertz", "hertz", "gpu", "nvmlDeviceGetMaxClockInfo",
    1e10, "Highest clock the board allows.", "DCGM_FI_DEV_MAX_SM_CLOCK")
GPU_CLOCKS_EVENT_REASONS = _gauge("gpu_clocks_event_reasons", "bitmask", "gpu",
    "nvmlDeviceGetCurrentClocksEventReasons", 65535, "Why clocks are below their maximum, as NVML's bits.",
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS")
# --- ECC and remapped rows (levels: a single count is the fact)
GPU_ECC_CORRECTED_VOLATILE_TOTAL = _counter("gpu_ecc_corrected_volatile_total", "errors", "gpu",
    "nvmlDeviceGetTotalEccErrors", "Corrected ECC errors since the driver was loaded.",
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", wire="level")
GPU_ECC_UNCORRECTED_VOLATILE_TOTAL = _counter("gpu_ecc_uncorrected_volatile_total", "errors", "gpu",
    "nvmlDeviceGetTotalEccErrors", "Uncorrectable ECC errors since the driver was loaded.",
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", wire="level")
GPU_ECC_CORRECTED_AGGREGATE_TOTAL = _counter("gpu_ecc_corrected_aggregate_total", "errors", "gpu",
    "nvmlDeviceGetTotalEccErrors", "Corrected ECC errors over the board's life.",
    "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", wire="level")
GPU_ECC_UNCORRECTED_AGGREGATE_TOTAL = _counter("gpu_ecc_uncorrected_aggregate_total", "errors", "gpu",
    "nvmlDeviceGetTotalEccErrors", "Uncorrectable ECC errors over the board's life.",
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", wire="level")
GPU_REMAPPED_ROWS_CORRECTABLE = _counter("gpu_remapped_rows_correctable_total", "rows", "gpu",
    "nvmlDeviceGetRemappedRows", "Rows remapped for correctable errors.",
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", wire="level")
GPU_REMAPPED_ROWS_UNCORRECTABLE = _counter("gpu_remapped_rows_uncorrectable_total", "rows", "gpu",
    "nvmlDeviceGetRemappedRows", "Rows remapped for uncorrectable errors.",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", wire="level")
GPU_ROW_REMAP_PENDING = _gauge("gpu_row_remap_pending", "flag", "gpu", "nvmlDeviceGetRemappedRows",
    1, "1 while a remap waits for a GPU reset.", "DCGM_FI_DEV_ROW_REMAP_PENDING")
GPU_ROW_REMAP_FAILURE = _gauge("gpu_row_remap_failure", "flag", "gpu", "nvmlDeviceGetRemappedRows",
    1, "1 once a remap has failed.", "DCGM_FI_DEV_ROW_REMAP_FAILURE")
GPU_RECOVERY_ACTION = _gauge("gpu_recovery_action", "code", "gpu", "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION",
    255, "What the driver says the GPU needs: 0 none, 1 GPU reset, 2 node reboot, 3 drain P2P, 4 drain and reset.")
# --- PCIe
GPU_PCIE_LINK_GENERATION = _gauge("gpu_pcie_link_generation", "generation", "gpu",
    "nvmlDeviceGetCurrPcieLinkGeneration", 16, "PCIe generation of the link now.", "DCGM_FI_DEV_PCIE_LINK_GEN")
GPU_PCIE_LINK_WIDTH = _gauge("gpu_pcie_link_width", "lanes", "gpu", "nvmlDeviceGetCurrPcieLinkWidth",
    64, "PCIe lanes of the link now.", "DCGM_FI_DEV_PCIE_LINK_WIDTH")
GPU_PCIE_LINK_GENERATION_MAX = _gauge("gpu_pcie_link_generation_max", "generation", "gpu",
    "nvmlDeviceGetMaxPcieLinkGeneration", 16, "Highest PCIe generation of GPU and slot together.",
    "DCGM_FI_DEV_PCIE_MAX_LINK_GEN")
GPU_PCIE_LINK_WIDTH_MAX = _gauge("gpu_pcie_link_width_max", "lanes", "gpu", "nvmlDeviceGetMaxPcieLinkWidth",
    64, "Most PCIe lanes of GPU and slot together.", "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH")
GPU_PCIE_REPLAYS_TOTAL = _counter("gpu_pcie_replays_total", "replays", "gpu", "nvmlDeviceGetPcieReplayCounter",
    "PCIe packets sent again.", "DCGM_FI_DEV_PCIE_REPLAY_COUNTER")
# --- NVLink: per GPU the sums, per link the state
GPU_NVLINK_LINKS = _gauge("gpu_nvlink_links", "links", "gpu", "nvmlDeviceGetNvLinkState",
    64, "NVLinks the GPU has.")
GPU_NVLINK_LINKS_ACTIVE = _gauge("gpu_nvlink_links_active", "links", "gpu", "nvmlDeviceGetNvLinkState",
    64, "NVLinks that are up.")
NVLINK_CRC_ERRORS_TOTAL = _counter("nvlink_crc_errors_total", "errors", "nvlink", "nvmlDeviceGetNvLinkErrorCounter",
    "CRC errors of a link, flits and data.", "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL")
NVLINK_REPLAY_ERRORS_TOTAL = _counter("nvlink_replay_errors_total", "errors", "nvlink",
    "nvmlDeviceGetNvLinkErrorCounter", "Replays of a link.", "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL")
NVLINK_RECOVERY_ERRORS_TOTAL = _counter("nvlink_recovery_errors_total", "errors", "nvlink",
    "nvmlDeviceGetNvLinkErrorCounter", "Recoveries of a link.", "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL")
# --- the driver itself
GPU_DRIVER_CALL_SECONDS = _gauge("gpu_driver_call_seconds", "seconds", "gpu", "time around the sampler's driver calls",
    86400, "Time the driver took for this GPU's fast reading.")
NODE_GPUS_EXPECTED = _gauge("node_gpus_expected", "gpus", "node", "inventory", 1024, "GPUs this node has had.")
NODE_GPUS_SEEN = _gauge("node_gpus_seen", "gpus", "node", "nvmlDeviceGetCount_v2", 1024, "GPUs that answer now.")
# --- host
NODE_CPU_UTILIZATION_RATIO = _gauge("node_cpu_utilization_ratio", "ratio", "node", "/proc/stat",
    1, "Busy share of all cores.")
NODE_CPU_IOWAIT_RATIO = _gauge("node_cpu_iowait_ratio", "ratio", "node", "/proc/stat",
    1, "Share of time idle while a disk read or write was outstanding.")
NODE_LOAD1 = _gauge("node_load1", "tasks", "node", "/proc/loadavg", 1e6, "Load average over one minute.")
NODE_PROCESSES_BLOCKED = _gauge("node_processes_blocked", "processes", "node", "/proc/stat procs_blocked",
    1e6, "Processes in uninterruptible sleep.")
NODE_CPU_PRESSURE_RATIO = _gauge("node_cpu_pressure_ratio", "ratio", "node", "/proc/pressure/cpu some avg10",
    1, "Share of time in which some task waited for a core.")
NODE_MEMORY_PRESSURE_RATIO = _gauge("node_memory_pressure_ratio", "ratio", "node", "/proc/pressure/memory some avg10",
    1, "Share of time in which some task waited for memory.")
NODE_IO_PRESSURE_RATIO = _gauge("node_io_pressure_ratio", "ratio", "node", "/proc/pressure/io some avg10",
    1, "Share of time in which some task waited for storage.")
NODE_MEMORY_TOTAL_BYTES = _gauge("node_memory_total_bytes", "bytes", "node", "/proc/meminfo MemTotal",
    1e15, "Memory of the host.")
NODE_MEMORY_AVAILABLE_BYTES = _gauge("node_memory_available_bytes", "bytes", "node", "/proc/meminfo MemAvailable",
    1e15, "Memory that new work could use without swapping.")
NODE_SWAP_USED_BYTES = _gauge("node_swap_used_bytes", "bytes", "node", "/proc/meminfo SwapTotal-SwapFree",
    1e15, "Swap in use.")
NODE_OOM_KILLS_TOTAL = _counter("node_oom_kills_total", "kills", "node", "/proc/vmstat oom_kill",
    "Processes killed for want of memory since boot.", wire="level")
# --- disks and file systems
DISK_READ_BYTES_TOTAL = _counter("disk_read_bytes_total", "bytes", "disk", "/proc/diskstats", "Bytes read.")
DISK_WRITTEN_BYTES_TOTAL = _counter("disk_written_bytes_total", "bytes", "disk", "/proc/diskstats", "Bytes written.")
DISK_OPERATIONS_TOTAL = _counter("disk_operations_total", "operations", "disk", "/proc/diskstats",
    "Reads and writes completed.")
DISK_BUSY_RATIO = _gauge("disk_busy_ratio", "ratio", "disk", "/proc/diskstats io_ticks",
    1, "Share of time with at least one request in flight.")
DISK_LATENCY_SECONDS = _gauge("disk_latency_seconds", "seconds", "disk", "/proc/diskstats",
    3600, "Mean time of the requests that completed since the last reading; absent when none did.")
FILESYSTEM_SIZE_BYTES = _gauge("filesystem_size_bytes", "bytes", "filesystem", "statvfs", 1e18, "Size.")
FILESYSTEM_AVAILABLE_BYTES = _gauge("filesystem_available_bytes", "bytes", "filesystem", "statvfs",
    1e18, "Bytes that an ordinary user may still write.")
FILESYSTEM_INODES = _gauge("filesystem_inodes", "inodes", "filesystem", "statvfs", 1e18, "Inodes; absent where unbounded.")
FILESYSTEM_INODES_FREE = _gauge("filesystem_inodes_free", "inodes", "filesystem", "statvfs", 1e18, "Free inodes.")
FILESYSTEM_READONLY = _gauge("filesystem_readonly", "flag", "filesystem", "/proc/self/mountinfo", 1,
    "1 when the file system itself is read-only, whatever the mount says.")
# --- network interfaces
INTERFACE_UP = _gauge("interface_up", "flag", "interface", "/sys/class/net/*/carrier", 1, "1 while the link has a carrier.")
INTERFACE_SPEED_BYTES = _gauge("interface_speed_bytes_per_second", "bytes_per_second", "interface",
    "/sys/class/net/*/speed", 1e13, "Negotiated speed.")
INTERFACE_CARRIER_CHANGES_TOTAL = _counter("interface_carrier_changes_total", "changes", "interface",
    "/sys/class/net/*/carrier_changes", "Times the carrier came or went.", wire="level")
INTERFACE_RECEIVE_BYTES_TOTAL = _counter("interface_receive_bytes_total", "bytes", "interface", "/proc/net/dev", "Bytes received.")
INTERFACE_TRANSMIT_BYTES_TOTAL = _counter("interface_transmit_bytes_total", "bytes", "interface", "/proc/net/dev", "Bytes sent.")
INTERFACE_ERRORS_TOTAL = _counter("interface_errors_total", "errors", "interface", "/proc/net/dev", "Receive and send errors.")
INTERFACE_DROPS_TOTAL = _counter("interface_drops_total", "packets", "interface", "/proc/net/dev", "Packets dropped.")
# --- the training loop, one row a step (Group.steps); the hook's ring is the source of all
RANK_STEP = _gauge("rank_step", "step", "rank", "hook", 1e15, "Number of the step, as the loop counts.")
RANK_STEPS_MERGED = _gauge("rank_steps_merged", "steps", "rank", "hook",
    1e9, "Steps that this row stands for: more than 1 where a loop is faster than rows may come.")
RANK_STEP_SECONDS = _gauge("rank_step_seconds", "seconds", "rank", "hook", 1e7, "Wall time of the step.")
RANK_DATA_SECONDS = _gauge("rank_data_seconds", "seconds", "rank", "hook", 1e7, "Of it, waiting for input.")
RANK_FORWARD_SECONDS = _gauge("rank_forward_seconds", "seconds", "rank", "hook", 1e7, "Of it, the forward pass.")
RANK_BACKWARD_SECONDS = _gauge("rank_backward_seconds", "seconds", "rank", "hook", 1e7, "Of it, the backward pass.")
RANK_OPTIMIZER_SECONDS = _gauge("rank_optimizer_seconds", "seconds", "rank", "hook", 1e7, "Of it, the optimizer.")
RANK_CHECKPOINT_SECONDS = _gauge("rank_checkpoint_seconds", "seconds", "rank", "hook", 1e7, "Of it, saving.")
RANK_EVAL_SECONDS = _gauge("rank_eval_seconds", "seconds", "rank", "hook", 1e7, "Of it, evaluation.")
RANK_SETUP_SECONDS = _gauge("rank_setup_seconds", "seconds", "rank", "hook", 1e7, "Of it, init and compile.")
RANK_TOKENS = _gauge("rank_tokens", "tokens", "rank", "hook", 1e12, "Tokens of the step, as the loop says.")
RANK_LOSS = _signed("rank_loss", "loss", "Loss of the step; absent where the loop gave none or it is not finite.")
RANK_GRADIENT_NORM = _gauge("rank_gradient_norm", "norm", "rank", "hook", 1e30, "Gradient norm of the step.")
RANK_CUDA_ALLOCATED_BYTES = _gauge("rank_cuda_allocated_bytes", "bytes", "rank", "torch.cuda.memory_stats",
    1e13, "Device memory that tensors hold.")
RANK_STEP_FLAGS = _gauge("rank_step_flags", "bitmask", "rank", "hook", 65535,
    "1 first step, 2 loss not finite, 4 gradient norm not finite, 8 evaluation, 16 checkpoint.")
# --- the training loop, once a second
RANK_UP = _gauge("rank_up", "flag", "rank", "hook", 1, "1 while the rank's process lives.")
RANK_HEARTBEAT_AGE_SECONDS = _gauge("rank_heartbeat_age_seconds", "seconds", "rank", "hook",
    1e7, "Since the hook's thread last ran: it stands still when the process is stopped or the interpreter lock is held.")
RANK_STEP_AGE_SECONDS = _gauge("rank_step_age_seconds", "seconds", "rank", "hook",
    1e7, "Since the rank last ended a step.")
RANK_PHASE = _gauge("rank_phase", "code", "rank", "hook", 15, "Phase the rank is in; 0 none, then as in layout.PHASES.")
RANK_MEMORY_BYTES = _gauge("rank_memory_bytes", "bytes", "rank", "/proc/PID/statm", 1e15, "Resident memory of the process.")
# fmt: on
