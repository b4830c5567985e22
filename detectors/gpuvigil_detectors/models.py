"""Learned state as bytes: arrays and JSON with a hash, never pickle.

Layout: 32 bytes SHA-256 of the rest, then a numpy .npz (no objects) whose entry `meta` is JSON in UTF-8.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_DIGEST: Final = 32
Arrays = dict[str, NDArray[Any]]


class ModelError(Exception):
    """Stored state that cannot be used: cut short, changed, or of another kind. The owner starts afresh."""


def pack(kind: str, arrays: Arrays, meta: dict[str, Any]) -> bytes:
    """Return the bytes of a model; `kind` must match when it is read. Arrays hold numbers or text only."""
    if any(array.dtype.hasobject for array in arrays.values()):
        raise ModelError(f"{kind}: expected arrays of numbers or text, got objects")
    body = io.BytesIO()
    text = json.dumps({"kind": kind, "meta": meta}, sort_keys=True).encode()
    np.savez(body, allow_pickle=False, meta=np.frombuffer(text, dtype=np.uint8), **arrays)
    data = body.getvalue()
    return hashlib.sha256(data).digest() + data


def unpack(kind: str, data: bytes) -> tuple[Arrays, dict[str, Any]]:
    """Return arrays and meta. Raises ModelError for a wrong hash, form or kind."""
    body = data[_DIGEST:]
    if len(data) <= _DIGEST or hashlib.sha256(body).digest() != data[:_DIGEST]:
        raise ModelError(f"{kind}: expected the stored hash, got another: the model was cut short or changed")
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        head = json.loads(arrays.pop("meta").tobytes())
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"{kind}: not a model: {error}") from None
    if head.get("kind") != kind:
        raise ModelError(f"expected a model of kind {kind}, got {head.get('kind')}")
    return arrays, head["meta"]
