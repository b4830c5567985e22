"""The helper's own judgement of an order: signature, node, time. Independent of agent and collector.

Pure but for the two clocks that are given; what was seen before is the ledger's to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from gpuvigil_protos import order as orders
from gpuvigil_protos.order import Order
from gpuvigil_protos.settings import ConfigError

_HEX_LENGTH: Final = 2 * orders.SIGNATURE_BYTES


class ForgedError(Exception):
    """An order that is refused before anything is looked up; the text names the field."""


def load_key(file: Path) -> Ed25519PublicKey:
    """Read the collector's public key. Raises ConfigError."""
    try:
        key = load_pem_public_key(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"key: {file} cannot be read: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"key: expected a PEM public key in {file}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"key: expected an Ed25519 key in {file}, got another kind")
    return key


def check(text: bytes, signature: str, key: Ed25519PublicKey, node: str, now_ns: int) -> Order:
    """Return the order if it is the collector's, for this node and of now. Raises ForgedError."""
    if len(signature) != _HEX_LENGTH or not all(c in "0123456789abcdef" for c in signature):
        raise ForgedError(f"signature: expected {_HEX_LENGTH} lower-case hex digits")
    try:
        key.verify(bytes.fromhex(signature), orders.signed_bytes(text))
    except InvalidSignature:
        raise ForgedError("signature: it is not the collector's over this order") from None
    try:
        found = orders.decode(text)
    except orders.OrderError as error:
        raise ForgedError(str(error)) from None
    if found.node != node:
        raise ForgedError(f"node: expected {node}, got {found.node}")
    left_s = (found.expires_ns - now_ns) / 1e9
    if left_s <= 0:
        raise ForgedError(f"expires_ns: {-left_s:.1f} s late")
    if left_s > orders.LIFETIME_MAX_S:
        raise ForgedError(f"expires_ns: expected within {orders.LIFETIME_MAX_S:.0f} s, got {left_s:.0f} s")
    return found
