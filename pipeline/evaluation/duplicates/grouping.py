"""Groups without chaining: every pair of a group reaches the threshold.

Pairs are taken one after the other, the most similar first. The groups of both are merged if each image of
the one is similar enough to each image of the other. That is complete linkage, but for the order of merges.
Groups only grow, so that two which cannot be merged once never can be. In the end no two groups can be
merged, nor can a group take an image that is in none, as far as pairs that connect them are known.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Items = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

# The similarity of each of some nodes with each of others.
Compare = Callable[[Items, Items], Float64]

# Nodes of two groups that are compared at once.
_BLOCK = 1024
# Groups, or nodes alone, whose first nodes are all compared with each other, at most.
_MOST_COMPARED = 20_000


@dataclass(frozen=True)
class Group:
    """Nodes that are all similar to each other."""

    nodes: Items  # in ascending order
    least: float  # the least similarity of two of them


class Grouping:
    """Nodes in groups, at first each in one of its own."""

    def __init__(self, nodes: Items, compare: Compare, threshold: float) -> None:
        """`nodes` are distinct. `threshold` is the least similarity of two nodes of a group."""
        self._compare = compare
        self._threshold = threshold
        self._group_of = dict(zip(nodes.tolist(), nodes.tolist(), strict=True))
        self._nodes: dict[int, list[int]] = {node: [node] for node in nodes.tolist()}
        self._least = dict.fromkeys(nodes.tolist(), np.inf)
        self._apart: dict[int, set[int]] = {}  # groups that cannot be merged with each

    def merge(self, pairs: Items, similarities: Float64) -> None:
        """Merges the groups of `pairs` [p, 2], whose `similarities` [p] reach the threshold, where it can.

        If two pairs are equally similar, the pair of the lower nodes comes first.
        """
        pairs = np.sort(pairs, axis=1)
        for place in np.lexsort((pairs[:, 1], pairs[:, 0], -similarities)):
            one, other = (self._group_of[node] for node in pairs[place].tolist())
            if one == other or other in self._apart.get(one, ()):
                continue
            least = self._least_between(one, other, float(similarities[place]))
            if least < self._threshold:
                self._apart.setdefault(one, set()).add(other)
                self._apart.setdefault(other, set()).add(one)
            else:
                self._unite(one, other, least)

    def groups(self) -> Iterator[Group]:
        """The groups of more than one node, in the order of their first nodes."""
        found = [
            Group(np.array(sorted(nodes), np.int64), self._least[group])
            for group, nodes in self._nodes.items()
            if len(nodes) > 1
        ]
        yield from sorted(found, key=lambda group: int(group.nodes[0]))

    def firsts(self, nodes: Items) -> Items:
        """The first node of each group that has any of `nodes`, those of the largest groups first."""
        groups = {self._group_of[node] for node in nodes.tolist()}
        members = sorted((self._nodes[group] for group in groups), key=lambda each: (-len(each), min(each)))
        return np.array(list(map(min, members)), np.int64)

    def _least_between(self, one: int, other: int, similarity: float) -> float:
        """The least similarity of a node of one group and one of the other, or one that is too small.

        `similarity` is that of one such pair.
        """
        least = similarity
        ones, others = self._nodes[one], self._nodes[other]
        if len(ones) == len(others) == 1:
            return least
        for left in _blocks(ones):
            for right in _blocks(others):
                least = min(least, float(self._compare(left, right).min()))
                if least < self._threshold:
                    return least
        return least

    def _unite(self, one: int, other: int, least: float) -> None:
        if len(self._nodes[one]) < len(self._nodes[other]):
            one, other = other, one
        for node in self._nodes[other]:
            self._group_of[node] = one
        self._nodes[one] += self._nodes.pop(other)
        self._least[one] = min(self._least[one], self._least.pop(other), least)
        for group in self._apart.pop(other, ()):
            self._apart[group].discard(other)
            self._apart[group].add(one)
            self._apart.setdefault(one, set()).add(group)


def _blocks(nodes: Sequence[int]) -> Iterator[Items]:
    for start in range(0, len(nodes), _BLOCK):
        yield np.array(nodes[start : start + _BLOCK], np.int64)


def group_nodes(
    pairs: Items, similarities: Float64, compare: Compare, threshold: float, most: int
) -> list[Group]:
    """Groups of the nodes of `pairs`.

    Args:
      pairs: two nodes each [p, 2], no pair twice.
      similarities: of the pairs [p]; those that do not reach the threshold do not count.
      compare: gives the similarity of any two nodes.
      threshold: the least similarity of two nodes of a group.
      most: how many pairs of a node were looked for. A node with as many pairs may have others, too.
    """
    reach = similarities >= threshold
    pairs, similarities = pairs[reach], similarities[reach]
    nodes, degrees = np.unique(pairs, return_counts=True)
    grouping = Grouping(nodes, compare, threshold)
    grouping.merge(pairs, similarities)
    # Groups that belong together without a known pair between them have so many pairs inside.
    firsts = grouping.firsts(nodes[degrees >= most])[:_MOST_COMPARED]
    for start in range(0, len(firsts), _BLOCK):
        ones = firsts[start : start + _BLOCK]
        for begin in range(start, len(firsts), _BLOCK):
            others = firsts[begin : begin + _BLOCK]
            found = compare(ones, others)
            rows, columns = np.nonzero(found >= threshold)
            between = np.stack([ones[rows], others[columns]], axis=1)
            different = between[:, 0] != between[:, 1]
            grouping.merge(between[different], found[rows, columns][different])
    return list(grouping.groups())
