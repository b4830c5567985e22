"""SIGHUP: read the config again; what is wrong is refused and the old one stays."""

from __future__ import annotations

from collections.abc import Callable

from gpuvigil_collector.config import RELOADABLE, CollectorConfig
from gpuvigil_collector.incidents.tracker import Tracker
from gpuvigil_collector.journal import Journal
from gpuvigil_protos import log
from gpuvigil_protos.settings import ConfigError


class Reloader:
    """Holds the config in force, and changes what can change while running."""

    def __init__(
        self, config: CollectorConfig, load: Callable[[], CollectorConfig], tracker: Tracker, journal: Journal
    ) -> None:
        self.config, self._load, self._tracker, self._journal = config, load, tracker, journal

    def __call__(self) -> None:
        """Take the new config, or keep the old one and say why."""
        speaker = log.get("config")
        try:
            new = self._load()
        except ConfigError as error:
            speaker.error("reload_refused", error=str(error), kept="the config in force")
            return
        old, self.config = self.config, new
        changed = [name for name in new.__struct_fields__ if getattr(new, name) != getattr(old, name)]
        log.configure(new.log_level)
        self._tracker.settings = new.incidents
        self._journal.entries_max, self._journal.keep_s = new.journal.entries_max, new.journal.keep
        waiting = [name for name in changed if name not in RELOADABLE]
        log.get("config").info("config_reloaded", changed=changed, need_a_restart=waiting)
