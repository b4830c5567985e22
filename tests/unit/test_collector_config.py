"""What an operator can write wrong in collector.toml, and what the collector says to it."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_the_shipped_file_is_the_defaults():
    assert load(SHIPPED, []) == CollectorConfig()


def test_a_port_in_use_is_one_clear_line():
    web = CollectorConfig().web
    first = bind(settings.convert({"address": "127.0.0.1:0"}, type(web), "test"))
    taken = "{}:{}".format(*first.getsockname())
    try:
        with pytest.raises(ConfigError, match=f"cannot listen on {taken}: Address already in use"):
            bind(settings.convert({"address": taken}, type(web), "test"))
    finally:
        first.close()
