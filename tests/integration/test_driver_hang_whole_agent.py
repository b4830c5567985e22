"""H1 on the agent as it is shipped: while a GPU's driver calls hang, all else keeps its second.

Judged by what the collector recorded: the tick times in its Parquet files and the events' arrival.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from integration.agent_process import ended
from integration.ingest_host import counting, until
from integration.test_hook_agent import stack

HANG_S = 14
CPU, NETWORK, GPU = "node_cpu_utilization_ratio", "interface_receive_bytes_total", "gpu_temperature_celsius"
SCENARIO = f"""
version = 1
[[fault]]
node = "n1"
kind = "driver_hang"
gpu = 1
at = "16s"
duration = "{HANG_S}s"
[[fault]]
node = "n1"
kind = "xid_application_storm"
gpus = [0]
bursts = 1
at = "22s"
"""
SECOND = 1_000_000_000


def ticks(recordings: Path, begin_ns: int, end_ns: int) -> np.ndarray:
    """Return the distinct tick times of the node's 1 s group in the interval, sorted, ns."""
    rows = [row for path in counting(recordings, "metrics") for row in pq.read_table(path).to_pylist()]
    per_group: dict[int, set[int]] = {}
    for row in rows:
        per_group.setdefault(row["group"], set()).update(row["tick_ns"])
    fastest = max(per_group.values(), key=len)
    return np.array(sorted(t for t in fastest if begin_ns <= t < end_ns))


async def test_host_network_kernel_log_hook_and_the_other_gpu_keep_their_second(tmp_path: Path) -> None:
    scenario = tmp_path / "hang.toml"
    scenario.write_text(SCENARIO)
    async with stack(tmp_path, gpus=2, simulate=f'scenario = "{scenario}"\n') as made:
        made.loop(0)
        process = made.agent.process
        assert process is not None
        await until(lambda: made.of("driver_stuck"), "driver stuck", 60)
        [stuck] = made.of("driver_stuck")
        assert stuck.entity.startswith("gpu:") and stuck.fields["call"].startswith("nvmlDevice")
        assert float(stuck.fields["seconds"]) <= 15
        began_ns = time.time_ns()
        await until(lambda: made.of("xid"), "an Xid of the kernel log, in the hang", 30)
        assert time.time_ns() - made.of("xid")[0].time_ns < 3 * SECOND
        steps = len(made.rows("rank_step"))
        await asyncio.sleep(6)
        assert len(made.rows("rank_step")) > steps + 40, "the loop's steps of 50 ms go on"
        end_ns = time.time_ns()
        assert not made.of("driver_recovered"), "all of this was in the hang"
        snapshot = made.host.store.snapshot(end_ns)
        fresh = {}
        for metric in (
            "node_cpu_utilization_ratio",
            "interface_receive_bytes_total",
            "gpu_temperature_celsius",
        ):
            window = snapshot.window(metric, 8)
            fresh[metric] = np.isfinite(window.values[0][:, :-3]).sum(axis=1)
        assert (fresh[CPU] >= 4).all()
        assert (fresh[NETWORK] >= 4).all()
        assert sorted(fresh[GPU] >= 4) == [False, True], "the hung one gives nothing"
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert await ended(process, 10) == 0
        assert time.monotonic() - asked < 10
        seen = ticks(made.host.recordings, began_ns, end_ns)
        gaps = np.diff(seen) / SECOND
        assert len(gaps) >= 5
        assert np.quantile(np.abs(gaps - 1), 0.99) <= 1, f"gaps between ticks: {gaps}"
        assert made.agent.process is process, "no restart"
