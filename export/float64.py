"""A module's forward in float64 without a float64 copy of the module: parameters are widened where they are used, one layer at a time.

What float32 does to a model is measured against this. A library's own float32 islands (the RMSNorm of transformers computes in
float32 whatever its input is) stay; for Qwen2 they are 1e-7 of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def in_float64(module: nn.Module) -> Iterator[None]:
    """Let every submodule that owns parameters compute in float64; afterwards they are as before. Inputs must be float64.

    Memory: the parameters of the largest such submodule twice more. Gradients are off.
    """
    kept: dict[nn.Module, dict[str, torch.Tensor]] = {}

    def widen(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kept[owner] = {name: parameter.data for name, parameter in owner.named_parameters(recurse=False)}
        for parameter in owner.parameters(recurse=False):
            parameter.data = parameter.data.double()
        return tuple(map(_double, args)), {name: _double(value) for name, value in kwargs.items()}

    def restore(owner: nn.Module, *_: Any) -> None:
        for name, data in kept.pop(owner).items():
            owner.get_parameter(name).data = data

    owners = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    handles = [owner.register_forward_pre_hook(widen, with_kwargs=True) for owner in owners]
    handles += [owner.register_forward_hook(restore, always_call=True) for owner in owners]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
