"""What one node really sends: a real agent over the simulated H100 driver, captured by a tiny collector.

The load generator replays it, so that its series are those of the H100 profile's catalogue and not a guess.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import harness

from gpuvigil_protos.codec import SCHEMA_VERSION
from gpuvigil_protos.v1 import stream_pb2 as pb
from gpuvigil_protos.v1 import stream_pb2_grpc as rpc

ABSENT = b"\x00\x00\xc0\x7f"  # NaN, little-endian float32


class Recorder(rpc.TelemetryServiceServicer):
    """Acknowledges everything as durable and keeps the newest dictionary with its rows."""

    def __init__(self) -> None:
        self.hello: pb.Hello | None = None
        self.dictionary = pb.Dictionary()
        self.rows: dict[int, list[bytes]] = {}

    async def Stream(
        self, requests: AsyncIterator[pb.StreamRequest], _context: object
    ) -> AsyncIterator[pb.StreamResponse]:
        async for request in requests:
            kind = request.WhichOneof("message")
            if kind == "hello":
                self.hello = request.hello
                self._take(request.hello.dictionary)
                yield pb.StreamResponse(
                    welcome=pb.Welcome(schema_version=SCHEMA_VERSION, collector="recorder")
                )
            elif kind == "dictionary":
                self._take(request.dictionary)
            elif kind == "batch":
                self._keep(request.batch)
                mark = pb.Watermark(**{"class": pb.CLASS_METRICS})
                mark.received = mark.durable = request.batch.sequence
                yield pb.StreamResponse(ack=pb.Ack(watermarks=[mark], echo_ns=request.batch.sent_ns))

    def _take(self, dictionary: pb.Dictionary) -> None:
        if dictionary.groups:
            self.dictionary = dictionary

    def _keep(self, batch: pb.Batch) -> None:
        for block in batch.blocks:
            width = len(block.values) // max(1, len(block.tick_ns))
            kept = self.rows.setdefault(block.group, [])
            kept += [block.values[i * width : (i + 1) * width] for i in range(len(block.tick_ns))]

    def as_json(self) -> dict:
        """The profile: GPUs, and for each group its period, series and rows."""
        assert self.hello is not None
        groups = [
            {
                "id": group.id,
                "period_ns": group.period_ns,
                "series": [[series.metric, series.entity] for series in group.series],
                "rows": [_widened(row, len(group.series)) for row in self.rows.get(group.id, [])],
            }
            for group in self.dictionary.groups
        ]
        gpus = [[gpu.uuid, gpu.index, gpu.model, gpu.pci_bus_id] for gpu in self.hello.inventory.gpus]
        return {"gpus": gpus, "groups": [group for group in groups if group["rows"]]}


def _widened(row: bytes, series: int) -> str:
    """A row as base64; columns that came with a later dictionary are absent in it."""
    return base64.b64encode(row + ABSENT * (series - len(row) // 4)).decode()


async def _record(lab: harness.Lab, seconds: float) -> Recorder:
    recorder = Recorder()
    server = grpc.aio.server()
    rpc.add_TelemetryServiceServicer_to_server(recorder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    config = {
        "": {"node": "profile-01", "state_directory": str(lab.directory / "profile"), "log_level": "warning"},
        "collector": {"address": f"127.0.0.1:{port}"},
        "gpu": {"source": "simulated"},
        "metrics": {"address": ""},
        "simulate": {"gpus": 8, "profile": "h100"},
    }
    agent = lab.module(
        "profile", "gpuvigil_agent", harness.write_toml(lab.directory / "profile.toml", config)
    )
    for _ in range(round(seconds)):
        await asyncio.sleep(1)
        lab.check()
    agent.terminate()
    await asyncio.to_thread(agent.wait, 15)
    lab.processes = [entry for entry in lab.processes if entry[1] is not agent]
    await server.stop(1)
    return recorder


def capture(lab: harness.Lab, seconds: float = 25) -> tuple[Path, dict]:
    """Record a real agent; return the profile's file and its content."""
    profile = asyncio.run(_record(lab, seconds)).as_json()
    if not profile["groups"]:
        raise SystemExit(
            f"the agent sent nothing in {seconds} s: {(lab.directory / 'profile.log').read_text()[-2000:]}"
        )
    path = lab.directory / "profile.json"
    path.write_text(json.dumps(profile), encoding="utf-8")
    return path, profile


def describe(profile: dict) -> list[tuple[str, int, int]]:
    """Rows of (period, series, bytes a tick), and the whole."""
    rows = [
        (f"{group['period_ns'] / 1e9:g} s", len(group["series"]), 4 * len(group["series"]))
        for group in profile["groups"]
    ]
    return [*rows, ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))]
