"""S2: every RPC and every write with every role, both generated: from the descriptors and from the routes.

What is new and has no row in the tables below fails here: somebody must say who may.
"""

from __future__ import annotations

import hashlib
import time

import grpc
import httpx
import pytest
from contract.test_api_asks import ASK, ticking
from integration.ingest_host import QUICK, Host
from integration.test_ingest_tls import AUTHORITY, STRANGER, credentials, expired, tls
from integration.wire_client import channel, dictionary
from msgspec.structs import replace
from unit.brain_help import Rig

from gpuvigil_collector.repair.settings import Remediation
from gpuvigil_collector.web import roles
from gpuvigil_protos.codec import SCHEMA_VERSION
from gpuvigil_protos.v1 import stream_pb2 as pb

__all__ = ["tls"]  # a fixture of the suite beside this one
RANK = ["nobody", "viewer", "operator", "admin"]
TOKENS = {"": "nobody", "unknown": "nobody", "v": "viewer", "o": "operator", "a": "admin"}
WRITES = {
    "/api/v1/pause": "operator",
    "/api/v1/resume": "operator",
    "/api/v1/breaker/close": "admin",
    "/api/v1/actions/{id}/approve": "operator",
    "/api/v1/actions/{id}/reject": "operator",
    "/api/v1/actions/{id}/settle": "admin",
    "/api/v1/nodes/{id}/maintenance": "operator",
    "/api/v1/nodes/{id}/maintenance/end": "operator",
    "/api/v1/nodes/{id}/return": "operator",
    "/api/v1/nodes/{id}/drill": "operator",
    "/api/v1/incidents/{id}/acknowledge": "operator",
    "/api/v1/incidents/{id}/silence": "operator",
    "/api/v1/incidents/{id}/false-positive": "operator",
    "/api/v1/jobs/{job}/checkpoint": "operator",
    "/api/v1/jobs/{job}/restart": "operator",
    "/api/v1/jobs/{job}/start": "operator",
    "/api/v1/test-alert": "operator",
}
RPCS = {"gpuvigil_protos.v1.TelemetryService.Stream": "node"}
METHODS = [method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods]


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rig")
    made = Rig(directory, remediation=Remediation(mode="observe"))
    hashed = {token: hashlib.sha256(token.encode()).hexdigest() for token in "voa"}
    (directory / "tokens").write_text("\n".join(f"x {TOKENS[t]} {hashed[t]}" for t in hashed))
    made.roles = roles.load(str(directory / "tokens"), directory)
    made.tick()
    return made


def writes(rig):
    """Paths of every route that takes anything but reading, as the application itself has them."""
    found = {route.path: set(route.methods or ()) - {"GET", "HEAD"} for route in rig.app().routes}
    return {path: methods for path, methods in found.items() if methods}


def test_s2_every_write_has_a_role_and_nothing_but_post_writes(rig):
    assert writes(rig) == {path: {"POST"} for path in WRITES}


def test_s2_every_write_is_denied_below_its_role(rig, record_property):
    """Default deny: no token, one that is nobody's, and each role, on every write."""
    wrong, n = [], 0
    with rig.serve() as url, httpx.Client(base_url=url, trust_env=False, timeout=15) as api:
        for path in writes(rig):
            asked = path.replace("{id}", "n0").replace("{job}", "n0")
            for token, role in TOKENS.items():
                headers = ASK | ({"Authorization": f"Bearer {token}"} if token else {})
                got = ticking(rig, lambda asked=asked, headers=headers: api.post(asked, headers=headers))
                allowed = got.status_code not in {401, 403}
                n += 1
                if allowed != (RANK.index(role) >= RANK.index(WRITES.get(path, "admin"))):
                    wrong.append((path, role, got.status_code))
            wrong += [path for how in ("PUT", "DELETE", "PATCH")
                      if api.request(how, asked, headers=ASK).status_code != 405]  # fmt: skip
    record_property("n", n)
    record_property("wrong", len(wrong))
    assert wrong == [] and n == len(WRITES) * len(TOKENS)
    assert rig.effects.asked == [] and rig.sent == []


def test_s2_every_rpc_has_a_role():
    assert {method.full_name for method in METHODS} == set(RPCS)


@pytest.fixture(scope="module")
def host(tls, tmp_path_factory):
    with Host(tmp_path_factory.mktemp("collector"), replace(QUICK, tls=tls)) as host:
        yield host


def callable_of(dial, method):
    """The call of a method as its descriptor says."""
    kind = {(False, False): dial.unary_unary, (False, True): dial.unary_stream,
            (True, False): dial.stream_unary, (True, True): dial.stream_stream}[
        (method.client_streaming, method.server_streaming)]  # fmt: skip
    request = getattr(pb, method.input_type.name)
    answer = getattr(pb, method.output_type.name)
    path = f"/{method.containing_service.full_name}/{method.name}"
    return kind(path, request_serializer=request.SerializeToString, response_deserializer=answer.FromString)


PEERS = {
    "no certificate": lambda: None,
    "expired": expired,
    "another authority": lambda: STRANGER.issue_cert("n1"),
    "plain text": None,
    "another node": lambda: AUTHORITY.issue_cert("n2"),
    "a name in the common name alone": lambda: AUTHORITY.issue_cert("collector-only", common_name="n1"),
    "the node itself": lambda: AUTHORITY.issue_cert("n1"),
}


async def answer_to(host, method, peer):
    """What a peer gets that says it is n1: a status, or OK when it was heard."""
    leaf = PEERS[peer]
    async with channel(host.address, credentials(leaf()) if leaf is not None else None) as dial:
        hello = pb.Hello(
            node="n1", boot_id="boot-1", schema_version=SCHEMA_VERSION, role=pb.ROLE_LIVE,
            inventory=pb.Inventory(), dictionary=dictionary(), agent_version="test", sent_ns=time.time_ns(),
        )  # fmt: skip
        first = getattr(pb, method.input_type.name)(hello=hello)
        call = callable_of(dial, method)(iter([first]) if method.client_streaming else first, timeout=15)
        try:
            if method.server_streaming:
                async for _ in call:
                    return grpc.StatusCode.OK
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return error.code()
        return await call.code()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_s1_s2_every_rpc_is_for_the_node_of_the_certificate_alone(host, method, record_property):
    refused = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED}
    got = {peer: await answer_to(host, method, peer) for peer in PEERS}
    wrong = [(peer, code) for peer, code in got.items() if (code in refused) == (peer == "the node itself")]
    record_property("n", len(got))
    record_property("wrong", len(wrong))
    assert wrong == [], got
    assert got["another node"] is grpc.StatusCode.PERMISSION_DENIED, "a good certificate, of another"


async def test_s2_what_is_no_rpc_of_ours_is_refused(host):
    async with channel(host.address, credentials(AUTHORITY.issue_cert("n1"))) as dial:
        for path in (
            "/gpuvigil_protos.v1.TelemetryService/Drain",
            "/grpc.reflection.v1.ServerReflection/Info",
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await dial.unary_unary(path)(b"", timeout=15)
            assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
