"""What `plugins.kernel.launch` asks of the driver, and what it does not, on a driver that writes down what it is asked."""

from __future__ import annotations

import contextlib
import ctypes
from types import SimpleNamespace

import pytest
from refusal import naming

import plugins.driver
from plugins.kernel import launch as module
from plugins.kernel.arrays import View
from plugins.kernel.variants import Variant
from plugins.op import StGridPool
from plugins.plan import make_plan
from runtime.core.errors import EngineError


class Driver:
    """Answers as cuda-bindings do, (status, value, ...), and keeps (function, arguments) in `asked`."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN="shared",
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="multiprocessors",
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic")
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL="ordinal")

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def __getattr__(self, name):
        def function(*arguments):
            self.asked.append((name, arguments))
            answer = self.answers[name]
            return (0, answer(*arguments) if callable(answer) else answer)

        return function


@pytest.fixture
def install(monkeypatch):
    def driver(**answers):
        made = Driver(**answers)
        for user in (module, plugins.driver):
            monkeypatch.setattr(user, "driver", lambda: made)
        return made

    return driver


def array(device):
    return View(4096, (1, 2, 2, 8), "float32", True, device, None)


@pytest.mark.parametrize(("known", "device", "asked"), [(0, 0, []), (3, 3, []), (None, 1, [("ordinal", 4096)])])
def test_the_driver_is_asked_for_the_device_of_an_array_only_where_the_array_does_not_say(install, known, device, asked):
    driver = install(cuPointerGetAttribute=1)
    assert module._device_of(array(known)) == device
    assert driver.asked == [("cuPointerGetAttribute", arguments) for arguments in asked]


def gpu(install, major, minor, version=13000):
    attributes = {"major": major, "minor": minor, "shared": 227 << 10, "multiprocessors": 132}
    driver = install(
        cuDeviceGet=lambda ordinal: f"device {ordinal}", cuDevicePrimaryCtxRetain=lambda device: f"context of {device}",
        cuDeviceGetAttribute=lambda name, device: attributes[name], cuDriverGetVersion=version, cuMemAllocAsync=4096, cuMemFreeAsync=None,
        cuCtxPushCurrent=None, cuCtxPopCurrent=None,
    )  # fmt: skip
    made = module._Gpu(2)
    assert made.context == "context of device 2"
    driver.asked.clear()
    return made, driver


@pytest.mark.parametrize(
    ("major", "minor", "version", "target", "overlaps"),
    [
        (8, 0, 13000, "sm_80", False), (8, 9, 13000, "sm_89", False), (9, 0, 13000, "sm_90", True), (9, 0, 12030, "sm_90", True),
        (9, 0, 12020, "sm_90", False), (12, 0, 12080, "sm_120", True),
    ],
)  # fmt: skip
def test_launches_overlap_from_hopper_and_driver_12_3_on(install, major, minor, version, target, overlaps):
    made, _ = gpu(install, major, minor, version)
    assert (made.ordinal, made.target, made.overlaps) == (2, target, overlaps)
    assert (made.shared, made.multiprocessors) == (227 << 10, 132)


def test_a_gpu_before_ampere_is_refused(install):
    with pytest.raises(EngineError, match=naming("GPU 2", "7.5", "8.0")):
        gpu(install, 7, 5)


def test_scratch_is_made_and_given_back_on_the_stream_whatever_happens_between(install):
    made, driver = gpu(install, 9, 0)
    with pytest.raises(KeyError), made.scratch(640, 7) as pointer:
        assert pointer == 4096
        raise KeyError
    assert driver.asked == [("cuMemAllocAsync", (640, 7)), ("cuMemFreeAsync", (4096, 7))]


def test_where_no_scratch_is_needed_none_is_made_and_none_given_back(install):
    made, driver = gpu(install, 9, 0)
    with made.scratch(0, 7) as pointer:
        assert pointer == 0
    assert driver.asked == []


def test_the_context_is_current_while_it_is_active_and_no_longer(install):
    made, driver = gpu(install, 9, 0)
    with pytest.raises(KeyError), made.active():
        assert driver.asked == [("cuCtxPushCurrent", ("context of device 2",))]
        raise KeyError
    assert driver.asked[1:] == [("cuCtxPopCurrent", ())]


# three frames of 2x3, two of them tiled into one: the tables are written out in test_plan.py
SPEC, SHAPE, SHARED = StGridPool((2,), (1,), temperature=3.0, order=1.0), (3, 2, 3, 16), 99 << 10
LAUNCHES = ((0, 3, 3, 1, 9), (3, 1, 1, 1, 2))  # first task, tasks of original frames, blocks of one of them and of another, blocks


def test_what_a_call_needs_is_worked_out_once():
    call = module._prepare(SPEC, SHAPE, "float32", SHARED, 1)
    assert module._prepare(SPEC, SHAPE, "float32", SHARED, 1) is call
    assert call.variant == Variant("float32", False, -1, 2, 1, 32, 1, 2)
    assert call.plan == make_plan(SPEC, 3, 2, 3)
    # a pooled frame has three cells, a block each; windows are one walk
    assert (call.launches, call.scratch_bytes) == (LAUNCHES, 6 * 16 * 4)
    args = call.args
    assert (args.frames, args.height, args.width, args.rows, args.columns, args.window, args.padding) == (3, 2, 3, 1, 1, 2, 0)
    assert (args.vecs, args.tasks_at, args.versions_at, args.tiles_at, args.pools_at) == (4, 17, 37, 41, 43)
    assert (args.temperature, args.order, args.inverse_dim) == (3.0, 1.0, 1 / 16)
    assert module._prepare(SPEC, SHAPE, "bfloat16", SHARED, 1).scratch_bytes == 6 * 16 * 2


@pytest.mark.parametrize("overlaps", [True, False])
def test_the_kernel_is_launched_once_a_level_with_the_first_task_of_each(install, monkeypatch, overlaps):
    module._config.cache_clear()
    driver, seen = _launching(install, monkeypatch)
    gpu = module._Gpu(0)
    gpu.overlaps = overlaps
    call = module._prepare(SPEC, SHAPE, "float32", gpu.shared, 1)
    for _ in range(2):
        gpu.launch(call, 11, 12, 13, 7)
    assert seen.uploaded == list(call.plan.ints)
    assert [name for name, _ in driver.asked if name.startswith(("cuModule", "cuMem"))] == [
        "cuModuleLoadData", "cuModuleGetFunction", "cuMemAlloc", "cuMemcpyHtoD",
    ]  # fmt: skip
    assert [dict(driver.asked)[name] for name in ("cuModuleLoadData", "cuModuleGetFunction")] == [
        (f"{call.variant} sm_90",), ("module", b"st_gridpool"),
    ]  # fmt: skip
    assert dict(driver.asked)["cuFuncSetAttribute"] == ("kernel", "dynamic", 2 * 6 * 32 * 16)
    assert seen.launches == [("kernel", 4096, 11, 12, 13, list(launch[:4]), 3.0) for launch in LAUNCHES] * 2
    first, second = seen.configs[:2]
    assert (first.gridDimX, first.gridDimY, first.gridDimZ) == (9, 1, 1)
    assert (first.blockDimX, first.blockDimY, first.blockDimZ, first.hStream) == (32, 1, 1, 7)
    assert (first.sharedMemBytes, second.sharedMemBytes) == (2 * 6 * 32 * 16,) * 2
    assert (second.gridDimX, second.hStream) == (2, 7)
    assert not hasattr(first, "attrs")
    assert hasattr(second, "attrs") is overlaps
    if overlaps:
        (attribute,) = second.attrs
        assert (second.numAttrs, attribute.id, attribute.value.programmaticStreamSerializationAllowed) == (1, "overlap", 1)
    module._config.cache_clear()


def _launching(install, monkeypatch):
    seen = SimpleNamespace(uploaded=None, launches=[], configs=[])

    def copy(pointer, address, size):
        assert pointer == 4096
        seen.uploaded = list((ctypes.c_int * (size // 4)).from_address(address))

    def launch(config, kernel, address, extra):
        assert extra == 0
        values = list((ctypes.c_void_p * 6).from_address(address))
        args = module.Args.from_address(values[0])
        pointers = [ctypes.c_void_p.from_address(value).value for value in values[1:5]]
        seen.configs.append(config)
        seen.launches.append((kernel, *pointers, list((ctypes.c_int * 4).from_address(values[5])), args.temperature))

    driver = install(
        cuDeviceGet=0, cuDevicePrimaryCtxRetain=0, cuDeviceGetAttribute=lambda name, device: {"major": 9, "minor": 0, "shared": SHARED, "multiprocessors": 1}[name],
        cuDriverGetVersion=13000, cuModuleLoadData="module", cuModuleGetFunction="kernel", cuFuncSetAttribute=None, cuMemAlloc=4096, cuMemcpyHtoD=copy,
        cuLaunchKernelEx=launch,
    )  # fmt: skip
    driver.CUlaunchConfig = SimpleNamespace
    driver.CUlaunchAttribute = lambda: SimpleNamespace(value=SimpleNamespace())
    driver.CUlaunchAttributeID = SimpleNamespace(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION="overlap")
    monkeypatch.setattr(module, "compile_kernel", lambda variant, target: SimpleNamespace(code=f"{variant} {target}"))
    return driver, seen


def on_gpu(shape, typestr="<f4", pointer=4096):
    return SimpleNamespace(__cuda_array_interface__={"shape": shape, "typestr": typestr, "data": (pointer, False)})


@pytest.fixture
def queued(install, monkeypatch):
    """What is queued on GPU 2, where every pointer is but those from 65536 on."""
    queued = []

    def scratch(size, stream):
        queued.append((size, stream))
        return contextlib.nullcontext(512)

    gpu = SimpleNamespace(
        ordinal=2,
        shared=SHARED,
        multiprocessors=1,
        active=contextlib.nullcontext,
        scratch=scratch,
        launch=lambda *work: queued.append(work),
    )
    install(cuPointerGetAttribute=lambda name, pointer: 2 if pointer < 65536 else 3)
    monkeypatch.setattr(module, "_gpu", lambda ordinal: gpu if ordinal == 2 else None)
    return queued


def test_a_call_is_queued_with_scratch_on_the_callers_stream(queued):
    x, out = on_gpu(SHAPE), on_gpu((3, 1, 1, 16), pointer=8192)
    assert module.st_gridpool(x, str(SPEC), out=out, stream=7) is out
    assert queued == [(384, 7), (module._prepare(SPEC, SHAPE, "float32", SHARED, 1), 4096, 512, 8192, 7)]


def test_a_new_array_is_made_where_none_is_given(queued, monkeypatch):
    made = on_gpu((3, 1, 1, 16), pointer=8192)
    monkeypatch.setattr(module, "empty_like", lambda x, shape, stream: made if (shape, stream) == ((3, 1, 1, 16), 0) else None)
    assert module.st_gridpool(on_gpu(SHAPE), SPEC) is made
    assert queued[-1][1:] == (4096, 512, 8192, 0)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (None, r"array of types; pass out=, float32 of shape \[3, 1, 1, 16\]$"),
        (on_gpu((3, 1, 2, 16)), r"^out is float32 \[3, 1, 2, 16\] on GPU 2; expected float32 \[3, 1, 1, 16\] on GPU 2$"),
        (on_gpu((3, 1, 1, 16), "<f2"), "^out is float16 .* on GPU 2; expected float32 .* on GPU 2$"),
        (on_gpu((3, 1, 1, 16), pointer=65536), "^out is float32 .* on GPU 3; expected float32 .* on GPU 2$"),
        (on_gpu((3, 1, 1, 16), pointer=4104), "^out begins at an address .*16 bytes"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(queued, out, words):
    with pytest.raises(EngineError, match=words):
        module.st_gridpool(on_gpu(SHAPE), SPEC, out=out)
    assert not queued
