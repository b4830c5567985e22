"""Who this process is in its job, read from what launchers put into the environment.

The first source that names a value wins; the table is the order. Nothing here is believed by the agent beyond
what it can check: uid and control group come from the kernel.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

_JOB_NAME = re.compile(r"[^A-Za-z0-9._:+-]+")
JOB_MAX = 128

# field -> environment variables in the order in which they are believed
SOURCES: Dict[str, Tuple[str, ...]] = {
    "job": ("GPUVIGIL_JOB", "SLURM_JOB_ID", "JOB_NAME", "TORCHELASTIC_RUN_ID", "LSB_JOBID", "PBS_JOBID"),
    "rank": ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "JOB_COMPLETION_INDEX"),
    "local_rank": ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
    "world_size": ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
    "local_world_size": ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"),
    "node_rank": ("GROUP_RANK", "NODE_RANK", "SLURM_NODEID"),
    "attempt": ("GPUVIGIL_ATTEMPT",),
    "restart": ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"),
}
_TEXT_FIELDS = {"job"}
_LAUNCHERS = (
    ("torchrun", "TORCHELASTIC_RUN_ID"), ("slurm", "SLURM_JOB_ID"), ("kubernetes", "KUBERNETES_SERVICE_HOST"),
    ("mpi", "OMPI_COMM_WORLD_RANK"),
)  # fmt: skip


def identity(environ: Optional[Mapping[str, str]] = None) -> Dict[str, Any]:
    """Return what is known of this process: fields of SOURCES, launcher, host name, visible GPUs."""
    env = os.environ if environ is None else environ
    found: Dict[str, Any] = {}
    for field, names in SOURCES.items():
        value = _first(env, names, field in _TEXT_FIELDS)
        if value is not None:
            found[field] = value
    found["job"] = _job(found.get("job"), env)
    found.setdefault("rank", 0)
    found.setdefault("local_rank", 0)
    found.setdefault("world_size", 1)
    found["launcher"] = next((name for name, key in _LAUNCHERS if key in env), "none")
    found["program"] = Path(sys.argv[0]).name[:80] if sys.argv else ""
    gpu = gpu_of(env, found["local_rank"])
    if gpu:
        found["gpu"] = gpu
    return found


def _first(env: Mapping[str, str], names: Tuple[str, ...], text: bool) -> Any:
    for name in names:
        value = env.get(name, "").strip()
        if text and value:
            return value
        if not text and value.isdigit() and len(value) < 10:
            return int(value)
    return None


def _job(name: Any, env: Mapping[str, str]) -> str:
    """Make a job name of what was found; arrays and restarts of one Slurm job stay apart by their task."""
    if "SLURM_ARRAY_TASK_ID" in env and name == env.get("SLURM_JOB_ID"):
        name = "%s_%s" % (env.get("SLURM_ARRAY_JOB_ID", name), env["SLURM_ARRAY_TASK_ID"])
    clean = _JOB_NAME.sub("-", str(name or "")).strip("-._:+")[:JOB_MAX]
    if not clean or clean == "none":  # torchrun's run id is "none" unless one was given
        clean = "%s-%s" % (
            _JOB_NAME.sub("-", socket.gethostname()).strip("-._:+")[:60] or "host",
            _leader(env),
        )
    return clean


def _leader(env: Mapping[str, str]) -> str:
    """Tell jobs of one host apart: the launcher's process where it started us, else ourselves."""
    return str(os.getppid() if "LOCAL_RANK" in env else os.getpid())


def gpu_of(env: Mapping[str, str], local_rank: int) -> str:
    """Return the UUID of this rank's GPU where the environment or an initialised CUDA says it, else ""."""
    visible: List[str] = [
        name.strip() for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()
    ]
    place = local_rank if local_rank < len(visible) else 0
    if visible and visible[place].startswith(("GPU-", "MIG-")):
        return visible[place]
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_initialized():
            uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            return uuid if uuid.startswith("GPU-") else "GPU-" + uuid
    except Exception:  # noqa: BLE001, S110 - torch of any version, or a broken driver: then it is not known
        pass
    return ""
