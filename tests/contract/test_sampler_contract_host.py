"""What every host sampler must do, on this machine, on recorded hosts and on the simulated one."""

from __future__ import annotations

import math
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.host_fixture import ROOT, FixtureFiles

from gpuvigil_agent.config import Host, Simulate
from gpuvigil_agent.host_files import RealHostFiles
from gpuvigil_agent.samplers.base import SourceAbsentError
from gpuvigil_agent.samplers.host_table import HOST_SAMPLERS, build_host_samplers
from gpuvigil_agent.simulate.host import SimulatedHostFiles
from gpuvigil_protos.catalog import CATALOG
from gpuvigil_protos.entity import is_valid_entity, kind_of

HOSTS = {
    "this machine": RealHostFiles,
    "small_vm": lambda: FixtureFiles("small_vm"),
    "hgx": lambda: FixtureFiles("hgx"),
    "simulated": lambda: SimulatedHostFiles(Simulate(start_ns=time.time_ns()), "sim-1"),
}
PATHS = sorted(
    "/" + str(file.relative_to(ROOT / "hgx")) for file in (ROOT / "hgx").rglob("*") if file.is_file()
)
NUMBERS = ["0", str(2**64), "9" * 40, "-1", "NaN", "1e308", ""]


def sampled(sampler, plausible=True):
    """Sample once and check all that holds for every sampler; [] where the source is absent.

    plausible: the host tells sane numbers; what is not sane passes and is refused by the collector's ranges.
    """
    try:
        found = list(sampler.sample())
    except SourceAbsentError as error:
        assert str(error)
        return []
    for metric, entity, value in found:
        assert CATALOG[metric.name] is metric
        assert kind_of(entity) == metric.entity_kind
        assert is_valid_entity(entity)
        assert isinstance(value, float)
        assert math.isfinite(value)
        assert metric.low <= value
        assert value <= metric.high or metric.kind == "counter" or not plausible
    assert len({(metric.name, entity) for metric, entity, _ in found}) == len(found)
    return found


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("row", HOST_SAMPLERS, ids=lambda row: row.__name__)
def test_a_sampler_yields_known_metrics_of_valid_entities_in_range(host, row):
    sampler = row(HOSTS[host]())
    assert sampler.name.isidentifier()
    assert sampler.period_s in (1.0, 10.0)
    sampled(sampler)
    sampled(sampler)


def test_names_are_unique_and_no_metric_has_two_samplers():
    samplers = build_host_samplers(FixtureFiles("hgx"), Host())
    assert len({sampler.name for sampler in samplers}) == len(samplers) == len(HOST_SAMPLERS)
    metrics = [{metric.name for metric, _, _ in sampled(sampler)} for sampler in samplers]
    assert sum(map(len, metrics)) == len(set().union(*metrics))


def test_the_recorded_node_shows_every_host_metric_of_the_catalogue():
    samplers = build_host_samplers(FixtureFiles("hgx"), Host())
    files = samplers[0]._files
    seen = {metric.name for sampler in samplers for metric, _, _ in sampled(sampler)}
    later = files.read("/proc/diskstats").replace("900000 1200", "900500 1200").replace("450000", "460000")
    stat = "cpu  51258731 1290 9120034 2210345098 918273 0 120934 0 11 0\nprocs_blocked 1\n"
    for sampler in samplers:
        sampler._files.changes.update({"/proc/diskstats": later, "/proc/stat": stat})
    seen |= {metric.name for sampler in samplers for metric, _, _ in sampled(sampler)}
    kinds = {"disk", "filesystem", "interface"}
    host = {
        name for name, metric in CATALOG.items() if metric.entity_kind in kinds or name.startswith("node_")
    }
    assert seen == host - {"node_gpus_expected", "node_gpus_seen"}


@pytest.mark.parametrize("row", HOST_SAMPLERS, ids=lambda row: row.__name__)
def test_a_host_without_any_file_raises_only_that_the_source_is_absent(row):
    sampler = row(FixtureFiles("no such host"))
    with pytest.raises(SourceAbsentError):
        list(sampler.sample())


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(PATHS), cut=st.integers(0, 400), junk=st.text(max_size=30))
def test_no_file_that_is_cut_or_garbled_breaks_a_sampler(path, cut, junk):
    whole = FixtureFiles("hgx").read(path)
    files = FixtureFiles("hgx", {path: whole[:cut] + junk + whole[cut + 3 :]})
    for sampler in build_host_samplers(files, Host()):
        if sampler.name != "filesystem" or "mountinfo" in path:
            sampled(sampler, plausible=False)
            sampled(sampler, plausible=False)


@settings(max_examples=50, deadline=None)
@given(
    path=st.sampled_from(PATHS), number=st.sampled_from(["0", str(2**64), "9" * 40, "-1", "NaN", "1e308", ""])
)
def test_no_number_breaks_a_sampler(path, number):
    files = FixtureFiles("hgx", {path: re.sub(r"(?<![a-z0-9])\d+", number, FixtureFiles("hgx").read(path))})
    for sampler in build_host_samplers(files, Host()):
        sampled(sampler, plausible=False)
        sampled(sampler, plausible=False)
