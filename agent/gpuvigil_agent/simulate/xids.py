"""Which Xids the faults raise, when and in which words: one list for NVML's events and for the kernel log.

Texts follow the forms the NVIDIA driver writes (Xid catalogue, driver R570).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gpuvigil_agent.simulate import noise
from gpuvigil_agent.simulate.faults import (
    EccUncorrectable,
    GpuLostXid79,
    NvlinkDown,
    RowRemapFailure,
    XidApplicationStorm,
)
from gpuvigil_agent.simulate.world import World

FIRST_PID: Final = 41200
_SECOND_NS = 1_000_000_000
_BURST_SECONDS = 4
_ACTIONS = {1: "0x1 (GPU Reset Required)", 2: "0x2 (Node Reboot Required)", 4: "0x4 (Drain and Reset)"}


class Xid(NamedTuple):
    """One Xid of one GPU slot; text is what follows the number in the kernel line."""

    time_ns: int
    gpu: int
    code: int
    text: str


def process(gpu: int) -> str:
    """The words for a GPU's compute process."""
    return f"pid={FIRST_PID + gpu}, name=python3"


def xids(world: World) -> tuple[Xid, ...]:
    """All Xids of this node's faults, oldest first."""
    found = [*_hardware(world), *_storms(world)]
    return tuple(sorted(found))


def _hardware(world: World) -> list[Xid]:
    found = []
    for placed, lost in world.placed(GpuLostXid79):
        text = "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
        found += _with_action(world, Xid(placed.start_ns, lost.gpu, 79, text), 2)
    for placed, ecc in world.placed(EccUncorrectable):
        text = _ECC_TEXT[ecc.xid].format(process=process(ecc.gpu))
        found += _with_action(world, Xid(placed.start_ns, ecc.gpu, ecc.xid, text), 4 if ecc.xid == 94 else 1)
    for placed, remap in world.placed(RowRemapFailure):
        text = f"{process(remap.gpu)}, Row Remapper: Failed to remap row: bank 0x0c row 0x01f3a"
        found += _with_action(world, Xid(placed.start_ns, remap.gpu, 64, text), 1)
    for placed, down in world.placed(NvlinkDown):
        if down.xid:
            words = "0x0, 0x10000, 0x0, 0x0, 0x0, 0x0, 0x0"
            text = f"{process(down.gpu)}, NVLink: fatal error detected on link {down.link}({words})"
            found.append(Xid(placed.start_ns, down.gpu, 74, text))
    return found


_ECC_TEXT = {
    48: "{process}, An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer "
    "at partition 6, subpartition 0.",
    94: "{process}, Contained: SM (0x1). RST: No, D-RST: No",
    95: "{process}, Uncontained: FBHUB. RST: Yes, D-RST: No",
}


def _with_action(world: World, xid: Xid, action: int) -> list[Xid]:
    """Add the summary Xid 154 that drivers since R565 write when the recovery action changes."""
    if not world.profile.supports_recovery_action:
        return [xid]
    text = f"GPU recovery action changed from 0x0 (None) to {_ACTIONS[action]}"
    return [xid, Xid(xid.time_ns, xid.gpu, 154, text)]


def _storms(world: World) -> list[Xid]:
    found = []
    for placed, storm in world.placed(XidApplicationStorm):
        for burst in range(storm.bursts):
            for gpu in storm.gpus or range(world.config.gpus):
                jitter = int(noise.uniform(world.key, placed.number, burst, gpu) * _SECOND_NS)
                code = storm.xids[noise.mix(world.key, burst, gpu) % len(storm.xids)]
                when = placed.start_ns + burst * _BURST_SECONDS * _SECOND_NS + (jitter if burst or gpu else 0)
                found.append(Xid(when, gpu, code, _application_text(world, code, burst, gpu)))
    return found


def _application_text(world: World, code: int, burst: int, gpu: int) -> str:
    """Places differ from GPU to GPU and burst to burst: one bug on many GPUs, not one bad unit."""
    word = noise.mix(world.key, burst, gpu, code)
    if code == 13:
        place = f"(GPC {word % 7}, TPC {word // 7 % 9}, SM {word // 63 % 2})"
        return f"{process(gpu)}, Graphics SM Warp Exception on {place}: Out Of Range Address"
    if code == 31:
        address = f"0x{0x7F00_00000000 + word % 0xFFFFFFFF:x}"
        return (
            f"{process(gpu)}, Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS "
            f"GPCCLIENT_T1_{word % 9} faulted @ {address}. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ"
        )
    return f"{process(gpu)}, Ch {word % 0x30:08x}"
