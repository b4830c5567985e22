"""File systems and network interfaces of recorded and of broken hosts."""

from __future__ import annotations

import threading

import pytest
from unit.host_fixture import USE, FixtureFiles, values

from gpuvigil_agent.config import Host
from gpuvigil_agent.host_files import FilesystemUse, RealHostFiles
from gpuvigil_agent.samplers.base import SourceAbsentError
from gpuvigil_agent.samplers.filesystem import Filesystems
from gpuvigil_agent.samplers.host_table import build_host_samplers
from gpuvigil_agent.samplers.network import Network, NetworkSpeed
from gpuvigil_protos.entity import is_valid_entity

ODD = "filesystem:/data/with_space_and_tab"


def readonly(found):
    return {entity: value for (metric, entity), value in found.items() if metric == "filesystem_readonly"}


def test_local_file_systems_alone_and_each_once():
    assert set(readonly(values(Filesystems(FixtureFiles("hgx"))))) == {
        "filesystem:/", "filesystem:/scratch", "filesystem:/dev/shm", ODD,
    }  # fmt: skip


def test_readonly_is_the_super_blocks_state_and_not_the_mounts():
    """`ro` on the mount alone is what ProtectSystem=strict shows a hardened agent of every file system."""
    found = readonly(values(Filesystems(FixtureFiles("hgx"))))
    assert found == {"filesystem:/": 0, "filesystem:/scratch": 1, "filesystem:/dev/shm": 0, ODD: 1}


@pytest.mark.parametrize("name", ["/a'b", '/a"b', "/<script>", "/a`b", "/\ufffd\ufffd", "/" + "x" * 300])
def test_hostile_mount_points_get_a_valid_name(name):
    text = f"27 1 8:1 / {name} rw - ext4 /dev/x rw\n"
    (found,) = readonly(values(Filesystems(FixtureFiles("hgx", {"/proc/self/mountinfo": text}))))
    assert is_valid_entity(found)


def test_use_is_what_the_file_system_says_and_inodes_are_absent_where_unbounded():
    files = FixtureFiles("hgx")
    files.uses["/scratch"] = FilesystemUse(5000, 10, 0, 0)
    found = values(Filesystems(files))
    assert found["filesystem_available_bytes", "filesystem:/"] == USE.available_bytes
    assert found["filesystem_inodes_free", "filesystem:/"] == USE.inodes_free
    assert found["filesystem_available_bytes", "filesystem:/scratch"] == 10
    assert ("filesystem_inodes", "filesystem:/scratch") not in found


def test_the_config_restricts_and_may_name_a_network_mount():
    (sampler,) = [
        each
        for each in build_host_samplers(FixtureFiles("hgx"), Host(filesystems=["/", "/home"]))
        if each.name == "filesystem"
    ]
    assert set(readonly(values(sampler))) == {"filesystem:/", "filesystem:/home"}
    assert sampler.missing == frozenset()


def test_a_mount_of_the_config_that_is_not_there_is_named_and_a_slash_too_many_is_no_other_mount(capsys):
    sampler = Filesystems(FixtureFiles("hgx"), ["/scratch/", "/gone"])
    for _ in range(2):
        assert set(readonly(values(sampler))) == {"filesystem:/scratch"}
        assert sampler.missing == {"/gone"}
    said = "".join(capsys.readouterr())
    assert said.count("filesystems_not_mounted") == 1, "a repeated fault is told once"


class Hanging(FixtureFiles):
    """A host on which one mount's statvfs does not return until it is let go."""

    def __init__(self):
        super().__init__("hgx")
        self.go, self.asked = threading.Event(), []

    def usage(self, mount_point):
        self.asked.append(mount_point)
        if mount_point == "/":
            self.go.wait(30)
        return super().usage(mount_point)


def test_a_mount_that_hangs_holds_one_thread_and_hides_no_other():
    files = Hanging()
    sampler = Filesystems(files)
    try:
        values(sampler)
        for _ in range(3):
            found = values(sampler)
            assert ("filesystem_size_bytes", "filesystem:/") not in found
            assert found["filesystem_readonly", "filesystem:/"] == 0
            assert found["filesystem_size_bytes", "filesystem:/scratch"] == USE.size_bytes
        assert files.asked.count("/") == 1
    finally:
        files.go.set()


@pytest.mark.parametrize(
    "text",
    ["", "1 2 3", "27 1 259:2 / / rw - ext4", " - - - \n - ", "\x00", "27 1 259:2 / / rw -  ext4 x rw"],
)
def test_a_broken_mount_table_yields_nothing(text):
    assert values(Filesystems(FixtureFiles("hgx", {"/proc/self/mountinfo": text}))) == {}


def test_a_node_with_thousands_of_mounts_yields_a_bounded_number():
    text = "".join(f"27 1 8:{n} / /m{n} rw - ext4 /dev/x rw\n" for n in range(5000))
    assert len(readonly(values(Filesystems(FixtureFiles("hgx", {"/proc/self/mountinfo": text}))))) == 64


def interfaces(found):
    return {entity.partition(":")[2] for _, entity in found}


def test_hardware_and_bonds_alone():
    found = values(Network(FixtureFiles("hgx")))
    assert interfaces(found) == {"eno1", "enp65s0f0np0", "ib0", "ib1", "bond0", "oddhw"}
    assert interfaces(values(Network(FixtureFiles("small_vm")))) == {"eth0"}


def test_carrier_traffic_and_speed():
    files = FixtureFiles("hgx")
    found = values(Network(files))
    assert found["interface_up", "interface:eno1"] == 1
    assert (
        found["interface_up", "interface:enp65s0f0np0"],
        found["interface_carrier_changes_total", "interface:enp65s0f0np0"],
    ) == (0, 7)
    assert found["interface_receive_bytes_total", "interface:eno1"] == 1001
    assert found["interface_transmit_bytes_total", "interface:eno1"] == 2001
    assert found["interface_errors_total", "interface:eno1"] == 3
    assert found["interface_drops_total", "interface:eno1"] == 3
    assert values(NetworkSpeed(files)) == {
        ("interface_speed_bytes_per_second", "interface:eno1"): 1.25e8,
        ("interface_speed_bytes_per_second", "interface:ib0"): 5e10,
        ("interface_speed_bytes_per_second", "interface:bond0"): 2.5e10,
        ("interface_speed_bytes_per_second", "interface:oddhw"): 3.125e9,
    }


def test_an_interface_that_was_taken_down_has_no_carrier_to_tell():
    found = values(Network(FixtureFiles("hgx")))
    assert ("interface_up", "interface:ib1") not in found
    assert ("interface_receive_bytes_total", "interface:ib1") in found


def test_the_kernel_is_asked_once_what_an_interface_is():
    files = FixtureFiles("hgx")
    network, asked = Network(files), []
    names = files.names
    files.names = lambda path: asked.append(path) or names(path)
    values(network)
    first = len(asked)
    values(network)
    assert (first > 0, len(asked)) == (True, first)


@pytest.mark.parametrize(
    "name", ["<b>x</b>", "\ufffd\ufffd", "..", "a'b", "eth\\0", "x" * 300, "eth0\u202e", ""]
)
def test_hostile_names_of_interfaces_are_left_out(name):
    line = f"{name}: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"
    files = FixtureFiles("small_vm", {"/proc/net/dev": f"a\nb\n{line}"})
    assert all(is_valid_entity(entity) for _, entity in values(Network(files)))
    assert interfaces(values(Network(files))) <= {"eth0"}


@pytest.mark.parametrize(
    "text", ["", "a", "a\nb\n eth0: 1 2\n", "a\nb\n eth0: " + "x " * 16, "a\nb\n eth0: " + "-1 " * 16]
)
def test_a_broken_table_yields_nothing(text):
    assert values(Network(FixtureFiles("small_vm", {"/proc/net/dev": text}))) == {}


def test_huge_numbers_stay_finite():
    line = " eth0: " + " ".join([str(2**64 - 1)] * 16)
    found = values(Network(FixtureFiles("small_vm", {"/proc/net/dev": f"a\nb\n{line}\n"})))
    assert found["interface_receive_bytes_total", "interface:eth0"] == float(2**64 - 1)


def test_a_host_without_network_table_is_absent():
    with pytest.raises(SourceAbsentError, match="/proc/net/dev"):
        values(Network(FixtureFiles("small_vm", {"/proc/net/dev": None})))


def test_a_huge_file_is_cut(tmp_path):
    file = tmp_path / "huge"
    with file.open("wb") as handle:
        handle.truncate(64 << 20)
    assert len(RealHostFiles().read(str(file))) <= (8 << 20) + (1 << 16)
