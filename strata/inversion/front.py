"""Which of many prompts no other one beats in both what is wanted and what it costs."""

from collections.abc import Sequence


def front(wanted: Sequence[float], cost: Sequence[float]) -> list[bool]:
    """Whether each point is on the Pareto front: none has as much of the wanted for less, or more for no more cost.

    Of equal points the first is. Example: wanted 3 2 2 1, cost 5 4 6 4 -> on, on, off, off.
    """
    order = sorted(range(len(wanted)), key=lambda i: (-wanted[i], cost[i]))
    found, least = [False] * len(wanted), float("inf")
    for place in order:
        if cost[place] < least:
            found[place], least = True, cost[place]
    return found
