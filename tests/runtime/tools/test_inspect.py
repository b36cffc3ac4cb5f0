from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import onnx
import pytest
from cpp_libraries import list_file
from onnx import numpy_helper

from runtime.bundle import Bundle
from runtime.bundle.manifest import Checkpoint, Compression
from runtime.llm.decoder import LocalDecoder
from runtime.llm.slots import SlotDecoder
from runtime.tools import inspect
from runtime.tools.memory import GraphMemory, bundle_memory, kv_cache_bytes


def test_the_token_budget_of_a_clip(bundle):
    budget = inspect.inspect(bundle).budget
    assert budget["patch_tokens"] == 16 * 9 * 9 and budget["visual_tokens"] == 16 * 4 * 4 + 1 and budget["ratio"] == 5.04
    assert budget["prompt_room"] == budget["max_context"] - 257


def test_the_cache_is_as_large_as_the_engine_makes_it(bundle):
    decoder = LocalDecoder.open(bundle, "onnx")
    state = decoder.engine.new_state(decoder.cache_pairs)
    assert inspect.inspect(bundle).memory["KV cache"] == sum(value.numpy().nbytes for value in state.values.values())


def test_a_server_is_said_to_hold_a_cache_for_each_answer(bundle):
    slots = SlotDecoder.open(bundle, 8, "onnx")
    held = sum(value.numpy().nbytes for value in slots._states[0].values.values())
    report = inspect.inspect(bundle, batch=8)
    assert report.serve["KV caches of 8 answers"] == held
    assert "KV caches of 8 answers 25.2 MB" in inspect.text(report)


def test_weights_are_the_bytes_of_the_initialisers_and_the_total_is_the_sum(bundle):
    memory = inspect.inspect(bundle).memory
    for graph in ("vision", "llm/decoder"):
        tensors = onnx.load(str(bundle.model(graph))).graph.initializer
        assert memory[f"{graph} weights"] == sum(numpy_helper.to_array(tensor).nbytes for tensor in tensors)
    looped = memory["vision activations, frame by frame on a CPU"]
    longer = memory["llm/decoder activations, 1,024 positions at a time on a GPU"]
    parts = {part: count for part, count in memory.items() if not any(word in part for word in ("total", "CPU", "GPU"))}
    assert memory["total on a GPU"] == sum(parts.values()) - parts["llm/decoder activations"] + longer
    assert memory["total on a CPU"] == sum(parts.values()) - parts["vision activations"] + looped
    pixels = 16 * 3 * 126 * 126 * 4
    assert min(looped, parts["vision activations"]) > pixels  # what is fed is there all the time


def test_the_size_of_every_tensor_of_the_shipped_graphs_is_known(bundle):
    report = inspect.inspect(bundle)
    assert report.notes == []
    # at least the scores of one prefill chunk against the whole cache: heads * 256 * max_context, before and after softmax
    heads = 4
    assert report.memory["llm/decoder activations"] >= 2 * heads * 256 * bundle.max_context * 4
    on_gpu = report.memory["llm/decoder activations, 1,024 positions at a time on a GPU"]
    assert on_gpu >= 2 * heads * 1024 * bundle.max_context * 4
    # at least the patch tokens in the hidden size of the MLP's input
    assert report.memory["vision activations"] >= 1296 * bundle.manifest.hidden_size * 4


def test_operators_are_counted(bundle):
    graphs = {graph.graph: graph.operators for graph in inspect.inspect(bundle).graphs}
    nodes = onnx.load(str(bundle.model("vision"))).graph.node
    assert sum(graphs["vision"].values()) == len(nodes)
    assert graphs["vision"]["Softmax"] == sum(node.op_type == "Softmax" for node in nodes)


def test_engines_are_listed_and_a_stale_one_is_called_so(bundle, tmp_path):
    here = Bundle(tmp_path, bundle.manifest)
    for name, digest in (("a", bundle.sha256("vision")), ("b", "0" * 64)):
        directory = tmp_path / "engines" / name
        directory.mkdir(parents=True)
        record = {"schema_version": 1, "backend": "tensorrt-rtx", "version": "1.7", "target": "any", "precision": "fp32"}
        graphs = {"vision": {"size": 7, "onnx_sha256": digest, "seconds": 1.0, "inputs": {}}}
        (directory / "build.json").write_text(json.dumps(record | {"graphs": graphs}))
    (tmp_path / "engines" / "c").mkdir()
    (tmp_path / "engines" / "c" / "build.json").write_text("{")
    found = inspect._built_engines(here)
    assert [(engine.directory, engine.stale) for engine in found] == [("engines/a", ()), ("engines/b", ("vision",))]
    assert found[0].graphs == {"vision": 7} and found[0].target == "any"


def test_the_report_is_json_and_text(bundle):
    report = inspect.inspect(bundle)
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["frames"] == 16
    shown = inspect.text(report)
    for expected in ("1,296 patch tokens → 257 visual tokens", "(st-gridpool), after-projector", "KV cache", "none built"):
        assert expected in shown
    assert all(name in shown for name in bundle.manifest.files)


def test_a_bundle_without_an_llm_has_no_context(selecting_bundle):
    report = inspect.inspect(selecting_bundle)
    assert "max_context" not in report.budget and "KV cache" not in report.memory
    assert inspect.text(report)


def test_without_onnx_the_weights_are_those_of_the_files_and_the_rest_says_so(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    report = inspect.inspect(bundle)
    assert report.memory["vision weights"] == bundle.manifest.files["vision.onnx"].size
    assert any("not counted" in note for note in report.notes) and "not counted" in inspect.text(report)


@pytest.mark.parametrize("precision, size", [("fp32", 4), ("fp16", 2)])
def test_the_cache_has_the_bundles_precision(bundle, precision, size):
    llm = bundle.llm
    expected = 2 * llm.layers * llm.kv_heads * llm.head_dim * bundle.max_context * size
    assert kv_cache_bytes(Bundle(bundle.path, replace(bundle.manifest, llm=replace(llm, precision=precision)))) == expected


def test_a_report_line_by_line():
    report = inspect.BundleReport(
        bundle="bundles/b",
        family="llava-ov",
        checkpoint=Checkpoint("tiny", "0123456789abcdef"),
        compression=Compression("st-gridpool", "nsp:window=2", "after-projector"),
        frames=16,
        grid=(9, 7),
        input="pixel values of 126×98",
        precision="int8",
        llm_precision="fp16",
        quantized={"vision": "quantize int8: 14 layers"},
        opset=20,
        budget={"patch_tokens": 1008, "visual_tokens": 193, "ratio": 5.22, "max_context": 2048, "prompt_room": 1855},
        memory={"vision weights": 1_500_000, "KV cache": 2_000},
        serve={"KV caches of 8 answers": 16_000, "kept visual tokens, at most": 256_000_000},
        graphs=[GraphMemory("vision", {"Add": 2, "MatMul": 11, "Abs": 2}, 1_500_000, 7)],
        engines=[
            inspect.BuiltEngines("engines/a", "tensorrt", "10.3", "sm87", "fp16", {"vision": 3_000_000, "llm/decoder": 5_000}, ()),
            inspect.BuiltEngines("engines/c", "tensorrt-rtx", "1.7", "any", "fp32", {"vision": 1_000}, ("vision",)),
        ],
        files={"vision.onnx": 1_000_000, "manifest.json": 500},
        versions={"torch": "2.9", "onnx": "1.20"},
        notes=["vision: a note"],
    )
    lines = [" ".join(line.split()) for line in inspect.text(report).splitlines() if line.strip(" -─")]
    assert lines[:9] == [
        "bundle bundles/b",
        "model llava-ov, checkpoint tiny (sha256 0123456789ab…)",
        "compression nsp:window=2 (st-gridpool), after-projector",
        "graphs vision int8, LLM fp16, opset 20, 16 frames of 9×7 patches",
        "input pixel values of 126×98",
        "vision quantize int8: 14 layers",
        "written by torch 2.9, onnx 1.20",
        "a clip 1,008 patch tokens → 193 visual tokens (5.2:1)",
        "context 2,048 positions, 1,855 left for question and answer",
    ]
    rest = [
        "vision weights 1.5 MB",
        "vision: a note",
        "a server KV caches of 8 answers 16.0 KB, kept visual tokens, at most 256.0 MB (--batch, --cache-mib)",
        "vision: 15 nodes: MatMul 11, Abs 2, Add 2",
        "engine engines/a: tensorrt 10.3 for sm87: vision 3.0 MB, llm/decoder 5.0 KB",
        "engine engines/c: tensorrt-rtx 1.7 for any: vision 1.0 KB; STALE: vision built from another ONNX",
        "2 files 1.0 MB",
    ]
    assert [line for line in rest if line not in lines] == []
    plain = replace(report, compression=replace(report.compression, preset="nsp:window=2"), budget={**report.budget}, engines=[])
    del plain.budget["max_context"]
    shown = inspect.text(plain)
    assert (
        "compression  nsp:window=2, after-projector\n" in shown and "context " not in shown and "engines      none built" in shown
    )


def test_of_a_split_bundle_that_lists_a_loop_too_the_split_graphs_count(split_bundle, tmp_path):
    folder = shutil.copytree(split_bundle.path, tmp_path / "b")
    before = inspect.inspect(split_bundle).memory
    shutil.copyfile(folder / "vision.onnx", folder / "vision.loop.onnx")
    list_file(folder, "vision.loop.onnx")
    assert inspect.inspect(Bundle.open(folder)).memory == before


def test_a_loop_without_its_batch_is_not_counted(bundle):
    graphs = [graph for graph in inspect.inspect(bundle).graphs if graph.graph != "vision"]
    memory = bundle_memory(bundle, graphs)
    assert set(memory) == {"llm/decoder weights", "llm/decoder activations", "KV cache", "total"}


@pytest.mark.parametrize(
    ("frames", "size", "words"),
    [(None, (126, 98), "pixel values of 126×98"), ((480, 640), (126, 98), "uint8 frames of 480×640")],
)
def test_what_the_graph_takes_in_words(monkeypatch, frames, size, words):
    monkeypatch.setattr(inspect, "Preprocessor", lambda _: SimpleNamespace(frames=frames, size=size))
    assert inspect._input({}) == words
