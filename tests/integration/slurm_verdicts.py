"""A node's script, key and folder for tests of the verdict that prolog, epilog and health check read."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpuvigil_agent import verdict_file
from gpuvigil_collector.slurm.verdict import NodeVerdict

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/slurm/gpuvigil-verdict"
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class VerdictNode:
    """The shipped script with its three paths moved below `folder`, nothing else changed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.own = folder / "verdict", folder / "own"
        self.private = Ed25519PrivateKey.generate()
        self.key = folder / "verdict.pub"
        self.key.write_bytes(
            self.private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        text = SCRIPT.read_text()
        for old, new in (
            ("folder=/run/gpuvigil/verdict ", f"folder={self.folder} "),
            ("key=/etc/gpuvigil/verdict.pub ", f"key={self.key} "),
            ("own=/run/gpuvigil-verdict ", f"own={self.own} "),
        ):
            assert text.count(old) == 1
            text = text.replace(old, new)
        self.script = folder / "gpuvigil-verdict"
        self.script.write_text(text)
        self.script.chmod(0o755)

    def write_key(self, file: Path) -> None:
        """Write the key that signs, as the collector reads it."""
        file.write_bytes(
            self.private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def text(self, **fields: Any) -> bytes:
        """A verdict's bytes: node gn1 refuses work at its prolog for ten minutes, unless said otherwise."""
        now = int(time.time())
        known = {
            "node": "gn1", "boot": BOOT, "at": ("prolog",), "action": "act-1", "expires_s": now + 600,
            "reason": "gpuvigil: gpu_lost gpu 3 fell off the bus [inc-7 g3]",
        }  # fmt: skip
        return NodeVerdict(**{**known, **fields}).text(min(now, fields.get("expires_s", now + 1) - 1))

    def put(self, text: bytes, signature: bytes | None = None) -> None:
        """Lay a verdict down as the agent does."""
        verdict_file.put(self.folder, text, signature or self.private.sign(text))

    def run(self, place: str = "prolog_slurmd", node: str = "gn1") -> subprocess.CompletedProcess[str]:
        """Run the script as slurmd does."""
        env = {"SLURMD_NODENAME": node, **({"SLURM_SCRIPT_CONTEXT": place} if place else {})}
        return subprocess.run([self.script], env=env, capture_output=True, text=True, timeout=30)

    def counts(self) -> dict[str, int]:
        """Why the script went on, and how often."""
        return dict(verdict_file.counts(self.own))
