"""AgentConfig: everything the agent can be told, one TOML file, unknown keys refused."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gpuvigil_protos import pause
from gpuvigil_protos.settings import Bytes, Seconds, Tls

_Natural = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Collector(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Where the collector is, and how patient the stream is."""

    address: str = "127.0.0.1:9511"
    flush_interval: Seconds = Seconds(1)
    connect_timeout: Seconds = Seconds(5)
    backoff_max: Seconds = Seconds(60)


class Gpu(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Where GPU readings come from. `auto` takes NVML where a driver is there, else none."""

    source: Literal["auto", "nvml", "simulated", "none"] = "auto"
    call_deadline: Seconds = Seconds(5)
    calls_per_second_max: Annotated[int, msgspec.Meta(ge=10, le=1_000_000)] = 2000


class Host(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Host readings. kernel_log: auto tries the journal, then /dev/kmsg."""

    kernel_log: Literal["auto", "journal", "kmsg", "none"] = "auto"
    filesystems: list[str] = msgspec.field(default_factory=list)


class Hook(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Where training processes register; an empty path turns it off. ranks_max: at most this many a node."""

    socket: str = "/run/gpuvigil/hook.sock"
    ranks_max: Annotated[int, msgspec.Meta(ge=1, le=50)] = 32


class Validation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """How the node proves itself before it takes work again. command: fixed arguments, exit status 0 is fit.

    python: a Python with torch, to burn the GPUs where neither a command nor dcgmi is there.
    """

    command: list[str] = msgspec.field(default_factory=list)
    python: str = ""
    timeout: Seconds = Seconds(1800)


class Spool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The write-ahead log on this node. An empty directory means state_directory/spool."""

    directory: str = ""
    size_max: Bytes = Bytes(256 << 20)
    sync_interval: Seconds = Seconds(1)


class Metrics(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The agent's own metrics endpoint; port 0 picks a free one, an empty address turns it off."""

    address: str = "127.0.0.1:9510"


class Simulate(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The simulated driver, host and kernel log; read only when gpu.source is "simulated"."""

    profile: Literal["h100", "a100"] = "h100"
    gpus: Annotated[int, msgspec.Meta(ge=1, le=16)] = 8
    load: Literal["training", "inference", "idle"] = "training"
    seed: _Natural = 1
    host: bool = True
    scenario: str = ""
    start_ns: _Natural = 0
    truth_file: str = ""


class HelperLink(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Where the privileged helper listens, and the files that pause every effect on this node."""

    socket: str = "/run/gpuvigil-helper/helper.sock"
    pause_files: tuple[str, ...] = pause.FILES


class Verdict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Where the signed verdict for Slurm's scripts is put (docs/slurm.md); "" where they are not used."""

    directory: str = ""


class SupervisedJob(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A job that the agent may run itself: fixed words, user ("": the agent's own), folder and environment.

    checkpoints: where its Saver writes; then it is started anew when it fails (`gpuvigil run`). grace:
    between SIGTERM and SIGKILL.
    """

    command: Annotated[list[str], msgspec.Meta(min_length=1, max_length=200)]
    user: str = ""
    directory: str = "/"
    environment: dict[str, str] = {}
    checkpoints: str = ""
    attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    grace: Seconds = Seconds(30)
    log_max: Bytes = Bytes(16 << 20)


class SupervisorTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The jobs that may run here, by name. Nothing else can be started."""

    jobs: dict[str, SupervisedJob] = {}


class AgentConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The whole file. node empty means the host name; with TLS the certificate's name wins."""

    node: str = ""
    state_directory: str = "/var/lib/gpuvigil-agent"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    collector: Collector = Collector()
    gpu: Gpu = Gpu()
    host: Host = Host()
    hook: Hook = Hook()
    spool: Spool = Spool()
    metrics: Metrics = Metrics()
    validation: Validation = Validation()
    tls: Tls = Tls()
    simulate: Simulate = Simulate()
    helper: HelperLink = HelperLink()
    verdict: Verdict = Verdict()
    supervisor: SupervisorTable = SupervisorTable()
