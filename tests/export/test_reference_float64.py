"""A module's forward in float64: what is widened, for how long, and what is left as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from export.reference import in_float64


class Nested(nn.Module):
    """Parameters of its own beside those of a child that it calls."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1 / 3]))
        self.child = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None, factor: int = 1) -> torch.Tensor:
        assert self.scale.dtype == x.dtype
        result = self.child(x) * self.scale * factor
        return result if shift is None else result + shift


@pytest.fixture
def nested() -> Nested:
    torch.manual_seed(0)
    return Nested().requires_grad_(False)


def exact(module: Nested, x: torch.Tensor) -> torch.Tensor:
    return (x.double() @ module.child.weight.double().T + module.child.bias.double()) * module.scale.double()


def test_parameters_count_in_float64_and_are_as_they_were_afterwards(nested):
    before = {name: parameter.data for name, parameter in nested.named_parameters()}
    x = torch.randn(4, 3)
    with in_float64(nested):
        result = nested(x.double())
    torch.testing.assert_close(result, exact(nested, x), rtol=1e-14, atol=1e-14)
    for name, parameter in nested.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.data_ptr() == before[name].data_ptr()
    assert nested(x).dtype == torch.float32  # nothing is widened any more


def test_float_tensors_are_widened_wherever_they_are_passed_and_nothing_else_is(nested):
    x, shift = torch.randn(4, 3), torch.randn(2)
    with in_float64(nested):
        result = nested(x, shift=shift, factor=2)
    torch.testing.assert_close(result, 2 * exact(nested, x) + shift.double(), rtol=1e-14, atol=1e-14)
    table = nn.Embedding(5, 2)
    with in_float64(table):
        assert torch.equal(table(torch.tensor([4, 1])), table.weight[[4, 1]].double())


def test_a_module_without_parameters_of_its_own_keeps_its_inputs():
    seen = []

    class Box(nn.Module):
        def __init__(self, *children: nn.Module):
            super().__init__()
            self.inside = nn.ModuleList(children)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.dtype)
            return self.inside[0](x) if len(self.inside) else x

    box = Box(nn.Linear(2, 2))
    with in_float64(box):
        assert box(torch.ones(1, 2)).dtype == torch.float64
    empty = Box()
    with in_float64(empty):
        assert empty(torch.ones(1)).dtype == torch.float32
    assert seen == [torch.float32, torch.float32]


def test_a_forward_that_fails_leaves_the_parameters_as_they_were(nested):
    with pytest.raises(RuntimeError), in_float64(nested):
        nested(torch.randn(4, 7).double())
    assert {parameter.dtype for parameter in nested.parameters()} == {torch.float32}
    assert nested(torch.randn(4, 3)).dtype == torch.float32


def test_gradients_are_off_inside_alone():
    linear = nn.Linear(2, 2)
    with in_float64(linear):
        assert not linear(torch.ones(1, 2).double()).requires_grad
    assert linear(torch.ones(1, 2)).requires_grad
