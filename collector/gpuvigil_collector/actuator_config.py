"""Settings of the actuators that an operator brings himself: webhooks and commands."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import msgspec

from gpuvigil_collector.action import Kind
from gpuvigil_collector.kube.settings import KubernetesSettings

PLACEHOLDERS: Final = ("{node}", "{gpu}", "{job}", "{incident}")


class Webhook(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A receiver of the operator's that has an effect when it is asked to.

    Posted to `url`, signed with the secret in `secret_file`; one Idempotency-Key is one effect, whatever is
    sent again. `status_url` + "/" + action id is asked whether it is in place; without one, a lost answer
    stays ambiguous until a person looks.
    """

    name: str
    kinds: tuple[Kind, ...]
    url: str
    secret_file: str
    status_url: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no http address, and a hook without kinds or secret."""
        _named(self.name, self.kinds)
        if not self.secret_file:
            raise ValueError(f"webhook {self.name}: expected secret_file, got none")
        for key, url in (("url", self.url), ("status_url", self.status_url or self.url)):
            parts = urlsplit(url)  # .port raises ValueError for one that there cannot be
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError(f"webhook {self.name}: {key}: expected an http(s) address, got {url!r}")


class Command(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """A program of the operator's for the effect and one that looks whether it is in place.

    {node} {gpu} {job} {incident} stand for themselves, each a whole argument; no shell sees them. `look` ends
    with 0 done and ours, 1 absent, 2 foreign, any other status unknown, and may print a token on its first
    line. `apply` ends with 0 done, 2 foreign and nothing was done; any other status leaves it to `look`.
    """

    name: str
    kinds: tuple[Kind, ...]
    apply: tuple[str, ...]
    look: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse an empty command, and a placeholder that is not a whole argument."""
        _named(self.name, self.kinds)
        for key, argv in (("apply", self.apply), ("look", self.look)):
            if not argv or not argv[0].startswith("/"):
                raise ValueError(f"command {self.name}: {key}: expected a program's full path first")
            for word in argv:
                if ("{" in word or "}" in word) and (word not in PLACEHOLDERS or word == argv[0]):
                    expected = " ".join(PLACEHOLDERS)
                    raise ValueError(
                        f"command {self.name}: {key}: expected {expected}, each whole, got {word!r}"
                    )


class Helper(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """key: the private Ed25519 key, a PEM file. unit: how a job's unit is called, with {job} in it."""

    key: str
    unit: str = "{job}.service"


class ActuatorSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Programs of the operator's own, the agents, the helper; the first that has an action's kind is taken.

    supervised: job -> the nodes on which its agents may run it, best first. helper: how orders to the
    nodes' privileged helpers are signed, none without it.
    """

    webhook: tuple[Webhook, ...] = ()
    command: tuple[Command, ...] = ()
    supervised: dict[str, list[str]] = msgspec.field(default_factory=dict)
    helper: Helper | None = None
    kubernetes: KubernetesSettings | None = None


def _named(name: str, kinds: tuple[Kind, ...]) -> None:
    if not name or not name.isprintable() or len(name) > 64:
        raise ValueError(f"name: expected a short word, got {name!r}")
    if not kinds:
        raise ValueError(f"{name}: kinds: expected at least one, got none")
