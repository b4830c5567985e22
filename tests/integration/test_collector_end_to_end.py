"""Real agents, real collector: a GPU falls off the bus, the API names it, and kill -9 makes no second one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

import pytest
from integration import stack

SCENARIO = """
version = 1
title = "one GPU of one node is lost"

[[fault]]
kind = "gpu_lost_xid79"
node = "sim-1"
gpu = 3
at = "12s"
"""


def incidents(web, state="open"):
    return json.loads(stack.fetch(f"http://127.0.0.1:{web}/api/v1/incidents?state={state}"))["items"]


def health(web):
    return json.loads(stack.fetch(f"http://127.0.0.1:{web}/api/v1/health"))


@pytest.fixture
def ports():
    return [stack.free_port() for _ in range(4)]


@pytest.mark.slow
def test_a_lost_gpu_is_one_incident_before_and_after_kill_9(tmp_path, ports):
    grpc, web, *metrics = ports
    truth, scenario = tmp_path / "truth.jsonl", tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO)
    simulate = (
        f'gpus = 4\nseed = 7\nscenario = "{scenario}"\ntruth_file = "{truth}"\nstart_ns = {time.time_ns()}'
    )
    with contextlib.ExitStack() as running:
        first = running.enter_context(stack.collector(tmp_path, grpc, web))
        stack.wait_for(lambda: health(web), 20, "the collector's API")
        for number, port in enumerate(metrics):
            running.enter_context(stack.agent(tmp_path, f"sim-{number}", grpc, port, simulate))
        stack.wait_for(lambda: health(web)["nodes_up"] == 2, 20, "both nodes")
        (found,) = stack.wait_for(lambda: incidents(web), 30, "an incident")
        told = json.loads(truth.read_text().splitlines()[0])
        assert (found["class"], found["target"]) == (told["class"], told["target"])
        assert found["node"] == "sim-1" and found["severity"] == "critical"
        assert 0 <= found["opened_ns"] - told["injected_ns"] < 10e9
        metrics_page = stack.fetch(f"http://127.0.0.1:{web}/metrics")
        assert 'xid="79"' in metrics_page and 'gpuvigil_incidents_open{class="gpu_lost"' in metrics_page

        os.kill(first.pid, signal.SIGKILL)
        first.wait(10)
        running.enter_context(stack.collector(tmp_path, grpc, web))
        stack.wait_for(lambda: health(web)["nodes_up"] == 2, 40, "both nodes after the restart")
        seen_ns = time.time_ns()
        stack.wait_for(lambda: incidents(web)[0]["seen_ns"] > seen_ns, 20, "the fault seen again")
        (again,) = incidents(web, "all")
        assert (again["id"], again["opened_ns"]) == (found["id"], found["opened_ns"])
        whole = json.loads(stack.fetch(f"http://127.0.0.1:{web}/api/v1/incidents/{again['id']}"))
        assert stack.life_of(whole) == ["opened"]


def test_sigterm_ends_the_collector_in_time_with_status_0(tmp_path, ports):
    grpc, web, *_ = ports
    with stack.collector(tmp_path, grpc, web) as process:
        stack.wait_for(lambda: health(web), 20, "the collector's API")
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - started < 10 * 3


def test_sighup_keeps_the_old_config_when_the_new_one_is_wrong(tmp_path, ports):
    grpc, web, *_ = ports
    log, config = tmp_path / "collector.log", tmp_path / "collector.toml"
    with stack.collector(tmp_path, grpc, web) as process:
        stack.wait_for(lambda: health(web), 20, "the collector's API")
        right = config.read_text()
        config.write_text(right + "[incidents]\nclear_aftr = '9s'\n")
        process.send_signal(signal.SIGHUP)
        stack.wait_for(lambda: "reload_refused" in log.read_text(), 10, "the refusal")
        assert "clear_after" in log.read_text()
        config.write_text(right + "[incidents]\nclear_after = '9s'\n")
        process.send_signal(signal.SIGHUP)
        stack.wait_for(lambda: "config_reloaded" in log.read_text(), 10, "the reload")
        assert health(web)["state"] in {"ok", "learning"}


def test_a_second_collector_on_the_same_port_says_so_in_one_line(tmp_path, ports):
    grpc, web, other, _ = ports
    with stack.collector(tmp_path, grpc, web):
        stack.wait_for(lambda: health(web), 20, "the collector's API")
        second = tmp_path / "second"
        second.mkdir()
        with stack.collector(second, other, web) as process:
            assert process.wait(30) == 2
        assert f"web.address: cannot listen on 127.0.0.1:{web}" in (second / "collector.log").read_text()
        third = tmp_path / "third"
        third.mkdir()
        with stack.collector(third, grpc, other) as process:
            assert process.wait(40) == 2
        said = (third / "collector.log").read_text()
        assert "ingest.address" in said and "Traceback" not in said
