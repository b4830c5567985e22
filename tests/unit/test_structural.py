"""Structural facts: lost, stuck, crashed, silent, stopped, frozen, and what must not be called so."""

from __future__ import annotations

from dataclasses import replace

from unit.fake_snapshot import Fleet, run

from gpuvigil_detectors.structural import Structural

PROBES = ("gpu_temperature_celsius", "gpu_power_watts", "gpu_utilization_ratio", "gpu_driver_call_seconds")


def fleet_of(nodes=1, gpus=4, warm_s=35):
    fleet, structural = Fleet(), Structural()
    for number in range(nodes):
        name = f"n{number}"
        fleet.node(name, gpus=gpus)
        fleet.set("node_cpu_utilization_ratio", f"{name}/node", 0.4)
        fleet.set("node_gpus_expected", f"{name}/node", gpus)
        fleet.set("node_gpus_seen", f"{name}/node", gpus)
        fleet.set("disk_busy_ratio", f"{name}/disk:nvme0n1", 0.1)
        for gpu in range(gpus):
            for metric in PROBES:
                fleet.set(metric, fleet.gpu(name, gpu), 0.5)
    assert run(structural, fleet, warm_s) == []
    return fleet, structural


def facts(findings):
    return {(finding.rule, finding.fault_class, finding.entity) for finding in findings}


def lose(fleet, node, index, seen=False):
    gpus = fleet.nodes[node].gpus
    fleet.nodes[node] = replace(
        fleet.nodes[node], gpus=tuple(replace(gpu, seen=seen) if gpu.index == index else gpu for gpu in gpus)
    )


def test_a_lost_gpu_stands_until_the_driver_has_it_back():
    fleet, structural = fleet_of()
    gpu = fleet.gpu("n0", 2)
    fleet.event("n0", "gpu_lost", "gpu:GPU-n0-2")
    fleet.event("n0", "gpu_lost", "gpu:GPU-n0-2", origin="kernel_log")
    fleet.stop(gpu)
    (finding,) = run(structural, fleet, 1)
    assert facts([finding]) == {("gpu_lost", "gpu_lost", gpu)} and finding.severity == "critical"
    assert finding.origin == "driver+kernel_log"
    assert facts(run(structural, fleet, 200)) == {("gpu_lost", "gpu_lost", gpu)}
    fleet.event("n0", "gpu_returned", "gpu:GPU-n0-2")
    for metric in PROBES:
        fleet.set(metric, gpu, 0.5)
    assert run(structural, fleet, 1) == []


def test_a_gpu_missing_from_the_inventory_is_lost_and_back_with_it():
    fleet, structural = fleet_of()
    lose(fleet, "n0", 1)
    assert facts(run(structural, fleet, 1)) == {("gpu_lost", "gpu_lost", fleet.gpu("n0", 1))}
    assert len(run(structural, fleet, 30)) == 1
    lose(fleet, "n0", 1, seen=True)
    assert run(structural, fleet, 1) == []


def test_a_gpu_that_reads_on_after_the_event_is_back_after_a_while():
    fleet, structural = fleet_of()
    fleet.event("n0", "gpu_lost", "gpu:GPU-n0-2")
    assert len(run(structural, fleet, 9)) == 1
    assert run(structural, fleet, 5) == []


def test_one_gpu_whose_readings_stop_is_lost_but_not_before_its_time():
    fleet, structural = fleet_of()
    fleet.stop(fleet.gpu("n0", 3))
    assert run(structural, fleet, 40) == []
    assert facts(run(structural, fleet, 10)) == {("gpu_stopped", "gpu_lost", fleet.gpu("n0", 3))}


def test_a_gpu_whose_driver_still_answers_is_not_lost_when_its_values_are_blank():
    fleet, structural = fleet_of()
    for metric in PROBES[:3]:
        fleet.stop(fleet.gpu("n0", 3), metric)
    assert run(structural, fleet, 200) == []


def test_a_stuck_driver_is_a_hang_and_hides_the_readings_that_stop():
    fleet, structural = fleet_of()
    fleet.stop(fleet.gpu("n0", 3))
    fleet.event("n0", "driver_stuck", "gpu:GPU-n0-3", fields={"call": "nvmlDeviceGetTemperature"})
    found = run(structural, fleet, 120)
    assert facts(found) == {("driver_stuck", "driver_hang", fleet.gpu("n0", 3))}
    assert "nvmlDeviceGetTemperature" in found[0].sentence
    fleet.event("n0", "driver_recovered")
    for metric in PROBES:
        fleet.set(metric, fleet.gpu("n0", 3), 0.5)
    assert run(structural, fleet, 1) == []


def test_a_driver_stuck_in_init_is_the_nodes_and_stays_while_host_readings_go_on():
    fleet, structural = fleet_of()
    fleet.event("n0", "driver_stuck", fields={"call": "nvmlInit"})
    assert facts(run(structural, fleet, 60)) == {("driver_stuck", "driver_hang", "n0/node")}
    fleet.node("n0", boot_id="b2")
    assert run(structural, fleet, 1) == []


def test_all_gpus_stopped_while_the_host_goes_on_is_a_hang_of_the_driver():
    fleet, structural = fleet_of()
    fleet.stop("n0/gpu:")
    assert run(structural, fleet, 55) == []
    assert facts(run(structural, fleet, 10)) == {("gpus_stopped", "driver_hang", "n0/node")}


def test_a_crash_of_the_driver_process_is_the_monitors_fault_for_a_while():
    fleet, structural = fleet_of()
    fleet.event("n0", "driver_crashed", fields={"signal": "SIGSEGV"})
    (finding,) = run(structural, fleet, 1)
    assert (
        facts([finding]) == {("driver_crashed", "monitor_fault", "n0/node")} and "SIGSEGV" in finding.sentence
    )
    assert run(structural, fleet, 65) == []


def test_fewer_gpus_than_before_without_a_name_is_said_of_the_node():
    fleet, structural = fleet_of()
    fleet.set("node_gpus_seen", "n0/node", 3)
    assert run(structural, fleet, 15) == []
    assert facts(run(structural, fleet, 10)) == {("gpu_count", "gpu_lost", "n0/node")}
    lose(fleet, "n0", 0)
    assert facts(run(structural, fleet, 2)) == {("gpu_lost", "gpu_lost", fleet.gpu("n0", 0))}


def test_one_silent_agent_is_our_fault_and_never_a_node_down():
    fleet, structural = fleet_of(nodes=8)
    fleet.node("n3", connected=False)
    fleet.stop("n3/")
    assert run(structural, fleet, 9) == []
    (finding,) = run(structural, fleet, 3)
    assert (
        facts([finding]) == {("agent_silent", "monitor_fault", "n3/node")} and finding.severity == "warning"
    )
    assert facts(run(structural, fleet, 300)) == facts([finding])


def test_a_fleet_that_falls_silent_is_one_finding_that_notifies():
    fleet, structural = fleet_of(nodes=16, gpus=1)
    for number in range(8):
        fleet.node(f"n{number}", connected=False)
        fleet.stop(f"n{number}/")
        notified = [finding for finding in run(structural, fleet, 1) if finding.notify]
        assert notified == []
    for _ in range(60):
        notified = [finding for finding in run(structural, fleet, 1) if finding.notify]
        assert {finding.entity for finding in notified} <= {"fleet"}
    assert len(notified) == 1 and "8 of 16" in notified[0].sentence


def test_no_node_is_called_silent_right_after_the_collector_starts():
    fleet, structural = Fleet(), Structural()
    for number in range(8):
        fleet.node(f"n{number}", connected=False, last_seen_ns=fleet.now_ns - 10**12)
    assert run(structural, fleet, 29) == []
    assert run(structural, fleet, 10) != []


def test_a_host_source_that_stops_is_the_monitors_fault():
    fleet, structural = fleet_of()
    fleet.stop("n0/disk:nvme0n1")
    assert facts(run(structural, fleet, 100)) == {("source_stopped_disks", "monitor_fault", "n0/node")}


def test_power_that_stands_still_under_load_is_frozen():
    fleet, structural = fleet_of(warm_s=3)
    for step in range(120):
        fleet.set("gpu_power_watts", fleet.gpu("n0", 0), 500 + step * 0.5)
        assert run(structural, fleet, 1) == []
    assert run(structural, fleet, 55) == []
    (finding,) = run(structural, fleet, 10)
    assert facts([finding]) == {("frozen", "driver_hang", fleet.gpu("n0", 0))}


def test_constants_are_not_frozen():
    fleet, structural = fleet_of()  # power has been 0.5 from the start: it never moved
    assert run(structural, fleet, 600) == []


def test_an_idle_gpu_may_stand_still():
    fleet, structural = fleet_of()
    for step in range(120):
        fleet.set("gpu_power_watts", fleet.gpu("n0", 0), 500 + step * 0.5)
        run(structural, fleet, 1)
    fleet.set("gpu_utilization_ratio", fleet.gpu("n0", 0), 0.0)
    assert run(structural, fleet, 120) == []


def parts(warm_s=200):
    fleet, structural = fleet_of()
    for name in ("ib0", "ib1", "eth0"):
        fleet.set("interface_receive_bytes_total", f"n0/interface:{name}", 1e9)
    for name in ("nvme0n1", "nvme1n1"):
        fleet.set("disk_busy_ratio", f"n0/disk:{name}", 0.2)
    assert run(structural, fleet, warm_s) == []
    return fleet, structural


def test_an_interface_and_a_disk_that_vanish_are_told_and_end_with_their_return():
    fleet, structural = parts()
    fleet.stop("n0/interface:ib1")
    fleet.stop("n0/disk:nvme1n1")
    assert run(structural, fleet, 15) == []
    assert facts(run(structural, fleet, 10)) == {
        ("part_vanished", "nic_down", "n0/interface:ib1"),
        ("part_vanished", "disk_failing", "n0/disk:nvme1n1"),
    }
    fleet.set("interface_receive_bytes_total", "n0/interface:ib1", 1e9)
    assert facts(run(structural, fleet, 2)) == {("part_vanished", "disk_failing", "n0/disk:nvme1n1")}
    fleet.node("n0", boot_id="b2.x")
    assert run(structural, fleet, 2) == [], "a reboot without the disk"


def test_what_vanishes_with_its_whole_source_or_was_never_settled_is_no_lost_part():
    fleet, structural = parts(warm_s=60)
    fleet.stop("n0/interface:ib1")
    assert run(structural, fleet, 60) == [], "a name of an early boot"
    fleet, structural = parts()
    fleet.stop("n0/interface:")
    assert {finding.rule for finding in run(structural, fleet, 60)} <= {"source_stopped_network"}


def test_a_clock_that_is_off_is_the_nodes_and_many_are_the_collectors():
    fleet, structural = fleet_of(nodes=5)
    fleet.node("n3", clock_offset_ns=-9 * 10**9)
    assert run(structural, fleet, 55) == [], "a jump that is mended is no news"
    (finding,) = run(structural, fleet, 10)
    assert facts([finding]) == {("clock_skew", "clock_skew", "n3/node")}
    assert "9.0 s ahead of most others" in finding.sentence
    for name in list(fleet.nodes):
        fleet.node(name, clock_offset_ns=4 * 10**9)
    (finding,) = run(structural, fleet, 65)
    assert facts([finding]) == {("clock_skew", "monitor_fault", "fleet")}
    assert "collector's clock is 4.0 s ahead of most of 5 nodes" in finding.sentence


def test_two_clocks_that_differ_blame_neither():
    fleet, structural = fleet_of(nodes=1)
    fleet.node("n0", clock_offset_ns=3 * 10**9)
    (finding,) = run(structural, fleet, 65)
    assert "one of the two is wrong" in finding.sentence
