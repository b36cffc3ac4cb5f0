"""Which bundles are served, looked at before anything heavy is loaded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from trt_bundle import make_bundle

from runtime.bundle import write_manifest
from runtime.engine import EngineOptions
from runtime.errors import BundleError, ContextError, UsageError
from runtime.server.models import Models
from runtime.server.options import ServerOptions


def refused(error: type[Exception], message: str, *paths: Path) -> None:
    with pytest.raises(error, match=message):
        Models.open(paths, ServerOptions(), "onnx", EngineOptions())


def test_bundles_without_an_llm_need_a_remote_one(tmp_path):
    bundle = make_bundle(tmp_path / "tokens")
    shutil.rmtree(bundle.path / "llm")
    write_manifest(bundle.path, replace(bundle.manifest, llm={}))
    message = "tokens has no LLM; export without --only vision, or name a remote one with --llm URL"
    refused(BundleError, message, bundle.path)


def test_two_bundles_of_one_name_are_refused(tmp_path):
    paths = [make_bundle(tmp_path / parent / "same").path for parent in ("one", "other")]
    refused(UsageError, "two bundles would have one name: same, same; rename a directory", *paths)


def test_a_context_that_a_clip_fills_is_refused(tmp_path):
    bundle = make_bundle(tmp_path / "small")
    write_manifest(bundle.path, replace(bundle.manifest, limits={"max_context": bundle.manifest.tokens_per_clip}))
    refused(ContextError, "the prompt needs 5 positions, the bundle holds 4", bundle.path)
