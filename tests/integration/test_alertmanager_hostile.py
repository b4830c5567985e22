"""What answers at an Alertmanager's address may be anything: one error, in time, and no thread that dies."""

from __future__ import annotations

import http.server
import threading
import time

import pytest
import trustme
from integration import stack
from integration.alert_stack import Brain, alerting, incident

from gpuvigil_collector.alerting.client import Alertmanager, AlertmanagerError
from gpuvigil_collector.alerting.settings import AlertAuth, AlertingConfig, AlertTls
from gpuvigil_protos.settings import Seconds


class Odd(http.server.ThreadingHTTPServer):
    """Answers every request with `status` and what `body` yields; keeps the headers that came."""

    daemon_threads = True

    def __init__(self, status, body, wrap=None):
        self.seen = []
        odd = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                odd.seen.append(dict(self.headers))
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                try:
                    for chunk in body():
                        self.wfile.write(chunk)
                except OSError:
                    return

            do_GET = do_POST = _answer

            def log_message(self, *_):
                return

        super().__init__(("127.0.0.1", 0), Handler)
        if wrap is not None:
            self.socket = wrap(self.socket)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def endless():
    while True:
        yield b"x" * 65536


def dripping():
    while True:
        yield b" "
        time.sleep(0.1)


ANSWERS = {
    "endless": (200, endless), "dripping": (200, dripping), "html": (200, lambda: [b"<html>"]),
    "other json": (200, lambda: [b'{"a": 1}']), "wrong rows": (200, lambda: [b'[{"id": 5}]']),
    "nothing": (200, lambda: []), "deep": (200, lambda: [b"[" * 100_000]), "redirect": (302, lambda: []),
    "error": (500, lambda: [b"\x1b[2J\xff"]), "denied": (401, lambda: []),
}  # fmt: skip


def client(url, **more):
    config = AlertingConfig(alertmanagers=[url], timeout=Seconds(1), **more)
    return Alertmanager(url, config, config.tls.context("test"))


@pytest.mark.parametrize("kind", ANSWERS)
def test_silences_are_an_error_in_time_whatever_comes(kind):
    with Odd(*ANSWERS[kind]) as server:
        asked = client(f"http://127.0.0.1:{server.server_port}")
        started = time.monotonic()
        with pytest.raises(AlertmanagerError) as error:
            asked.silences()
        assert time.monotonic() - started < 3 * 3
        assert "\x1b" not in str(error.value) and len(str(error.value)) < 1000
        asked.close()


@pytest.mark.parametrize("kind", ["redirect", "error", "denied", "endless"])
def test_alerts_are_not_taken_to_be_delivered(tmp_path, kind):
    with Odd(*ANSWERS[kind]) as server:
        brain = Brain()
        with alerting(
            tmp_path / "a", brain, f"http://127.0.0.1:{server.server_port}", silences=False
        ) as made:
            brain.publish(incident())
            state = made.replicas[0].state
            stack.wait_for(lambda: state.failures >= 2, 30, "it is tried again")
            assert (state.up, state.sent, state.waiting) == (False, 0, 1) and state.fault


def test_secrets_go_with_each_request_and_a_new_one_needs_no_restart(tmp_path):
    secret = tmp_path / "secret"
    with Odd(200, lambda: [b"[]"]) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        secret.write_text("one\n")
        bearer, basic = (
            client(url, auth=AlertAuth(token_file=str(secret))),
            client(url, auth=AlertAuth(user="gpuvigil", password_file=str(secret))),
        )
        bearer.silences()
        basic.silences()
        secret.write_text("two\n")
        bearer.silences()
        sent = [headers["Authorization"] for headers in server.seen]
        assert sent == ["Bearer one", "Basic Z3B1dmlnaWw6b25l", "Bearer two"]
        secret.unlink()
        with pytest.raises(AlertmanagerError, match=r"token_file.*cannot be read"):
            bearer.silences()


def test_tls_by_files_and_a_stranger_is_refused(tmp_path):
    ours, other = trustme.CA(), trustme.CA()
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("127.0.0.1").configure_cert(context)
    for name, authority in (("ours", ours), ("other", other)):
        authority.cert_pem.write_to_path(tmp_path / f"{name}.pem")
    with Odd(200, lambda: [b"[]"], lambda raw: context.wrap_socket(raw, server_side=True)) as server:
        url = f"https://127.0.0.1:{server.server_port}"
        assert client(url, tls=AlertTls(ca=str(tmp_path / "ours.pem"))).silences() == []
        with pytest.raises(AlertmanagerError, match="certificate verify failed"):
            client(url, tls=AlertTls(ca=str(tmp_path / "other.pem"))).silences()
