"""What `plugins.cuda` asks of the driver, and what it does not, on a driver that writes down what it is asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from plugins import cuda
from plugins.arrays import View
from runtime.errors import EngineError


class Driver:
    """Answers as cuda-bindings do, (status, value, ...), and keeps (function, arguments) in `asked`."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
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
        monkeypatch.setattr(cuda, "_driver", lambda: made)
        return made

    return driver


def array(device):
    return View(4096, (1, 2, 2, 8), "float32", True, device, None)


@pytest.mark.parametrize(("known", "device", "asked"), [(0, 0, []), (3, 3, []), (None, 1, [("ordinal", 4096)])])
def test_the_driver_is_asked_for_the_device_of_an_array_only_where_the_array_does_not_say(install, known, device, asked):
    driver = install(cuPointerGetAttribute=1)
    assert cuda._device_of(array(known)) == device
    assert driver.asked == [("cuPointerGetAttribute", arguments) for arguments in asked]


def gpu(install, major, minor, version=13000):
    capability = {"major": major, "minor": minor}
    driver = install(
        cuDeviceGet=lambda ordinal: f"device {ordinal}", cuDevicePrimaryCtxRetain=lambda device: f"context of {device}",
        cuDeviceGetAttribute=lambda name, device: capability[name], cuDriverGetVersion=version, cuMemAllocAsync=4096, cuMemFreeAsync=None,
        cuCtxPushCurrent=None, cuCtxPopCurrent=None,
    )  # fmt: skip
    made = cuda._Gpu(2)
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
    assert (made.ordinal, made.target, made.overlaps, made.context) == (2, target, overlaps, "context of device 2")


def test_a_gpu_before_ampere_is_refused(install):
    with pytest.raises(EngineError, match=r"GPU 2 has compute capability 7\.5; the kernel needs 8\.0 or newer"):
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
