"""Config files: one TOML file a program, decoded into msgspec structs that refuse what they do not know.

Durations and sizes are strings with a unit ("10s", "512MiB"), so that a wrong unit is an error and not a
factor of a thousand. Every refusal names the file, the key, what was expected and what came.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import ssl
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from gpuvigil_protos.text import printable

T = TypeVar("T", bound=msgspec.Struct)

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*\Z")
_QUANTITY_CHARACTERS, _QUANTITY_MAX = 64, 1 << 62
_SHOWN_MAX = 80


class ConfigError(Exception):
    """A config file that cannot be used; the text says where, what was expected and what came: one line."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class Seconds(float):
    """A duration in seconds, written "500ms", "10s", "5min", "2h" or "1d"."""


class Bytes(int):
    """A size in bytes, written "512KiB", "64MiB" or "10GiB"."""


def parse_seconds(text: object) -> Seconds:
    """Read a duration with its unit. Raises ValueError that lists the units."""
    return Seconds(_quantity(text, _DURATION_UNITS, 'a duration with its unit, such as "10s"'))


def parse_bytes(text: object) -> Bytes:
    """Read a size with its unit. Raises ValueError that lists the units."""
    return Bytes(int(_quantity(text, _SIZE_UNITS, 'a size with its unit, such as "64MiB"')))


def _quantity(text: object, units: dict[str, float] | dict[str, int], expected: str) -> float:
    found = _QUANTITY.match(text) if isinstance(text, str) and len(text) <= _QUANTITY_CHARACTERS else None
    if found is None or found[2] not in units:
        raise ValueError(f"expected {expected} (units: {', '.join(units)}), got {_short(text)}")
    number = float(found[1]) * units[found[2]]
    if number >= _QUANTITY_MAX:
        raise ValueError(f"expected {expected}, got one that is out of all bounds: {text!r}")
    return number


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


def _decode_hook(kind: type, value: object) -> object:
    if kind is Seconds:
        return parse_seconds(value)
    if kind is Bytes:
        return parse_bytes(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"expected {kind.__name__}, got {value!r}")


def _encode_hook(value: object) -> object:
    return str(value)


def load(path: Path, kind: type[T]) -> T:
    """Read a TOML file into `kind`. Raises ConfigError with file, key, expected and nearest key."""
    return convert(read(path), kind, str(path))


def read(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises ConfigError that names the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: nested too deep, or a number too long") from None


def override(raw: dict[str, Any], assignment: str) -> None:
    """Put `--set section.key=value` into the document; the value is TOML, or text where it is none.

    Raises ConfigError.
    """
    name, equals, text = assignment.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set: expected section.key=value, got {assignment!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):  # ValueError: thousands of digits
        value = text
    table = raw
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set: {name}: {part} is a value, expected a table")
    table[parts[-1]] = value


def convert(raw: dict[str, Any], kind: type[T], origin: str) -> T:
    """Turn a parsed document into `kind`; `origin` names it in errors. Raises ConfigError."""
    _refuse_unknown_keys(raw, kind, origin, "")
    try:
        return msgspec.convert(raw, kind, dec_hook=_decode_hook)
    except (msgspec.ValidationError, ValueError) as error:
        text = str(error).replace("Object missing required field", "missing key")
        where = re.search(r" - at `\$\.?(.*?)`$", text)
        key = f"{where[1]}: " if where and where[1] else ""
        text = re.sub(r" - at `.*`$", "", text)
        if text.startswith("Invalid enum value") and where and (words := _choices(kind, where[1])):
            text = f"expected one of {', '.join(words)}, got{text[18:][:_SHOWN_MAX]}"
        raise ConfigError(f"{origin}: {key}{text}") from None


def _choices(kind: type, key: str) -> list[str]:
    """Return the words that a key accepts; `a.b`, `a[0].b`, `a[...]` (a dict's value) as msgspec names it."""
    inner: Any = kind
    for part in re.findall(r"[^.\[\]]+|\[[^\]]*\]", key):
        if part.startswith("["):  # what a list, a tuple or a dict holds comes last, but for the ...
            inner = next((held for held in reversed(get_args(inner)) if held is not Ellipsis), None)
            continue
        struct = next(filter(_is_struct, (inner, *get_args(inner))), None)
        fields = msgspec.structs.fields(struct) if struct is not None else ()
        inner = next((field.type for field in fields if field.encode_name == part), None)
    return [str(word) for word in get_args(inner)]


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def unknown(name: str, known: Iterable[str], what: str = "known") -> str:
    """Say a name that is not among the known ones, with the nearest of them or all."""
    words = sorted(known)
    near = difflib.get_close_matches(name.rpartition(".")[2], words, 1)
    return f'"{name[:_SHOWN_MAX]}"' + (
        f'; did you mean "{near[0]}"?' if near else f"; {what}: {', '.join(words)}"
    )


def _refuse_unknown_keys(raw: dict[str, Any], kind: type, origin: str, prefix: str) -> None:
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        if key not in fields:
            raise ConfigError(f"{origin}: unknown key {unknown(prefix + key, fields, 'known keys')}")
        for inner, table, name in _inner_tables(fields[key], value, prefix + key):
            _refuse_unknown_keys(table, inner, origin, f"{name}.")


def _inner_tables(kind: Any, value: object, name: str) -> Iterator[tuple[type, dict[str, Any], str]]:
    """Yield the tables of one key with struct and name: the key's own, each of a list, each of a dict."""
    inner: type | None = next(filter(_is_struct, (kind, *get_args(kind))), None)
    found: Iterable[tuple[object, str]] = [(value, name)]
    if isinstance(value, list):
        found = [(item, f"{name}[{number}]") for number, item in enumerate(value)]
    elif isinstance(value, dict) and get_origin(kind) is dict:
        found = [(item, f"{name}.{key}") for key, item in value.items()]
    for table, where in found:
        if inner is not None and isinstance(table, dict):
            yield inner, table, where


def effective(config: msgspec.Struct) -> str:
    """Render the whole config, defaults included, as TOML that `load` reads back."""
    return "\n".join(_tables(msgspec.structs.asdict(config), "")).lstrip("\n") + "\n"


def _tables(values: dict[str, Any], prefix: str) -> list[str]:
    lines, tables = [], []
    for key, value in values.items():
        if isinstance(value, msgspec.Struct):
            tables += ["", f"[{prefix}{key}]", *_tables(msgspec.structs.asdict(value), f"{prefix}{key}.")]
        elif isinstance(value, dict) and any(isinstance(item, msgspec.Struct) for item in value.values()):
            quoted = {_toml(name): item for name, item in value.items()}
            tables += _tables(quoted, f"{prefix}{key}.")
        elif value is not None:
            lines.append(f"{key} = {_toml(value)}")
    return lines + tables


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Seconds):
        return f'"{_duration(value)}"'
    if isinstance(value, Bytes):
        unit = next(
            (u for u, size in reversed(_SIZE_UNITS.items()) if value % size == 0 and value >= size), "B"
        )
        return f'"{value // _SIZE_UNITS[unit]}{unit}"'
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict | list | tuple):
        return _collection(value)
    return msgspec.json.encode(_encode_hook(value)).decode()


def _collection(value: dict[str, Any] | list[Any] | tuple[Any, ...]) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(_toml(item) for item in value) + "]"


def _duration(seconds: float) -> str:
    """Write a duration in the largest unit that divides it, in digits that read back."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    unit = next(
        (u for u, size in reversed(_DURATION_UNITS.items()) if seconds >= size and seconds % size == 0), "s"
    )
    return f"{seconds / _DURATION_UNITS[unit]:.9f}".rstrip("0").rstrip(".") + unit


class Tls(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Files of one side's identity, PEM. All empty means plain text, which is for loopback alone."""

    certificate: str = ""
    key: str = ""
    ca: str = ""

    @property
    def enabled(self) -> bool:
        """True when any file is named; the loader refuses a part of the three."""
        return bool(self.certificate or self.key or self.ca)

    def check(self, origin: str) -> None:
        """Raise ConfigError unless none or all three are named, are PEM, and the key fits the certificate."""
        if not self.enabled:
            return
        for name in ("certificate", "key", "ca"):
            file = getattr(self, name)
            if not file:
                raise ConfigError(
                    f"{origin}: tls.{name}: expected a PEM file beside the other two, got nothing"
                )
            try:
                Path(file).read_bytes()
            except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
                why = getattr(error, "strerror", None) or str(error)
                raise ConfigError(f"{origin}: tls.{name}: {file} cannot be read: {why}") from None
        for name in ("certificate", "ca"):
            file = getattr(self, name)
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
            except ssl.SSLError:
                raise ConfigError(f"{origin}: tls.{name}: expected a PEM certificate in {file}") from None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(self.certificate, self.key, password="")
        except ssl.SSLError as error:
            why = "another key" if error.reason == "KEY_VALUES_MISMATCH" else "no PEM key without a password"
            raise ConfigError(
                f"{origin}: tls.key: expected the key of {self.certificate}, got {why} in {self.key}"
            ) from None


def is_loopback(address: str) -> bool:
    """Tell whether `host:port` is on this machine: 127.0.0.0/8, ::1, localhost or a Unix socket."""
    host = address.rpartition(":")[0].strip("[]") if not address.startswith("unix:") else "localhost"
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
