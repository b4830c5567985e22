"""Register words and sub-codes of NVLink Xids: what the vendor ignores is no fault, hardware stays one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fake_snapshot import Fleet, run

from gpuvigil_agent.kernel_grammar import Grammar
from gpuvigil_detectors.rules import Rules
from gpuvigil_detectors.variants import Variant

GPU = "gpu:GPU-n1-0"
XID_74 = (
    "NVRM: Xid (PCI:0000:9b:00): 74, pid='<unknown>', name=<unknown>, "
    "NVLink: fatal error detected on link 6({})"
)
XID_149 = "NVRM: Xid (PCI:0018:01:00): 149, {}  Fatal   XC0 i0 Link 08 (0x{:08x} 0x00000000 0x00000000)"


def judged(*lines, seconds=20):
    """Kernel lines through the agent's grammar and the rules: rule -> finding, after `seconds`."""
    world, rules = Fleet(), Rules()
    world.node("n1", gpus=1)
    for line in lines:
        fact = Grammar().parse(line)
        world.event("n1", "xid", GPU, code=fact.code, fields=fact.fields, origin="kernel_log")
    return {one.rule: one for one in run(rules, world, seconds)}


def registers(*bits_by_register):
    words = [sum(1 << bit for bit in bits) for bits in (*bits_by_register, *[()] * 7)][:7]
    return XID_74.format(", ".join(f"{word:#x}" for word in words))


@pytest.mark.parametrize(
    ("line", "rule", "severity", "notify"),
    [
        (registers([0]), "xid_74_ignored", "info", False),
        (registers([0, 23, 30]), "xid_74_ignored", "info", False),
        (registers([1]), "xid_74_sympathetic", "warning", True),
        (registers([20, 23]), "xid_74_sympathetic", "warning", True),
        (registers([], [], [], [], [20, 29]), "xid_74_ecc", "warning", True),
        *((registers([bit]), "xid_74", "critical", True) for bit in (4, 5, 8, 9, 12, 16, 17, 21, 22, 24, 28)),
        (registers([0, 28]), "xid_74", "critical", True),
        (registers([1, 16]), "xid_74", "critical", True),
        (registers([0], [], [13]), "xid_74", "critical", True),
        (registers([], [], [], [16]), "xid_74", "critical", True),
        (registers([], [], [], [], [20, 18]), "xid_74", "critical", True),
        (registers(), "xid_74", "critical", True),
        ("NVRM: Xid (PCI:0000:9b:00): 74, something else", "xid_74", "critical", True),
    ],
)
def test_the_register_workflow_of_xid_74(line, rule, severity, notify):
    (found,) = judged(line).values()
    assert (found.rule, found.severity, found.notify) == (rule, severity, notify)
    assert found.fault_class == "nvlink_errors"


def test_what_is_to_be_ignored_neither_hides_hardware_nor_lasts_three_hours():
    both = judged(registers([28]), registers([0]))
    assert {(rule, one.severity) for rule, one in both.items()} == {
        ("xid_74", "critical"),
        ("xid_74_ignored", "info"),
    }
    later = judged(registers([28]), registers([0]), seconds=700)
    assert set(later) == {"xid_74"}, "hardware stays"


@pytest.mark.parametrize("code", range(64))
def test_the_sub_codes_of_xid_149(code):
    (found,) = judged(XID_149.format("NETIR_LINK_EVT", code << 20 | 0x505C6)).values()
    down = {*range(5), 10, *range(15, 19), 21, 22, *range(32, 38), 42, 43}
    if code in down:
        assert (found.fault_class, found.severity, found.notify) == ("nvlink_down", "critical", True)
    elif code in {38, 40}:
        assert (found.severity, found.notify) == ("info", False)
    else:
        assert (found.rule, found.severity) == ("xid_149", "critical"), "as the line's own word says"


def test_bit_errors_are_a_warning_whatever_the_word():
    (found,) = judged(XID_149.format("NETIR_BER_EVENT", 5 << 20)).values()
    assert (found.rule, found.severity, found.notify) == ("xid_149_bit_errors", "warning", True)


@pytest.mark.parametrize("first", ["driver", "kernel_log"])
def test_the_drivers_bare_event_is_what_its_kernel_line_says(first):
    world, rules = Fleet(), Rules()
    world.node("n1", gpus=1)
    fields = Grammar().parse(registers([0])).fields
    for origin in sorted(["driver", "kernel_log"], reverse=first == "kernel_log"):
        told = {} if origin == "driver" else fields
        world.event("n1", "xid", GPU, code=74, fields=told, origin=origin)
        rules.tick(world.advance())
    (found,) = run(rules, world, 20)
    assert (found.rule, found.notify) == ("xid_74_ignored", False)
    world.event("n1", "xid", GPU, code=74)
    assert "xid_74" in {one.rule for one in run(rules, world, 20)}, "a later one alone is the row"


def test_other_units_have_no_sub_codes_of_links():
    (found,) = judged(XID_149.format("NETIR_INT", 0x18)).values()
    assert (found.rule, found.fault_class, found.severity) == ("xid_149", "nvlink_errors", "critical")


@given(st.text(max_size=80) | st.from_regex(r"(0x[0-9a-fA-F]{1,12},? ?){0,9}"))
def test_no_text_breaks_the_reading_of_words(text):
    low = Variant(name="x", field="words", severity="info", action="", within=[[0]])
    value = Variant(name="x", field="words", severity="info", action="", values=[1], shift=20, width=6)
    assert low.matches({"words": text}) in (True, False)
    assert value.matches({"words": text}) in (True, False)
    assert not low.matches({})
