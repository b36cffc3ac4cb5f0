"""Which bundles are served, looked at before anything heavy is loaded."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from manifests import WITHOUT_LLM
from refusal import naming
from trt_bundle import make_bundle

from runtime.bundle import write_manifest
from runtime.bundle.manifest import Limits
from runtime.core.errors import BundleError, ContextError, UsageError
from runtime.engine import EngineOptions
from runtime.server import models
from runtime.server.errors import ApiError
from runtime.server.models import Models
from runtime.server.options import ServerOptions


def refused(error: type[Exception], named: list[object], *paths: Path) -> None:
    with pytest.raises(error, match=naming(*named)):
        Models.open(paths, ServerOptions(backend="onnx"))


def test_bundles_without_an_llm_need_a_remote_one(tmp_path):
    bundle = make_bundle(tmp_path / "tokens")
    shutil.rmtree(bundle.path / "llm")
    write_manifest(bundle.path, replace(bundle.manifest, **WITHOUT_LLM))
    refused(BundleError, ["tokens", "--only vision", "--llm URL"], bundle.path)


def test_two_bundles_of_one_name_are_refused(tmp_path):
    paths = [make_bundle(tmp_path / parent / "same").path for parent in ("one", "other")]
    refused(UsageError, ["same, same"], *paths)


def test_a_context_that_a_clip_fills_is_refused(tmp_path):
    bundle = make_bundle(tmp_path / "small")
    write_manifest(bundle.path, replace(bundle.manifest, limits=Limits(bundle.manifest.tokens_per_clip)))
    refused(ContextError, ["5 positions", 4], bundle.path)


class LLM:
    """A decoder that is opened, shared and closed; `scheduler` is one for all that share it."""

    opened: list[tuple]
    max_context = 64

    def __init__(self, scheduler: object):
        self.scheduler, self.closed = scheduler, 0

    @classmethod
    def open(cls, bundle, slots, backend, engine) -> LLM:
        cls.opened.append((bundle.path.name, slots, backend, engine))
        return cls(SimpleNamespace(name=bundle.path.name))

    @property
    def shared(self) -> object:
        return self.scheduler

    def sharing(self, bundle) -> LLM:
        return LLM(self.scheduler)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def opened(tmp_path, monkeypatch) -> Models:
    """Bundles "one" and "two" of the same decoder, "other" of another, and "tokens" without an LLM, on stand-ins for what is heavy."""
    paths = []
    for name, seed in (("one", 0), ("two", 0), ("tokens", 0), ("other", 1)):
        bundle = make_bundle(tmp_path / name, seed=seed)
        (bundle.path / "llm" / "tokenizer.json").write_text("{}")
        if name == "tokens":
            shutil.rmtree(bundle.path / "llm")
        write_manifest(bundle.path, bundle.manifest if name != "tokens" else replace(bundle.manifest, **WITHOUT_LLM))
        paths.append(bundle.path)
    os.utime(paths[0] / "manifest.json", (1_700_000_000.9, 1_700_000_000.9))
    LLM.opened = []
    monkeypatch.setattr(models, "LocalLLM", LLM)
    monkeypatch.setattr(models, "ClipEncoder", lambda *arguments: arguments[1:])
    return Models.open(paths, ServerOptions(batch=3, backend="onnx", engine=EngineOptions(threads=2)))


def test_a_decoder_is_loaded_once_for_all_bundles_that_have_it_and_not_for_one_that_has_none(opened):
    assert LLM.opened == [(name, 3, "onnx", EngineOptions(threads=2)) for name in ("one", "other")]
    assert {name: model.llm and model.llm.scheduler.name for name, model in opened.served.items()} == {
        "one": "one",
        "two": "one",
        "tokens": None,
        "other": "other",
    }
    assert [llm.scheduler.name for llm in opened.llms] == ["one", "other"]
    assert {model.encoder for model in opened.served.values()} == {("onnx", EngineOptions(threads=2), ServerOptions().limits)}


def test_closing_closes_each_decoder_once(opened):
    llms = opened.llms
    opened.close()
    assert [llm.closed for llm in llms] == [1, 1]


def test_a_card_says_what_a_bundle_is(opened):
    assert opened["one"].card() == {
        "id": "one",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "tiny",
        "max_model_len": 64,
        "tokens_per_clip": 4,
        "patch_tokens_per_clip": 8,
        "frames": 2,
        "hidden_size": 16,
        "compression": {"preset": "uniform", "spec": "avgpool:window=2", "place": "after-projector"},
    }
    assert opened["tokens"].card()["max_model_len"] is None


def test_a_name_that_is_not_served_is_not_found_and_the_nearest_is_named(opened):
    with pytest.raises(ApiError, match=naming('"othr"', '"other"')) as raised:
        opened["othr"]
    assert (raised.value.status, raised.value.code, raised.value.param) == (404, "model_not_found", "model")


@pytest.mark.parametrize("count", [8, 1, 0, -1])
def test_only_the_bundle_s_number_of_frames_is_taken(opened, count):
    for right in (None, 2):
        opened["one"].check_frames(right, "a")
    with pytest.raises(ApiError, match=naming(f"a is {count}", "2 frames")) as raised:
        opened["one"].check_frames(count, "a")
    assert (raised.value.status, raised.value.code, raised.value.param) == (400, "unsupported_value", "a")
    assert (f"--frames {count}" in str(raised.value)) == (count > 0)
