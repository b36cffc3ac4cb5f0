"""Engines are really built here, by NVIDIA's ahead-of-time builder, which needs no GPU; none is executed."""

from __future__ import annotations

import _thread
import hashlib
import json
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from manifests import WITHOUT_LLM
from refusal import naming
from trt_bundle import HERE, RTX, make_bundle, needs_rtx

from runtime.bundle import DECODER, VISION, Bundle
from runtime.core.errors import EngineError, UserError
from runtime.engine import cuda
from runtime.engine import trt_api as trt
from runtime.engine import trt_build as build_module
from runtime.engine.trt_build import BuildOptions, PluginChoice, build
from runtime.engine.trt_records import LIBRARY, NONE, dimension_names


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_bundle(tmp_path / "bundle")


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@needs_rtx
class TestBuild:
    def test_both_graphs_are_built_and_recorded(self, bundle: Bundle, capfd: pytest.CaptureFixture) -> None:
        built = build(bundle, RTX)
        directory = bundle.path / "engines" / "tensorrt-rtx-any-fp32"
        assert [engine.graph for engine in built] == [VISION, DECODER]
        assert sorted(digests(directory)) == ["build.json", "llm/decoder.engine", "vision.engine"]
        record = json.loads((directory / "build.json").read_text())
        assert (record["backend"], record["target"], record["precision"]) == ("tensorrt-rtx", "any", "fp32")
        assert record["version"] == trt.load("tensorrt-rtx").__version__
        for engine in built:
            assert not engine.reused
            assert engine.size == engine.path.stat().st_size == record["graphs"][engine.graph]["size"] > 0
            assert record["graphs"][engine.graph]["onnx_sha256"] == bundle.sha256(engine.graph)
        assert json.loads(json.dumps(built[0].as_dict())).keys() == {"graph", "path", "bytes", "seconds", "reused"}
        out, err = capfd.readouterr()
        assert out == ""  # results have stdout to themselves, C++ prints included
        assert "building vision for any with tensorrt-rtx" in err

    def test_dynamic_dimensions_keep_their_names(self, bundle: Bundle) -> None:
        decoder = next(engine for engine in build(bundle, RTX) if engine.graph == DECODER)
        names = dimension_names(decoder.path, DECODER)
        assert names["inputs_embeds"] == [1, "S", 16]
        assert names["position_ids"] == [1, "S"]
        assert names["attention_mask"] == [1, "T"]
        assert names["past"] == [1, 2, 64, 8]

    def test_a_second_build_reuses_and_says_so_and_force_does_not(self, bundle: Bundle, capfd: pytest.CaptureFixture) -> None:
        first = build(bundle, RTX)
        before = digests(bundle.path / "engines")
        capfd.readouterr()
        assert [engine.reused for engine in build(bundle, RTX)] == [True, True]
        assert "is up to date" in capfd.readouterr().err
        assert digests(bundle.path / "engines") == before
        forced = build(bundle, BuildOptions(backend="tensorrt-rtx", graphs=(VISION,), force=True))
        assert [engine.reused for engine in forced] == [False]
        assert first[1].path.exists()  # the other graph's engine came along

    def test_a_changed_graph_is_built_again_and_the_other_kept(self, bundle: Bundle) -> None:
        build(bundle, RTX)
        kept = (bundle.path / "engines/tensorrt-rtx-any-fp32/llm/decoder.engine").stat().st_ino
        changed = make_bundle(bundle.path, vision_op="Sigmoid")
        assert [(engine.graph, engine.reused) for engine in build(changed, RTX)] == [(VISION, False), (DECODER, True)]
        assert (bundle.path / "engines/tensorrt-rtx-any-fp32/llm/decoder.engine").stat().st_ino == kept

    @pytest.mark.parametrize("target", ["sm89", "sm86,sm120"])
    def test_named_architectures_have_a_directory_of_their_own(self, bundle: Bundle, target: str) -> None:
        built = build(bundle, BuildOptions(backend="tensorrt-rtx", target=target, graphs=(VISION,)))
        assert built[0].path.parent.name == f"tensorrt-rtx-{target.replace(',', '+')}-fp32"

    def test_fp32_stays_fp32(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        flags, tf32, serialize = [], trt.load("tensorrt-rtx").BuilderFlag.TF32, trt.serialize
        monkeypatch.setattr(trt, "serialize", lambda *words: flags.append(words[3].get_flag(tf32)) or serialize(*words))
        build_module._build_graph(bundle, VISION, RTX, "any", PluginChoice(), tmp_path / "engine")
        assert flags == [False]

    def test_one_profile_from_one_position_to_the_whole_context(self, bundle: Bundle) -> None:
        builder, network, parser = trt.parse("tensorrt-rtx", bundle.model(DECODER))
        profiles: list = []
        config = type("Config", (), {"add_optimization_profile": lambda self, profile: profiles.append(profile)})()
        build_module._add_profile(builder, network, config, 64)
        (profile,) = profiles
        assert [tuple(shape) for shape in profile.get_shape("inputs_embeds")] == [(1, 1, 16), (1, 1, 16), (1, 64, 16)]
        assert [tuple(shape) for shape in profile.get_shape("attention_mask")] == [(1, 1), (1, 32), (1, 64)]
        del parser

    @pytest.mark.parametrize("taken", [True, False])
    def test_only_an_engine_that_took_the_plugin_is_recorded_as_one_that_needs_it(
        self, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, taken: bool
    ) -> None:
        monkeypatch.setattr(build_module, "has_plugin_layer", lambda backend, network: taken)
        entry = build_module._build_graph(bundle, VISION, RTX, "any", PluginChoice(LIBRARY), tmp_path / "engine")
        assert entry["plugin"] == (LIBRARY if taken else NONE)
        assert ("is built as plain nodes, the plugin does not cover it" in capsys.readouterr().err) is not taken

    def test_a_parser_error_names_the_node(self, tmp_path: Path) -> None:
        bad = make_bundle(tmp_path / "bad", vision_op="Det")
        with pytest.raises(EngineError, match=r"vision\.onnx: node compress/last \(Det\)") as error:
            build(bad, RTX)
        assert "\n" not in str(error.value)
        assert not (bad.path / "engines" / "tensorrt-rtx-any-fp32").exists()

    def test_what_the_builder_refuses_is_one_line(self, bundle: Bundle) -> None:
        with pytest.raises(EngineError, match=naming("vision", "Turing (SM75)")) as error:  # has no fp32 matrix product
            build(bundle, BuildOptions(backend="tensorrt-rtx", target="sm75", graphs=(VISION,)))
        assert "\n" not in str(error.value)

    def test_what_is_no_onnx_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "vision.onnx").write_bytes(b"hello")
        with pytest.raises(EngineError, match=r"can't read .*vision\.onnx"):
            trt.parse("tensorrt-rtx", tmp_path / "vision.onnx")

    def test_fp32_attention_is_decomposed(self, tmp_path: Path) -> None:
        from onnx import TensorProto, helper, save

        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 8, 16]) for name in ("q", "k", "v", "y")]
        graph = helper.make_graph([helper.make_node("Attention", ["q", "k", "v"], ["y"])], "g", values[:3], values[3:])
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), tmp_path / "attention.onnx")
        builder, network, parser = trt.parse("tensorrt-rtx", tmp_path / "attention.onnx")
        assert trt.decompose_attention("tensorrt-rtx", network) == 1
        engine = trt.serialize("tensorrt-rtx", builder, network, builder.create_builder_config(), lambda *step: None)
        assert engine.nbytes > 0
        del parser


@needs_rtx
class TestInterrupted:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), EngineError("broken")])
    def test_the_old_engines_stay_as_they_were(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        build(bundle, RTX)
        before = digests(bundle.path / "engines")
        calls = []
        real = trt.serialize

        def fails_at_the_second(*arguments: object) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise error
            return real(*arguments)

        monkeypatch.setattr(trt, "serialize", fails_at_the_second)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            build(bundle, BuildOptions(backend="tensorrt-rtx", force=True))
        assert len(calls) == 2
        assert digests(bundle.path / "engines") == before

    def test_ctrl_c_reaches_the_builder_at_its_next_step(
        self, bundle: Bundle, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # a shell's background job starts with SIGINT ignored
        request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler)))
        builder, network, parser = trt.parse("tensorrt-rtx", bundle.model(VISION))
        steps, stopped, ended, make = [], threading.Event(), [], trt._monitor

        def monitor(*words: object) -> object:
            made = make(*words)
            stop = made.stop
            made.stop = lambda: (stop(), stopped.set())
            return made

        def progress(phase: str, done: int, of: int) -> None:
            steps.append((phase, done))
            if len(steps) == 1:
                _thread.interrupt_main()
                assert stopped.wait(30)  # the main thread has seen it
            ended.append(phase)

        monkeypatch.setattr(trt, "_monitor", monitor)

        with pytest.raises(KeyboardInterrupt):
            trt.serialize("tensorrt-rtx", builder, network, builder.create_builder_config(), progress)
        assert 1 <= len(steps) <= 3, steps
        assert len(ended) == len(steps)  # nothing of the build still runs
        del parser


@needs_rtx
class TestRefusals:
    def test_an_unknown_target_names_the_known_ones(self, bundle: Bundle) -> None:
        with pytest.raises(UserError, match=naming('"sm99"', "any, current, sm75, sm80", "sm120")):
            build(bundle, BuildOptions(backend="tensorrt-rtx", target="sm99"))

    def test_the_current_gpu_is_no_target_without_one(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda, "gpus", lambda: ())
        with pytest.raises(EngineError, match='"current"'):
            build(bundle, BuildOptions(backend="tensorrt-rtx", target="current"))

    def test_an_unknown_graph_names_the_nearest(self, bundle: Bundle) -> None:
        with pytest.raises(EngineError, match='did you mean "vision"'):
            build(bundle, BuildOptions(backend="tensorrt-rtx", graphs=("vison",)))

    def test_an_unknown_backend_names_the_nearest(self, bundle: Bundle) -> None:
        with pytest.raises(EngineError, match='did you mean "tensorrt-rtx"'):
            build(bundle, BuildOptions(backend="tensort-rtx"))

    def test_a_dynamic_graph_without_a_context_limit(self, bundle: Bundle) -> None:
        bundle = Bundle(bundle.path, replace(bundle.manifest, **WITHOUT_LLM))
        with pytest.raises(EngineError, match=r"inputs_embeds .*\[1, 'S', 16\].*max_context"):
            build(bundle, BuildOptions(backend="tensorrt-rtx", graphs=(DECODER,)))


def test_tensorrt_itself_builds_only_on_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "gpus", lambda: ())
    monkeypatch.setattr(trt, "load", lambda backend: type("module", (), {"__version__": "10.3.0"}))
    with pytest.raises(EngineError, match="--backend tensorrt-rtx"):
        build(bundle, BuildOptions(backend="tensorrt"))


def test_a_missing_package_says_what_brings_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "installed", lambda backend: False)
    with pytest.raises(UserError, match=r'pip install "st-gridpool\[gpu\]"'):
        build(bundle, BuildOptions(backend="tensorrt"))


def test_kernel_timings_are_kept_between_builds_of_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[object] = []
    config = SimpleNamespace(
        create_timing_cache=lambda content: content,
        set_timing_cache=lambda cache, ignore_mismatch: told.append((cache, ignore_mismatch)),
        get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"timings"),
    )
    monkeypatch.setattr(trt, "load", lambda backend: SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(cuda, "gpus", lambda: (HERE,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        with build_module._timing_cache("tensorrt", config):
            pass
    assert told == [(b"", False), (b"timings", False)]
    assert (tmp_path / "st-gridpool/timing/10.3.0-sm89.cache").read_bytes() == b"timings"
    with build_module._timing_cache("tensorrt-rtx", SimpleNamespace()):
        pass
