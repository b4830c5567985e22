"""A rig whose API knows a viewer, an operator and an admin, and what they say to it."""

from __future__ import annotations

import hashlib

from contract.test_api_asks import ASK, ticking
from unit.brain_help import Rig

from gpuvigil_collector.repair.settings import Remediation
from gpuvigil_collector.web import roles

TOKENS = {"v": "viewer", "o": "operator", "a": "admin"}


def rig_with_tokens(tmp_path):
    made = Rig(tmp_path, remediation=Remediation(mode="recommend"))
    file = tmp_path / "tokens"
    lines = [
        f"{role}@site {role} {hashlib.sha256(token.encode()).hexdigest()}  # a comment"
        for token, role in TOKENS.items()
    ]
    file.write_text("\n".join(["", *lines]))
    made.roles = roles.load(str(file), tmp_path)
    made.tick()
    return made


def say(rig, api, path, token="o", **body):
    headers = ASK | ({"Authorization": f"Bearer {token}"} if token else {})
    return ticking(rig, lambda: api.post(f"/api/v1/{path}", headers=headers, json=body))


def told(rig, incident=""):
    return [(row["what"], row["detail"]) for row in rig.journal.entries(incident)]
