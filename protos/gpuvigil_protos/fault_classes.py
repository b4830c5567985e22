"""The vocabulary of faults: findings, incidents, policy, rules, simulator and docs use these words alone.

Names are stable: dashboards and policies of users depend on them. Add a row before using a new name.
"""

from __future__ import annotations

from typing import Final

# class -> (scopes, what it is)
FAULT_CLASSES: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "gpu_lost": (("gpu",), "fallen off the bus, or missing from the inventory"),
    "driver_hang": (("node",), "NVML or driver calls never return; exporter frozen"),
    "ecc_uncorrectable": (("gpu",), "uncorrectable ECC errors"),
    "ecc_corrected_growth": (("gpu",), "the rate of corrected ECC errors rises"),
    "row_remap_pending": (("gpu",), "a row remap waits for a GPU reset"),
    "row_remap_failure": (("gpu",), "a row remap failed"),
    "thermal": (("gpu", "node"), "too hot for its power and surroundings; thermal slowdown"),
    "power_brake": (("gpu", "rack"), "external power brake or supply fault"),
    "clock_stuck_low": (("gpu",), "clocks low without a reason that explains it"),
    "gpu_slow": (("gpu",), "silently slower than peers at equal clocks"),
    "gpu_error": (("gpu",), "the driver reports a fault of the GPU that no other class names"),
    "gsp_firmware": (("gpu",), "the GPU's system processor failed"),
    "nvlink_errors": (("nvlink",), "error rate of an NVLink over a window"),
    "nvlink_down": (("nvlink",), "an NVLink is inactive"),
    "fabric_service": (("node", "nvlink_domain"), "fabric manager, IMEX or subnet manager not running"),
    "pcie_downgrade": (("pcie",), "PCIe generation or width below maximum under load"),
    "pcie_errors": (("pcie",), "PCIe replays or AER errors"),
    "nic_down": (("ib", "eth"), "a network link is down"),
    "nic_flap": (("ib", "eth"), "a network link goes down again and again"),
    "nic_degraded": (("ib", "eth"), "a network link at a lower rate, or with errors"),
    "congestion": (("switch", "rack", "fleet"), "loss or pause that no single node causes"),
    "disk_slow": (("node",), "disk latency above the drive's own bound"),
    "disk_full": (("node",), "space or inodes run out"),
    "disk_failing": (("node",), "SMART, NVMe, RAID or I/O errors"),
    "fs_readonly": (("node",), "a file system turned read-only"),
    "mount_stalled": (("node",), "a network file system hangs"),
    "memory_leak_host": (("node", "job"), "host memory grows steadily"),
    "oom": (("node", "job"), "a process was killed for memory"),
    "cpu_contention": (("node",), "CPU pressure from outside the job"),
    "clock_skew": (("node",), "time is not synchronised"),
    "node_down": (("node",), "agent and job both silent, or the scheduler says so"),
    "monitor_fault": (("node", "fleet"), "the agent, exporter or collector is at fault, the node is not"),
    "xid_application": (("job",), "Xids that application errors cause"),
    "hang": (("job",), "no collective completes"),
    "process_dead": (("job",), "a rank's process ended"),
    "straggler": (("gpu", "node", "job"), "one rank is late for a reason of its machine"),
    "fail_slow": (("gpu", "node", "job"), "the job is slower than its own past"),
    "workload_imbalance": (("job",), "the late rank follows the work"),
    "data_stall": (("job", "node"), "input holds the step"),
    "checkpoint_stall": (("job", "node"), "saving holds the step"),
    "loss_fault": (("job", "gpu"), "loss or gradient not finite, or a spike"),
    "sdc_suspect": (("job", "gpu"), "the same data gives another answer"),
    "unallocated_use": (("gpu",), "a GPU is used outside any job"),
    "repeat_offender": (("node",), "fails again and again over 28 days"),
    "driver_mismatch": (("node",), "driver, library or firmware differ from the group"),
    "config_drift": (("node",), "settings differ from the group"),
}
