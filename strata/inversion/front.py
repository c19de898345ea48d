"""Find the prompts that no other prompt beats in both what is wanted and what it costs."""

from collections.abc import Sequence


def front(wanted: Sequence[float], cost: Sequence[float]) -> list[bool]:
    """Say for each point whether it is on the Pareto front.

    A point is on it if no other has as much of the wanted for less cost, or more of it for no more cost. Of equal
    points only the first is on it. Example: wanted 3 2 2 1, cost 5 4 6 4 -> on, on, off, off.
    """
    # From the most wanted down, a point is on the front if it is cheaper than all before it.
    order = sorted(range(len(wanted)), key=lambda i: (-wanted[i], cost[i]))
    on_front, least_cost = [False] * len(wanted), float("inf")
    for point in order:
        if cost[point] < least_cost:
            on_front[point], least_cost = True, cost[point]
    return on_front
