"""Work for every GPU, by itself with torch: half a minute of matrix products, then copies; prints JSON.

Run by `gpuvigil-agent validate` with a Python that has torch; imports nothing of ours. Source of the figures:
2 n^3 operations a product of n x n bf16 matrices; a copy reads and writes each byte once.
"""

from __future__ import annotations

import json
import sys
import time

_N = 8192
_BURN_S = 15.0
_COPY_BYTES = 1 << 30


def main() -> int:
    """Burn each GPU in turn; 1 where torch or CUDA is not there."""
    try:
        import torch  # noqa: PLC0415 - its absence is an answer
    except ImportError as error:
        sys.stderr.write(f"torch cannot be imported: {error}\n")
        return 1
    if not torch.cuda.is_available():
        sys.stderr.write("torch sees no GPU\n")
        return 1
    found = [_one(torch, index) for index in range(torch.cuda.device_count())]
    sys.stdout.write(json.dumps({"gpus": found}) + "\n")
    return 0


def _one(torch: object, index: int) -> dict[str, object]:
    cuda, device = torch.cuda, torch.device("cuda", index)  # type: ignore[attr-defined]
    a = torch.randn(_N, _N, device=device, dtype=torch.bfloat16)  # type: ignore[attr-defined]
    began, products = time.monotonic(), 0
    while time.monotonic() - began < _BURN_S:
        for _ in range(20):
            a @ a
        cuda.synchronize(device)
        products += 20
    tflops = 2 * _N**3 * products / (time.monotonic() - began) / 1e12
    source = torch.empty(_COPY_BYTES, device=device, dtype=torch.uint8)  # type: ignore[attr-defined]
    target = torch.empty_like(source)  # type: ignore[attr-defined]
    cuda.synchronize(device)
    began = time.monotonic()
    for _ in range(100):
        target.copy_(source)
    cuda.synchronize(device)
    speed = 2 * _COPY_BYTES * 100 / (time.monotonic() - began) / 1e9
    return {"index": index, "model": cuda.get_device_name(index), "tflops": round(tflops, 1),
            "gigabytes_per_second": round(speed, 1)}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
