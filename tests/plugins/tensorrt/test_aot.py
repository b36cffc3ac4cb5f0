"""The ahead-of-time kernel: one launch, every number a constant, PTX for any GPU; and what its registration asks of TensorRT."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from plugins.kernel.compile import compile_kernel
from plugins.kernel.variants import Variant
from plugins.op import StGridPool
from plugins.plan import Plan, in_one_launch, make_plan
from plugins.tensorrt import aot, load_library, prefer_plugin
from runtime.core.errors import EngineError, SpecError

pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")


def plan_of(spec: StGridPool) -> tuple[int, ...]:
    return make_plan(spec, 16, 9, 9).ints


def test_the_kernel_takes_two_pointers_and_one_block_a_window():
    ptx, *shape = aot.kernel_for(plan_of(StGridPool()), 1.0, 2.0, 896, "bfloat16")
    assert b".target sm_80" in ptx
    assert ptx.count(b".param .u64") == 2
    assert shape == [8 * 16, (64, 2)]
    _, *small = aot.kernel_for(plan_of(StGridPool()), 1.0, 2.0, 64, "float16")
    assert small == [4 * 16, (32, 4)]


def test_infinite_order_and_hexadecimal_numbers_compile():
    assert aot.kernel_for(plan_of(StGridPool()), 1 / 3, math.inf, 896, "float32")[0]


def test_every_number_of_a_call_is_a_constant_of_its_source(monkeypatch: pytest.MonkeyPatch):
    compiled = []
    monkeypatch.setattr(aot, "compile_kernel", lambda *asked: compiled.append(asked) or SimpleNamespace(code=b"ptx"))
    plan = make_plan(StGridPool((2,), (1,)), 3, 6, 5)
    kernel = aot.kernel_for(plan.ints, 0.1, math.inf, 16, "float32")
    assert kernel == (b"ptx", 2 * 3, (32, 4))  # six windows of a frame, four a block
    ((variant, target, prelude, entry),) = compiled
    assert (variant, target) == (Variant("float32", False, 1, 2, 2, 32, 4), "compute_80")
    assert prelude == f"__device__ const int kPlan[] = {{{', '.join(map(str, in_one_launch(plan).ints))}}};\n"
    numbers = "3, 6, 5, 3, 2, 2, 0, 4, 16, 28, 32, 34, 0x1.99999a0000000p-4f, __int_as_float(0x7f800000), 0x1.0000000000000p-4f"
    assert (
        f"  const Args args = {{{numbers}}};\n  run%s(args, kPlan, x, nullptr, out, {{0, 2, 2, 2}});\n}}\n" in entry
    )  # two original frames
    aot.kernel_for(plan.ints, 0.1, 2.0, 16, "float16")
    assert compiled[1][0] == Variant("float16", True, 1, 2, 2, 32, 4)


def test_four_levels_are_covered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(aot, "compile_kernel", lambda *asked: SimpleNamespace(code=asked[0].depth))
    assert aot.kernel_for(plan_of(StGridPool(sizes=(1,) * 4, strides=(1,) * 4)), 1.0, 2.0, 64, "float32")[0] == 4


def test_one_launch_holds_every_frame_and_the_longest_windows_first():
    plan = in_one_launch(make_plan(StGridPool(), 32, 27, 27))
    assert tuple(map(len, plan.launches)) == (32,)
    assert sorted(index for _, index, _, _ in plan.tasks) == list(range(32))
    assert [index for _, index, _, _ in plan.tasks][:2] == [31, 15]
    assert Plan(plan.ints).depth == 3


@pytest.mark.parametrize(
    ("spec", "hidden", "words"),
    [(StGridPool(), 892, "multiple of 8"), (StGridPool(sizes=(1,) * 5, strides=(1,) * 5), 64, "5 levels")],
)
def test_a_call_that_is_not_covered_is_declined_with_the_reason(spec: StGridPool, hidden: int, words: str):
    with pytest.raises(SpecError, match=words):
        aot.kernel_for(plan_of(spec), 1.0, 2.0, hidden, "float32")


def test_a_release_without_ahead_of_time_plugins_is_named():
    with pytest.raises(EngineError, match=r"10\.3\.0"):
        aot.register(SimpleNamespace(__version__="10.3.0"))


def test_registration_gives_tensorrt_types_shapes_and_a_kernel(monkeypatch: pytest.MonkeyPatch):
    """A stand-in for tensorrt.plugin that calls what was registered as TensorRT's Python package does."""
    trtp, registered = ModuleType("tensorrt.plugin"), {}
    for name in ("register", "autotune", "aot_impl"):
        setattr(trtp, name, lambda plugin, name=name: lambda function: registered.setdefault((name, plugin), function))
    trtp.TensorDesc = type("TensorDesc", (), {})
    trtp.KernelLaunchParams = type("KernelLaunchParams", (list,), {"__init__": lambda self, *sizes: list.__init__(self, sizes)})
    trtp.AutoTuneCombination = type(
        "AutoTuneCombination", (tuple,), {"__new__": lambda kind, types, layout: tuple.__new__(kind, (types, layout))}
    )
    trtp.SymIntExprs = type("SymIntExprs", (list,), {"__init__": lambda self, length: list.__init__(self, [None] * length)})
    trt = ModuleType("tensorrt")
    trt.QuickPluginCreationRequest, trt.float32, trt.float16, trt.bfloat16 = object, "f32", "f16", "bf16"
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", trtp)
    aot.register(trt)

    describe = registered["register", "gridpool::StGridPool"]
    x = SimpleNamespace(shape=(16, 9, 9, 896), dtype="bf16", like=lambda: SimpleNamespace(shape_expr=[16, 9, 9, 896]))
    plan = plan_of(StGridPool())
    assert describe(x, plan, 1.0, 2.0).shape_expr == [16, 4, 4, 896]
    assert all(not isinstance(kind, str) for kind in describe.__annotations__.values())
    choose, compile_call = registered["autotune", "gridpool::StGridPool"], registered["aot_impl", "gridpool::StGridPool"]
    assert choose(x, (None,)) == [("FP32|FP16|BF16, FP32|FP16|BF16", "LINEAR")]
    assert choose.__annotations__ == {"return": list[trtp.AutoTuneCombination]}
    assert compile_call.__annotations__ == {"return": tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]}
    name, ptx, launch, extra = compile_call(x, plan, 1.0, 2.0, (None,), 0)
    assert name.encode() in ptx
    assert (list(launch), len(extra)) == ([8 * 16, 1, 1, 64, 2], 0)
    assert compile_kernel.cache_info().currsize


def test_a_library_that_does_not_exist_or_has_no_such_plugin_is_refused(tmp_path):
    trt = SimpleNamespace(
        __version__="10.16",
        get_plugin_registry=lambda: SimpleNamespace(load_library=lambda path: None, get_creator=lambda *name: None),
    )
    with pytest.raises(EngineError, match="libnone"):
        load_library(trt, tmp_path / "libnone.so")
    (tmp_path / "lib.so").touch()
    for loaded in (None, object()):  # no library of TensorRT's, or one with another plugin
        trt.get_plugin_registry = lambda loaded=loaded: SimpleNamespace(
            load_library=lambda path: loaded, get_creator=lambda *name: None
        )
        with pytest.raises(EngineError, match=r"gridpool::StGridPool version 1 .*10\.16"):
            load_library(trt, tmp_path / "lib.so")


def test_a_library_is_loaded_where_its_plugin_is_not_there_yet(tmp_path):
    loaded = []
    registry = SimpleNamespace(
        load_library=lambda path: loaded.append(path) or object(),
        get_creator=lambda *asked: object() if loaded and asked == ("StGridPool", "1", "gridpool") else None,
    )
    (tmp_path / "lib.so").touch()
    for _ in range(2):
        load_library(SimpleNamespace(get_plugin_registry=lambda: registry), tmp_path / "lib.so")
    assert loaded == [str(tmp_path / "lib.so")]


def test_the_parser_is_told_to_prefer_the_plugin_where_it_can_be():
    told = []
    parser = SimpleNamespace(set_flag=told.append)
    assert not prefer_plugin(SimpleNamespace(), parser)
    assert not prefer_plugin(SimpleNamespace(OnnxParserFlag=SimpleNamespace(NATIVE_INSTANCENORM=0)), parser)
    assert prefer_plugin(SimpleNamespace(OnnxParserFlag=SimpleNamespace(ENABLE_PLUGIN_OVERRIDE=7)), parser)
    assert told == [7]
