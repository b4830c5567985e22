"""The commands against the real web server with TLS: a reader shows a certificate of the collector's CA."""

from __future__ import annotations

import json

import pytest
import trustme
from unit.brain_help import Rig

from gpuvigil_cli.__main__ import main


def pem(path, *blobs):
    path.write_bytes(b"".join(blob.bytes() for blob in blobs))
    return str(path)


def identity(folder, name, ca, host):
    cert = ca.issue_cert(host)
    return {
        "certificate": pem(folder / f"{name}.pem", *cert.cert_chain_pems),
        "key": pem(folder / f"{name}.key", cert.private_key_pem),
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The URL of a collector's API with TLS, and the files of a reader, a stranger and the CA."""
    folder = tmp_path_factory.mktemp("tls")
    ca, other = trustme.CA(), trustme.CA()
    ca_file, other_file = pem(folder / "ca.pem", ca.cert_pem), pem(folder / "other.pem", other.cert_pem)
    rig = Rig(folder)
    rig.tick()
    with rig.serve(ca=ca_file, **identity(folder, "server", ca, "127.0.0.1")) as url:
        reader, stranger = identity(folder, "me", ca, "operator"), identity(folder, "they", other, "operator")
        yield url, reader, stranger, ca_file, other_file


def options(identity, ca):
    return ["--ca", ca, "--cert", identity["certificate"], "--key", identity["key"]]


@pytest.mark.parametrize("command", [["status"], ["nodes"], ["incidents", "--all"]])
def test_a_reader_with_a_certificate_is_answered(served, capfd, command):
    url, reader, _, ca, _ = served
    assert main([*command, "--url", url, *options(reader, ca), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["version"] == 1


def test_the_files_may_come_from_the_environment(served, capfd, monkeypatch):
    url, reader, _, ca, _ = served
    for name, value in (("URL", url), ("CA", ca), ("CERT", reader["certificate"]), ("KEY", reader["key"])):
        monkeypatch.setenv(f"GPUVIGIL_{name}", value)
    assert main(["status", "--json"]) == 0
    assert main(["why", "nobody", "--json"]) == 1
    assert "no incident nobody" in capfd.readouterr().err


def test_who_shows_no_certificate_or_trusts_another_ca_gets_one_clear_line(served, capfd):
    url, reader, stranger, ca, other = served
    for given in ([], ["--ca", ca], options(stranger, ca), options(reader, other)):
        assert main(["status", "--url", url, *given]) == 2
        told = capfd.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and "Traceback" not in told.err
        assert "--ca" in told.err and url in told.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--ca": "/nowhere.pem"}, "--ca: expected PEM files, got /nowhere.pem: No such file"),
        ({"--key": ""}, "--cert and --key: expected both or none"),
        ({"--cert": __file__}, "--cert and --key: expected PEM files"),
        ({"--ca": __file__}, "--ca: expected PEM files"),
        ({"--url": "http://127.0.0.1:1"}, "--ca: expected --url https://"),
    ],
)
def test_wrong_files_are_named(served, capfd, change, words):
    url, reader, _, ca, _ = served
    given = {"--url": url, "--ca": ca, "--cert": reader["certificate"], "--key": reader["key"], **change}
    assert main(["status", *(word for pair in given.items() for word in pair)]) == 2
    told = capfd.readouterr().err
    assert words in told and told.count("\n") == 1
