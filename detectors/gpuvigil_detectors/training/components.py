"""Strongly connected components of a small directed graph, and which of them nothing leaves."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def components(edges: Mapping[Node, frozenset[Node]]) -> list[frozenset[Node]]:
    """Tarjan 1972, without recursion (a job has thousands of ranks). Every node is a key of `edges`."""
    index: dict[Node, int] = {}
    low: dict[Node, int] = {}
    stack: list[Node] = []
    on_stack: set[Node] = set()
    found: list[frozenset[Node]] = []
    for root in edges:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(edges[target])))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    found.append(_pop(node, stack, on_stack))
    return found


def _pop(node: Node, stack: list[Node], on_stack: set[Node]) -> frozenset[Node]:
    members = set()
    while True:
        member = stack.pop()
        on_stack.discard(member)
        members.add(member)
        if member == node:
            return frozenset(members)


def sinks(edges: Mapping[Node, frozenset[Node]]) -> list[frozenset[Node]]:
    """The components that no edge leaves: what everything else ends up waiting for."""
    return [part for part in components(edges) if all(edges[node] <= part for node in part)]
