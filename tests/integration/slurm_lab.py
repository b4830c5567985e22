"""A real Slurm of four virtual nodes with eight GPUs each, in its own folder and on its own ports.

slurmctld, four slurmd and a munged of its own run in the foreground as children of the test; nothing of the
machine's own Slurm or munge is read or touched. Needs root: munge and the job steps are root's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

NODES = ("gn1", "gn2", "gn3", "gn4")
GPUS = 8

CONF = """\
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={lab}/munge/socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
TopologyPlugin=topology/tree
GresTypes=gpu
ReturnToService=1
JobRequeue=1
SlurmdTimeout=10
KillWait=2
MessageTimeout=10
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool/%n
SlurmctldPidFile={lab}/slurmctld.pid
SlurmdPidFile={lab}/slurmd.%n.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/slurmd.%n.log
SlurmdParameters=config_overrides
{extra}
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=small Nodes={prefix}4 MaxTime=INFINITE State=UP
"""
NODE = (
    "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=1000"
    " Gres=gpu:h100:8 State=UNKNOWN"
)
TOPOLOGY = (
    "SwitchName=rack1 Nodes=gn[1-2]\nSwitchName=rack2 Nodes=gn[3-4]\nSwitchName=spine Switches=rack[1-2]\n"
)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]


def until(true: Callable[[], Any], what: str, within_s: float = 30) -> Any:
    """Poll until `true` gives something true, and return it. Raises AssertionError with `what`."""
    deadline = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.1)
    return found


class SlurmLab:
    """A running Slurm. `env` is what a client needs to reach it."""

    def __init__(self, folder: Path, prefix: str = "gn") -> None:
        self.prefix, self.nodes = prefix, tuple(f"{prefix}{number}" for number in (1, 2, 3, 4))
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.env = {**os.environ, "SLURM_CONF": str(self.conf), "LC_ALL": "C"}
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = dict(zip(("slurmctld", *self.nodes), free_ports(5), strict=True))

    def write(self, extra: str = "") -> None:
        """Write slurm.conf, gres.conf and topology.conf; `extra` are more lines of slurm.conf."""
        for name in ("state", "log", "munge", "dev", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        nodes = "\n".join(NODE.format(name=node, port=self.ports[node]) for node in self.nodes)
        text = CONF.format(
            ctld=self.ports["slurmctld"], lab=self.folder, extra=extra, nodes=nodes, prefix=self.prefix
        )
        self.conf.write_text(text)
        for index in range(GPUS):  # slurmd takes character devices alone; 1:3 is /dev/null's twin
            os.mknod(self.folder / f"dev/nvidia{index}", 0o666 | 0o020000, os.makedev(1, 3))
        gpus = f"NodeName={self.prefix}[1-4] Name=gpu Type=h100 File={self.folder}/dev/nvidia[0-{GPUS - 1}]\n"
        (self.folder / "gres.conf").write_text(gpus)
        (self.folder / "topology.conf").write_text(TOPOLOGY.format(prefix=self.prefix))
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    def spawn(self, name: str, *argv: str) -> None:
        """Start one daemon in the foreground, its output in log/NAME.out; it dies with the test."""
        with (self.folder / f"log/{name}.out").open("ab") as out:
            self.children[name] = subprocess.Popen(
                ("setpriv", "--pdeathsig", "KILL", *argv),
                env=self.env,
                stdout=out,
                stderr=out,
                cwd=self.folder,
            )

    def start(self) -> None:
        """Start munged, slurmctld and the nodes, and wait until all are idle."""
        munge = self.folder / "munge"
        self.spawn(
            "munged", "munged", "--foreground", "--force", f"--key-file={munge}/key",
            f"--socket={munge}/socket", f"--log-file={munge}/log", f"--pid-file={munge}/pid",
            f"--seed-file={munge}/seed", "--num-threads=2",
        )  # fmt: skip
        until((munge / "socket").exists, f"munged: {self.log('munged')}", 10)
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        until(self.all_idle, f"four idle nodes: {self.log('slurmctld')}")

    def start_controller(self) -> None:
        """Start slurmctld."""
        self.spawn("slurmctld", "slurmctld", "-f", str(self.conf), "-D")

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self.spawn(node, "slurmd", "-f", str(self.conf), "-N", node, "-D")

    def log(self, name: str) -> str:
        """The end of what a daemon said."""
        path = self.folder / f"log/{name}.out"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def run(self, *argv: str, check: bool = True, timeout_s: float = 30) -> str:
        """Run a client program and return what it printed. Raises AssertionError on its failure."""
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=timeout_s)
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def all_idle(self) -> bool:
        """Whether all four nodes are idle and take work."""
        seen = self.run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %T", check=False).split("\n")
        return seen == [f"{node} idle" for node in self.nodes]

    def node(self, name: str) -> Mapping[str, Any]:
        """One node as JSON."""
        nodes = json.loads(self.run("sinfo", "--all", "--json"))["nodes"]
        return next(each for each in nodes if each["name"] == name)

    def job(self, job: str) -> Mapping[str, Any]:
        """One job as JSON."""
        jobs = json.loads(self.run("squeue", "--all", "--json"))["jobs"]
        return next(each for each in jobs if str(each["job_id"]) == job)

    def submit(self, script: str, *options: str) -> str:
        """Submit a batch script and return the job's id."""
        path = self.folder / f"script-{time.monotonic_ns()}.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        out = f"--output={self.folder}/job-%A-%a.out"
        return self.run("sbatch", "--parsable", f"--chdir={self.folder}", out, *options, str(path))

    def clean(self) -> None:
        """Take everything back: jobs, reservations, drains. The next test begins with four idle nodes."""
        if (controller := self.children["slurmctld"]).poll() is None:
            controller.send_signal(signal.SIGCONT)
        self.run("scancel", "--state=PENDING", "--quiet", check=False)
        for job in self.run("squeue", "-h", "-o", "%A").split():
            self.run("scancel", "--signal=KILL", "--full", job, check=False)
            self.run("scancel", job, check=False)
        for line in self.run("scontrol", "-o", "show", "reservation").splitlines():
            if line.startswith("ReservationName="):
                self.run("scontrol", "delete", line.split()[0])
        for node in self.nodes:
            for state in ("undrain", "resume"):
                self.run("scontrol", "update", f"nodename={node}", f"state={state}", check=False)
        until(self.all_idle, "four idle nodes after a test")

    def stop(self) -> None:
        """End every daemon that was started here, and what the nodes' steps left."""
        for child in reversed(list(self.children.values())):
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.terminate()
        for child in self.children.values():
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(timeout=10)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def slurm_lab(extra: str = "", prefix: str = "gn") -> Iterator[SlurmLab]:
    """Run a Slurm of four idle nodes, PREFIX1 to PREFIX4; `extra` are more lines of slurm.conf."""
    folder = Path(tempfile.mkdtemp(prefix="gv-slurm-"))
    folder.chmod(0o755)  # jobs of other users read their script's folder
    lab = SlurmLab(folder, prefix)
    try:
        lab.write(extra)
        lab.start()
        yield lab
    finally:
        lab.stop()
