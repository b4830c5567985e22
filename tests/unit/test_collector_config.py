"""What an operator can write wrong in collector.toml, and what the collector says to it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gpuvigil_collector.__main__ import main
from gpuvigil_collector.config import CollectorConfig, load
from gpuvigil_collector.web.server import bind
from gpuvigil_protos import settings
from gpuvigil_protos.settings import ConfigError

SHIPPED = Path(__file__).parents[2] / "deploy/config/collector.toml"


def write(tmp_path, text):
    path = tmp_path / "collector.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[incidents]\nclear_aftr = '30s'", ["incidents.clear_aftr", 'mean "clear_after"']),
        ("[incidents]\nclear_after = 30", ["incidents.clear_after", "duration with its unit"]),
        ("[incidents]\nclear_after = '30 parsecs'", ["incidents.clear_after", "parsecs"]),
        ("[incidents]\nopen_max = 0", ["incidents.open_max", "at least 1", "got 0"]),
        ("[web]\naddress = '0.0.0.0:9512'", ["web.address", "not on loopback", "insecure = true"]),
        ("[web]\naddress = 'localhost'", ["web.address", "host:port"]),
        ("[web]\naddress = '127.0.0.1:99999'", ["web.address", "host:port"]),
        ("[web.tls]\ncertificate = '/nowhere.pem'", ["web: tls.certificate", "/nowhere.pem"]),
        ("[detection]\nvotes = ['iforest2']", ["detection.votes", "iforest2"]),
        ("[tick]\ninterval = '1ms'", ["tick.interval", "got 0.001 s"]),
        ("[saves]\nevidence_interval = '1s'", ["saves.evidence_interval", 'at least "10s"', "got 1 s"]),
        ("[ingest]\nworkers = 0", ["ingest.workers"]),
        ("[ingest", ["not valid TOML"]),
        (
            "[remediation]\nmode = 'acts'",
            ["remediation.mode: expected one of observe, recommend, act, got 'acts'"],
        ),
        (
            "[remediation.partition_modes]\na = 'acts'",
            ["remediation.partition_modes", "one of observe, recommend"],
        ),
        ("[actuators.kubernetes]\nnamespce = 'a'", ["actuators.kubernetes.namespce", 'mean "namespace"']),
        ("[[actuators.command]]\nkind = ['hold']", ["actuators.command[0].kind", 'mean "kinds"']),
        (
            "[[actuators.command]]\nname = 'a'\nkinds = ['hold', 'holt']\napply = ['/a']\nlook = ['/a']",
            ["actuators.command[0].kinds[1]: expected one of notify, ", "got 'holt'"],
        ),
    ],
)
def test_a_wrong_file_is_refused_with_key_expected_and_got(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        load(path, [])
    for word in [str(path), *words]:
        assert word in str(refusal.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "no.toml", [])


def test_overrides_win_over_the_file(tmp_path):
    path = write(tmp_path, "[web]\naddress = '127.0.0.1:1'\n")
    config = load(path, ["web.address=127.0.0.1:2", "incidents.clear_after=5s", "detection.statistical=false",
                         'detection.votes=["ecod"]', "ingest.recordings.quota=1GiB"])  # fmt: skip
    assert config.web.address == "127.0.0.1:2" and config.incidents.clear_after == 5
    assert config.detection.statistical is False and config.detection.votes == ["ecod"]
    assert config.ingest.recordings.quota == 1 << 30


@pytest.mark.parametrize("override", ["web", "=3", "web..address=1", "log_level.x.y=1", "web.adress=1"])
def test_a_wrong_override_is_refused(tmp_path, override):
    with pytest.raises(ConfigError):
        load(write(tmp_path, "log_level = 'info'"), [override])


def test_loopback_is_plain_and_elsewhere_must_be_said(tmp_path):
    assert load(None, ["web.address=[::1]:9512"]).web.address == "[::1]:9512"
    assert load(None, ["web.address=0.0.0.0:9512", "web.insecure=true"]).web.insecure


def test_the_effective_config_reads_back_as_itself(tmp_path):
    config = load(None, ["incidents.clear_after=90s", "detection.votes=['ecod', 'hbos']"])
    assert load(write(tmp_path, settings.effective(config)), []) == config


def keys(table, prefix=""):
    """Return every key of a document, an empty table being one."""
    return {
        key
        for name, value in table.items()
        for key in (keys(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name})
    }


def test_the_shipped_file_is_the_defaults_and_shows_every_key():
    assert load(SHIPPED, []) == CollectorConfig()
    shipped = tomllib.loads(SHIPPED.read_text())
    assert keys(shipped) == keys(tomllib.loads(settings.effective(CollectorConfig())))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[remediation]\npolicy = 'FILE'", "remediation.policy: "),
        ("[remediation]\nsite = 'FILE'", "remediation.site: "),
        ("[web]\ntokens = 'FILE'", "web.tokens: "),
        ("[actuators.helper]\nkey = 'FILE'", "actuators.helper.key: "),
    ],
)
def test_a_file_that_is_named_and_missing_is_said_by_check_config_too(tmp_path, capsys, text, key):
    missing = tmp_path / "missing"
    path = write(tmp_path, text.replace("FILE", str(missing)))
    assert main(["--config", str(path), "--check-config"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and key in err and str(missing) in err and err.count("\n") == 1


def test_a_port_in_use_is_one_clear_line():
    web = CollectorConfig().web
    first = bind(settings.convert({"address": "127.0.0.1:0"}, type(web), "test"))
    taken = "{}:{}".format(*first.getsockname())
    try:
        with pytest.raises(ConfigError, match=f"cannot listen on {taken}: Address already in use"):
            bind(settings.convert({"address": taken}, type(web), "test"))
    finally:
        first.close()
