"""What is to be written again from memory, behind fresh updates: all of a scope, after a takeover or a loss.

A scope is a part of what is served that is written and noted as whole by itself: `users-3`, the users of partition 3,
or `items`, all products (or `items-1-of-3`, a shard of them).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from freshet.store.columns import I32, Bool

ITEMS = "items"
"""All products, or what the first of several shards of them stands for."""
SHARD_SCOPE = re.compile(r"items-(\d+)-of-(\d+)")
STATES = "states"
"""No scope that is written: the states of products that a worker of users is told."""


def users_scope(partition: int) -> str:
    """The scope of the users of a partition."""
    return f"users-{partition}"


def items_scope(number: int, of: int) -> str:
    """The scope of a shard of the products."""
    return ITEMS if of == 1 else f"items-{number}-of-{of}"


def is_items(scope: str) -> bool:
    """Whether this is a scope of products."""
    return scope == ITEMS or SHARD_SCOPE.fullmatch(scope) is not None


def shards_in(scope: str) -> int:
    """Into how many shards the products are cut, by a scope of products."""
    found = SHARD_SCOPE.fullmatch(scope)
    return int(found[2]) if found else 1


def place_of(scope: str) -> str:
    """Under which name the token and the sentinel of a scope stand. The first shard takes the place of the whole: so
    whoever knows nothing of shards finds it, and a worker of all products that it replaces is refused."""
    return ITEMS if is_items(scope) and scope == items_scope(0, shards_in(scope)) else scope


def every_scope(partitions: int, shards: int = 1) -> list[str]:
    """All that is served of a shop whose users are in so many partitions."""
    return [*(items_scope(k, shards) for k in range(shards)), *map(users_scope, range(partitions))]


def partition_in(scope: str) -> int:
    """The inverse of `users_scope`."""
    return int(scope.removeprefix("users-"))


@dataclass
class _Task:
    scope: str
    nodes: I32
    done: int = 0


class Rewrites:
    """Scopes that wait to be written again, one after another, each in chunks; what is urgent in any of them first.

    `names` that the store holds and that are to be compared with the state are worked off last.
    """

    def __init__(self) -> None:
        self._urgent: deque[_Task] = deque()
        self._tasks: deque[_Task] = deque()
        self._names: Iterator[str] | None = None
        self.total = 0

    def __bool__(self) -> bool:
        return bool(self._tasks) or self._names is not None

    @property
    def waiting(self) -> int:
        """Nodes that wait."""
        return sum(task.nodes.shape[0] - task.done for task in (*self._urgent, *self._tasks))

    @property
    def scopes(self) -> set[str]:
        """Scopes that are not whole yet."""
        return {task.scope for task in self._tasks}

    def add(self, scope: str, nodes: I32, urgent: Bool | None = None) -> None:
        """Write these nodes [n] again, those that are `urgent` [n] before all others; a scope that waits already begins
        anew."""
        self.drop(scope)
        if urgent is not None and urgent.any():
            self._urgent.append(_Task(scope, nodes[urgent]))
            nodes = nodes[~urgent]
        self._tasks.append(_Task(scope, nodes))
        self.total = self.waiting

    def drop(self, scope: str) -> None:
        """Forget about a scope."""
        self._urgent, self._tasks = (
            deque(task for task in tasks if task.scope != scope) for tasks in (self._urgent, self._tasks)
        )

    def compare(self, names: Iterator[str]) -> None:
        """Have these names compared with the state when all is written."""
        self._names = names

    def take(self, count: int) -> tuple[str, I32, bool] | None:
        """The next at most `count` nodes of one scope, and whether they are its last; None when all is written."""
        tasks = self._urgent or self._tasks
        if not tasks:
            return None
        task = tasks[0]
        nodes = task.nodes[task.done : task.done + count]
        task.done += nodes.shape[0]
        ended = task.done >= task.nodes.shape[0]
        if ended:
            tasks.popleft()
        return task.scope, nodes, ended and tasks is self._tasks

    def take_names(self, count: int) -> list[str]:
        """The next names to compare; none when they are done with."""
        if self._names is None:
            return []
        found = list(islice(self._names, count))
        if not found:
            self._names = None
        return found
