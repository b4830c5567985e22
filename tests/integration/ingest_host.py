"""A real ingest for tests: worker processes, a store, an oracle that reads what is on disk."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from msgspec.structs import replace

from gpuvigil_collector.ingest.settings import IngestConfig
from gpuvigil_collector.ingest.supervisor import WORKER_COMMAND, Ingest
from gpuvigil_collector.store import Store
from gpuvigil_protos.codec import blocks_crc
from gpuvigil_protos.settings import Seconds
from gpuvigil_protos.v1 import stream_pb2 as pb

QUICK = IngestConfig(
    address="127.0.0.1:0", recordings=replace(IngestConfig().recordings, flush_interval=Seconds(0.2))
)


ROOT = Path(__file__).resolve().parents[2]
# Workers are processes of their own: without an installed package they find the sources by this.
os.environ.setdefault(
    "PYTHONPATH", os.pathsep.join(str(ROOT / name) for name in ("collector", "detectors", "protos", "agent"))
)


class Host:
    """One collector's ingest on a folder; the address stays over restarts."""

    def __init__(
        self, folder: Path, config: IngestConfig = QUICK, command: Sequence[str] = WORKER_COMMAND
    ) -> None:
        self.folder, self.config, self.command = folder, config, command
        self.recordings = folder / "ingest" / "recordings"

    def start(self) -> Host:
        self.store = Store(self.folder)
        self.ingest = Ingest(self.config, self.folder, self.store, worker_command=self.command)
        self.ingest.start()
        self.config = replace(self.config, address=self.ingest.address)
        return self

    def stop(self) -> None:
        self.ingest.stop()
        self.store.close()

    def __enter__(self) -> Host:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        return self.ingest.address

    def ledger(self, node: str, delivery_class: str = "metrics") -> dict:
        rows = self.store.ledger()
        return next((r for r in rows if (r["node"], r["class"]) == (node, delivery_class)), {})

    async def counter(self, name: str, at_least: float) -> float:
        await until(lambda: self.store.counters().get(name, 0) >= at_least, f"{name} >= {at_least}")
        return self.store.counters()[name]


async def until(condition: Callable[[], object], what: str, timeout_s: float = 15.0) -> None:
    """Poll until true, with a deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.02)


def recorded(recordings: Path) -> Counter[tuple[str, str, str, int, int]]:
    """Read back (node, boot, class, sequence, crc), each row's checksum computed anew from its values.

    A batch counts only when all its blocks are there. A part that a merged file covers does not count.
    """
    found: Counter[tuple[str, str, str, int, int]] = Counter()
    for path in counting(recordings, "metrics"):
        batches: dict[tuple[str, str, int], list[dict]] = {}
        for row in pq.read_table(path).to_pylist():
            batches.setdefault((row["node"], row["boot_id"], row["sequence"]), []).append(row)
        for (node, boot, sequence), rows in batches.items():
            whole = max(1, rows[0]["blocks"])
            assert [row["block"] for row in rows] == list(range(whole)) * (len(rows) // whole)
            found[node, boot, "metrics", sequence, _crc(rows[:whole])] += len(rows) // whole
    for path in counting(recordings, "events"):
        for row in pq.read_table(path).to_pylist():
            found[row["node"], row["boot_id"], "events", row["sequence"], row["code"]] += 1
    return found


def counting(recordings: Path, kind: str) -> list[Path]:
    """Return the files that count: `kind-worker-number`, or `kind-worker-first-last` in place of those."""
    named = {path: path.stem.split("-") for path in sorted(recordings.glob(f"{kind}-*.parquet"))}
    whole = [(words[1], int(words[2]), int(words[3])) for words in named.values() if len(words) == 4]

    def covered(words: list[str]) -> bool:
        return len(words) == 3 and any(
            worker == words[1] and first <= int(words[2]) <= last for worker, first, last in whole
        )

    return [path for path, words in named.items() if not covered(words)]


def _crc(rows: list[dict]) -> int:
    blocks = [
        pb.Block(group=r["group"], tick_ns=r["tick_ns"], values=np.array(r["values"], "<f4").tobytes())
        for r in rows
        if r["blocks"]
    ]
    crc = blocks_crc(blocks)
    assert crc == rows[0]["crc"], "what was recorded is not what the agent's checksum is of"
    return crc
