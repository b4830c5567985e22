"""The demo's job on a real Slurm of its own: munged, slurmctld and two nodes, run by who runs the demo.

Needs Debian's slurmctld, slurmd, slurm-client and munge, no root. Nothing of a Slurm or munge that the
machine has is read or touched; all of it lies in the demo's folder and listens on loopback alone.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpuvigil_cli.client import Client, CliError
from gpuvigil_cli.demo import layout as files
from gpuvigil_cli.demo import site as common
from gpuvigil_cli.demo.children import Children, clean_environment
from gpuvigil_cli.demo.layout import Layout
from gpuvigil_cli.demo.site import GPUS, NODES, Tables
from gpuvigil_cli.text import clean

PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "squeue", "scancel")
_JOB_NAME: Final = "demo-repair"
_READY_S: Final = 30.0
_CALL_S: Final = 15.0
_SBIN: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
# any two character devices: Slurm hands out GPUs by them, and the simulated ones have none
_DEVICES: Final = ("/dev/null", "/dev/zero")
_CONF: Final = """\
ClusterName=gpuvigil-demo
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobRequeue=1
KillWait=3
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# the weight: the node that will fail is taken first
_NODE: Final = (
    "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=8 Gres=gpu:{gpus}"
    " Weight={weight}"
)


def check(repair: bool | None) -> None:
    """Raise CliError where it cannot run, with what is missing. repair: as asked for, None: not said."""
    if repair is False:
        raise CliError("--slurm: expected the repair, which runs on it; got --no-repair")
    if absent := [name for name in PROGRAMS if _program(name) is None]:
        raise CliError(
            f"--slurm: expected {', '.join(absent)} to be installed "
            "(Debian: apt-get install slurmctld slurmd slurm-client munge)"
        )


def _program(name: str) -> str | None:
    """Find one; an ordinary user's PATH lacks the daemons' folder."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN)))


@dataclass(slots=True)
class LocalSlurm:
    """A Slurm of two nodes; the job is a batch job of 2 GPUs that may be requeued."""

    place: Layout
    job: str = ""

    @property
    def folder(self) -> Path:
        """Where everything of it lies."""
        return self.place.fleet / "slurm"

    @property
    def environment(self) -> Mapping[str, str]:
        """Where its configuration is."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def prepare(self, children: Children) -> None:
        """Start munged, slurmctld and both nodes, and wait until both are idle. Raises CliError."""
        self._write()
        munge = self.folder / "munge"
        self._daemon(
            children, "munged", "--foreground", "--force", f"--key-file={munge}/key",
            f"--socket={munge}/socket", f"--log-file={munge}/log", f"--pid-file={munge}/pid",
            f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._until((munge / "socket").exists, "munged", children)
        self._daemon(children, "slurmctld", "-D")
        for node in NODES:
            self._daemon(children, "slurmd", "-D", "-N", node, name=f"slurmd of {node}")
        self._until(self._both_idle, "both nodes of the local Slurm to be idle", children)

    def collector_tables(self) -> Tables:
        """Have the collector look at Slurm each second."""
        book = common.write_policy(self.place, move_within="2min")
        return common.remediation(book, "slurm") | {"slurm": {"interval": "1s", "deadline": "15s"}}

    def node_tables(self, node: str) -> Tables:
        """The job is Slurm's, not the agent's."""
        del node
        return {}

    def start(self, client: Client) -> str:
        """Submit it: it goes to the first node, which will fail. Raises CliError."""
        del client
        folder = self.place.fleet / common.FOLDER
        script = self.folder / "job.sh"
        if there := self._call("squeue", "-h", "-o", "%A", f"--name={_JOB_NAME}"):
            self.job = there  # an earlier sbatch was heard, though its answer was lost
            return f"job {self.job} of a local Slurm, submitted before"
        hook = f"{self.place.fleet}/$SLURMD_NODENAME/hook.sock"
        settings = "".join(
            f"export {key}={shlex.quote(text)}\n" for key, text in common.environment(folder).items()
        )
        line = shlex.join(common.command(folder))
        script.write_text(f'#!/bin/sh\n{settings}export GPUVIGIL_SOCKET="{hook}"\nexec {line}\n')
        self.job = self._call(
            "sbatch", "--parsable", "--requeue", f"--gres=gpu:{GPUS}", f"--chdir={folder}",
            f"--output={folder}/job.log", "--open-mode=append", f"--job-name={_JOB_NAME}", str(script),
        )  # fmt: skip
        return f"sbatch --requeue --gres=gpu:{GPUS}: {common.kind_of_job()}, job {self.job} of a local Slurm"

    def end(self) -> None:
        """Cancel it and wait for its processes: Slurm's steps outlive slurmd."""
        if not (self.folder / "munge" / "socket").exists():
            return
        try:
            # by its name: an sbatch that was interrupted may have been heard all the same
            self._call("scancel", f"--name={_JOB_NAME}")
            deadline = time.monotonic() + _CALL_S
            while self._call("squeue", "-h", "-o", "%A") and time.monotonic() < deadline:
                time.sleep(0.2)
        except CliError:
            return  # Slurm does not answer: it was ended before

    def _both_idle(self) -> bool:
        try:
            return self._call("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(NODES)
        except CliError:
            return False

    def _call(self, name: str, *argv: str) -> str:
        """Run a client of Slurm and return what it printed. Raises CliError."""
        try:
            done = subprocess.run(
                [_program(name) or name, *argv], env=clean_environment() | dict(self.environment),
                capture_output=True, text=True, timeout=_CALL_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CliError(f"--slurm: {name}: {error}") from None
        if done.returncode != 0:
            raise CliError(f"--slurm: {name}: {clean(done.stderr.strip(), 300)}")
        return done.stdout.strip()

    def _daemon(self, children: Children, program: str, *argv: str, name: str = "") -> None:
        called = name or program
        log = self.folder / f"{called.replace(' ', '-')}.log"
        children.program(called, [_program(program) or program, *argv], log, dict(self.environment))

    def _until(self, done: Callable[[], bool], what: str, children: Children) -> None:
        deadline = time.monotonic() + _READY_S
        while not done():
            children.check()
            if time.monotonic() > deadline:
                raise CliError(f"--slurm: waited {_READY_S:.0f} s for {what}")
            time.sleep(0.2)

    def _write(self) -> None:
        """Write its configuration, in a folder of who runs the demo alone."""
        for name in ("state", "munge", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        control, *ports = files.free_ports(1 + len(NODES))
        nodes = "\n".join(
            _NODE.format(name=node, port=port, gpus=GPUS, weight=1 + place)
            for place, (node, port) in enumerate(zip(NODES, ports, strict=True))
        )
        text = _CONF.format(
            port=control, user=pwd.getpwuid(os.getuid()).pw_name, folder=self.folder, nodes=nodes
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(
            "".join(f"NodeName={node} Name=gpu File={path}\n" for node in NODES for path in _DEVICES)
        )
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
