"""Identity is the certificate's name: every wrong certificate is refused, and one node cannot be another."""

from __future__ import annotations

import datetime
from pathlib import Path

import grpc
import pytest
import trustme
from integration.ingest_host import QUICK, Host
from integration.wire_client import Wire, batch, channel
from msgspec.structs import replace

from gpuvigil_protos.settings import ConfigError, Tls
from gpuvigil_protos.v1 import stream_pb2 as pb

Code = grpc.StatusCode
AUTHORITY = trustme.CA()
STRANGER = trustme.CA()


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> Tls:
    folder = tmp_path_factory.mktemp("tls")
    server = AUTHORITY.issue_cert("127.0.0.1")
    server.private_key_pem.write_to_path(folder / "key.pem")
    server.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    AUTHORITY.cert_pem.write_to_path(folder / "ca.pem")
    return Tls(
        key=str(folder / "key.pem"), certificate=str(folder / "certificate.pem"), ca=str(folder / "ca.pem")
    )


@pytest.fixture(scope="module")
def host(tls, tmp_path_factory):
    with Host(tmp_path_factory.mktemp("collector"), replace(QUICK, tls=tls)) as host:
        yield host


def credentials(leaf: trustme.LeafCert | None) -> grpc.ChannelCredentials:
    ca = AUTHORITY.cert_pem.bytes()
    if leaf is None:
        return grpc.ssl_channel_credentials(ca)
    return grpc.ssl_channel_credentials(ca, leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())


def expired() -> trustme.LeafCert:
    return AUTHORITY.issue_cert("n1", not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))


async def refused(address: str, leaf: trustme.LeafCert | None, node: str) -> Code:
    async with channel(address, credentials(leaf)) as dial:
        wire = Wire(dial, node=node, deadline_s=10)
        with pytest.raises((ConnectionError, grpc.aio.AioRpcError)):
            await wire.open()
        return await wire.call.code()


async def test_a_node_streams_under_its_certificates_name(host):
    async with channel(host.address, credentials(AUTHORITY.issue_cert("n1", "n1.cluster"))) as dial:
        for node in ("n1", "n1.cluster"):
            wire = Wire(dial, node=node)
            await wire.open()
            await wire.send(batch(1))
            await wire.until_durable(1)


async def test_s1_a_node_that_claims_anothers_name_is_refused_counted_and_does_no_harm(host):
    async with channel(host.address, credentials(AUTHORITY.issue_cert("victim"))) as dial:
        victim = Wire(dial, node="victim")
        await victim.open()
        await victim.send(batch(1))
        for claim in ("victim", "VICTIM", "other", "victim.cluster"):
            assert await refused(host.address, AUTHORITY.issue_cert("liar"), claim) is Code.PERMISSION_DENIED
        await victim.send(batch(2))
        await victim.until_durable(2)
        assert await host.counter("rejected_streams_total:wrong_name", 4) == 4


async def test_s1_a_live_node_cannot_turn_into_another_in_mid_stream(host):
    async with channel(host.address, credentials(AUTHORITY.issue_cert("turncoat", "victim2"))) as dial:
        wire = Wire(dial, node="turncoat")
        await wire.open()
        wire.node = "victim2"
        await wire.send_hello(pb.Inventory())
        assert (await wire.status())[0] is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    "leaf",
    [None, expired(), STRANGER.issue_cert("n1"), AUTHORITY.issue_cert("collector-only", common_name="n1")],
    ids=["no certificate", "expired", "another authority", "the name only as common name"],
)
async def test_a_wrong_certificate_is_refused(host, leaf):
    assert await refused(host.address, leaf, "n1") in {Code.UNAVAILABLE, Code.PERMISSION_DENIED}


async def test_s1_plain_text_is_refused_where_tls_is_on(host):
    async with channel(host.address) as dial:
        wire = Wire(dial, deadline_s=10)
        with pytest.raises((ConnectionError, grpc.aio.AioRpcError)):
            await wire.open()
        assert await wire.call.code() is Code.UNAVAILABLE


@pytest.mark.parametrize("address", ["0.0.0.0:9511", "10.0.0.1:9511", "[::]:9511", "example.org:9511"])
def test_plain_text_is_for_loopback_alone(address):
    with pytest.raises(ConfigError, match=r"not on loopback.*ingest\.tls"):
        replace(QUICK, address=address).check("collector.toml")


def test_plain_text_on_loopback_is_said_loudly(tmp_path, capfd):
    with Host(tmp_path):
        pass
    assert "event=plain_text" in capfd.readouterr().err


def test_a_missing_certificate_file_is_a_clear_error(tls):
    broken = replace(QUICK, tls=replace(tls, key="/nowhere/key.pem"))
    with pytest.raises(ConfigError, match=r"ingest: tls\.key: /nowhere/key\.pem cannot be read"):
        broken.check("collector.toml")


@pytest.mark.parametrize(
    "changes", [{"workers": 0}, {"workers": 1000}, {"series_max": 0}, {"series_capacity": 1}], ids=repr
)
def test_a_senseless_number_is_refused_by_name(changes):
    with pytest.raises(ConfigError, match=f"ingest.{next(iter(changes))}: expected"):
        replace(QUICK, **changes).check("collector.toml")


def test_only_the_private_key_reaches_the_worker_by_path(tls):
    assert Path(tls.key).read_text() not in repr(replace(QUICK, tls=tls))
