"""The agent's own health on its metrics endpoint: samplers, ticks, driver, spool, ledger, stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from gpuvigil_agent import verdict_file
from gpuvigil_agent.exposition import Family
from gpuvigil_agent.identity import AGENT_VERSION
from gpuvigil_agent.samplers.filesystem import Filesystems

if TYPE_CHECKING:
    from gpuvigil_agent.agent import Agent

Rows = Iterable[tuple[tuple[str, ...], float]]


def gauge(agent: Agent, name: str, text: str, rows: Rows, *labels: str) -> Family:
    """Make one gauge family; every row has the node's label first."""
    rows = [((agent.node, *values), number) for values, number in rows]
    return Family(f"gpuvigil_agent_{name}", "gauge", text, ("node", *labels), rows)


def counter(agent: Agent, name: str, text: str, rows: Rows, *labels: str) -> Family:
    """Make one counter family; `name` without `_total`."""
    rows = [((agent.node, *values), number) for values, number in rows]
    return Family(f"gpuvigil_agent_{name}", "counter", text, ("node", *labels), rows)


def named(counters: Mapping[str, float]) -> Rows:
    """Turn a dictionary of counters into rows of one label."""
    return [((name,), number) for name, number in list(counters.items())]


def health_families(agent: Agent) -> Iterator[Family]:
    """Yield every family of the agent itself."""
    yield gauge(agent, "info", "1, with version and state for people.",
                [((AGENT_VERSION, agent.driver.source, agent.driver.state), 1.0)],
                "version", "gpu_source", "driver_state")  # fmt: skip
    yield from _samplers(agent)
    yield from _ticks(agent)
    yield from _spool(agent)
    yield from _ledger(agent)
    yield from _stream(agent)
    yield from _hook(agent)
    if agent.config.verdict.directory:
        yield counter(
            agent, "verdict_ignored", "Times that a script of Slurm's went on without a verdict that holds.",
            named(verdict_file.counts()), "reason",
        )  # fmt: skip
    yield counter(
        agent, "driver_events", "Counters of the driver process.", named(agent.driver.counters), "what"
    )
    up = agent.kernel.up
    yield gauge(agent, "kernel_log_up", "1 while the kernel log is read; no series where it is off.",
                [] if up is None else [((), float(up))])  # fmt: skip
    yield counter(
        agent, "kernel_log_events", "Counters of the kernel log reader.", named(agent.kernel.counters), "what"
    )
    yield counter(agent, "events", "Events made, by kind and origin.",
                  [(key, n) for key, n in list(agent.events.made.items())], "kind", "origin")  # fmt: skip


def _hook(agent: Agent) -> Iterator[Family]:
    hook = agent.hook
    yield gauge(agent, "hook_ranks", "Training processes that are registered.", [((), len(hook.ranks))])
    yield counter(agent, "hook_registrations", "Registrations taken.", [((), hook.registered)])
    yield counter(
        agent, "hook_refused", "Registrations and claims refused, by reason.", named(hook.refused), "reason"
    )
    yield counter(
        agent, "hook_faults", "Wrong uses of the hook and what its ring lost, by rank.",
        list(hook.faults().items()), "training_job", "rank", "kind",
    )  # fmt: skip


def _samplers(agent: Agent) -> Iterator[Family]:
    health = list(agent.collect.host.health.items())
    yield gauge(agent, "sampler_up", "1 while the sampler's source is there.",
                [((name,), float(h.up)) for name, h in health], "sampler")  # fmt: skip
    yield gauge(agent, "sampler_stuck", "1 while the sampler's read hangs; the others go on.",
                [((name,), float(h.stuck)) for name, h in health], "sampler")  # fmt: skip
    yield gauge(agent, "sampler_duration_seconds", "Time of the sampler's newest reading.",
                [((name,), h.seconds) for name, h in health], "sampler")  # fmt: skip
    yield counter(agent, "sampler_absences", "Readings whose source was absent.",
                  [((name,), h.absences) for name, h in health], "sampler")  # fmt: skip
    missing = [sorted(s.missing) for s in agent.collect.host.samplers if isinstance(s, Filesystems)]
    yield gauge(agent, "filesystem_missing", "1 for each of host.filesystems where nothing is mounted.",
                [((point,), 1.0) for points in missing for point in points], "mountpoint")  # fmt: skip
    yield gauge(agent, "driver_up", "1 while the driver process reads GPUs.",
                [((), float(agent.driver.state == "running"))])  # fmt: skip


def _ticks(agent: Agent) -> Iterator[Family]:
    yield counter(agent, "ticks", "Ticks done.", [((), agent.ticks)])
    yield counter(
        agent, "ticks_skipped", "Ticks left out because the agent was late.", [((), agent.beat.skipped)]
    )
    yield gauge(agent, "tick_lateness_seconds", "How late the newest tick began.", [((), agent.lateness_s)])
    yield counter(agent, "clock_jumps", "Times the wall clock jumped.", [((), agent.beat.clock_jumps)])
    yield counter(agent, "host_rounds_late", "Ticks whose host readings a read that hung cut short.",
                  [((), agent.collect.host.late)])  # fmt: skip
    yield counter(agent, "threads_refused", "Ticks without host readings, for want of a thread.",
                  [((), agent.collect.host.threads_refused)])  # fmt: skip
    yield counter(agent, "implausible_samples", "Readings outside what hardware can say.",
                  [((), agent.collect.implausible)])  # fmt: skip
    yield counter(agent, "rate_resets", "Counters that went back.", [((), agent.collect.rates.resets)])
    yield gauge(agent, "series", "Series in the dictionary.", [((), agent.collect.batch.series)])
    yield counter(
        agent, "series_refused", "Series over the limit of a node.", [((), agent.collect.batch.overflow)]
    )
    yield counter(agent, "scrapes_refused", "Connections over the endpoint's bound.",
                  [((), agent.endpoint.refused if agent.endpoint else 0)])  # fmt: skip
    yield gauge(
        agent, "config_reload_ok", "0 while the newest reload was refused.", [((), float(agent.reload_ok))]
    )


def _spool(agent: Agent) -> Iterator[Family]:
    spool, writer = agent.spool, agent.spool.writer
    yield gauge(agent, "spool_ok", "1 while the spool writes; 0 while memory stands in for the disk.",
                [((), float(spool.state == "ok"))])  # fmt: skip
    yield gauge(agent, "spool_state", "1 for the state the spool is in.", [((spool.state,), 1.0)], "state")
    yield gauge(agent, "spool_bytes", "Bytes in use in the spool's file.", [((), writer.used_bytes)])
    yield gauge(agent, "spool_sync_seconds", "Time of the newest sync.", [((), writer.sync_s)])
    yield counter(agent, "spool_operations", "Counters of the spool.", named(writer.counters), "what")


def _ledger(agent: Agent) -> Iterator[Family]:
    accounts = agent.spool.ledger.snapshot()
    for place, text in (
        ("produced", "made; equals durable + spooled + dropped + in flight"),
        ("durable", "on the collector's disk"),
    ):
        rows = [((name,), float(getattr(account, place))) for name, account in accounts.items()]
        yield counter(agent, f"ledger_{place}_sequences", f"Sequences {text}.", rows, "class")
    for place, text in (
        ("spooled", "in the spool's file"),
        ("in_flight", "in memory, not yet in the spool's file"),
    ):
        rows = [((name,), float(getattr(account, place))) for name, account in accounts.items()]
        yield gauge(agent, f"ledger_{place}_sequences", f"Sequences {text}.", rows, "class")
    yield counter(agent, "ledger_dropped_sequences", "Sequences dropped, by reason.",
                  [((name, reason), n) for name, a in accounts.items() for reason, n in a.dropped.items()],
                  "class", "reason")  # fmt: skip
    yield counter(agent, "ledger_dropped_samples", "Samples in dropped sequences, where known.",
                  [((name,), a.dropped_samples) for name, a in accounts.items()], "class")  # fmt: skip


def _stream(agent: Agent) -> Iterator[Family]:
    stream = agent.stream
    yield gauge(
        agent,
        "stream_up",
        "1 while the collector has welcomed the live stream.",
        [((), float(stream.connected))],
    )
    yield gauge(agent, "stream_state", "1 for the state the link is in.", [((stream.state,), 1.0)], "state")
    yield counter(agent, "stream_events", "Counters of the link.", named(stream.counters), "what")
    yield counter(
        agent, "stream_failures", "Failures of the link, by status.", named(stream.failures), "code"
    )
