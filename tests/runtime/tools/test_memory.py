"""How memory is added up, from a few numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnx.parser
import pytest
from cache_graph import save_cache_graph
from manifests import WITHOUT_LLM, bundle_of

from runtime.bundle import Bundle
from runtime.bundle.manifest import FileEntry, LLMInfo
from runtime.core.errors import BundleError
from runtime.tools import memory


def of_context(folder: Path, context: int, capacity: int) -> Bundle:
    """A bundle whose manifest says `context` positions and whose decoder's cache holds `capacity`."""
    (folder / "llm").mkdir(exist_ok=True)
    save_cache_graph(folder / "llm" / "decoder.onnx", capacity)
    return bundle_of("llm/decoder.onnx", path=folder, max_context=context)


@pytest.mark.parametrize(("context", "chunk"), [(2048, 256), (256, 256), (100, 100)])
def test_the_decoder_s_axes_at_their_largest(tmp_path, context, chunk):
    here = of_context(tmp_path, context, 2048)
    assert memory._sizes(here, "llm/decoder") == {
        "inputs_embeds": {1: chunk}, "position_ids": {1: chunk}, "attention_mask": {1: context},
    }  # fmt: skip
    assert memory._sizes(here, "vision") == {}


@pytest.mark.parametrize("context", [9, 2**31 - 1])
def test_a_manifest_can_t_say_more_positions_than_the_caches_hold(tmp_path, context):
    memory._sizes(of_context(tmp_path, 8, 8), "llm/decoder")
    message = f"^the decoder graph's caches hold 8 positions, the manifest says {context:,}; export the bundle again$"
    with pytest.raises(BundleError, match=message):
        memory._sizes(of_context(tmp_path, context, 8), "llm/decoder")


def test_a_decoder_without_caches_holds_nothing(tmp_path):
    here = of_context(tmp_path, 8, 8)
    onnx.save(
        onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]> g (float[1] x) => (float[1] y) { y = Neg(x) }'),
        here.model("llm/decoder"),
    )
    with pytest.raises(BundleError, match="caches hold 0 positions"):
        memory._sizes(here, "llm/decoder")


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("fp16", 2), ("int8", 4), ("int4", 4)])
def test_a_cache_has_keys_and_values_of_every_layer_head_and_position(precision, size):
    here = bundle_of(llm=LLMInfo(3, 5, 7, precision=precision), max_context=11)
    assert memory.kv_cache_bytes(here) == 2 * 3 * 5 * 7 * 11 * size
    kept = {"kept visual tokens, at most": 1000}
    assert memory.server_memory(here, 8, 1000) == {"KV caches of 8 answers": 8 * 2 * 3 * 5 * 7 * 11 * size} | kept
    here = bundle_of(**WITHOUT_LLM)
    assert memory.kv_cache_bytes(here) == 0 and memory.server_memory(here, 8, 1000) == kept


@pytest.mark.parametrize(
    ("split", "llm", "names", "expected"),
    [
        (False, True, ["vision", "vision.loop", "llm/decoder"], {
            "vision weights": 100, "llm/decoder weights": 102, "vision activations": 10, "llm/decoder activations": 12, "KV cache": 7,
            "vision activations, frame by frame on a CPU": 11, "total on a GPU": 231, "total on a CPU": 232,
        }),
        (False, False, ["vision"], {"vision weights": 100, "vision activations": 10, "total": 110}),
        (True, False, ["vision", "vision.loop", "vision.encoder", "vision.compressor"], {
            "vision.encoder weights": 102, "vision.compressor weights": 103, "vision.encoder activations": 12,
            "vision.compressor activations": 13, "total": 230,
        }),
        (False, False, ["vision.loop"], {"total": 0}),
    ],
    ids=["both", "vision", "split", "loop"],
)  # fmt: skip
def test_the_memory_of_what_runs(monkeypatch, split, llm, names, expected):
    monkeypatch.setattr(memory, "kv_cache_bytes", lambda bundle: 7)
    graphs = [memory.GraphMemory(name, {}, 100 + at, 10 + at) for at, name in enumerate(names)]
    assert memory.bundle_memory(SimpleNamespace(is_split=split, has_llm=llm), graphs) == expected


@pytest.mark.parametrize(("attention", "chunk"), [("portable", "1,024"), ("standard", "1,024"), ("flash", "8,192")])
@pytest.mark.parametrize(
    ("names", "on_gpu", "expected"),
    [
        (["vision", "vision.loop", "llm/decoder"], 40, {"vision activations, frame by frame on a CPU": 11, "total on a GPU": 259, "total on a CPU": 232}),
        (["vision", "llm/decoder"], 40, {"total": 229, "total on a GPU": 258}),
        (["vision", "llm/decoder"], 11, {"total": 229}),  # as much as on a CPU
        (["vision", "llm/decoder"], 0, {"total": 229}),  # not counted: onnx is not installed
    ],
)  # fmt: skip
def test_a_gpu_s_total_has_the_longer_pieces_that_it_prefills(monkeypatch, names, on_gpu, expected, attention, chunk):
    monkeypatch.setattr(memory, "kv_cache_bytes", lambda bundle: 7)
    graphs = [memory.GraphMemory(name, {}, 100 + at, 10 + at) for at, name in enumerate(names)]
    here = SimpleNamespace(is_split=False, has_llm=True, llm=LLMInfo(1, 1, 1, attention=attention))
    found = memory.bundle_memory(here, graphs, on_gpu)
    longer = {f"llm/decoder activations, {chunk} positions at a time on a GPU": on_gpu} if on_gpu else {}
    assert {part: count for part, count in found.items() if "CPU" in part or "GPU" in part or "total" in part} == longer | expected


@pytest.mark.parametrize(("attention", "chunk"), [("portable", 1024), ("flash", 8192)])
def test_a_gpu_s_activations_are_those_of_the_pieces_that_its_runtime_prefills(monkeypatch, attention, chunk):
    monkeypatch.setattr(memory, "_loaded", lambda bundle, graph, positions: (None, SimpleNamespace(bytes=(graph, positions))))
    assert memory.decoder_activations_on_gpu(bundle_of(llm=LLMInfo(1, 1, 1, attention=attention))) == ("llm/decoder", chunk)
    assert memory.decoder_activations_on_gpu(bundle_of(**WITHOUT_LLM)) == 0


@pytest.mark.parametrize(("graph", "weights"), [("vision", 111), ("vision.compressor", 100)])
def test_without_onnx_a_graph_is_as_large_as_its_files(monkeypatch, graph, weights):
    """A compressor's weights are the encoder's."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "runtime.tools.liveness", raising=False)
    monkeypatch.delattr("runtime.tools.liveness", raising=False)
    sizes = {f"{graph}.onnx": 100, "vision.onnx.data": 11, "other": 5}
    here = bundle_of(files={name: FileEntry(size, "") for name, size in sizes.items()})
    found = memory.graph_memory(here, graph)
    assert (found.graph, found.operators, found.weights, found.activations) == (graph, {}, weights, 0)
    assert found.note.startswith("activations are not counted: ")
