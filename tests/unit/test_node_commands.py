"""The agent's commands with effects: names checked, holds owned, the pause seen, a helper's lost answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from gpuvigil_agent.config import AgentConfig, HelperLink, Verdict
from gpuvigil_agent.hook_peer import Refused
from gpuvigil_agent.node_commands import NodeCommands
from gpuvigil_protos import pause

SOON = time.time_ns() + 3600 * 10**9
HOLD = {"incident": "i-1", "action": "a", "generation": "3", "reason": "r"}


class Node:
    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []
        link = HelperLink(socket=str(folder / "helper.sock"), pause_files=(str(folder / "pause"),))
        self.commands = NodeCommands(AgentConfig(state_directory=str(folder), helper=link), self._let_go)

    def _let_go(self, go: bool) -> bool:
        self.asked.append(go)
        return True

    def do(self, verb: str, seconds: float = 5, **arguments: str) -> str:
        return self.commands.do(verb, arguments, time.time_ns() + int(seconds * 1e9))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def helper(node: Node, *messages: bytes) -> threading.Thread:
    """A helper that takes one connection, says these things, and ends it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(node.folder / "helper.sock"))
    listener.listen(1)
    listener.settimeout(10)

    def serve() -> None:
        with listener, listener.accept()[0] as link:
            link.settimeout(10)
            link.recv(8192)
            for message in messages:
                link.send(message)
                if b"let_go" in message:
                    assert link.recv(64) == b"let go"

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize("changes", [
    {"incident": ""}, {"incident": "a b"}, {"incident": "x" * 257}, {"action": "\x1b[2J"},
    {"generation": "-1"}, {"generation": ""}, {"generation": "9" * 20}, {"generation": "\u0661"},
])  # fmt: skip
def test_bad_arguments_are_named_and_nothing_is_held(node: Node, changes: dict[str, str]) -> None:
    with pytest.raises(Refused, match=next(iter(changes))):
        node.do("hold", **HOLD | changes)
    assert json.loads(node.do("boot"))["held"] == []


def test_the_status_line_says_what_keeps_the_node_off(node: Node) -> None:
    assert node.commands.notes() == []
    node.do("hold", **HOLD)
    (node.folder / "pause").write_text("anna\x1b[2J")
    held, paused = node.commands.notes()
    assert held == "held for i-1 (gpuvigil)" and "anna" in paused and paused.isprintable()


def test_two_incidents_hold_and_the_end_of_one_frees_nothing(node: Node) -> None:
    node.do("hold", **HOLD)
    node.do("hold", **HOLD | {"incident": "i-2"})
    assert (
        node.do("unhold", incident="i-1", generation="3") == "not held for i-1; held still for i-2 (gpuvigil)"
    )
    assert json.loads(node.do("boot", incident="i-2"))["ours"] is True
    with pytest.raises(Refused, match="expected 3 or newer, got 2"):
        node.do("unhold", incident="i-2", generation="2")


def test_a_hold_file_that_cannot_be_read_is_a_persons(node: Node) -> None:
    (node.folder / "hold.json").write_text("{")
    with pytest.raises(Refused, match="held by a person"):
        node.do("hold", **HOLD)
    assert (node.folder / "hold.json").read_text() == "{"


def test_the_gpus_are_taken_back_when_the_helpers_answer_is_lost(node: Node) -> None:
    """Also one that ends in the middle: released on its word, taken again by ours."""
    thread = helper(node, b'{"ask":"let_go"}')
    said = json.loads(node.do("helper", order="{}", signature="00"))
    thread.join(10)
    assert said["state"] == "unknown" and node.asked == [True, False]


def test_the_helpers_answer_is_passed_on_as_it_is(node: Node) -> None:
    answer = b'{"accepted":false,"state":"refused","outcome":"because"}'
    thread = helper(node, b'{"ask":"let_go"}', b'{"ask":"take"}', answer)
    assert node.do("helper", order="{}", signature="00").encode() == answer
    thread.join(10)
    assert node.asked == [True, False]


def test_without_a_helper_an_order_is_refused_for_certain(node: Node) -> None:
    with pytest.raises(Refused, match="the helper cannot be reached"):
        node.do("helper", order="{}", signature="00")
    assert "cannot be reached" in json.loads(node.do("boot", action="a"))["helper"]


def test_r10_what_cannot_be_looked_at_is_a_pause(tmp_path: Path) -> None:
    (tmp_path / "pause").mkdir()
    assert "taken as a pause" in pause.paused([tmp_path / "none", tmp_path / "pause"])
    assert pause.paused([tmp_path / "none", tmp_path / "none/pause"]) == ""


def test_a_verdict_is_put_where_the_scripts_look_and_taken_away(tmp_path: Path) -> None:
    place = tmp_path / "verdict"
    config = AgentConfig(state_directory=str(tmp_path), verdict=Verdict(directory=str(place)))
    commands = NodeCommands(config, lambda _: True)
    given = {"text": "gpuvigil-verdict 1\n", "signature": "ab" * 64, "generation": "3"}
    assert commands.do("verdict", given, SOON) == "put"
    assert (place / "current/text").read_text() == given["text"]
    assert (place / "current/signature").read_bytes() == bytes.fromhex(given["signature"])
    for wrong, word in (
        ({"signature": "ab"}, "signature: expected 64 bytes, got 1"),
        ({"signature": "zz"}, "non-hexadecimal"),
        ({"text": "x" * 2049}, "text: expected 1 to 2048 bytes, got 2049"),
        ({"generation": "2"}, "generation: expected 3 or newer, got 2"),
        ({"generation": "-"}, "generation: expected a whole number"),
    ):
        with pytest.raises(Refused, match=word):
            commands.do("verdict", given | wrong, SOON)
    assert (place / "current/text").read_text() == given["text"], "what is refused changes nothing"
    assert commands.do("verdict", {"text": "", "generation": "3"}, SOON) == "none"
    assert not (place / "current").exists()


def test_an_agent_without_a_folder_for_verdicts_says_so_and_has_none_to_take_away(node: Node) -> None:
    with pytest.raises(Refused, match=r"no verdict is kept here: \[verdict\] directory is empty"):
        node.do("verdict", text="gpuvigil-verdict 1\n", signature="ab" * 64, generation="1")
    assert node.do("verdict", text="", signature="", generation="1") == "none"


def test_an_effect_that_waited_past_its_deadline_is_not_had(node: Node) -> None:
    with pytest.raises(Refused, match="deadline_ns: it has passed"):
        node.do("hold", seconds=-0.1, **HOLD)
    assert json.loads(node.do("boot"))["held"] == []
