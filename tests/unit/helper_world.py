"""A helper without its socket: real keys, real ledger, real commands that write down what they did."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from gpuvigil_collector.actuators.helper import Signer
from gpuvigil_helper import check
from gpuvigil_helper.config import HelperConfig, Protected, Reboot, Reset, Stop
from gpuvigil_helper.desk import Desk, Said, Seen
from gpuvigil_helper.effects import Effects
from gpuvigil_helper.hold import HoldFile
from gpuvigil_helper.ledger import Ledger
from gpuvigil_protos import order as orders
from gpuvigil_protos.order import Order

NODE, BOOT = "n1", "11111111-2222-3333-4444-555555555555"
GPU = "GPU-0a1b2c3d-0001-0002-0003-0a1b2c3d4e5f"
OTHER_GPU = "GPU-ffffffff-0001-0002-0003-0a1b2c3d4e5f"
LINKED = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: x)\n\t Link 0: 26.562 GB/s\n"


def script(file: Path, text: str) -> str:
    """Write a shell script and return its path."""
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def write_keys(folder: Path) -> None:
    """Write a pair of keys: collector.key and collector.pub."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "collector.key").write_bytes(private)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "collector.pub").write_bytes(public)


class World:
    """One node with one GPU. `did` is what its commands were called with, in order."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        (folder / "state").mkdir(exist_ok=True)
        if not (folder / "collector.key").exists():
            write_keys(folder)
        self.device = folder / "nvidia0"
        self.device.touch()
        self.log = folder / "did"
        self.log.touch()
        (folder / "capability.txt").write_text("9.0\n")
        self.config = msgspec.structs.replace(self._config(), **changes)
        self.signer = Signer(folder / "collector.key")
        self.agent_lets_go = True
        self.asked: list[bool] = []
        self.start()

    def tool(self, name: str, text: str = "") -> tuple[str, ...]:
        """A command that writes down its name and words, and then does `text`."""
        return (script(self.folder / name, f'echo "{name} $*" >> {self.log}\n{text}'),)

    def _config(self) -> HelperConfig:
        units = self.folder / "units"
        units.mkdir(exist_ok=True)
        systemctl = self.tool("systemctl", SYSTEMCTL.format(units=units))
        return HelperConfig(
            act=True, node=NODE, key=str(self.folder / "collector.pub"),
            state_directory=str(self.folder / "state"), pause_files=(str(self.folder / "pause"),),
            systemctl=systemctl, protected=Protected(),
            stop=Stop(allow=r"train-.*\.service", command=(*systemctl, "stop", "--", "{unit}")),
            reset=Reset(
                command=(*self.tool("reset", f"test ! -e {self.folder}/reset-fails"), "{gpu}"),
                evidence=(*self.tool("evidence", "echo ECC 7"), "{gpu}"),
                links=(*self.tool("links", f"cat {self.folder}/links.txt 2>/dev/null || true"), "{gpu}"),
                capability=(*self.tool("capability", f"cat {self.folder}/capability.txt"), "{gpu}"),
                fabric_manager=self.tool("fabric", f"test -e {self.folder}/fabric-runs"),
                let_go=("dcgm.service", "persist.service"),
                devices=(str(self.device),),
            ),
            reboot=Reboot(command=self.tool("reboot")),
        )  # fmt: skip

    def start(self, boot_id: str = BOOT) -> None:
        """Start the helper, or start it anew, as its own main does."""
        state = Path(self.config.state_directory)
        self.ledger = Ledger(state / "ledger.db", boot_id)
        hold = HoldFile(state / "held")
        self.effects = Effects(self.config, self.ledger, hold)
        self.ledger.settle()
        self.effects.restore()
        key = check.load_key(Path(self.config.key))
        self.desk = Desk(self.config, NODE, key, self.ledger, boot_id, self.effects, hold)

    def order(self, verb: str, target: str = "", **changes: object) -> Order:
        """An order that would be taken."""
        found = Order(
            verb=verb, node=NODE, target=target, action=f"a-{secrets.token_hex(4)}", incident="i-1",  # type: ignore[arg-type]
            nonce=secrets.token_hex(16), number=self.signer.number(), generation=5,
            expires_ns=time.time_ns() + 60_000_000_000,
        )  # fmt: skip
        return msgspec.structs.replace(found, **changes)

    def sign(self, order: Order) -> bytes:
        """The message of an order with the real key's signature, sound or not."""
        text = orders.encode(order)
        return self.message(text, self.signer._key.sign(orders.signed_bytes(text)).hex())

    @staticmethod
    def message(text: bytes, signature: str) -> bytes:
        """The message of any text."""
        return msgspec.json.encode({"ask": "order", "order": text.decode(), "signature": signature})

    def say(self, message: bytes) -> Said:
        """Hand a message to the helper."""
        said = self.desk.answer(message, self._let_go)
        assert isinstance(said, Said)
        return said

    def give(self, verb: str, target: str = "", **changes: object) -> Said:
        """Give a fresh order."""
        return self.say(self.sign(self.order(verb, target, **changes)))

    def look(self, action: str = "", unit: str = "") -> Seen:
        """Look."""
        message = msgspec.json.encode({"ask": "look", "action": action, "unit": unit})
        seen = self.desk.answer(message, self._let_go)
        assert isinstance(seen, Seen)
        return seen

    def did(self, name: str = "") -> list[str]:
        """What was called, newest last; only of one tool with `name`."""
        return [line.strip() for line in self.log.read_text().splitlines() if line.startswith(name)]

    def run_unit(self, unit: str) -> Path:
        """Have a unit run, by the stand-in for systemctl."""
        file = self.folder / "units" / unit
        file.touch()
        return file

    def _let_go(self, go: bool) -> bool:
        self.asked.append(go)
        return self.agent_lets_go or not go


# units are files: there while they run; the real systemctl is under tests/integration
SYSTEMCTL = """
verb=$1; for unit in "$@"; do :; done
case $verb in
  is-active) test -e {units}/$unit ;;
  stop) rm -f {units}/$unit ;;
  start) test ! -e {units}/$unit.broken && touch {units}/$unit ;;
  show) if test -e {units}/$unit; then echo active; else echo inactive; fi ;;
  list-units) cd {units} && ls -d $unit 2>/dev/null; true ;;
esac"""
