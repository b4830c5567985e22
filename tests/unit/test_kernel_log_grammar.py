"""The kernel grammar: every known line, and that no user-chosen text changes a code or a GPU."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuvigil_agent.kernel_grammar import Grammar, clean, normalise_pci

LINES = tomllib.loads((Path(__file__).parents[1] / "fixtures/kernel/lines.toml").read_text())["line"]
GRAMMAR = Grammar()
FORGED = (
    "NVRM: Xid (PCI:0000:ff:00): 79, GPU has fallen off the bus.",
    "NVRM: Xid (PCI:0000:ff:00 GPU-I:05 GPU-CI:01): 79, GPU has fallen off the bus.",
    " GPU-I:07 GPU-CI:07): 79, ",
    "NVRM: GPU 0000:ff:00.0: GPU has fallen off the bus.",
    "): 79, ",
    ", 79, pid=1",
    "\nNVRM: Xid (PCI:0000:ff:00): 79, x",
    "nvidia-nvswitch0: SXid (PCI:0000:ff:00.0): 20034, Fatal, Link 1",
    "RLW_REMAP Fatal XC0 i0 Link 03 (0x1)",
    "Graphics SM Warp Exception on (GPC 9, TPC 9, SM 9)",
    "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot)",
    "Out of memory: Killed process 1 (",
)
hostile = (
    st.text(max_size=200)
    | st.sampled_from(FORGED)
    | st.tuples(st.text(max_size=20), st.sampled_from(FORGED)).map("".join)
)
# The kernel keeps 15 bytes of a process name; every piece of every forged head is tried too.
PIECES = [line["text"][start : start + 15] for line in LINES for start in range(0, 40, 5)]
PIECES += [text[start : start + 15] for text in FORGED for start in range(0, len(text), 3)]
comm = st.sampled_from(PIECES) | hostile.map(
    lambda text: text.encode("utf-8", "replace")[:15].decode("utf-8", "replace")
)


@pytest.mark.parametrize("line", LINES, ids=[line["text"][:50] for line in LINES])
def test_a_recorded_line_is_read_as_what_it_is(line):
    fact = Grammar().parse(line["text"])
    if not line["kind"]:
        assert fact is None
        return
    assert fact is not None
    assert (fact.kind, fact.code, fact.pci) == (line["kind"], line.get("code", 0), line.get("pci", ""))
    assert fact.synthetic is line.get("synthetic", False)
    for key, value in line.get("fields", {}).items():
        assert fact.fields[key] == value


@pytest.mark.parametrize(
    "records",
    [
        ("NVRM: The NVIDIA GPU 0000:3b:00.0", "NVRM: (PCI ID: 10de:20b0) installed in this system has",
         "NVRM: fallen off the bus and is not responding to commands."),
        ("NVRM: The NVIDIA GPU 0000:3b:00.0 (PCI ID: 10de:20b0)",
         "NVRM: installed in this system has fallen off the bus and is not responding to commands."),
    ],
)  # fmt: skip
def test_a_loss_told_in_several_records_is_one_fact(records):
    grammar = Grammar()
    facts = [grammar.parse(record) for record in records]
    assert facts[:-1] == [None] * (len(records) - 1)
    assert facts[-1] is not None
    assert (facts[-1].kind, facts[-1].pci) == ("gpu_lost", "0000:3b:00")
    assert grammar.parse(records[-1]) is None  # the tail alone names no GPU and is no second loss


def test_the_tail_of_a_loss_long_after_its_head_means_nothing():
    grammar = Grammar()
    grammar.parse("NVRM: The NVIDIA GPU 0000:3b:00.0")
    for _ in range(5):
        grammar.parse("NVRM: loading NVIDIA UNIX x86_64 Kernel Module")
    assert grammar.parse("NVRM: fallen off the bus and is not responding to commands.") is None


@given(name=hostile, tail=hostile, code=st.integers(1, 999))
def test_no_process_name_and_no_tail_changes_code_or_gpu(name, tail, code):
    fact = GRAMMAR.parse(f"NVRM: Xid (PCI:0000:3b:00): {code}, pid=7, name={name}, {tail}")
    assert fact is not None
    assert (fact.kind, fact.code, fact.pci, fact.fields["pci"]) == ("xid", code, "0000:3b:00", "0000:3b:00")


@given(name=comm, code=st.sampled_from([13, 31, 74, 145, 149, 154]))
def test_a_process_name_forges_no_detail(name, code):
    fact = GRAMMAR.parse(
        f"NVRM: Xid (PCI:0000:3b:00): {code}, pid=7, name={name}, Ch 00000008, intr 00000000"
    )
    assert fact is not None
    assert not {"gpc", "link", "to", "severity", "registers"} & set(fact.fields)
    assert not fact.synthetic


@given(name=comm)
def test_a_record_that_begins_with_a_process_name_is_never_a_fact(name):
    for form in (
        "{}[123]: segfault at 0 ip 00007f2 sp 00007ff error 4 in libc.so.6[7f2+1c3]",
        "{}/123: potentially unexpected fatal signal 11.",
        "{} (123): drop_caches: 3",
        "{} uses obsolete (PF_INET,SOCK_PACKET)",
        "process '{}' started with executable stack",
        "traps: {}[123] general protection fault ip:55 sp:7ff error:0",
        'audit: type=1326 audit(1.1:2): comm="{}" exe="{}" sig=31',
    ):
        assert GRAMMAR.parse(form.format(name, name)) is None


@given(st.text(max_size=3000))
def test_any_text_is_parsed_without_error_and_in_bounds(text):
    fact = GRAMMAR.parse(text)
    assert fact is None or all(len(value) <= 200 for value in fact.fields.values())


@given(st.text(max_size=3000))
def test_cleaned_text_is_one_printable_bounded_line(text):
    assert clean(text).isprintable()
    assert len(clean(text)) <= 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [("00000000:3B:00.0", "0000:3b:00"), ("0000:3b:00", "0000:3b:00"), ("00000018:01:00.0", "0018:01:00"),
     ("", ""), ("3b:00.0", ""), ("0000:3b:00.0\n", ""), ("0000:3b:00<b>", "")],
)  # fmt: skip
def test_one_form_of_a_pci_address(text, expected):
    assert normalise_pci(text) == expected
