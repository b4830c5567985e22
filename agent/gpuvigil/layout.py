"""The bytes that hook and agent share: a ring of steps that the hook writes, a page that the agent writes.

All numbers are little-endian, every field lies on its own size. A record, and the live block, carries its
number at both ends and is written from front to back: a reader that finds both alike in two equal copies has
a whole one. Times are CLOCK_MONOTONIC of the machine (the same for both sides, in containers too) unless a
name says wall.
"""

from __future__ import annotations

import struct

MAGIC = b"GPUVRING"
VERSION = 1
PAGE = 4096
CAPACITY = 1024
IDENTITY_MAX = 3500

# Order is the wire: a name's place is its code, 0 is no phase.
PHASES = ("none", "data", "forward", "backward", "optimizer", "checkpoint", "eval", "init", "compile")
# What a loop did wrong, or what we had to leave out; each a counter in the live block.
FAULTS = (
    "nested_step", "log_outside_step", "bad_value", "unknown_phase", "other_thread", "second_monitor",
    "value_dropped", "internal",
)  # fmt: skip

FLAG_FIRST, FLAG_LOSS, FLAG_GRADIENT, FLAG_EVAL, FLAG_CHECKPOINT = 1, 2, 4, 8, 16
FLAG_PENDING = 32  # a value of this step is still on its way; set back when it is there

# magic, version, capacity, record size, pid as the process sees itself, generation, made at (monotonic, wall)
HEADER = struct.Struct("<8sIIIIQqq")
# length of the JSON text that follows
IDENTITY = struct.Struct("<I")
# number, phase, unused, phase since, number again
LIVE = struct.Struct("<QIIqQ")
FAULT_COUNTS = struct.Struct("<%dI" % len(FAULTS))
WORD = struct.Struct("<q")  # the heartbeat; how many records were written
# index + 1, step, end, flags, micro-steps, seconds, 8 phases, tokens, loss, gradient norm, device memory
# allocated, index + 1 again
RECORD = struct.Struct("<QqqII" + "d" * 13 + "Q")

IDENTITY_AT = 256
LIVE_AT = PAGE
FAULTS_AT = LIVE_AT + 256
HEARTBEAT_AT = LIVE_AT + 512
WRITTEN_AT = LIVE_AT + 576
STACK_SIGNAL_AT = LIVE_AT + 640  # the signal that has this process write its stacks, 0 for none
RECORDS_AT = 2 * PAGE
SIZE = RECORDS_AT + CAPACITY * RECORD.size

CONTROL_MAGIC = b"GPUVCTRL"
# magic, version, unused, number of the newest request to save (it only grows), its deadline (wall), its id
CONTROL = struct.Struct("<8sIIQq32s")
CONTROL_REQUEST_AT = 16
CONTROL_BODY = struct.Struct("<q32s")
CONTROL_BODY_AT = 24
CONTROL_EVIDENCE_AT = 64  # number of the newest request for evidence; it only grows
CONTROL_SIZE = PAGE
STACKS_SIZE = 64 * PAGE  # the file that stacks are written into
