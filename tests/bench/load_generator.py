"""Many nodes in one process, over the real protocol: one connection, one stream and one Hello a node.

Ticks of all nodes are spread over the second in buckets; what nodes of a bucket share is serialised once a
tick and only the sequence is a node's own, over a plain HTTP/2 client (http2_wire.py): so the generator costs
a fraction of what it loads. Prints one JSON object at the end.
usage: load_generator.py --address HOST:PORT --profile FILE --nodes N [--first K] [--seconds S]
       [--measure-after S]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import time
import uuid
from collections import Counter, deque
from pathlib import Path

import http2_wire

from gpuvigil_protos.codec import SCHEMA_VERSION, blocks_crc
from gpuvigil_protos.v1 import stream_pb2 as pb

METHOD = "/gpuvigil_protos.v1.TelemetryService/Stream"
BUCKETS = 50
MARKS = ("received", "durable")
LATENCY_STEP = 1.1  # width of a latency bucket: 10 %


class Totals:
    """What this process saw in the measured time."""

    def __init__(self) -> None:
        self.measuring = False
        self.sent = self.acked = self.lost_streams = self.bytes = 0
        self.refused: Counter[str] = Counter()
        self.latency: dict[str, Counter[int]] = {mark: Counter() for mark in MARKS}
        self.late: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()


def bucket_of(seconds: float) -> int:
    """Logarithmic bucket of a latency; bucket b holds up to 0.1 ms * LATENCY_STEP ** b."""
    import math

    return max(0, math.ceil(math.log(max(seconds, 1e-4) / 1e-4, LATENCY_STEP)))


class Node:
    """One node's connection and stream."""

    def __init__(self, number: int, profile: dict, totals: Totals) -> None:
        self.name = f"load-{number:05}"
        self._profile, self._totals = profile, totals
        self._sequence = 0
        self._waiting: dict[str, deque[tuple[int, float]]] = {mark: deque() for mark in MARKS}
        self._welcome: asyncio.Future[pb.StreamResponse] = asyncio.get_running_loop().create_future()

    def hello(self) -> pb.StreamRequest:
        """Identity, inventory and dictionary: the profile's, with this node's own GPU names."""
        names = {
            gpu[0]: f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{self.name}/{gpu[1]}')}"
            for gpu in self._profile["gpus"]
        }
        gpus = [
            pb.Gpu(uuid=names[u], index=i, model=m, pci_bus_id=p, seen=True)
            for u, i, m, p in self._profile["gpus"]
        ]
        groups = [
            pb.Group(
                id=g["id"],
                period_ns=g["period_ns"],
                series=[pb.Series(metric=name, entity=rename(entity, names)) for name, entity in g["series"]],
            )
            for g in self._profile["groups"]
        ]
        inventory = pb.Inventory(gpus=gpus, driver_version="580.95.05", kernel="6.1", gpu_source="simulated")
        return pb.StreamRequest(
            hello=pb.Hello(
                schema_version=SCHEMA_VERSION, node=self.name, boot_id=str(uuid.uuid4()),
                agent_version="load", role=pb.ROLE_LIVE, inventory=inventory,
                dictionary=pb.Dictionary(version=1, groups=groups),
                sent_ns=time.time_ns(),
            )
        )  # fmt: skip

    async def connect(self, address: str) -> None:
        """Open connection and stream, say Hello, wait for Welcome."""
        self._wire = await http2_wire.connect(address, METHOD, self._take, self._ended)
        self._wire.send(self.hello().SerializeToString())
        first = await asyncio.wait_for(self._welcome, 30)
        if not first.HasField("welcome"):
            raise RuntimeError(f"expected Welcome, got {first.WhichOneof('message')}")

    def send(self, shared: bytes, due: float) -> None:
        """Send the bucket's batch as this node's next; `due` is the monotonic time at which it should go."""
        if self._wire.ended:
            return
        self._sequence += 1
        message = with_sequence(shared, self._sequence)
        now = time.monotonic()
        for waiting in self._waiting.values():
            waiting.append((self._sequence, now))
        if self._totals.measuring:
            self._totals.sent += 1
            self._totals.bytes += len(message)
            self._totals.late[bucket_of(now - due)] += 1
        self._wire.send(message)

    def _ended(self, status: str) -> None:
        self._totals.lost_streams += 1
        self._totals.errors[status] += 1
        if not self._welcome.done():
            self._welcome.set_exception(RuntimeError(status))

    def _take(self, data: bytes) -> None:
        response = pb.StreamResponse.FromString(data)
        if not self._welcome.done():
            self._welcome.set_result(response)
            return
        if response.HasField("refusal"):
            self._totals.refused[response.refusal.reason] += 1
        now = time.monotonic()
        for mark in response.ack.watermarks:
            if getattr(mark, "class") == pb.CLASS_METRICS:
                for name, waiting in self._waiting.items():
                    self._note(name, waiting, getattr(mark, name), now)

    def _note(self, name: str, waiting: deque[tuple[int, float]], mark: int, now: float) -> None:
        while waiting and waiting[0][0] <= mark:
            _, sent = waiting.popleft()
            if self._totals.measuring:
                self._totals.acked += name == "received"
                self._totals.latency[name][bucket_of(now - sent)] += 1

    def close(self) -> None:
        """End the connection."""
        self._wire.close()


def with_sequence(shared: bytes, sequence: int) -> bytes:
    """Make the StreamRequest of a Batch whose other fields are serialised in `shared`."""
    own = b"\x10" + _varint(sequence)  # Batch.sequence
    return b"\x1a" + _varint(len(own) + len(shared)) + own + shared  # StreamRequest.batch


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def rename(entity: str, names: dict[str, str]) -> str:
    """Put this node's GPU name in the place of the captured one."""
    for old, new in names.items():
        if old in entity:
            return entity.replace(old, new)
    return entity


class Payload:
    """The batches of one bucket of nodes, tick after tick."""

    def __init__(self, profile: dict, bucket: int) -> None:
        self._groups = [
            (g["id"], max(1, round(g["period_ns"] / 1e9)), [base64.b64decode(row) for row in g["rows"]])
            for g in profile["groups"]
        ]
        self._bucket = bucket

    def make(self, tick: int, tick_ns: int) -> bytes:
        """One Batch without its sequence, serialised: every group that is due at this tick."""
        blocks = [
            pb.Block(
                group=number, tick_ns=[tick_ns], values=rows[(tick // period + self._bucket) % len(rows)]
            )
            for number, period, rows in self._groups
            if (tick + self._bucket) % period == 0
        ]
        batch = pb.Batch(dictionary_version=1, blocks=blocks, sent_ns=time.time_ns(), crc=blocks_crc(blocks))
        setattr(batch, "class", pb.CLASS_METRICS)
        return batch.SerializeToString()


async def run_bucket(payload: Payload, nodes: list[Node], offset_s: float, start: float, stop: float) -> None:
    """Send for every node of a bucket once a second at the bucket's phase."""
    tick = 0
    while (due := start + tick + offset_s) < stop:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        shared = payload.make(tick, time.time_ns())
        for node in nodes:
            node.send(shared, due)
        tick += 1


async def run(options: argparse.Namespace) -> dict:
    """Connect all nodes, send, and return the totals."""
    profile = json.loads(Path(options.profile).read_text(encoding="utf-8"))
    totals = Totals()
    nodes = [Node(options.first + number, profile, totals) for number in range(options.nodes)]
    for begin in range(0, len(nodes), 50):  # a herd of Hellos is another benchmark
        await asyncio.gather(*(node.connect(options.address) for node in nodes[begin : begin + 50]))
    totals.lost_streams = 0
    print("connected", flush=True)
    start = time.monotonic()
    stop = start + options.measure_after + options.seconds
    buckets = [
        run_bucket(Payload(profile, b), nodes[b::BUCKETS], b / BUCKETS, start, stop)
        for b in range(BUCKETS)
        if nodes[b::BUCKETS]
    ]
    cpu = 0.0

    async def measure() -> None:
        nonlocal cpu
        await asyncio.sleep(options.measure_after)
        totals.measuring, before = True, sum(os.times()[:2])
        await asyncio.sleep(options.seconds - 0.05)
        totals.measuring, cpu = False, sum(os.times()[:2]) - before

    await asyncio.gather(measure(), *buckets)
    lost, errors = totals.lost_streams, dict(totals.errors)
    for node in nodes:
        node.close()
    return {
        "nodes": options.nodes, "seconds": options.seconds, "sent": totals.sent, "acked": totals.acked,
        "bytes": totals.bytes, "refused": dict(totals.refused), "lost_streams": lost, "errors": errors,
        "cpu_s": cpu, **totals.latency, "late": totals.late,
    }  # fmt: skip


def main() -> None:
    """Run as one generator process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--measure-after", type=float, default=10)
    print(json.dumps(asyncio.run(run(parser.parse_args()))), flush=True)


if __name__ == "__main__":
    main()
