"""Uninstalling: every hold of ours is taken off every node, and nothing that others set.

`python -m gpuvigil_collector.kube.withdraw [KUBECONFIG]`, with act.yaml's rights, when no collector acts any
more. Prints a line a node. It may be run again: what is off stays off.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from gpuvigil_collector.kube.api import STRATEGIC, Deadline, KubeApi, KubeError, StatusError, connection
from gpuvigil_collector.kube.marks import cordon_is_ours, standing, tainted, withdraw_patch
from gpuvigil_collector.kube.objects import Node, NodePage, node_path
from gpuvigil_collector.kube.settings import KubernetesSettings
from gpuvigil_protos.settings import ConfigError

_TRIES = 5
_WITHIN_S = 300.0
_SETTLE_S = 2.0  # the node controller answers a change within a second


def withdraw(api: KubeApi, settings: KubernetesSettings) -> Iterator[str]:
    """Take our marks off all nodes; yield a sentence for each. Raises KubeError.

    Ends when a second look finds none: the node controller, which answers the end of a cordon, may write the
    taints back as it saw them before (see `marks.taint_patch`).
    """
    deadline = Deadline(_WITHIN_S)
    while found := _marked(api, settings, deadline):
        for node in found:
            yield f"{node.metadata.name}: {_off(api, node, settings, deadline)}"
        time.sleep(_SETTLE_S)


def _marked(api: KubeApi, settings: KubernetesSettings, deadline: Deadline) -> list[Node]:
    nodes = list(api.items("/api/v1/nodes", NodePage, deadline, settings.nodes_max))
    return [node for node in nodes if _ours(node, settings)]


def _off(api: KubeApi, node: Node, settings: KubernetesSettings, deadline: Deadline) -> str:
    path = node_path(node.metadata.name)
    for _ in range(_TRIES):
        try:
            left = node.spec.unschedulable and not cordon_is_ours(node)
            api.patch(path, withdraw_patch(node, settings.taint_key), Node, deadline)
        except StatusError as error:
            if error.code != 409:
                raise
            node = api.get(path, Node, deadline)
            continue
        if settings.condition:
            row = {"type": settings.condition, "$patch": "delete"}
            api.patch(f"{path}/status", {"status": {"conditions": [row]}}, Node, deadline, STRATEGIC)
        return "our marks are off" + ("; the cordon is not ours and stays" if left else "")
    raise KubeError(f"{node.metadata.name}: changed by others {_TRIES} times in a row: run this again")


def _ours(node: Node, settings: KubernetesSettings) -> bool:
    try:
        return standing(node, settings.taint_key) in ("ours", "taken") or tainted(node, settings.taint_key)
    except KubeError:  # marks that were altered by hand are taken off too
        return True


def main(arguments: list[str]) -> int:
    """Run it; return the exit status: 0 done, 1 not all could be taken off, 2 wrong use."""
    if len(arguments) > 1 or any(word.startswith("-") for word in arguments):
        sys.stderr.write("usage: python -m gpuvigil_collector.kube.withdraw [KUBECONFIG]\n")
        return 2
    try:
        for line in withdraw(KubeApi(connection(arguments[0] if arguments else "")), KubernetesSettings()):
            sys.stdout.write(f"{line}\n")
    except (KubeError, ConfigError) as error:
        sys.stderr.write(f"not all is off: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
