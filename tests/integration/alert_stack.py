"""A real Alertmanager, the webhook that it calls, and incidents to tell it of."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from integration import stack
from unit.incident_help import finding, gpu

from gpuvigil_collector.alerting.service import Alerting
from gpuvigil_collector.alerting.settings import AlertingConfig
from gpuvigil_collector.export.view import View
from gpuvigil_collector.incidents.incident import Incident, fingerprint
from gpuvigil_protos.settings import Seconds

CONFIG = """route:
  receiver: hook
  group_by: [alertname, node]
  group_wait: 200ms
  group_interval: 500ms
  repeat_interval: 12h
receivers:
  - name: hook
    webhook_configs: [{{url: "http://127.0.0.1:{port}/", send_resolved: true}}]
"""


class Webhook:
    """A real HTTP server that keeps what Alertmanager posts."""

    def __init__(self) -> None:
        self.posts: list[dict] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port

    def alerts(self, status: str, alertname: str = "") -> list[dict]:
        """Every alert of every notification, in the order told."""
        every = [alert for post in list(self.posts) for alert in post["alerts"]]
        return [a for a in every if a["status"] == status and alertname in ("", a["labels"]["alertname"])]


@contextlib.contextmanager
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join(5)
        made.server.server_close()


@dataclass
class Replica:
    """One Alertmanager process; `run` again on the same state is a restart."""

    folder: Path
    hook: Webhook
    port: int = field(default_factory=stack.free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def run(self) -> Iterator[subprocess.Popen[bytes]]:
        state = self.folder / f"am-{self.port}"
        state.mkdir(exist_ok=True)
        (state / "am.yml").write_text(CONFIG.format(port=self.hook.port))
        command = (
            "prometheus-alertmanager", f"--config.file={state}/am.yml", f"--storage.path={state}/data",
            f"--web.listen-address=127.0.0.1:{self.port}", "--cluster.listen-address=",
            f"--web.external-url={self.url}/",
        )  # fmt: skip
        with stack.running(state / "log", *command) as process:
            stack.wait_for(lambda: stack.fetch(f"{self.url}/-/ready"), 30, "Alertmanager")
            yield process

    def alerts(self, **labels: str) -> list[dict]:
        """Alerts it holds as open, with these labels."""
        found = json.loads(stack.fetch(f"{self.url}/api/v2/alerts"))
        return [one for one in found if labels.items() <= one["labels"].items()]

    def silence(self, *matchers: tuple[str, str, bool, bool], comment: str = "swap NIC") -> str:
        """Set a silence; a matcher is name, value, is a regex, is positive. Returns its id."""
        now_s = time.time()
        body = {
            "matchers": [
                {"name": name, "value": value, "isRegex": regex, "isEqual": equal}
                for name, value, regex, equal in matchers
            ],
            "startsAt": stamp(now_s - 1), "endsAt": stamp(now_s + 3600), "createdBy": "ann",
            "comment": comment,
        }  # fmt: skip
        return str(post(f"{self.url}/api/v2/silences", body)["silenceID"])

    def unsilence(self, id_: str) -> None:
        request = urllib.request.Request(
            f"{self.url}/api/v2/silence/{urllib.parse.quote(id_)}", method="DELETE"
        )
        urllib.request.urlopen(request, timeout=10).close()


def stamp(time_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


def post(url: str, body: object) -> dict:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"{}")


def incident(node: str = "n1", fault_class: str = "gpu_lost", **more) -> Incident:
    """An open incident of now on a node's GPU 1; its id is random, as a collector's is."""
    import secrets

    target, now_ns = gpu(node, 1), time.time_ns()
    fields = {
        "id": secrets.token_hex(4), "fingerprint": fingerprint(fault_class, target),
        "fault_class": fault_class,
        "scope": "gpu", "severity": "critical", "state": "open", "node": node, "target": target,
        "cause": "Xid 79: GPU has fallen off the bus", "lead_start_ns": now_ns, "opened_ns": now_ns,
        "seen_ns": now_ns, "gpus": 1, "findings": (finding(fault_class, target),),
    }  # fmt: skip
    return Incident(**(fields | more))


class Brain:
    """What a brain publishes: a View, moved on by hand."""

    def __init__(self, started_ns: int = 1) -> None:
        self.view = View(started_ns=started_ns, now_ns=time.time_ns())

    def publish(self, *incidents: Incident, nodes: tuple[str, ...] = ("n1", "n2")) -> None:
        now_ns = time.time_ns()
        gone = {
            one.id: replace(one, state="resolved", resolved_ns=now_ns)
            for one in self.view.open.values()
            if one.id not in {i.id for i in incidents}
        }
        self.view = replace(
            self.view, now_ns=now_ns, ticks=self.view.ticks + 1, nodes=dict.fromkeys(nodes),
            open={one.id: one for one in incidents}, resolved={**self.view.resolved, **gone},
        )  # fmt: skip


@contextlib.contextmanager
def alerting(state: Path, brain: Brain, *urls: str, grace_s: float = 0.0, **more) -> Iterator[Alerting]:
    """The collector's alerting over a brain. resend is 1 s: shorter than a config may say."""
    settings = {"mode": "api", "resend": Seconds(1), "timeout": Seconds(2), "silences_interval": Seconds(1)}
    config = AlertingConfig(alertmanagers=list(urls), **(settings | more))
    state.mkdir(exist_ok=True)
    made = Alerting(config, state, lambda: brain.view, grace_s=grace_s)
    made.start()
    try:
        yield made
    finally:
        made.stop()
