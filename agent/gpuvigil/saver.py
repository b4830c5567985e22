"""Saving on request and by interval, on all ranks at one step; verified, fenced, and told to the operator.

    from gpuvigil.saver import Saver

    saver = Saver("/checkpoints/run7", save=lambda folder: torch.save(state(), folder / f"rank{rank}.pt"))
    first = saver.resume(load=lambda folder: restore(torch.load(folder / f"rank{rank}.pt")))
    for step in range(first, steps):
        with monitor.step(step) as s:
            ...
        saver.step(step)

Make it on every rank, after init_process_group. All ranks write into one folder of a directory that they
share; `torch.distributed.checkpoint.save(state, checkpoint_id=folder)` is as good as files of one's own.
Nothing here ends the job: what goes wrong is an outcome, told to the operator and returned by `last`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple, Union

from gpuvigil import checkpoints
from gpuvigil.agreement import Agreement, Peers
from gpuvigil.checkpoints import Checkpoint, Fence
from gpuvigil.loop import Monitor, monitor

SPACE_FACTOR = 1.2
"""Free space asked for, in sizes of the newest checkpoint."""
_DETAIL_MAX = 300


class Outcome(NamedTuple):
    """How a save went. word: saved, failed, partial (a rank did not answer), fenced, no_space, unusable."""

    word: str
    step: int
    detail: str = ""
    path: str = ""
    size: int = 0
    seconds: float = 0.0
    request: str = ""


class _RefusedError(Exception):
    """A save that does not begin, or does not end well; carries the outcome's word and detail."""

    def __init__(self, word: str, detail: str) -> None:
        super().__init__(detail)
        self.word = word


class Saver:
    """One a process. Its collectives are on a gloo group of its own."""

    def __init__(
        self,
        directory: Union[str, Path],
        save: Callable[[Path], Any],
        *,
        every: int = 10,
        interval: int = 0,
        keep: int = 3,
        timeout_s: float = 600.0,
        signals: Iterable[int] = (),
        with_monitor: Monitor = monitor,
    ) -> None:
        """save: writes this rank's part into a folder. every: steps between two agreements. interval: steps
        between two saves that nobody asked for, 0 for none. keep: whole checkpoints that stay. signals: ask
        for a save, such as SIGUSR1 of `srun --signal`. Raises ValueError for numbers that make no sense.
        """
        if interval < 0 or keep < 1 or timeout_s <= 0:
            raise ValueError("interval, keep, timeout_s: expected >= 0, >= 1, > 0")
        self._directory, self._save, self._monitor = Path(directory), save, with_monitor
        self._interval, self._keep = interval, keep
        self._peers = Peers(timeout_s)
        self._agreement = Agreement(self._peers.reduce, every)
        self._fence = Fence(self._directory)
        self._signalled = 0
        self.last: Optional[Outcome] = None
        self.usable = self._begin()
        if self.usable:
            self._monitor.offer("on_request", "save")
            self._watch(signals)

    @property
    def generation(self) -> int:
        """The number of this attempt; 0 where the directory cannot be used."""
        return self._fence.generation

    def resume(self, load: Callable[[Path], Any]) -> int:
        """Have every rank load the newest valid checkpoint; return the step to go on with, 0 for none.

        What `load` raises is the caller's: a job must not train on from half a state.
        """
        found = None
        if self._peers.rank == 0:
            with contextlib.suppress(OSError):
                found = checkpoints.newest(self._directory)
        told: Optional[Checkpoint] = self._peers.gather(found)[0]
        if told is None:
            return 0
        load(told.path)
        return told.step + 1

    def step(self, step: int) -> Optional[Outcome]:
        """Call after each step, on every rank. Returns the outcome where this step was saved, else None."""
        if not self.usable:
            return None
        try:
            asked = self._agreement.step(max(self._monitor.request(), self._signalled))
        except Exception as error:  # noqa: BLE001 - a peer is gone: the job's own collectives will say so
            self.usable = False
            self.last = Outcome("partial", step, "agreement: " + _text(error))
            self._tell(self.last)
            return None
        due = self._interval > 0 and (step + 1) % self._interval == 0
        return self.save(step, request=self._monitor.request_id() if asked else "") if asked or due else None

    def save(self, step: int, request: str = "") -> Outcome:
        """Save now; every rank must call it at the same step."""
        began = time.monotonic()
        try:
            with self._monitor.phase("checkpoint"):
                found = self._write(step)
            outcome = Outcome("saved", step, path=str(found.path), size=found.size)
        except _RefusedError as refused:
            outcome = Outcome(refused.word, step, str(refused)[:_DETAIL_MAX])
            if self._peers.rank == 0 and refused.word not in {"partial", "fenced"}:
                checkpoints.discard(self._partial(step))  # nobody writes there any more
        self.last = outcome._replace(seconds=time.monotonic() - began, request=request)
        self._tell(self.last)
        return self.last

    # --- inside

    def _begin(self) -> bool:
        """Fence the attempts before this one; every rank learns the number. False: saving is off."""
        generation, detail = 0, ""
        if self._peers.rank == 0:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                generation = self._fence.take()
                checkpoints.prune(self._directory, self._keep, generation)
            except OSError as error:
                detail = _text(error)
        try:
            generation, detail = self._gather((generation, detail))[0]
        except _RefusedError as refused:
            generation, detail = 0, str(refused)
        self._fence.generation = generation
        if not generation:
            self.last = Outcome("unusable", -1, "directory %s: %s" % (self._directory, detail))
            self._tell(self.last)
        return bool(generation)

    def _watch(self, signals: Iterable[int]) -> None:
        """Take a signal for a request; one that the program handles already is handed on."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in signals:
            before = signal.getsignal(number)

            def handle(got: int, frame: Any, before: Any = before) -> None:
                self._signalled = int(time.time() * 1000)
                if callable(before):
                    before(got, frame)

            signal.signal(number, handle)

    def _write(self, step: int) -> Checkpoint:
        """Write, verify and publish one checkpoint. Raises _RefusedError, the same on every rank."""
        partial = self._partial(step)
        self._all(lambda: self._prepare(partial), only=0)
        self._all(lambda: self._part(partial))
        tables = self._all(lambda: self._digest(partial))
        files = {name: entry for table in tables for name, entry in table.items()}
        found = self._all(lambda: checkpoints.finish(partial, step, self._fence, files), only=0)[0]
        if self._peers.rank == 0:
            with contextlib.suppress(OSError):
                checkpoints.prune(self._directory, self._keep, self.generation)
        assert isinstance(found, Checkpoint)
        return found

    def _partial(self, step: int) -> Path:
        return self._directory / (checkpoints.folder_name(step, self.generation) + ".partial")

    def _prepare(self, partial: Path) -> None:
        self._fence.check()
        before = checkpoints.newest(self._directory, verify=False)
        free = shutil.disk_usage(str(self._directory)).free
        if before is not None and free < SPACE_FACTOR * before.size:
            raise _RefusedError(
                "no_space", "expected %d bytes free, got %d" % (SPACE_FACTOR * before.size, free)
            )
        checkpoints.discard(partial)
        partial.mkdir()

    def _part(self, partial: Path) -> None:
        self._fence.check()
        self._save(partial)

    def _digest(self, partial: Path) -> Dict[str, Tuple[int, str]]:
        """Check-sum this rank's share of all files."""
        names = checkpoints.files_of(partial)
        if not names:
            raise ValueError("save: expected at least one file, it wrote none")
        mine = names[self._peers.rank :: self._peers.size]
        return {name: checkpoints.digest(partial / name) for name in mine}

    def _all(self, work: Callable[[], Any], only: Optional[int] = None) -> List[Any]:
        """Do a part on every rank (or on one), and let all ranks know how it went before any goes on.

        Raises _RefusedError on every rank when it failed on one.
        """
        found = None
        failure: Optional[Tuple[str, str]] = None
        if only is None or only == self._peers.rank:
            try:
                found = work()
            except checkpoints.FencedError as error:
                failure = ("fenced", _text(error))
            except _RefusedError as refused:
                failure = (refused.word, str(refused))
            except Exception as error:  # noqa: BLE001 - the user's save may raise anything
                failure = ("failed", _text(error))
        told = self._gather((failure, found))
        failed = [(rank, failure) for rank, (failure, _) in enumerate(told) if failure is not None]
        if failed:
            rank, (what, why) = failed[0]
            more = " and %d more" % (len(failed) - 1) if len(failed) > 1 else ""
            raise _RefusedError(what, "rank %d%s: %s" % (rank, more, why))
        return [value for _, value in told]

    def _gather(self, value: Any) -> List[Any]:
        """Exchange a value. Raises _RefusedError when a rank does not answer; then saving is off."""
        try:
            found: List[Any] = self._peers.gather(value)
        except Exception as error:  # noqa: BLE001 - gloo raises RuntimeError and its own kinds
            self.usable = False
            raise _RefusedError("partial", "a rank did not answer: " + _text(error)) from None
        return found

    def _tell(self, outcome: Outcome) -> None:
        word = outcome._asdict()
        word["event"], word["outcome"] = "save", word.pop("word")
        word.update(rank=self._peers.rank, generation=self.generation, pid=os.getpid())
        self._monitor.tell(word)


def _text(error: BaseException) -> str:
    return ("%s: %s" % (type(error).__name__, error))[:_DETAIL_MAX]
