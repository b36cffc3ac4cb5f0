"""Parity: what agrees passes, what was altered is named, and Polygraphy's own command says the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from runtime.bundle import Bundle, write_manifest
from runtime.core.errors import BundleError, EngineError
from runtime.engine import EngineOptions, Placement
from runtime.tools import parity, reference, vision_rows
from runtime.tools.compare import Row
from runtime.tools.llm_rows import compare_llm
from runtime.tools.stages import Stages, run_stages

ONE_THREAD = EngineOptions(threads=1)


def test_every_stage_of_the_shipped_bundle_agrees_with_torch(bundle):
    report = parity.parity(bundle, ["onnx"], ONE_THREAD)
    assert report.ok
    stages = [stage.name for stage in bundle.manifest.stages if stage.name != "visual_tokens"]
    tokens = ["visual_tokens (batched)", "visual_tokens"]  # of both spellings of the vision graph
    assert [row.stage for row in report.rows] == [*stages, *tokens, "llm/prefill", "llm/greedy_ids"]
    assert {row.backend for row in report.rows} == {"onnx"}
    assert all(row.error < 1e-4 for row in report.rows)
    assert report.rows[-1].note == f"{len(reference.llm(bundle).greedy)} of 16 equal"


def test_the_row_of_the_tokens_says_what_numpy_says(bundle):
    session = onnxruntime.InferenceSession(str(bundle.model("vision")))
    (tokens,) = session.run(["visual_tokens"], {"pixel_values": reference.clip(bundle)})
    torch = reference.outputs(bundle, "torch")["visual_tokens"]
    row = next(row for row in parity.parity(bundle, ["onnx"]).rows if row.stage == "visual_tokens (batched)")
    assert row.shape == torch.shape
    assert row.max_abs == pytest.approx(np.abs(tokens - torch).max(), rel=0.5, abs=1e-6)  # another number of threads may sum
    assert row.error == pytest.approx(row.max_abs / np.abs(torch).max(), rel=1e-5)


def test_the_stock_polygraphy_command_passes(bundle):
    scale = float(np.abs(reference.outputs(bundle, "torch")["visual_tokens"]).max())
    tolerance = 1e-4
    command = [Path(sys.executable).parent / "polygraphy", "run", "vision.onnx", "--onnxrt"]
    command += ["--load-inputs", "reference/inputs.json", "--load-outputs", "reference/torch.json"]
    command += ["--atol", str(tolerance * scale), "--rtol", str(tolerance)]
    done = subprocess.run(list(map(str, command)), cwd=bundle.path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout


def test_an_altered_projector_fails_there_and_not_before(bundle, tmp_path):
    altered = _altered(bundle, tmp_path, "vision", "vision/projector/output")
    report = parity.parity(altered, ["onnx"], ONE_THREAD)
    verdict = {row.stage: row.ok for row in report.rows}
    assert not report.ok
    assert verdict["vision/encoder"] and not verdict["vision/projector"] and not verdict["visual_tokens (batched)"]
    assert verdict["visual_tokens"]  # this machine's engine runs vision.loop.onnx, which was not altered
    assert verdict["llm/prefill"]
    assert "the first is vision/projector on onnx" in parity.text(report)


def test_tokens_of_a_bundle_that_lists_no_stages_must_be_as_near(bundle):
    unlisted = Bundle(bundle.path, replace(bundle.manifest, stages=()))
    rows = vision_rows.compare_vision(unlisted, "onnx", ONE_THREAD)
    assert {row.stage: row.tolerance for row in rows} == {"visual_tokens": 1e-4}


def test_an_altered_decoder_fails(bundle, tmp_path):
    altered = _altered(bundle, tmp_path, "llm/decoder", "logits")
    verdict = {row.stage: row.ok for row in parity.parity(altered, ["onnx"], ONE_THREAD).rows}
    assert not verdict["llm/prefill"]
    assert verdict["visual_tokens"]


def test_a_greedy_id_that_is_not_torchs_fails_unless_torchs_own_choice_was_a_tie(bundle):
    expected = reference.llm(bundle)
    ids = [*expected.greedy[:3], (expected.greedy[3] + 1) % 60, *expected.greedy[4:]]
    scale = float(np.abs(expected.logits).max())
    for margin, ok in ((1.2e-4 * scale, False), (0.8e-4 * scale, True)):
        wrong = replace(expected, greedy=ids[:4], margins=[*expected.margins[:3], margin])
        row = _greedy_row(bundle, wrong)
        assert row.ok is ok
        assert ("id 3 is" if not ok else "1 ties") in row.note


def test_a_select_stage_and_all_after_it_are_compared_as_choices(selecting_bundle):
    report = parity.parity(selecting_bundle, ["onnx"], ONE_THREAD)
    assert report.ok, parity.text(report)
    assert [row.stage for row in report.rows if "other rows" in row.note] == [
        "compress/topk",
        "vision/projector",
        "visual_tokens (batched)",
        "visual_tokens",
    ]


def test_without_a_select_stage_nothing_is_a_choice(bundle):
    stages = run_stages(bundle, reference.clip(bundle), ONE_THREAD, [])
    assert stages.ranks["compress/nsp"] == 4 and not stages.selected
    # before the projector, rows stand in a list without having been chosen
    assert not Stages({}, {"vision/encoder": 3, "compress/nsp": 4, "vision/projector": 2, "visual_tokens": 2}).selected


def test_a_backend_that_was_named_must_run(bundle, monkeypatch):
    _no_gpu(monkeypatch)
    with pytest.raises(EngineError, match="tensorrt"):
        parity.parity(bundle, ["tensorrt-rtx"])
    with pytest.raises(EngineError, match='did you mean "onnx"'):
        parity.parity(bundle, ["onx"])


def test_without_names_what_cannot_run_is_listed_with_its_reason(bundle, monkeypatch):
    _no_gpu(monkeypatch)
    report = parity.parity(bundle)
    assert report.ok
    assert set(report.not_run) == {"tensorrt", "tensorrt-rtx"} and all(report.not_run.values())
    assert "tensorrt-rtx was not run: " in parity.text(report)


class TestBackends:
    """Which backends are compared, and on which device, where the comparison itself does nothing; openvino's fails with `failure`."""

    ROW = Row("visual_tokens", "onnx", (2, 3), 0.0, 0.0, 1e-4, True)
    BUNDLE = SimpleNamespace(path="b", manifest=SimpleNamespace(precision="fp32"))

    @pytest.fixture
    def machine(self, monkeypatch) -> SimpleNamespace:
        machine = SimpleNamespace(failure=EngineError("no room"), compared=[])

        def compare(bundle, backend, options):
            machine.compared.append((backend, options))
            if backend == "openvino":
                raise machine.failure
            return [self.ROW]

        kind = SimpleNamespace(unavailable=lambda device: "no GPU here" if device == "cuda" else None)
        placed = {"onnx": "cpu", "openvino": "gpu"}
        monkeypatch.setattr(parity, "BACKENDS", ["openvino", "tensorrt", "onnx"])
        monkeypatch.setattr(parity, "backend_class", lambda name: kind)
        monkeypatch.setattr(parity, "_compare_backend", compare)
        monkeypatch.setattr(
            "runtime.engine.open.place",
            lambda _, name, given: Placement(replace(given, device=placed[name]), f"a note on {name}" * (name == "onnx")),
        )
        return machine

    def test_without_names_one_that_fails_is_listed_and_the_next_compared(self, machine, capsys):
        report = parity.parity(self.BUNDLE, (), ONE_THREAD)
        assert machine.compared == [("openvino", EngineOptions("gpu", 1)), ("onnx", EngineOptions("cpu", 1))]
        assert (report.bundle, report.precision, report.rows) == ("b", "fp32", (self.ROW,))
        assert report.not_run == {"openvino": "no room", "tensorrt": "no GPU here"}
        assert capsys.readouterr().err == "a note on onnx\n"

    def test_named_ones_are_compared_once_each_and_must_not_fail(self, machine):
        assert parity.parity(self.BUNDLE, ["tensorrt", "onnx", "tensorrt"], ONE_THREAD).rows == (self.ROW, self.ROW)
        assert machine.compared == [("tensorrt", EngineOptions("cuda", 1)), ("onnx", EngineOptions("cpu", 1))]
        with pytest.raises(EngineError, match="no room"):
            parity.parity(self.BUNDLE, ["openvino"])

    def test_a_damaged_bundle_is_an_error_on_every_backend(self, machine):
        machine.failure = BundleError("a file is missing")
        with pytest.raises(BundleError, match="a file is missing"):
            parity.parity(self.BUNDLE)


def test_the_text_is_a_table_with_numbers_flush_right_and_a_verdict():
    fine = Row("vision/encoder", "onnx", (2, 3), 0.5, 1.3e-5, 1e-4, True)
    broken = Row("visual_tokens", "openvino", (1, 12), float("inf"), float("inf"), 0.03, False, "an odd shape")
    assert parity.text(parity.ParityReport("b", "fp32", (fine, broken), {"tensorrt": "no GPU"})).splitlines() == [
        "stage           backend   shape  max abs    error  allowed        note",
        "──────────────  ────────  ─────  ───────  ───────  ───────  ────  ────────────",
        "vision/encoder  onnx      2×3    5.0e-01  1.3e-05    1e-04  ok",
        "visual_tokens   openvino  1×12       inf      inf    3e-02  FAIL  an odd shape",
        "tensorrt was not run: no GPU",
        "1 of 2 stages differ from torch, the first is visual_tokens on openvino",
    ]
    header, *_, verdict = parity.text(parity.ParityReport("b", "fp32", (fine,))).splitlines()
    assert "note" not in header and verdict == "all 1 stages agree with torch (fp32)"


def test_a_report_in_which_nothing_ran_is_not_ok():
    report = parity.ParityReport("b", "fp32", (), {"onnx": "missing"})
    assert not report.ok
    assert parity.text(report).splitlines() == ["onnx was not run: missing", "nothing was compared"]


def test_the_report_is_json_even_where_an_error_is_infinite():
    row = Row("vision/encoder", "onnx", (2, 3), float("inf"), float("inf"), 5e-4, False, "values that are not finite")
    report = parity.ParityReport("b", "fp32", (row,))
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert values["ok"] is False and values["rows"][0]["error"] is None and values["rows"][0]["shape"] == [2, 3]


def judged(got, expected, every, precision="fp32", rounding=0.0, ranks=None) -> dict[str, Row]:
    rows = vision_rows._judge(got, expected, every, Stages({}, ranks or {}), "onnx", precision, rounding)
    assert [row.stage for row in rows] == list(got)
    return {row.stage: row for row in rows}


def test_a_stage_that_is_stored_flat_or_thinned_is_compared_value_by_value():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    flat = array.reshape(-1)
    rows = judged(
        {"flat": array, "thinned": array, "as it is": array, "another shape": array, "too few": array, "off": array},
        {"flat": flat, "thinned": flat[::4], "as it is": array, "another shape": array.T, "too few": flat[:4], "off": array + 0.5},
        {"flat": 1, "thinned": 4, "as it is": 1, "another shape": 1, "too few": 1, "off": 1},
    )
    assert [row.ok for row in rows.values()] == [True, True, True, False, False, False]
    assert rows["flat"].shape == rows["thinned"].shape == (2, 3) and rows["flat"].note == ""
    assert (rows["off"].max_abs, rows["off"].error) == (0.5, pytest.approx(0.5 / 5.5))
    assert rows["too few"].note == rows["another shape"].note == "not the shape of torch's output"


def test_rounding_that_was_measured_is_allowed_for():
    one, other = np.ones((1, 1), np.float32), np.full((1, 1), 1.0005, np.float32)
    assert not judged({"a": one}, {"a": other}, {"a": 1})["a"].ok
    row = judged({"a": one}, {"a": other}, {"a": 1}, rounding=2e-4)["a"]
    assert row.ok and row.tolerance == pytest.approx(8e-4)
    assert judged({"a": one}, {"a": other}, {"a": 1}, precision="fp16")["a"].tolerance == 0.03


def test_rows_from_a_select_stage_on_may_be_other_choices_also_where_they_are_batched():
    rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    swapped = np.vstack([rows[1:2], rows[:1], rows[2:]])
    names = ["compress/topk", vision_rows.BATCHED, "visual_tokens"]
    every = dict.fromkeys(["vision/encoder", *names], 1)
    got, expected = dict.fromkeys(every, swapped), dict.fromkeys(every, rows)
    ranks = {"vision/encoder": 3, "compress/topk": 2, "visual_tokens": 2}
    seen = judged(got, expected, every, ranks=ranks)
    assert [row.ok for row in seen.values()] == [False, True, True, True]
    assert {seen[name].note for name in names} == {"0.0% other rows, 0.5% allowed"} and not seen["vision/encoder"].note


def test_parity_and_bench_need_no_torch_and_keep_stdout_clean(bundle):
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "export"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from runtime.bundle import Bundle
from runtime.tools import bench, parity
bundle = Bundle.open({str(bundle.path)!r})
assert parity.parity(bundle, ["onnx"]).ok
bench.bench(bundle, bench.BenchOptions(rounds=1, new_tokens=2))
print("done")
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "done\n", done.stdout + done.stderr


def _greedy_row(bundle, expected):
    from runtime.llm.decoder import LocalDecoder
    from runtime.prompt import Prompt

    decoder = LocalDecoder.open(bundle, "onnx", ONE_THREAD)
    # the prompt's reference is another one once ids differ, so only the greedy row counts
    return compare_llm(decoder, Prompt(bundle), expected, "fp32")[-1]


def _altered(bundle, directory, graph, tensor):
    """A copy of the bundle in which the weights of the last matrix product before `tensor` are two percent larger."""
    path = directory / "altered"
    shutil.copytree(bundle.path, path)
    model = onnx.load(str(path / f"{graph}.onnx"))
    weights = {weight.name: weight for weight in model.graph.initializer}
    producer = {name: node for node in model.graph.node for name in node.output}
    ahead = [producer[tensor]]
    while not (found := [weights[n] for n in ahead[0].input if n in weights and ahead[0].op_type in ("MatMul", "Gemm")]):
        ahead = ahead[1:] + [producer[name] for name in ahead[0].input if name in producer]
    found[0].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(found[0]) * np.float32(1.02), found[0].name))
    onnx.save(model, str(path / f"{graph}.onnx"))
    write_manifest(path, bundle.manifest)
    return Bundle.open(path)


def _no_gpu(monkeypatch):
    """The same on machines with a GPU as on those without."""
    from runtime.engine import BACKENDS, backend_class

    for name in BACKENDS:
        if name.startswith("tensorrt"):
            monkeypatch.setattr(backend_class(name), "unavailable", classmethod(lambda cls, device: "no NVIDIA GPU here"))
