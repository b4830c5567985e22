"""Entity names: `kind:id`, the one way to say which GPU, link, disk or interface a value is about.

The node itself is `node`. An NVLink is `nvlink:<GPU uuid>/<link>`, rank 3 of job 42 `rank:42/3`. Names are
hostile until checked: at most 200 printable ASCII characters, so that they are safe in logs, terminals, HTML
and label values.
"""

from __future__ import annotations

import re
from typing import Final

NODE: Final = "node"
ENTITY_MAX_CHARACTERS: Final = 200
_ENTITY = re.compile(r"(node|(gpu|nvlink|disk|filesystem|interface|process|rank|job):[!-~]{1,190})\Z")
_JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}\Z")
_WORKLOAD = (
    re.compile(  # Kubernetes' own rules for a namespace, a kind with its group, a name, a group's number
        r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?/[A-Z][A-Za-z0-9]{0,62}(?:\.[a-z0-9][a-z0-9.-]{0,100})?"
        r"/[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?:/[0-9]{1,9})?\Z"
    )
)
_NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")


def gpu(uuid: str) -> str:
    """Name a GPU by its UUID, never by its index."""
    return f"gpu:{uuid}"


def nvlink(uuid: str, link: int) -> str:
    """Name link number `link` of a GPU."""
    return f"nvlink:{uuid}/{link}"


def disk(name: str) -> str:
    """Name a block device, `nvme0n1`."""
    return f"disk:{name}"


def filesystem(mount_point: str) -> str:
    """Name a file system by its mount point; characters that no entity may have become `_`."""
    return "filesystem:" + re.sub(r"[^!-~]|[\"'<>\\`]", "_", mount_point)[:190]


def interface(name: str) -> str:
    """Name a network interface."""
    return f"interface:{name}"


def rank(job: str, number: int) -> str:
    """Name one rank of a training job; `job` has passed `is_valid_job`."""
    return f"rank:{job}/{number}"


def job(name: str) -> str:
    """Name a training job."""
    return f"job:{name}"


def job_and_rank_of(entity: str) -> tuple[str, int] | None:
    """Return the job and the rank that a rank entity is of, else None."""
    kind, _, rest = entity.partition(":")
    name, _, number = rest.rpartition("/")
    return (name, int(number)) if kind == "rank" and number.isdecimal() and is_valid_job(name) else None


def job_of(entity: str) -> str | None:
    """Return the job that a job or rank entity is of, else None."""
    kind, _, name = entity.partition(":")
    if kind == "job":
        return name if is_valid_job(name) else None
    where = job_and_rank_of(entity)
    return where[0] if where is not None else None


def is_valid_job(text: str) -> bool:
    """Tell whether text from outside is a job's name."""
    return bool(_JOB_NAME.match(text))


def is_valid_workload(text: str) -> bool:
    """Tell whether text is how the Kubernetes part names a job: NAMESPACE/KIND/NAME, or with /GROUP."""
    return bool(_WORKLOAD.match(text))


def kind_of(entity: str) -> str:
    """Return the part before the colon: `gpu`, `nvlink`, ..., `node`."""
    return entity.partition(":")[0]


def gpu_uuid_of(entity: str) -> str | None:
    """Return the GPU's UUID that a gpu or nvlink entity belongs to, else None."""
    kind, _, rest = entity.partition(":")
    if kind == "gpu":
        return rest
    if kind == "nvlink":
        return rest.rpartition("/")[0]
    return None


def is_valid_entity(text: str) -> bool:
    """Tell whether text from outside is an entity name; quotes, HTML and backslashes are refused."""
    return bool(_ENTITY.match(text)) and not any(character in "\"'<>\\`" for character in text)


def is_valid_node_name(text: str) -> bool:
    """Tell whether text from outside is a host name (RFC 1123 letters, digits, `.`, `-`, and `_`)."""
    return bool(_NODE_NAME.match(text))
