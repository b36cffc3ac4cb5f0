"""Weights by name, shape and type into a module, from files of a few numbers, and what is said of those that don't fit."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from refusal import naming
from safetensors.torch import save_file

from export.weights import _method, check_finite, check_weights, load_weights, weight_files, weights_sha256
from runtime.core.errors import CheckpointError

W, B = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([7.0, 8.0, 9.0])


@pytest.fixture
def checkpoint(tmp_path: Path) -> SimpleNamespace:
    """A directory with what `export.weights` asks of a checkpoint; fetched: the patterns that it asked a hub for."""

    def read(name: str):
        return json.loads((tmp_path / name).read_text()) if (tmp_path / name).exists() else None

    made = SimpleNamespace(path=tmp_path, json=read, adapter=lambda: "an adapter", fetched=[])
    made.fetch = made.fetched.extend
    return made


def save(checkpoint: SimpleNamespace, name: str = "model.safetensors", **tensors: torch.Tensor) -> None:
    save_file({key.replace("_", "."): tensor.clone() for key, tensor in tensors.items()}, checkpoint.path / name)


def rename(key: str) -> str | None:
    return key.removeprefix("net.") if key.startswith("net.") else None


def refused(call, *arguments) -> str:
    with pytest.raises(CheckpointError) as error:
        call(*arguments)
    return str(error.value)


class TestLoading:
    def test_a_module_gets_the_values_in_its_own_type_and_no_gradients(self, checkpoint):
        save(checkpoint, net_weight=W.half(), net_bias=B, llm_weight=torch.full((1,), torch.nan))
        module = torch.nn.Linear(2, 3).double()
        load_weights(checkpoint, module, rename)
        assert torch.equal(module.weight, W.double()) and torch.equal(module.bias, B.double())
        assert not any(parameter.requires_grad for parameter in module.parameters())

    def test_a_tied_weight_may_be_absent_and_is_taken_where_it_is_not(self, checkpoint):
        module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3, bias=False), "b": torch.nn.Linear(2, 3, bias=False)})
        save(checkpoint, net_a_weight=W)
        load_weights(checkpoint, module, rename, {"b.weight": "a.weight"})
        assert torch.equal(module["b"].weight, W) and torch.equal(module["a"].weight, W)
        save(checkpoint, net_a_weight=W, net_b_weight=-W)
        load_weights(checkpoint, module, rename, {"b.weight": "a.weight"})
        assert torch.equal(module["b"].weight, -W)
        save(checkpoint, net_a_weight=W)
        assert "lacks weights: b.weight; " in refused(check_weights, checkpoint, module, rename, {"x": "a.weight"})
        save(checkpoint, net_b_weight=W)
        assert "lacks weights: a.weight; " in refused(check_weights, checkpoint, module, rename, {"b.weight": "a.weight"})

    def test_only_headers_are_read_for_a_check_and_a_module_without_storage_will_do(self, checkpoint):
        save(checkpoint, net_weight=torch.full((3, 2), torch.nan), net_bias=B)
        check_weights(checkpoint, torch.nn.Linear(2, 3, device="meta"), rename)
        for call, arguments in ((check_finite, ()), (load_weights, (torch.nn.Linear(2, 3),))):
            line = refused(lambda: call(checkpoint, *arguments, rename))  # noqa: B023
            assert naming(checkpoint.path, "net.weight", "NaN").match(line)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_every_float_is_taken(self, checkpoint, dtype):
        save(checkpoint, net_weight=W.to(dtype), net_bias=B)
        load_weights(checkpoint, module := torch.nn.Linear(2, 3), rename)
        assert torch.equal(module.weight, W)

    def test_finite_values_pass_and_those_of_another_half_are_not_looked_at(self, checkpoint):
        save(checkpoint, net_weight=W, llm_weight=torch.tensor([torch.inf]))
        check_finite(checkpoint, rename)
        assert "llm.weight has NaN" in refused(check_finite, checkpoint, str)
        save(checkpoint, net_weight=torch.tensor([[1.0, torch.inf]]))
        assert "net.weight has NaN" in refused(check_finite, checkpoint, rename)

    @pytest.mark.parametrize(
        ("shape", "named"),
        [((2, 3), [2, 3]), ((6,), [6])],
    )
    def test_a_shape_must_be_the_modules(self, checkpoint, shape, named):
        save(checkpoint, net_weight=W.reshape(shape), net_bias=B)
        assert naming("net.weight", named, [3, 2]).match(refused(check_weights, checkpoint, torch.nn.Linear(2, 3), rename))

    @pytest.mark.parametrize(("extra", "named"), [(2, "a, net.b"), (3, "a, net.b, net.c"), (4, "a, net.b, net.c and 1 more")])
    def test_three_unknown_weights_are_named_and_more_are_counted(self, checkpoint, extra, named):
        save(checkpoint, net_weight=W, net_bias=B, **{f"net_{name}": B for name in "dcba"[4 - extra :]})
        line = refused(check_weights, checkpoint, torch.nn.Linear(2, 3), rename)
        assert naming(checkpoint.path, f"unknown weights: net.{named};").match(line)

    def test_what_is_quantized_matters_only_in_the_half_that_is_asked_for(self, checkpoint):
        save(checkpoint, net_weight=W, net_bias=B, llm_qweight=B)
        check_weights(checkpoint, torch.nn.Linear(2, 3), rename)


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        (
            {"load_in_8bit": True, "llm_int8_threshold": 6.0},
            "quantized (bitsandbytes)",
        ),  # as older releases of transformers wrote it
        ({"group_size": 128, "bits": 4}, "quantized (4 bits)"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "quantized (fp8)"),
        ({}, "quantized"),
    ],
)
def test_a_quantizer_is_named_by_what_its_config_says(quantization, said):
    assert _method(quantization) == said


class TestFiles:
    def test_the_shards_of_an_index_are_each_named_once_in_order(self, checkpoint):
        weight_map = {"net.weight": "b.safetensors", "net.bias": "a.safetensors", "net.more": "b.safetensors"}
        (checkpoint.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        save(checkpoint, "a.safetensors", net_bias=B)
        save(checkpoint, "b.safetensors", net_weight=W)
        assert [file.name for file in weight_files(checkpoint)] == ["a.safetensors", "b.safetensors"] == checkpoint.fetched
        load_weights(checkpoint, module := torch.nn.Linear(2, 3), rename)
        assert torch.equal(module.weight, W) and torch.equal(module.bias, B)

    @pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": {"a": "b", "c": 1}}])
    def test_an_index_without_names_is_refused(self, checkpoint, index):
        (checkpoint.path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert naming(checkpoint.path, "weight_map", "model.safetensors.index.json").match(refused(weight_files, checkpoint))

    def test_shards_of_two_saves_are_all_asked_for(self, checkpoint):
        names = [f"model-{n:05d}-of-{count:05d}.safetensors" for count in (1, 2) for n in range(1, count + 1)]
        for name in (*names, "model-1-of-1.safetensors", "model-00001-of-00003.safetensors.part"):
            (checkpoint.path / name).write_bytes(b"")
        assert [file.name for file in weight_files(checkpoint)] == names
        assert checkpoint.fetched == ["model.safetensors", "model-*-of-*.safetensors"]

    @pytest.mark.parametrize(
        ("files", "named"),
        [
            ([], ["*.safetensors", "save_pretrained"]),
            (["b.pth", "c.bin", "a.pt"], ["*.safetensors", "only a.pt", "save_pretrained"]),
            (["b.safetensors"], ["model.safetensors", "model.safetensors.index.json", "only b.safetensors", "save_pretrained"]),
            (["b.safetensors", "a.safetensors", "c.bin"], ["only a.safetensors and 1 more", "save_pretrained"]),
            (["b.safetensors", "adapter_model.safetensors"], ["an adapter"]),
            (["b.safetensors", "adapter_config.json"], ["an adapter"]),
        ],
    )
    def test_what_is_there_instead_of_weights(self, checkpoint, files, named):
        for name in files:
            (checkpoint.path / name).write_bytes(b"{}")
        assert naming(checkpoint.path, *named).match(refused(weight_files, checkpoint))

    def test_the_digest_is_over_the_digests_of_the_files_in_order(self, checkpoint):
        for name, content in (("model-00001-of-00002.safetensors", b"one"), ("model-00002-of-00002.safetensors", b"two")):
            (checkpoint.path / name).write_bytes(content)
        digests = "".join(sha256(content).hexdigest() for content in (b"one", b"two"))
        assert weights_sha256(checkpoint) == sha256(digests.encode()).hexdigest()

    def test_a_file_that_cannot_be_read_is_named(self, checkpoint, monkeypatch):
        def unreadable(path):
            raise PermissionError(13, "Permission denied", str(path))

        save(checkpoint, net_weight=W)
        monkeypatch.setattr("export.weights.sha256_of", unreadable)
        line = refused(weights_sha256, checkpoint)
        assert naming(checkpoint.path / "model.safetensors", "Permission denied").match(line), line

    def test_a_file_of_another_kind_is_refused(self, checkpoint):
        (checkpoint.path / "model.safetensors").write_bytes(b"not a header")
        line = refused(check_finite, checkpoint, rename)
        assert naming(checkpoint.path / "model.safetensors", "not a readable safetensors file").match(line), line
