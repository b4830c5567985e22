"""Where training processes register: a socket on the agent's loop, and the ranks that are registered now.

Nothing a process sends can hold up a tick: connections are non-blocking and few, a registration has 2 s,
rings are mapped and read. A rank belongs to the uid and the workload (control group) that the kernel names; a
process of another one cannot take its name or its GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from gpuvigil import ring_read
from gpuvigil_agent import hook_events, hook_evidence, hook_launchers, hook_peer, hook_socket
from gpuvigil_agent.config import Hook
from gpuvigil_agent.event import AgentEvent
from gpuvigil_agent.hook_launchers import Launchers
from gpuvigil_agent.hook_peer import Refused, Registration
from gpuvigil_agent.hook_rank import Clocks, Rank, Step
from gpuvigil_agent.samplers.base import Sample
from gpuvigil_protos import log

WITHIN_S: Final = 2.0
_CONNECTIONS_MAX: Final = 128
_LEFT_MAX: Final = 1000
_MESSAGES_MAX, _MESSAGES_S = 100, 60.0
_log = log.get("hook")


class HookIntake:
    """Call `start` on the loop, `ranks` each tick, `stop` at the end."""

    def __init__(
        self, config: Hook, on_event: Callable[[AgentEvent], None], has_gpu: Callable[[str], bool]
    ) -> None:
        self._config, self._on_event, self._has_gpu = config, on_event, has_gpu
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self.ranks: dict[str, Rank] = {}
        self._launchers = Launchers()
        self._left: list[tuple[str, Step]] = []  # steps of ranks that ended since the last reading
        self.refused: Counter[str] = Counter()
        self.registered = 0
        self.note = ""

    def start(self) -> None:
        """Listen. A folder that is not there or not ours is said, and the rest of the agent goes on."""
        if not self._config.socket:
            return
        path = Path(self._config.socket)
        try:
            made = hook_socket.listen(path)
        except OSError as error:
            self.note = f"{path}: {error.strerror or error}"
            _log.warning("hook_socket_absent", path=str(path), reason=error.strerror or str(error))
            return
        self._listener = made
        asyncio.get_running_loop().add_reader(made, self._accept, made)

    def stop(self) -> None:
        """Close everything; the processes register again with the next agent."""
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            loop.remove_reader(self._listener)
            self._listener.close()
            with contextlib.suppress(OSError):
                Path(self._config.socket).unlink()
        for connection in list(self._open):
            self._close(connection)
        for rank in list(self.ranks.values()):
            loop.remove_reader(rank.pidfd)
            rank.close()
        self.ranks.clear()

    # --- connections

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            if len(self._open) >= _CONNECTIONS_MAX:
                self.refused["too_many_connections"] += 1
                connection.close()
                return
            self._open.add(connection)
            loop = asyncio.get_running_loop()
            timer = loop.call_later(WITHIN_S, self._close, connection)
            loop.add_reader(connection, self._first, connection, timer)

    def _close(self, connection: socket.socket) -> None:
        if connection in self._open:
            self._open.discard(connection)
            self._launchers.gone(connection)
            asyncio.get_running_loop().remove_reader(connection)
            connection.close()

    def _first(self, connection: socket.socket, timer: asyncio.TimerHandle) -> None:
        """Take the registration, or refuse it with a sentence and a counter."""
        timer.cancel()
        files: list[int] = []
        try:
            data, files = hook_peer.receive(connection)
            if b'"launcher":' in data and not files:
                self._launcher(connection, data)
                return
            rank = self._register(connection, data, files) if data else None
        except Refused as refused:
            self.refused[refused.reason] += 1
            _log.warning("registration_refused", reason=refused.reason, detail=str(refused))
            hook_peer.answer(connection, {"refused": str(refused)})
            rank = None
        except OSError:
            rank = None
        finally:
            hook_peer.close_all(files)
        if rank is None:
            self._close(connection)
            return
        hook_peer.answer(connection, {"ok": True})
        loop = asyncio.get_running_loop()
        loop.remove_reader(connection)
        loop.add_reader(connection, self._next, connection, rank, deque(maxlen=_MESSAGES_MAX))

    def _next(self, connection: socket.socket, rank: Rank, lately: deque[float]) -> None:
        """Take a word of a registered process; its end is told by the pidfd, not by the connection's."""
        now = time.monotonic()
        flood = len(lately) == _MESSAGES_MAX and now - lately[0] < _MESSAGES_S
        lately.append(now)
        try:
            data, files = hook_peer.receive(connection)
            hook_peer.close_all(files)
        except BlockingIOError:
            return
        except (OSError, Refused):
            data = b""
        if not data or flood:
            self.refused["flood"] += flood
            self._close(connection)
            return
        try:
            word = hook_peer.parse_word(data)
        except Refused as refused:
            self.refused[refused.reason] += 1
            return
        if isinstance(word, hook_peer.Save):
            self._on_event(hook_events.saved(rank, word))
        elif isinstance(word, hook_peer.Standstill):
            self._on_event(hook_events.standstill(rank, word))
        elif isinstance(word, hook_peer.Flight):
            self._on_event(hook_events.flight(rank, word))
        else:
            rank.exit_said = True

    def _launcher(self, connection: socket.socket, data: bytes) -> None:
        """Take a launcher in; what it says later is read on the loop. Raises Refused."""
        job = self._launchers.register(connection, data)
        hook_peer.answer(connection, {"ok": True})
        loop = asyncio.get_running_loop()
        loop.remove_reader(connection)
        loop.add_reader(connection, self._launcher_says, connection, job)

    def _launcher_says(self, connection: socket.socket, job: str) -> None:
        try:
            data, files = hook_peer.receive(connection)
            hook_peer.close_all(files)
            word = hook_launchers.parse(data) if data else None
        except BlockingIOError:
            return
        except (OSError, Refused):
            word = None
        if word is None:
            self._close(connection)
        elif isinstance(word, hook_launchers.Parked):
            self._on_event(hook_events.parked(job, word))

    def restart(self, job: str, request: str) -> str:
        """Have a job's launcher on this node restart it. Raises Refused."""
        return self._launchers.restart(job, request, {rank.peer.uid for rank in self._ranks_of(job)})

    def ask_to_save(self, job: str, number: int, request: str, deadline_ns: int) -> tuple[int, int]:
        """Ask this node's ranks of a job for a checkpoint; return how many were asked, and of how many."""
        ranks = self._ranks_of(job)
        return sum(rank.ask_to_save(number, request, deadline_ns) for rank in ranks), len(ranks)

    def gather(self, job: str, number: int) -> str:
        """Gather evidence from this node's ranks of a job that may hang; return what was begun."""
        return hook_evidence.gather(self._ranks_of(job), number, self._on_event)

    def _ranks_of(self, job: str) -> list[Rank]:
        return [rank for rank in self.ranks.values() if rank.identity.job == job]

    def read(self) -> tuple[list[Sample], list[tuple[str, Step]]]:
        """Read every rank once: how it is now, and the steps that it ended since the last call."""
        now = clocks()
        samples: list[Sample] = []
        steps, self._left = self._left, []
        for rank in list(self.ranks.values()):
            samples += rank.sample(now)
            steps += [(rank.entity, step) for step in rank.steps(now)]
        return samples, steps

    def faults(self) -> dict[tuple[str, str, str], int]:
        """Return what loops did wrong and rings lost: (job, rank, kind) -> how often."""
        found: dict[tuple[str, str, str], int] = {}
        for rank in list(self.ranks.values()):
            counts = ring_read.faults(rank.ring) | {"steps_lost": rank.lost, "corrupt": rank.corrupt}
            who = (rank.identity.job, str(rank.identity.rank))
            found |= {(*who, kind): count for kind, count in counts.items() if count}
        return found

    def _register(self, connection: socket.socket, data: bytes, files: list[int]) -> Rank:
        found = hook_peer.parse(data)
        if len(files) not in (2, 3):
            raise Refused("bad_file", f"descriptors: expected ring, control page, stacks, got {len(files)}")
        peer = hook_peer.peer_of(connection)
        ring, control = hook_peer.map_ring(files[0]), hook_peer.map_control(files[1])
        with contextlib.ExitStack() as undo:
            stacks = hook_peer.own_stacks(files)
            if stacks >= 0:
                undo.callback(os.close, stacks)  # a file of a process that is refused is not kept open
            try:
                if ring_read.header(ring).generation != found.generation:
                    raise Refused("bad_file", "ring: expected the generation of the message")
                pidfd = os.pidfd_open(peer.pid)
            except ring_read.LayoutError as error:
                raise Refused("bad_file", f"ring: {error}") from None
            except OSError:
                raise Refused("gone", f"process {peer.pid}: it has ended") from None
            undo.pop_all()
        identity = self._own_gpu(found, peer)
        rank = Rank(peer, identity, found.generation, ring, control, pidfd, stacks)
        try:
            self._admit(rank)
        except Refused:
            rank.close()
            raise
        return rank

    def _own_gpu(self, found: Registration, peer: hook_peer.Peer) -> hook_peer.Identity:
        """Drop a GPU claim that another workload's live rank has, or that this node does not have."""
        claim, owner = found.identity.gpu, (peer.uid, peer.workload)
        if not claim:
            return found.identity
        others = [r for r in self.ranks.values() if r.identity.gpu == claim]
        if all((r.peer.uid, r.peer.workload) == owner for r in others) and self._has_gpu(claim):
            return found.identity
        self.refused["gpu_claim"] += 1
        _log.warning("gpu_claim_refused", gpu=claim, uid=peer.uid, job=found.identity.job)
        return msgspec.structs.replace(found.identity, gpu="")

    def _admit(self, rank: Rank) -> None:
        """Take a rank in, in the place of its own older registration. Raises Refused."""
        old = self.ranks.get(rank.entity)
        mine = (rank.peer.uid, rank.peer.workload)
        if old is not None and (old.peer.uid, old.peer.workload) != mine:
            raise Refused("rank_claim", f"{rank.entity}: a process of another user or workload has this name")
        uids = sum(r.peer.uid == rank.peer.uid for r in self.ranks.values())
        if old is None and (len(self.ranks) >= self._config.ranks_max or uids >= self._config.ranks_max - 1):
            raise Refused("too_many_ranks", f"ranks: expected at most {self._config.ranks_max} on this node")
        if old is not None:
            if old.generation == rank.generation:
                rank.resume_from(old)
                self._forget(old)
            else:
                self._end(old, "replaced")
        self.ranks[rank.entity] = rank
        self.registered += 1
        asyncio.get_running_loop().add_reader(rank.pidfd, self._process_ended, rank)
        self._on_event(hook_events.life("rank_up", rank, rank.up_fields()))

    def _process_ended(self, rank: Rank) -> None:
        self._end(rank, "exit" if rank.exit_said else "died")

    def _end(self, rank: Rank, reason: str) -> None:
        """Say what became of a rank; its ring outlives it, so its last steps are read now."""
        now = clocks()
        self._on_event(hook_events.life("rank_down", rank, rank.down_fields(reason, now)))
        self._left = [*self._left, *((rank.entity, step) for step in rank.steps(now))][-_LEFT_MAX:]
        self._forget(rank)

    def _forget(self, rank: Rank) -> None:
        asyncio.get_running_loop().remove_reader(rank.pidfd)
        if self.ranks.get(rank.entity) is rank:
            del self.ranks[rank.entity]
        rank.close()


def clocks() -> Clocks:
    """Read both clocks."""
    return Clocks(time.monotonic_ns(), time.time_ns())
