"""When a hanging call becomes news: after its deadline and in three tries, once an episode, and its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

TRIES: Final = 3


class News(NamedTuple):
    """What to tell: kind, whom it is about (`gpu:<uuid>` or `node`), the call and how long it has hung."""

    kind: Literal["driver_stuck", "driver_recovered"]
    entity: str
    call: str
    seconds: float


@dataclass(slots=True)
class _Episode:
    call: str
    seconds: float
    tries: int = 0
    told: bool = False


class Episodes:
    """Follow the calls that hang, tick by tick. Pure: it knows no clock."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._episodes: dict[str, _Episode] = {}

    @property
    def stuck(self) -> frozenset[str]:
        """Return the entities with an episode that was told and has not ended."""
        return frozenset(entity for entity, episode in self._episodes.items() if episode.told)

    def declare(self, entity: str, call: str, seconds: float) -> list[News]:
        """Take a hang that was judged elsewhere; it ends when `observe` no longer sees or keeps it."""
        if entity in self.stuck:
            return []
        self._episodes[entity] = _Episode(call, seconds, TRIES, told=True)
        return [News("driver_stuck", entity, call, seconds)]

    def observe(self, hanging: Iterable[tuple[str, str, float]], keep: frozenset[str]) -> list[News]:
        """Take one tick's hanging calls (entity, call, seconds); return what is new.

        keep: entities of which nothing is known now (nobody asks them), so that their episode goes on.
        """
        news, present = [], set()
        for entity, call, seconds in hanging:
            episode = self._episodes.setdefault(entity, _Episode(call, seconds))
            present.add(entity)
            episode.call, episode.seconds, episode.tries = call, seconds, episode.tries + 1
            if not episode.told and episode.tries >= TRIES and seconds >= self._deadline_s:
                episode.told = True
                news.append(News("driver_stuck", entity, call, seconds))
        for entity in set(self._episodes) - present - keep:
            episode = self._episodes.pop(entity)
            if episode.told:
                news.append(News("driver_recovered", entity, episode.call, episode.seconds))
        return news
