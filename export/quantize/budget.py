"""The error budget: layers whose error is largest go up in precision until the error of the component is within it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence


def meet_budget(
    lowest: Mapping[str, str],
    steps: Sequence[str],
    errors: Mapping[str, float],
    measure: Callable[[dict[str, str]], float],
    budget: float,
) -> tuple[dict[str, str], float]:
    """({node: precision}, the component's error in them), within `budget` unless every layer is in the last of `steps`.

    lowest: {node: precision to start from}; steps: precisions, from the lowest; errors: {node: the layer's error};
    measure: the component's error with layers in these precisions.
    """
    chosen = dict(lowest)
    for rounds in itertools.count():
        error = measure(chosen)
        left = [node for node, step in chosen.items() if step != steps[-1]]
        if error <= budget or not left:
            break
        first = min((chosen[node] for node in left), key=steps.index)
        for node in worst(errors, [node for node in left if chosen[node] == first], rounds):
            chosen[node] = steps[steps.index(first) + 1]
    return chosen, error


def worst(errors: Mapping[str, float], left: Collection[str], rounds: int = 0) -> list[str]:
    """The nodes of `left` to raise next: those of the largest error, a twelfth of all layers, then twice as many each round."""
    ranked = sorted(left, key=lambda node: -errors[node])
    return ranked[: max(1, len(errors) * 2**rounds // 12)]
