"""Who may say what: tokens by file, three roles, refused unless granted.

A token file has one line a person or program, `NAME ROLE SHA256-OF-THE-TOKEN`; roles are viewer, operator,
admin. The collector also writes `admin.token` into its state directory at its first start, for whoever can
read that.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from gpuvigil_protos.settings import ConfigError

Role = Literal["viewer", "operator", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
ADMIN_FILE: Final = "admin.token"
_LINE: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._@-]{0,63})\s+(?P<role>\w+)\s+(?P<hash>[0-9a-f]{64})\Z"
)
_LINES_MAX: Final = 1000
_TOKEN_MAX: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A name for the journal, and what it may do."""

    name: str
    role: Role

    def may(self, needed: Role) -> bool:
        """Whether this role includes the needed one."""
        return ROLES.index(self.role) >= ROLES.index(needed)


class Roles:
    """Tokens by their hash. `who` may be called from any thread."""

    def __init__(self, people: dict[str, Person]) -> None:
        self._people = people

    def who(self, authorization: str) -> Person | None:
        """Return whose token an Authorization header carries, None for nobody's; in constant time."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(token) <= _TOKEN_MAX:
            return None
        found = _hash(token.strip())
        match = None
        for known, person in self._people.items():
            if hmac.compare_digest(known, found):
                match = person
        return match


def load(path: str, state: Path) -> Roles:
    """Read the tokens, and make the admin's at the first start. Raises ConfigError."""
    people = {_hash(_admin_token(state / ADMIN_FILE)): Person(name="admin.token", role="admin")}
    if path:
        people |= read(Path(path))
    return Roles(people)


def _admin_token(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text(encoding="ascii", errors="replace").strip()
        if len(token) < 32:
            raise ConfigError(
                f"{path}: expected a token of at least 32 characters; delete it for a new one"
            ) from None
        return token
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}") from None
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    return token


def read(path: Path) -> dict[str, Person]:
    """Read a file of tokens: hash -> whose. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a path with a zero byte
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    people: dict[str, Person] = {}
    for number, line in enumerate(lines[:_LINES_MAX], 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = _LINE.match(text)
        if found is None or found["role"] not in ROLES:
            raise ConfigError(
                f"{path}:{number}: expected NAME ROLE SHA256, the role one of {', '.join(ROLES)}"
            )
        people[found["hash"]] = Person(name=found["name"], role=found["role"])
    if len(lines) > _LINES_MAX:
        raise ConfigError(f"{path}: expected at most {_LINES_MAX} lines, got {len(lines)}")
    return people


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
