"""The accounts of all jobs: one stage of the tick, and a file that a restart reads back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

from gpuvigil_collector.goodput.account import Account
from gpuvigil_collector.goodput.report import GoodputView, goodput_view
from gpuvigil_collector.incidents.incident import Incident, by_job
from gpuvigil_detectors.training.jobs import Job
from gpuvigil_protos import log

ACCOUNTS_MAX: Final = 2000
_SAVE_EVERY_S: Final = 30.0
_VIEW_EVERY_NS: Final = 2_000_000_000


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    version: Literal[1]
    accounts: list[Account]


class Books:
    """Accounts by job name. One thread calls all methods; what `views` gives may be read by any."""

    def __init__(self, path: Path) -> None:
        self.accounts: dict[str, Account] = {}
        self._views: tuple[GoodputView, ...] = ()
        self._viewed_ns = 0
        self._path = path
        self._saved = time.monotonic()

    def load(self) -> None:
        """Take back what an earlier run wrote; a file that is none is said, and the next save replaces it."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.get("goodput").warning("accounts_refused", path=str(self._path), error=str(error))
            return
        self.accounts = {account.job: account for account in found.accounts}

    def tick(self, jobs: Iterable[Job], slowdown: Callable[[str], float]) -> None:
        """Account for every job; the file follows now and then. slowdown: of a job by name, 0.1 = 10 %."""
        for job in jobs:
            account = self.accounts.get(job.name)
            if account is None:
                account = Account(job=job.name, began_ns=job.began_ns, cursor_ns=job.began_ns)
                self.accounts[job.name] = account
            account.take(job, slowdown(job.name))
        while len(self.accounts) > ACCOUNTS_MAX:
            del self.accounts[min(self.accounts.values(), key=lambda account: account.cursor_ns).job]
        if self.accounts and time.monotonic() - self._saved >= _SAVE_EVERY_S:
            self.save()

    def views(self, now_ns: int, incidents: Iterable[Incident]) -> tuple[GoodputView, ...]:
        """Return a row for every job, made anew every 2 s."""
        if self.accounts and now_ns - self._viewed_ns >= _VIEW_EVERY_NS:
            known = by_job(incidents)
            self._views = tuple(
                goodput_view(account, now_ns, known.get(account.job, ()))
                for account in self.accounts.values()
            )
            self._viewed_ns = now_ns
        return self._views

    def save(self) -> None:
        """Write a new file and put it in the old one's place; a disk that fails is said."""
        self._saved = time.monotonic()
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(_File(version=1, accounts=list(self.accounts.values()))))
            fresh.replace(self._path)
        except OSError as error:
            log.get("goodput").warning("accounts_not_saved", path=str(self._path), error=str(error))
