"""One use of the driver without one: which boards it opens; a handle never stands for another board."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from gpuvigil_agent import driver_frames as frames
from gpuvigil_agent.driver_budget import Budget
from gpuvigil_agent.driver_errors import BadArgument, DriverError, GpuLost
from gpuvigil_agent.driver_session import Session
from gpuvigil_agent.driver_slot import Slot
from gpuvigil_agent.driver_worker import Outbox

UUID = "GPU-11111111-1111-1111-1111-111111111111"


class Board:
    """A board whose handle the test can turn into another board's."""

    uuid, index, name, pci_bus_id = UUID, 0, "H100", "0000:1b:00.0"

    def __init__(self) -> None:
        self.calls = SimpleNamespace(seconds=0.0)
        self.same: bool | None = True
        self.checks = 0

    def check_uuid(self) -> bool:
        self.checks += 1
        if self.same is None:
            raise BadArgument("nvmlDeviceGetUUID", "unknown handle")
        return self.same


def session_with(count: int) -> Session:
    """A session whose library has started and counts so many boards."""
    session = Session(Budget(10_000), Outbox())
    session._version, session._count = "550.1", count
    session._rescan_at = float("inf")
    return session


def lost(session: Session) -> list[str]:
    """Run what waits for the coordinator, and return the GPUs that were lost."""
    deadline = time.monotonic() + 10
    while any(slot.worker.busy for slot in session._slots.values()):
        assert time.monotonic() < deadline
        session._outbox.drain()
        time.sleep(0.01)
    return [f.uuid for f in session._frames if isinstance(f, frames.Happened) and f.kind == "gpu_lost"]


def test_after_a_change_of_the_count_every_handle_must_prove_its_board() -> None:
    for same in (False, None):
        session, board = session_with(2), Board()
        slot = session._slots[0] = Slot(0, session._budget, session._outbox)
        fake: Any = board
        slot.device, slot._samplers = fake, ()
        session.start_tick(frames.Tick(1, 1, []))
        assert (lost(session), board.checks) == ([], 0), "no call is spent while nothing changes"
        board.same = same
        session._counted(1)  # a board fell off: the indices, and maybe the handles, have moved
        session.start_tick(frames.Tick(2, 2, []))
        assert (lost(session), board.checks) == ([UUID], 1)
        assert slot.device is None, "readings of one board under another's name"


def test_an_index_to_leave_alone_is_never_opened() -> None:
    session = session_with(3)
    session._rescan_at = 0.0
    session.start_tick(frames.Tick(1, 1, [1]))
    assert set(session._slots) == {0, 2}
    session._rescan_at = 0.0
    session.start_tick(frames.Tick(2, 2, []))
    assert set(session._slots) == {0, 1, 2}


def test_an_error_that_does_not_say_gone_leaves_the_list_of_boards_open() -> None:
    """`Unknown Error` at opening is no proof of a loss; `GPU is lost` is."""
    for error, complete in ((DriverError("nvmlDeviceGetName", "Unknown Error"), False),
                            (GpuLost("nvmlDeviceGetHandleByIndex_v2", "GPU is lost"), True)):  # fmt: skip
        session = session_with(1)
        slot = session._slots[0] = Slot(0, session._budget, session._outbox)
        session._opening.add(0)
        session._opened(slot, error)
        assert session._refused == (set() if complete else {0})
