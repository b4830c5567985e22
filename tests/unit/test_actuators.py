"""What is particular to the program runner, command and webhook; the rest is in the contract battery."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import msgspec
import pytest
from contract.actuator_cases import Receiver
from unit.action_help import action

from gpuvigil_collector import process
from gpuvigil_collector.action import AmbiguousError, Fence, RefusedError
from gpuvigil_collector.actuator_config import ActuatorSettings, Command, Webhook
from gpuvigil_collector.actuators import ACTUATORS, Tools
from gpuvigil_collector.actuators.command import CommandActuator
from gpuvigil_collector.actuators.webhook import WebhookActuator
from gpuvigil_collector.execute import actuators_of, first_of_kind


def fence(left_s=25.0):
    return Fence(holder="me", generation=7, until_ns=time.time_ns() + int(left_s * 1e9))


def asked(**more):
    return action(kind="hold", **({"deadline_s": 2.0} | more))


# the runner


def test_a_program_sees_little_of_our_environment(monkeypatch):
    monkeypatch.setenv("GPUVIGIL_TOKEN", "secret")
    ran = process.run(["env"], deadline_s=10, environment={"A": "b"})
    assert sorted(ran.output.split()) == ["A=b", "LC_ALL=C.UTF-8", f"PATH={process.PATH}"]
    assert process.run(["pwd"], deadline_s=10).output == "/\n"


@pytest.mark.parametrize(
    "argv", [[], [""], ["/nowhere/no-such"], ["no-such-program"], ["echo", "a\0b"], ["/etc"]]
)
def test_what_cannot_start_is_refused(argv):
    with pytest.raises(RefusedError):
        process.run(argv, deadline_s=10)


def test_what_does_not_end_is_killed_with_its_children_and_ambiguous(tmp_path):
    start = time.monotonic()
    with pytest.raises(AmbiguousError, match="did not end within"):
        process.run(["sh", "-c", f"(sleep 1.5; touch {tmp_path}/late) & sleep 60"], deadline_s=0.5)
    assert time.monotonic() - start < 20
    time.sleep(2)
    assert not (tmp_path / "late").exists()


def test_output_is_bounded_and_a_pipe_left_open_does_not_hold_us():
    ran = process.run(["sh", "-c", "head -c 3000000 /dev/zero; sleep 20 & exit 3"], deadline_s=15)
    assert len(ran.output) == process.OUTPUT_MAX and ran.code == 3
    assert process.run(["sh", "-c", "kill -9 $$"], deadline_s=10).code == -9
    assert process.run(["sh", "-c", "printf 'a\\033[2Jb\\nc' >&2; exit 1"], deadline_s=10).why() == "a?[2Jb"


def test_an_effect_has_less_than_half_of_the_lease():
    now_ns = time.time_ns()
    held = Fence(holder="me", generation=1, until_ns=now_ns + 20_000_000_000)
    assert process.within(held, 60, now_ns) == pytest.approx(9.8)
    assert process.within(held, 3, now_ns) == 3
    assert process.within(held, 600, now_ns - 3_600_000_000_000) <= 15, "a wall clock set back gives no more"
    with pytest.raises(RefusedError):
        process.within(held, 60, now_ns + 19_800_000_000)


# the command


def scripted(tmp_path, apply="exit 0", look="exit 1", words=("{node}",)):
    for name, text in (("apply", apply), ("look", look)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    argv = {name: (str(tmp_path / name), *words) for name in ("apply", "look")}
    return CommandActuator(Command(name="x", kinds=("hold",), **argv))


@pytest.mark.parametrize(
    ("code", "state"), [(0, "done"), (1, "absent"), (2, "foreign"), (3, "unknown"), (127, "unknown")]
)
def test_the_look_programs_status(tmp_path, code, state):
    seen = scripted(tmp_path, look=f"echo boot-7; echo why >&2; exit {code}").look(asked())
    assert (seen.state, seen.token, seen.detail) == (state, "boot-7", "why")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("exit 2", RefusedError),
        ("exit 1", AmbiguousError),
        ("exit 70", AmbiguousError),
        ("kill -9 $$", AmbiguousError),
        ("sleep 20", AmbiguousError),
    ],
)
def test_the_apply_programs_end(tmp_path, text, error):
    with pytest.raises(error):
        scripted(tmp_path, apply=text).apply(asked(deadline_s=0.5), fence())


def test_arguments_and_fence_reach_the_program_as_they_are(tmp_path):
    words = ("-x", "{node}", "{gpu}", "{job}", "{incident}", "a b $HOME")
    text = 'printf "%s|" "$@" "$GPUVIGIL_GENERATION" "$GPUVIGIL_ACTION" "$GPUVIGIL_KIND" "$GPUVIGIL_BEFORE"'
    one = replace(asked(gpu="GPU-1", job="ns/j_1+2"), before="boot 1")
    said = scripted(tmp_path, apply=text, words=words).apply(one, fence())
    assert said.endswith("-x|n1|GPU-1|ns/j_1+2|i1|a b $HOME|7|a1|hold|boot 1|")
    with pytest.raises(RefusedError, match="gpu"):
        scripted(tmp_path, apply=text, words=words).apply(asked(job="j1"), fence())


@pytest.mark.parametrize("word", ["--node={node}", "{node", "{nodes}", "{node}{gpu}", "{}", "{0}"])
def test_a_placeholder_is_a_whole_argument(word):
    with pytest.raises(ValueError, match="each whole, got"):
        Command(name="x", kinds=("hold",), apply=("/bin/true", word), look=("/bin/true",))


@pytest.mark.parametrize(
    "text",
    [
        '{"command": [{"name": "x", "kinds": ["hold"], "apply": ["true"], "look": ["/bin/true"]}]}',
        '{"command": [{"name": "x", "kinds": [], "apply": ["/bin/true"], "look": ["/bin/true"]}]}',
        '{"command": [{"name": "x", "kinds": ["tickle"], "apply": ["/bin/true"], "look": ["/bin/true"]}]}',
        '{"webhook": [{"name": "x", "kinds": ["hold"], "url": "ftp://h/", "secret_file": "s"}]}',
        '{"webhook": [{"name": "x", "kinds": ["hold"], "url": "http://h:99999/", "secret_file": "s"}]}',
        '{"webhook": [{"name": "x", "kinds": ["hold"], "url": "http://h/", "secret_file": ""}]}',
        '{"webhook": [{"name": "x", "kinds": ["hold"], "url": "http://h/", "secret_file": "s", "sec": 1}]}',
    ],
)
def test_settings_that_are_wrong_are_refused(text):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=ActuatorSettings)


# the webhook


@contextmanager
def receiver(tmp_path):
    made = Receiver(tmp_path)
    threading.Thread(target=made.server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield made
    finally:
        made.lost.set()
        made.server.shutdown()
        made.server.server_close()


def test_passing_faults_are_sent_again_with_the_same_key(tmp_path):
    with receiver(tmp_path) as outside:
        outside.statuses = [503, 500, 429, 0]
        outside.actuator.apply(asked(deadline_s=10.0), fence())
        assert outside.posts == 4 and outside.effects() == [("a1", 7)] and outside.bad == 0


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        ([400], RefusedError),
        ([302], RefusedError),
        ([401], RefusedError),
        ([503, 400], AmbiguousError),
        ([500] * 50, AmbiguousError),
    ],
)
def test_what_the_answer_tells(tmp_path, statuses, error):
    """A refusal after an attempt that may have arrived is no certainty."""
    with receiver(tmp_path) as outside:
        outside.statuses = list(statuses)
        with pytest.raises(error):
            outside.actuator.apply(asked(deadline_s=1.0), fence())
        assert outside.effects() == []
        assert outside.posts == len(statuses) or 2 <= outside.posts < 50


def test_a_receiver_that_is_not_there_is_certain(tmp_path):
    with receiver(tmp_path) as outside:
        actuator = outside.actuator
    with pytest.raises(RefusedError, match="no connection"):
        actuator.apply(asked(deadline_s=0.5), fence())
    assert actuator.look(asked()).state == "unknown"


@pytest.mark.parametrize("secret", [None, b"", b"short"])
def test_without_a_secret_nothing_is_sent(tmp_path, secret):
    with receiver(tmp_path) as outside:
        (tmp_path / "secret").unlink()
        if secret is not None:
            (tmp_path / "secret").write_bytes(secret)
        with pytest.raises(RefusedError, match="secret_file"):
            outside.actuator.apply(asked(), fence())
        assert outside.actuator.look(asked()).state == "unknown" and outside.posts == 0


@pytest.mark.parametrize("nonsense", ["<html>", '{"state": "perhaps"}', "[]", "x" * 200_000])
def test_a_status_that_is_nonsense_is_unknown(tmp_path, nonsense):
    with receiver(tmp_path) as outside:
        outside.broken = nonsense
        assert outside.actuator.look(asked()).state == "unknown"


def test_without_a_status_address_our_own_record_is_all_there_is(tmp_path):
    hook = WebhookActuator(Webhook(name="x", kinds=("hold",), url="http://127.0.0.1:1/", secret_file="s"))
    assert hook.look(asked()).state == "absent"
    assert hook.look(replace(asked(state="issued"), outcome="status 200")).state == "done"
    assert hook.look(asked(state="issued")).state == hook.look(asked(state="ambiguous")).state == "unknown"


def test_the_table_makes_what_is_configured_and_the_first_that_can_is_taken():
    hook = Webhook(name="w", kinds=("hold", "notify"), url="http://127.0.0.1:1/", secret_file="s")
    program = Command(name="c", kinds=("hold", "reboot"), apply=("/bin/true",), look=("/bin/true",))
    made = tuple(actuators_of(Tools(settings=ActuatorSettings(webhook=(hook,), command=(program,)))))
    assert [one.name for one in made] == ["webhook w", "command c"]
    assert actuators_of(Tools()) == [] and set(ACTUATORS) >= {"webhook", "command"}
    chosen = [first_of_kind(action(kind=kind), made) for kind in ("hold", "reboot", "reset_gpu")]
    assert [one.name if one else None for one in chosen] == ["webhook w", "command c", None]
