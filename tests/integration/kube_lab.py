"""A real Kubernetes API server, etcd and controller manager on ports and in folders of their own.

There is no scheduler and no kubelet: tests bind pods and say through the status subresource what runs, as a
kubelet would. The controllers are real: they make a Job's pods again, count disruption budgets, taint
cordoned nodes. Binaries: GPUVIGIL_KUBE_CACHE, made by build_kubernetes.sh.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from integration.stack import free_port

from gpuvigil_collector.kube.api import KubeApi, connection

CACHE = Path(os.environ.get("GPUVIGIL_KUBE_CACHE", Path.home() / ".cache/gpuvigil/kubernetes"))
PROGRAMS = ("kube-apiserver", "kube-controller-manager")
TOKEN = "admintoken"
READY_WITHIN_S = 150.0  # 4 s on an idle machine
KUBECONFIG = """apiVersion: v1
kind: Config
clusters: [{{name: lab, cluster: {{server: "{server}", insecure-skip-tls-verify: true}}}}]
users: [{{name: admin, user: {{token: {token}}}}}]
contexts: [{{name: lab, context: {{cluster: lab, user: admin}}}}]
current-context: lab
"""


class KubeLab:
    """A running cluster. `admin` sends raw requests, as a person's kubectl would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = f"https://127.0.0.1:{free_port()}"
        self.kubeconfig = folder / "kubeconfig"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._http = httpx2.Client(
            base_url=self.server, verify=False, timeout=10, headers={"Authorization": f"Bearer {TOKEN}"}
        )

    def start(self) -> None:
        """Start the three programs and wait until the server is ready. Raises AssertionError with its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "tokens.csv").write_text(f"{TOKEN},admin,1,system:masters\n")
        self.kubeconfig.write_text(KUBECONFIG.format(server=self.server, token=TOKEN))
        key = ["openssl", "genrsa", "-out", "sa.key", "2048"]
        subprocess.run(key, cwd=self.folder, check=True, capture_output=True, timeout=30)
        etcd = f"http://127.0.0.1:{free_port()}"
        self._run(
            "etcd", shutil.which("etcd") or "etcd", *_etcd_flags(etcd, f"http://127.0.0.1:{free_port()}")
        )
        self._run("api", str(CACHE / "bin/kube-apiserver"), *_api_flags(etcd, self.server))
        wait(self._ready, READY_WITHIN_S, lambda: (self.folder / "api.log").read_text()[-2000:])
        manager = str(CACHE / "bin/kube-controller-manager")
        self._run("manager", manager, *_manager_flags(free_port()))
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        wait(lambda: self.try_get(path) is not None, READY_WITHIN_S, lambda: "no service account")

    def stop(self) -> None:
        """End what was started, the newest first."""
        self._http.close()
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(timeout=30)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The API server stands still: connections open, nothing is answered."""
        self._processes["api"].send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{self._processes['api'].pid}/stat")
        wait(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", 10, lambda: "not stopped")
        try:
            yield
        finally:
            self._processes["api"].send_signal(signal.SIGCONT)

    def api(self, as_user: str = "", call_s: float = 5.0) -> KubeApi:
        """Return the product's client, as administrator or as somebody else."""
        return KubeApi(connection(str(self.kubeconfig)), call_s=call_s, as_user=as_user)

    def admin(
        self, method: str, path: str, body: object = None, patch: str = "merge", manager: str = "kubectl"
    ) -> dict[str, Any]:
        """Send one request as an administrator's kubectl. Raises AssertionError with the server's words."""
        headers = {"Content-Type": f"application/{patch}-patch+json"} if method == "PATCH" else {}
        query = {"fieldManager": manager} if method in ("PATCH", "POST", "PUT") else {}
        answer = self._http.request(method, path, json=body, params=query or None, headers=headers)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        found: dict[str, Any] = answer.json()
        return found

    def text(self, path: str) -> str:
        """Return what a path answers, as text: a watch, until its own time-out."""
        return self._http.get(path).text

    def try_get(self, path: str) -> dict[str, Any] | None:
        """Return an object, None where there is none."""
        answer = self._http.get(path)
        return answer.json() if answer.is_success else None

    def _ready(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return self._http.get("/readyz").status_code == 200
        return False

    def _run(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as out:
            self._processes[name] = subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=out)


def wait(ready: Callable[[], bool], within_s: float, why: Callable[[], str]) -> None:
    """Poll until something holds. Raises AssertionError with the reason."""
    end = time.monotonic() + within_s
    while not ready():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


@cache
def started() -> KubeLab:
    """The one cluster of this process, ended with it; each test uses nodes and namespaces of its own."""
    folder = tempfile.TemporaryDirectory(prefix="gpuvigil-kube-")
    cluster = KubeLab(Path(folder.name))
    atexit.register(folder.cleanup)
    atexit.register(cluster.stop)
    cluster.start()
    return cluster


@pytest.fixture
def lab() -> KubeLab:
    """The cluster of this process."""
    return started()


def _etcd_flags(client: str, peer: str) -> list[str]:
    return [
        "--data-dir=etcd", f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}", "--unsafe-no-fsync",
    ]  # fmt: skip


def _api_flags(etcd: str, server: str) -> list[str]:
    return [
        f"--etcd-servers={etcd}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
        f"--secure-port={server.rpartition(':')[2]}", "--cert-dir=certs",
        "--service-cluster-ip-range=10.96.0.0/24", "--token-auth-file=tokens.csv",
        "--authorization-mode=RBAC",
        "--service-account-key-file=sa.key", "--service-account-signing-key-file=sa.key",
        f"--service-account-issuer={server}", "--endpoint-reconciler-type=none", "--allow-privileged",
    ]  # fmt: skip


def _manager_flags(port: int) -> list[str]:
    return [
        "--kubeconfig=kubeconfig", "--bind-address=127.0.0.1", "--port=0", f"--secure-port={port}",
        "--leader-elect=false", "--service-account-private-key-file=sa.key",
        "--use-service-account-credentials", "--cert-dir=manager-certs", "--node-monitor-grace-period=1h",
    ]  # fmt: skip
