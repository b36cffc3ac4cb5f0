"""The vision component as one engine: what one graph, or encoder and compressor, compute and refuse, and which graphs are opened."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from refusal import naming

from export.options import ExportOptions
from export.pipeline import export_bundle
from runtime.bundle import VISION, VISION_COMPRESSOR, VISION_ENCODER, VISION_LOOP, Bundle, write_manifest
from runtime.core.errors import BundleError, EngineError
from runtime.engine import EngineOptions, TensorSpec
from runtime.engine.onnx import OnnxEngine
from runtime.engine.trt_build import BuildOptions, build
from runtime.tools import reference
from runtime.tools.inspect import inspect
from runtime.tools.parity import parity
from runtime.vision import engine as module
from runtime.vision.encoder import VisionEncoder
from runtime.vision.engine import VisionEngine, open_vision


@pytest.fixture(scope="module")
def before_projector(tmp_path_factory):
    out = tmp_path_factory.mktemp("split") / "fp16"
    options = ExportOptions(out=str(out), split=True, only="vision", precision="fp16", place="before-projector", compress="evs")
    return export_bundle(options).bundle


class TestNumbers:
    def test_the_tokens_are_those_of_the_whole_graph(self, split_bundle, bundle, clip):
        expected = VisionEncoder.open(bundle).encode(clip)
        got = VisionEncoder.open(split_bundle).encode(clip)
        assert got.clip.indices == expected.clip.indices
        np.testing.assert_allclose(got.tokens, expected.tokens, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("which", ["split_bundle", pytest.param("before_projector", marks=pytest.mark.slow)])
    def test_parity_shows_the_features_too(self, request, which):
        report = parity(request.getfixturevalue(which), ["onnx"])
        assert report.ok, report.rows
        shapes = {row.stage: row.shape for row in report.rows}
        assert shapes["features (split)"] == ((16, 9, 9, 128) if which == "split_bundle" else (16, 9, 9, 96))
        assert {"visual_tokens (batched)", "visual_tokens"} <= shapes.keys()

    def test_parity_names_the_encoder_where_it_differs(self, split_bundle, tmp_path):
        path = shutil.copytree(split_bundle.path, tmp_path / "b")
        model = onnx.load(str(path / "vision.encoder.onnx"))
        weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.1, weight.name))
        onnx.save(model, str(path / "vision.encoder.onnx"))
        report = parity(Bundle(path, write_manifest(path, split_bundle.manifest)), ["onnx"])
        assert [row.stage for row in report.rows if not row] == ["features (split)", "visual_tokens"]


class TestBundle:
    def test_the_loop_gives_way_and_the_whole_graph_stays(self, split_bundle, bundle):
        assert split_bundle.is_split and not bundle.is_split
        names = set(split_bundle.manifest.files)
        assert {f"{VISION}.onnx", f"{VISION_ENCODER}.onnx", f"{VISION_COMPRESSOR}.onnx"} <= names
        assert f"{VISION_LOOP}.onnx" not in names

    def test_the_projector_lies_in_the_compressor_where_compression_stands_before_it(self, split_bundle, before_projector):
        weights = [{g.graph: g.weights for g in inspect(b).graphs}[VISION_COMPRESSOR] for b in (split_bundle, before_projector)]
        assert weights[0] < 2e4 < weights[1]

    def test_inspect_counts_what_runs(self, split_bundle):
        facts = inspect(split_bundle)
        assert "vision weights" not in facts.memory and facts.memory["vision.encoder activations"] < 1e6
        assert facts.memory["total"] == sum(size for part, size in facts.memory.items() if part != "total" and "GPU" not in part)

    def test_half_of_the_split_is_refused(self, split_bundle, tmp_path):
        path = shutil.copytree(split_bundle.path, tmp_path / "b")
        values = json.loads((path / "manifest.json").read_text())
        del values["files"]["vision.compressor.onnx"]
        (path / "manifest.json").write_text(json.dumps(values))
        with pytest.raises(BundleError, match=naming("vision.encoder.onnx", "vision.compressor.onnx")):
            Bundle.open(path)

    def test_the_digest_of_each_part_has_the_shared_weights_in_it(self, split_bundle, tmp_path):
        path = shutil.copytree(split_bundle.path, tmp_path / "b")
        digests = []
        for content in (b"weights", b"Weights"):
            (path / "vision.onnx.data").write_bytes(content)
            bundle = Bundle(path, write_manifest(path, split_bundle.manifest))
            digests.append([bundle.sha256(graph) for graph in (VISION, VISION_ENCODER, VISION_COMPRESSOR)])
        assert all(a != b for a, b in zip(*digests, strict=True))
        assert len(set(digests[0])) == 3


class TestEngine:
    def test_it_takes_and_returns_what_the_single_graph_does(self, split_bundle, bundle):
        split = open_vision(split_bundle)
        single = VisionEngine(OnnxEngine.load(bundle.model(VISION)))
        assert (split.encodes_frames, single.encodes_frames) == (True, False)
        assert (split.pixel_values, split.outputs) == (single.pixel_values, single.outputs)
        assert (split.backend, split.device) == (single.backend, single.device) == ("onnx", "cpu")
        with pytest.raises(EngineError, match=naming("pixel_values", "[3, 3, 126, 126]", "[16, 3, 126, 126]")):
            split.encode_clip(np.zeros((3, 3, 126, 126), np.float32))

    @pytest.mark.parametrize("which", ["split_bundle", "bundle"])
    def test_a_frame_alone_and_in_the_clip_have_the_same_features(self, request, which):
        pixels = reference.clip(request.getfixturevalue(which))
        engine = open_vision(request.getfixturevalue(which))
        features = engine.encode_clip(pixels)
        assert features.shape == engine.features.shape and features.dtype == engine.features.dtype
        np.testing.assert_array_equal(engine.encode(pixels[5:6]), features[5])

    def test_on_a_cpu_the_graph_that_takes_frames_one_by_one_is_opened(self, bundle, monkeypatch):
        asked = []
        monkeypatch.setattr(
            module, "open_engines", lambda *arguments: asked.append(arguments) or (OnnxEngine.load(bundle.model(VISION)),)
        )
        open_vision(bundle, "onnx", EngineOptions("cpu", 2))
        assert asked == [(bundle, (VISION_LOOP,), "onnx", EngineOptions("cpu", 2))]

    def test_graphs_that_do_not_fit_are_refused_and_closed(self, split_bundle, before_projector, monkeypatch):
        closed = []
        monkeypatch.setattr(OnnxEngine, "close", lambda self: closed.append(self))
        parts = [
            OnnxEngine.load(b.model(graph)) for b, graph in ((split_bundle, VISION_ENCODER), (before_projector, VISION_COMPRESSOR))
        ]
        with pytest.raises(BundleError, match=r"float32 \[1, 9, 9, 128\] .*, the compressor takes float16"):
            VisionEngine(*parts)
        assert closed == parts


class Part:
    """An engine of one graph. calls: what was done, in order, of all parts."""

    backend, device = "stand-in", "cpu"
    calls: list[object]

    def __init__(self, graph: str, output: TensorSpec, input: TensorSpec, work):
        self.graph, self.inputs, self.outputs, self.work = graph, (input,), (output,), work

    def run(self, feeds):
        ((name, array),) = feeds.items()
        self.calls.append((self.graph, name, array.shape))
        return {self.outputs[0].name: self.work(array)}

    def close(self):
        self.calls.append(("closed", self.graph))


class TestParts:
    """Frames of [1, 2, 2] pixels: the sum of each is its one feature, the largest of three is the clip's token."""

    FRAME = TensorSpec("pixel_values", np.dtype(np.float32), (1, 1, 2, 2))
    FEATURE = TensorSpec("features", np.dtype(np.float16), (1, 1, 1, 1))
    FEATURES = TensorSpec("features", np.dtype(np.float16), (3, 1, 1, 1))
    TOKENS = TensorSpec("visual_tokens", np.dtype(np.float32), (1, 1))

    @pytest.fixture
    def split(self, monkeypatch) -> VisionEngine:
        monkeypatch.setattr(Part, "calls", [], raising=False)
        return VisionEngine(
            Part(VISION_ENCODER, self.FEATURE, self.FRAME, lambda x: x.sum(keepdims=True).astype(np.float16)),
            Part(VISION_COMPRESSOR, self.TOKENS, self.FEATURES, lambda x: x.max(keepdims=True).reshape(1, 1).astype(np.float32)),
        )

    def test_a_clip_goes_through_frame_by_frame(self, split):
        assert split.pixel_values == TensorSpec("pixel_values", np.dtype(np.float32), (3, 1, 2, 2))
        assert (split.features, split.outputs) == (self.FEATURES, (self.TOKENS,))
        assert (split.backend, split.device) == ("stand-in", "cpu")
        pixels = np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)
        features = split.encode_clip(pixels)
        assert features.dtype == np.float16 and features.ravel().tolist() == [6, 22, 38]
        assert split.compress(features)["visual_tokens"].tolist() == [[8 + 9 + 10 + 11]]
        frame, clip = (VISION_ENCODER, "pixel_values", (1, 1, 2, 2)), (VISION_COMPRESSOR, "features", (3, 1, 1, 1))
        assert Part.calls == [frame] * 3 + [clip]
        assert split.encode(pixels[1:2]).shape == (1, 1, 1)

    def test_a_clip_of_another_length_is_refused_before_anything_runs(self, split):
        with pytest.raises(EngineError, match=naming("[2, 1, 2, 2]", "[3, 1, 2, 2]")):
            split.encode_clip(np.zeros((2, 1, 2, 2), np.float32))
        assert Part.calls == []

    def test_both_are_closed(self, split):
        split.close()
        assert Part.calls == [("closed", VISION_ENCODER), ("closed", VISION_COMPRESSOR)]

    @pytest.mark.parametrize(("shape", "dtype"), [((1, 1, 1, 2), "float16"), ((2, 1, 1, 1), "float16"), ((1, 1, 1, 1), "float32")])
    def test_features_that_the_compressor_does_not_take_are_refused(self, shape, dtype, monkeypatch):
        monkeypatch.setattr(Part, "calls", [], raising=False)
        encoder = Part(VISION_ENCODER, TensorSpec("features", np.dtype(dtype), shape), self.FRAME, None)
        with pytest.raises(BundleError, match="the compressor takes float16"):
            VisionEngine(encoder, Part(VISION_COMPRESSOR, self.TOKENS, self.FEATURES, None))
        assert Part.calls == [("closed", VISION_ENCODER), ("closed", VISION_COMPRESSOR)]


def test_both_parts_are_built_for_tensorrt_and_the_whole_graph_only_where_it_is_named(split_bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    bundle = Bundle.open(shutil.copytree(split_bundle.path, tmp_path / "b"))
    built = build(bundle, BuildOptions())
    assert [engine.graph for engine in built] == [VISION_ENCODER, VISION_COMPRESSOR]
    assert all(engine.path.stat().st_size == engine.size for engine in built)
    assert {engine.graph for engine in build(bundle, BuildOptions(graphs=(VISION,)))} == {VISION}
    (facts,) = inspect(bundle).engines
    assert set(facts.graphs) == {VISION, VISION_ENCODER, VISION_COMPRESSOR} and not facts.stale
