"""S6: an order that is replayed, reordered, altered, late or another node's is refused, over restarts too."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.helper_world import BOOT, GPU, NODE, World

from gpuvigil_helper.check import ForgedError, check, load_key
from gpuvigil_protos import order as orders
from gpuvigil_protos.order import Order, OrderError

EACH = 1000
TEN_MINUTES_NS = 600_000_000_000


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def captured(world: World, count: int) -> list[bytes]:
    """Orders that were given and carried out: holds, taken back in turn."""
    messages = [world.sign(world.order("hold" if i % 2 == 0 else "unhold")) for i in range(count)]
    for message in messages:
        assert world.say(message).state == "done"
    return messages


def refused_all(world: World, messages: list[bytes], *words: str) -> None:
    """Every one is refused for one of these reasons, and nothing has happened."""
    before = len(world.ledger.effects("1", ()))
    for message in messages:
        said = world.say(message)
        assert (said.state, said.accepted) == ("refused", False), said
        assert said.outcome.startswith(words), said
    assert len(world.ledger.effects("1", ())) == before


def test_s6_a_replayed_order_is_refused(world: World, record_property) -> None:
    refused_all(world, captured(world, EACH), "nonce: ")
    record_property("n", EACH)


def test_s6_a_replay_is_refused_after_a_restart_and_a_reboot(world: World, record_property) -> None:
    messages = captured(world, EACH)
    world.ledger.close()
    world.start()
    refused_all(world, messages[::2], "nonce: ")
    world.ledger.close()
    world.start("99999999-2222-3333-4444-555555555555")
    refused_all(world, messages, "nonce: ")
    record_property("n", len(messages))


def test_s6_reordered_orders_are_refused(world: World, record_property) -> None:
    """Each pair is delivered the other way round: the newer is taken, the older is too late for ever."""
    for i in range(EACH):
        verb = "hold" if i % 2 == 0 else "unhold"
        older, newer = world.sign(world.order("reboot")), world.sign(world.order(verb))
        assert world.say(newer).state == "done"
        said = world.say(older)
        assert said.state == "refused" and said.outcome.startswith("number: "), said
    assert world.did("reboot") == []
    record_property("n", EACH)


def test_s6_an_order_of_an_older_generation_is_refused(world: World, record_property) -> None:
    assert world.give("hold", generation=7).state == "done"
    messages = [world.sign(world.order("reboot", generation=1 + i % 6)) for i in range(EACH)]
    refused_all(world, messages, "generation: expected 7 or newer")
    assert world.did("reboot") == []
    record_property("n", len(messages))


def test_s6_an_altered_order_is_refused(world: World, record_property) -> None:
    """Every field is altered in turn, then single bytes of the text and of the signature."""
    chance = random.Random(6)
    messages = []
    other = {
        "verb": "unhold", "node": "n2", "target": "x.service", "action": "b", "incident": "i-2",
        "nonce": "0" * 32, "number": 1, "generation": 99, "expires_ns": time.time_ns() + 10**10,
    }  # fmt: skip
    assert set(other) == {field.name for field in msgspec.structs.fields(Order)}
    for i in range(EACH):
        good = json.loads(world.sign(world.order("hold")))
        text, signature = good["order"], good["signature"]
        field = list(other)[i % len(other)]
        changed = json.loads(text) | {field: other[field]}
        messages.append(world.message(json.dumps(changed, separators=(",", ":")).encode(), signature))
        place = chance.randrange(len(text))
        letter = chr(chance.choice([c for c in range(33, 127) if chr(c) != text[place]]))
        messages.append(world.message((text[:place] + letter + text[place + 1 :]).encode(), signature))
        place = chance.randrange(len(signature))
        digit = chance.choice([c for c in "0123456789abcdef" if c != signature[place]])
        messages.append(world.message(text.encode(), signature[:place] + digit + signature[place + 1 :]))
    refused_all(world, messages, "signature: ")
    record_property("n", len(messages))


def test_s6_a_late_order_is_refused(world: World, record_property) -> None:
    chance = random.Random(7)
    messages = []
    for _ in range(EACH):
        late = world.order("hold", expires_ns=time.time_ns() - chance.randrange(1, 10**15))
        early = world.order(
            "hold", expires_ns=time.time_ns() + TEN_MINUTES_NS + chance.randrange(10**10, 10**17)
        )
        messages += [world.sign(late), world.sign(early)]
    refused_all(world, messages[1::2], "expires_ns: expected within 600 s")
    for message in messages[::2]:
        assert world.say(message).outcome.endswith(" s late")
    assert world.ledger._db.execute("SELECT count(*) FROM nonces").fetchone() == (0,), "nothing is used up"
    record_property("n", len(messages))


def test_s6_an_order_for_another_node_is_refused(world: World, record_property) -> None:
    names = [f"n{i}" for i in range(2, EACH + 2)]
    refused_all(world, [world.sign(world.order("hold", node=name)) for name in names], "node: expected n1")
    record_property("n", len(names))


def test_s6_what_was_not_refused_is_carried_out(world: World) -> None:
    """The battery above would pass with a helper that refuses all: this one is taken."""
    assert world.give("hold").state == "done"
    assert world.look().held == "i-1"


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(raw=st.binary(max_size=400))
def test_any_bytes_are_answered_and_nothing_happens(world: World, raw: bytes) -> None:
    assert world.say(raw).state == "refused"


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.dictionaries(st.text(max_size=12), st.integers() | st.text() | st.none(), max_size=12))
def test_a_signed_text_that_is_no_order_is_refused_by_name(world: World, raw: dict) -> None:
    """Even with the collector's own signature only the canonical text of a sound order passes."""
    text = json.dumps(raw).encode()
    signature = world.signer._key.sign(orders.signed_bytes(text)).hex()
    with pytest.raises(ForgedError, match=r"^order: "):
        check(text, signature, load_key(Path(world.config.key)), NODE, time.time_ns())


@pytest.mark.parametrize(("text", "why"), [
    (b'{ "verb":"reboot"', "order: "),
    (b"[]", "order: "),
    (b"x" * 5000, "order: expected at most 2048 bytes"),
])  # fmt: skip
def test_bad_text_is_named(text: bytes, why: str) -> None:
    with pytest.raises(OrderError, match=why):
        orders.decode(text)


@pytest.mark.parametrize(("verb", "target", "why"), [
    ("reset_gpu", "", "target: expected one"),
    ("reboot", GPU, "target: expected none"),
    ("reset_gpu", "0", "target: expected a GPU's UUID"),
    ("reset_gpu", GPU.upper(), "target: expected a GPU's UUID"),
    ("reset_gpu", "00000000:07:00.0", "target: expected a GPU's UUID"),
    ("stop_unit", "-H", "order: "),
    ("stop_unit", "a.service\n", "order: "),
    ("stop_unit", "../../x", "order: "),
])  # fmt: skip
def test_a_target_that_is_none_is_refused_even_when_signed(
    world: World, verb: str, target: str, why: str
) -> None:
    said = world.say(world.sign(world.order(verb, target)))
    assert said.state == "refused" and said.outcome.startswith(why)


def test_another_way_to_write_the_same_order_is_refused(world: World) -> None:
    text = orders.encode(world.order("hold")).replace(b'","', b'", "', 1)
    signature = world.signer._key.sign(orders.signed_bytes(text)).hex()
    assert "canonical" in world.say(world.message(text, signature)).outcome


def test_the_boot_id_is_in_every_answer(world: World) -> None:
    assert world.give("hold").boot_id == BOOT == world.say(b"").boot_id
