"""What a cluster has beside its API server: a scheduler and kubelets, for pods that are processes.

Pods of one namespace are bound to the first free node that takes them, and run as processes of this machine
in a control group named as a kubelet names a pod's, so that an agent sees whose process it is. They are ended
when they are deleted, SIGTERM first. Needs root for the control groups (v1 hierarchy `pids`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from integration.kube_lab import KubeLab
from integration.kube_things import node, run_pod

GROUPS = Path("/sys/fs/cgroup/pids/kubepods/burstable")
GRACE_S = 5.0
_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


class Kubelet:
    """One thread for all nodes. `environment` is what every container gets beside GPUVIGIL_NODE."""

    def __init__(self, lab: KubeLab, space: str, nodes: tuple[str, ...], log: Path) -> None:
        self._lab, self._space, self._nodes, self._log = lab, space, nodes, log
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ending: dict[str, float] = {}
        self._end = threading.Event()
        self.trouble = ""

    @contextlib.contextmanager
    def run(self) -> Iterator[Kubelet]:
        """Work until the block ends; then end every pod's process."""
        thread = threading.Thread(target=self._work, name="kubelet")
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join()
            for uid, process in self._running.items():
                process.kill()
                process.wait(10)
                _leave(uid)

    def _work(self) -> None:
        while not self._end.wait(0.2):
            try:
                self._look()
            except AssertionError as error:  # a conflict, as the real ones meet: the next look goes on
                self.trouble = str(error)

    def _look(self) -> None:
        pods = self._lab.admin("GET", f"/api/v1/namespaces/{self._space}/pods")["items"]
        for pod in pods:
            uid, running = pod["metadata"]["uid"], self._running.get(pod["metadata"]["uid"])
            if "deletionTimestamp" in pod["metadata"]:
                self._delete(pod, running)
            elif running is not None:
                self._ended(pod, running)
            elif pod["status"]["phase"] == "Pending" and (place := self._place(pod, pods)):
                self._running[uid] = self._start(pod, place)
                run_pod(self._lab, self._space, pod["metadata"]["name"], place,
                        bound=bool(pod["spec"].get("nodeName")))  # fmt: skip

    def _place(self, pod: dict[str, Any], pods: list[dict[str, Any]]) -> str:
        """The node it is bound to, else the first that takes it and has no other pod."""
        if bound := pod["spec"].get("nodeName"):
            return str(bound)
        taken = {
            one["spec"].get("nodeName") for one in pods if one["status"]["phase"] in {"Pending", "Running"}
        }
        for name in self._nodes:
            spec = node(self._lab, name)["spec"]
            tainted = any(taint["effect"] != "PreferNoSchedule" for taint in spec.get("taints", []))
            if name not in taken and not tainted and not spec.get("unschedulable"):
                return name
        return ""

    def _start(self, pod: dict[str, Any], place: str) -> subprocess.Popen[bytes]:
        group = GROUPS / f"pod{pod['metadata']['uid']}"
        group.mkdir(parents=True, exist_ok=True)
        [container] = pod["spec"]["containers"]
        given = {one["name"]: one["value"] for one in container.get("env", [])}
        env = {key: value.replace("$(NODE)", place) for key, value in given.items()} | {"NODE": place}
        command = [word.replace("$(NODE)", place) for word in container["command"]]
        with self._log.open("ab") as out:
            return subprocess.Popen(["/bin/sh", "-c", _ENTER, str(group), *command], env=os.environ | env,
                                    stdout=out, stderr=out, start_new_session=True)  # fmt: skip

    def _ended(self, pod: dict[str, Any], running: subprocess.Popen[bytes]) -> None:
        if running.poll() is None or pod["status"]["phase"] in {"Succeeded", "Failed"}:
            return
        phase = "Succeeded" if running.returncode == 0 else "Failed"
        path = f"/api/v1/namespaces/{self._space}/pods/{pod['metadata']['name']}/status"
        self._lab.admin("PATCH", path, {"status": {"phase": phase}}, "strategic-merge", "kubelet")

    def _delete(self, pod: dict[str, Any], running: subprocess.Popen[bytes] | None) -> None:
        uid = pod["metadata"]["uid"]
        if running is not None and running.poll() is None:
            since = self._ending.setdefault(uid, time.monotonic())
            late = time.monotonic() - since > GRACE_S
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL if late else signal.SIGTERM)
            return
        if self._running.pop(uid, None) is not None:
            _leave(uid)
        name = pod["metadata"]["name"]
        self._lab.admin("DELETE", f"/api/v1/namespaces/{self._space}/pods/{name}", {"gracePeriodSeconds": 0})


def _leave(uid: str) -> None:
    """Take a pod's control group away; one that still has a process in it stays."""
    with contextlib.suppress(OSError):
        (GROUPS / f"pod{uid}").rmdir()
