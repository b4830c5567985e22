"""What ingest can be told: where it listens, how much it takes, where it records."""

from __future__ import annotations

import msgspec

from gpuvigil_protos.codec import SERIES_PER_NODE_MAX
from gpuvigil_protos.settings import Bytes, ConfigError, Seconds, Tls, is_loopback


class RecordingsConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Parquet segments. An empty directory means state_directory/recordings.

    pending_max bounds what waits in memory while the disk does not take it: beyond it agents are told to
    wait (RESOURCE_EXHAUSTED), and keep their data in their spools. Small segments are merged into one file
    once the oldest is merge_after old.
    """

    directory: str = ""
    quota: Bytes = Bytes(10 << 30)
    flush_interval: Seconds = Seconds(2)
    merge_after: Seconds = Seconds(600)
    pending_max: Bytes = Bytes(64 << 20)


class IngestConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The gRPC side. series_max is a node's, series_capacity the whole ring's (per worker)."""

    address: str = "127.0.0.1:9511"
    workers: int = 1
    series_max: int = SERIES_PER_NODE_MAX
    series_capacity: int = 1 << 20
    idle_timeout: Seconds = Seconds(60)
    tls: Tls = Tls()
    recordings: RecordingsConfig = RecordingsConfig()

    def check(self, origin: str) -> None:
        """Raise ConfigError that names the key, what was expected and what came."""
        self.tls.check(f"{origin}: ingest")
        if not self.tls.enabled and not is_loopback(self.address):
            raise ConfigError(
                f"{origin}: ingest.address: {self.address} is not on loopback: expected ingest.tls files, "
                "plain text is for loopback alone"
            )
        _within(self.workers, 1, 64, f"{origin}: ingest.workers")
        _within(self.idle_timeout, 5, 86_400, f"{origin}: ingest.idle_timeout")
        _within(self.series_max, 1, 100_000, f"{origin}: ingest.series_max")
        _within(self.series_capacity, self.series_max, 1 << 24, f"{origin}: ingest.series_capacity")
        _within(self.recordings.flush_interval, 0.05, 10, f"{origin}: ingest.recordings.flush_interval")
        _within(self.recordings.merge_after, 0.1, 86_400, f"{origin}: ingest.recordings.merge_after")
        _within(self.recordings.quota, 1 << 20, 1 << 60, f"{origin}: ingest.recordings.quota")
        _within(self.recordings.pending_max, 1 << 20, 1 << 40, f"{origin}: ingest.recordings.pending_max")


def _within(value: float, low: float, high: float, where: str) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{where}: expected {low:g} to {high:g}, got {value:g}")


class WorkerConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What the supervisor tells one worker process; travels as JSON in its argument list."""

    index: int
    state_directory: str
    ingest: IngestConfig
    ring_fds: tuple[int, int]
    log_level: str = "info"
