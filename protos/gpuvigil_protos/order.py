"""Orders to a node's privileged helper: one struct, one canonical form, and the bytes that are signed.

An order is the JSON of `Order` with its fields in their order and no spaces: what is signed is what is
sent, and what does not encode back to the same bytes is refused, so that no two texts mean one order.
Signatures are Ed25519 over a fixed prefix and that text.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from gpuvigil_protos.entity import is_valid_node_name

TEXT_MAX: Final = 2048
SIGNATURE_BYTES: Final = 64
LIFETIME_MAX_S: Final = 600.0
"""How far in the future an order may expire at most: a captured one is worthless soon."""
# one way to name a GPU: another (index, bus, capitals) would have limits of its own
_UUID: Final = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_PREFIX: Final = b"gpuvigil helper order 1\n"

OrderVerb = Literal["stop_unit", "reset_gpu", "reboot", "hold", "unhold"]
_Name = Annotated[str, msgspec.Meta(max_length=256, pattern=r"\A[A-Za-z0-9][A-Za-z0-9._:@+/#=,-]*\Z")]
_Target = Annotated[str, msgspec.Meta(max_length=190, pattern=r"\A([A-Za-z0-9][A-Za-z0-9._:@+-]*)?\Z")]
_Number = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


class OrderError(Exception):
    """An order that is none; the text names the field, what was expected and what came."""


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One effect that is asked of one node, once.

    target: a GPU's UUID or a unit's name, "" with reboot, hold and unhold. action: whose effect it is, in
    the collector's journal. nonce: never twice. number: grows with each order of one collector. generation:
    of the collector's lease. expires_ns: UTC.
    """

    verb: OrderVerb
    node: Annotated[str, msgspec.Meta(max_length=253)]
    target: _Target
    action: _Name
    incident: _Name
    nonce: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    number: _Number
    generation: _Number
    expires_ns: _Number


def encode(order: Order) -> bytes:
    """Return the canonical text of an order."""
    return msgspec.json.encode(order)


def decode(text: bytes) -> Order:
    """Read an order. Raises OrderError for anything but the canonical text of a sound one."""
    if len(text) > TEXT_MAX:
        raise OrderError(f"order: expected at most {TEXT_MAX} bytes, got {len(text)}")
    try:
        found = msgspec.json.decode(text, type=Order)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # ValidationError is a DecodeError
        raise OrderError(f"order: {str(error)[:150]}") from None
    if not is_valid_node_name(found.node):
        raise OrderError("node: expected a host name")
    if (found.verb in ("stop_unit", "reset_gpu")) != bool(found.target):
        raise OrderError(f"target: expected {'none' if found.target else 'one'} with {found.verb}")
    if found.verb == "reset_gpu" and not _UUID.match(found.target):
        raise OrderError(f"target: expected a GPU's UUID as NVML writes it, got {found.target}")
    if encode(found) != text:
        raise OrderError("order: expected its canonical text, got another way to write it")
    return found


def signed_bytes(text: bytes) -> bytes:
    """Return what the signature of an order is over."""
    return _PREFIX + text
