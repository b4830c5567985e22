"""Jobs that the agent runs itself, on hosts with no scheduler: only those that its config names.

A job runs under a keeper, in a session of its own, that outlives the agent: a restarted agent knows it
again by pid and start time, and all its processes by a mark in their environment. Under systemd the agent's
unit needs deploy/systemd/supervisor.conf.example, else systemd ends the jobs with the agent.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Literal, NamedTuple
from uuid import uuid4

import msgspec

from gpuvigil.checkpoints import write_durably
from gpuvigil_agent import processes
from gpuvigil_agent.config import SupervisedJob, SupervisorTable
from gpuvigil_agent.driver_child import import_path
from gpuvigil_agent.identity import kernel_boot_id

_KILL_WITHIN_S: Final = 10.0
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class UnfitError(Exception):
    """What was asked is not done, for certain; the text says why."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A job's newest start, as it is kept on disk. It is written before the start (pid 0) and after it."""

    job: str
    mark: str
    action: str
    generation: int
    attempt: int
    boot_id: str
    started_ns: int
    pid: int = 0
    ticks: int = 0


class JobLook(msgspec.Struct, frozen=True, kw_only=True):
    """How a job stands here. orphaned: its keeper is gone and processes of it live on. status: of the end."""

    state: Literal["none", "running", "orphaned", "ended"]
    action: str = ""
    generation: int = 0
    attempt: int = 0
    status: int | None = None


class Supervisor:
    """Starts, stops and looks. Called from worker threads, one start or stop at a time."""

    def __init__(self, table: SupervisorTable, folder: Path, hook_socket: str) -> None:
        self._jobs, self._folder, self._hook_socket = table.jobs, folder, hook_socket

    def names(self) -> list[str]:
        """Return the jobs that may run here."""
        return sorted(self._jobs)

    def look(self, job: str) -> JobLook:
        """Say how a job stands. Raises UnfitError for one that the config does not name."""
        self._job(job)
        record = self._read(job)
        if record is None:
            return JobLook(state="none")
        look = JobLook(
            state="ended", action=record.action, generation=record.generation, attempt=record.attempt
        )
        if self._keeper(record):
            return msgspec.structs.replace(look, state="running")
        if record.boot_id == kernel_boot_id() and processes.family(0, record.mark):
            return msgspec.structs.replace(look, state="orphaned")
        return msgspec.structs.replace(look, status=self._status(job))

    def start(self, job: str, action: str, generation: int, attempt: int) -> str:
        """Start a job; one that this action started already is a success. Raises UnfitError, OSError."""
        settings = self._job(job)
        found = self.look(job)
        if found.state in ("running", "orphaned"):
            if found.action == action:
                return f"{job} runs already, started by this action"
            raise UnfitError(f"{job} runs already, started by {found.action}")
        if generation < found.generation or (generation == found.generation and attempt < found.attempt):
            newest = f"{found.generation}/{found.attempt}"
            raise UnfitError(f"generation/attempt: expected {newest} or newer, got {generation}/{attempt}")
        record = Record(
            job=job, mark=f"{job}:{uuid4().hex}", action=action, generation=generation, attempt=attempt,
            boot_id=kernel_boot_id(), started_ns=time.time_ns(),
        )  # fmt: skip
        self._write(record)  # before the start: a crash in between leaves its mark to be found by
        process = self._spawn(settings, record)
        self._write(
            msgspec.structs.replace(record, pid=process.pid, ticks=processes.start_ticks(process.pid))
        )
        return f"{job} started, pid {process.pid}"

    def stop(self, job: str) -> str:
        """End a job: asked first, after its grace for good. Raises UnfitError when some of it lives on."""
        settings = self._job(job)
        record = self._read(job)
        if record is None or record.boot_id != kernel_boot_id():
            return f"{job} does not run"
        keeper = self._keeper(record)
        if keeper:
            processes.end(keeper, record.ticks, signal.SIGTERM)
            processes.wait_for(keeper, record.ticks, settings.grace)
        if left := processes.kill_family(self._keeper(record), record.mark, _KILL_WITHIN_S):
            raise UnfitError(f"{len(left)} processes of {job} do not end: {left[:5]}")
        self._reap(record.pid)
        return f"{job} stopped"

    # --- parts
    def _job(self, job: str) -> SupervisedJob:
        found = self._jobs.get(job)
        if found is None:
            raise UnfitError(f"job: expected one of {', '.join(self.names())[:100] or 'none'}, got {job}")
        return found

    def _keeper(self, record: Record) -> int:
        """Return the keeper's pid while it is the very process that was started, else 0."""
        if record.boot_id != kernel_boot_id() or not record.pid:
            return 0
        self._reap(record.pid)
        return record.pid if record.ticks and processes.start_ticks(record.pid) == record.ticks else 0

    @staticmethod
    def _reap(pid: int) -> None:
        """Leave no zombie, where it is a child of this very agent."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    def _spawn(self, settings: SupervisedJob, record: Record) -> subprocess.Popen[bytes]:
        """Start the keeper, as the job's user."""
        who = _identity(settings.user)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        log = os.open(self._folder / f"{record.job}.log", flags, 0o600)
        end = os.open(self._folder / f"{record.job}.end", flags | os.O_TRUNC, 0o600)
        try:
            return subprocess.Popen(
                _command(settings, record, log, end), pass_fds=(log, end), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=settings.directory,
                env=self._environment(settings, record), start_new_session=True,
                user=who.user, group=who.group, extra_groups=who.groups,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise UnfitError(f"{record.job} cannot be started: {error}") from None
        finally:
            os.close(log)
            os.close(end)

    def _environment(self, settings: SupervisedJob, record: Record) -> dict[str, str]:
        """What the config says, and what makes the job ours: never the agent's own environment."""
        own = {"PYTHONPATH": import_path()}
        library = {key: value for key, value in os.environ.items() if key == "LD_LIBRARY_PATH"}
        return {"PATH": _PATH, "LANG": "C.UTF-8"} | library | settings.environment | own | {
            processes.MARK: record.mark, "GPUVIGIL_JOB": record.job, "GPUVIGIL_SOCKET": self._hook_socket,
            "GPUVIGIL_GENERATION": str(record.generation), "GPUVIGIL_ATTEMPT": str(record.attempt),
        }  # fmt: skip

    def _status(self, job: str) -> int | None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found = msgspec.json.decode((self._folder / f"{job}.end").read_bytes(), type=dict[str, int])
            return found.get("status")
        return None

    def _read(self, job: str) -> Record | None:
        try:
            return msgspec.json.decode((self._folder / f"{job}.json").read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise UnfitError(f"what is known of {job} cannot be read: {error}") from None

    def _write(self, record: Record) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._folder / f"{record.job}.json", msgspec.json.encode(record))


def _command(settings: SupervisedJob, record: Record, log: int, end: int) -> list[str]:
    keeper = [sys.executable, "-P", "-m", "gpuvigil_agent.keeper", "--log-fd", str(log), "--end-fd", str(end)]
    keeper += ["--log-max", str(int(settings.log_max))]
    if path := settings.environment.get("PYTHONPATH"):
        keeper += ["--pythonpath", path]
    run = ["--job", record.job, "--attempts", str(settings.attempts)]
    if settings.checkpoints:
        run += ["--checkpoints", settings.checkpoints]
    return [*keeper, "--", *run, "--", *settings.command]


class _Who(NamedTuple):
    """As whom to start; None: as the agent itself."""

    user: int | None = None
    group: int | None = None
    groups: list[int] | None = None


def _identity(user: str) -> _Who:
    """Return who a user is. Raises UnfitError where there is none, or we may not."""
    if not user:
        return _Who()
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        raise UnfitError(f"user: no user {user!r} on this node") from None
    if found.pw_uid == os.geteuid():
        return _Who()
    if os.geteuid() != 0:
        raise UnfitError(f"user: the agent is not root and cannot start a job as {user!r}")
    return _Who(found.pw_uid, found.pw_gid, os.getgrouplist(user, found.pw_gid))
