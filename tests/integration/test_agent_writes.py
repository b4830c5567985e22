"""Writers of one stream: an answer to a command never overlaps a batch (grpc.aio would end the stream)."""

from __future__ import annotations

import asyncio

import grpc.aio
from integration.agent_collector import TestCollector, serving, until

from gpuvigil_agent.call import Call
from gpuvigil_protos.v1 import stream_pb2 as pb
from gpuvigil_protos.v1 import stream_pb2_grpc

WRITERS = 200


async def test_many_writers_at_once_end_no_stream_and_lose_no_message() -> None:
    collector = TestCollector()
    async with serving(collector) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = Call(stream_pb2_grpc.TelemetryServiceStub(channel).Stream())
        await call.write(pb.StreamRequest(hello=pb.Hello(schema_version=1, node="n1", boot_id="b1")))
        assert (await asyncio.wait_for(call.read(), 10)).HasField("welcome")
        results = [pb.CommandResult(id=str(number), outcome="x" * 50_000) for number in range(WRITERS)]
        writers = [call.write(pb.StreamRequest(command_result=result)) for result in results]
        await asyncio.wait_for(asyncio.gather(*writers), 30)
        await until(lambda: len(collector.results) == WRITERS, 30, "every message")
        assert [result.id for result in collector.results] == [result.id for result in results]
        call.cancel()
