"""Who this agent is: node name, kernel boot id, version."""

from __future__ import annotations

import ssl
import zlib
from pathlib import Path
from typing import Any, Final

from gpuvigil_protos import entity
from gpuvigil_protos.settings import ConfigError, Tls

AGENT_VERSION: Final = "0.1.0"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def kernel_boot_id() -> str:
    """Return the kernel's boot id, new at every boot; "unknown" where /proc does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()[:36]
    except OSError:
        return "unknown"


def node_name(configured: str, tls: Tls) -> str:
    """Return the certificate's name with TLS, else the configured name, else the host name.

    Raises ConfigError when the name is no host name, or differs from the certificate's.
    """
    import socket  # noqa: PLC0415 - needed once

    certified = certificate_names(tls.certificate) if tls.enabled else ()
    if certified and configured and configured not in certified:
        raise ConfigError(f"node: expected a name of the certificate {certified}, got {configured!r}")
    name = configured or (certified[0] if certified else socket.gethostname())
    if not entity.is_valid_node_name(name):
        raise ConfigError(f"node: expected letters, digits, '.', '-', '_' (RFC 1123), got {name[:64]!r}")
    return name


def certificate_names(file: str) -> tuple[str, ...]:
    """Return the DNS names of a PEM certificate's SAN. Raises ConfigError when it cannot be read."""
    try:
        # the standard library's own decoder; a public one would cost the agent the cryptography package
        decoded: dict[str, Any] = ssl._ssl._test_decode_cert(file)  # type: ignore[attr-defined]
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"tls.certificate: expected a PEM certificate in {file}: {error}") from None
    return tuple(value for kind, value in decoded.get("subjectAltName", ()) if kind == "DNS")


def phase_s(node: str) -> float:
    """Spread the nodes' ticks over the second, away from its ends: 0.1 to 0.9 s, fixed for a name."""
    return 0.1 + 0.8 * (zlib.crc32(node.encode()) % 1000) / 1000
