"""NVRTC compiles every variant for every target; nothing spills, and shared memory is what the source says."""

from __future__ import annotations

import math

import pytest

from plugins.kernel.compile import TARGETS, compile_kernel
from plugins.kernel.variants import DECLARED_SHARED, LATE_STEPS, Variant, variant_for
from plugins.op import StGridPool
from runtime.core.errors import EngineError

pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")

# (window, D, dtype, order, depth): walks of one and two vectors a thread and one and two stages, two and four vectors held in registers,
# the generic way; each dtype, each kind of norm. A walk of up to 128 vectors is compiled for clips with few windows too.
VARIANTS = [
    (2, 256, "bfloat16", 2, -1),
    (2, 3584, "bfloat16", 2, -1),
    (2, 896, "bfloat16", 2, -1),
    (2, 8192, "bfloat16", 2, -1),
    (2, 896, "float16", 2, -1),
    (2, 3584, "float32", 2, -1),
    (2, 4096, "float32", 2, -1),
    (2, 3584, "bfloat16", 3, -1),
    (3, 3584, "bfloat16", 2, -1),
    (3, 4096, "bfloat16", math.inf, -1),
    (5, 896, "float16", 2, -1),
    (2, 16384, "bfloat16", 2, -1),
    (2, 896, "bfloat16", 2, 0),
    (2, 3584, "bfloat16", 2, 0),
    (2, 3584, "bfloat16", 2, 3),
]


@pytest.mark.parametrize("target", [pytest.param(one, marks=[pytest.mark.slow] if one != "sm_90" else []) for one in TARGETS])
def test_no_variant_spills_on_any_target(target: str, record_property):
    variants = {
        variant_for(StGridPool(window=window, order=order), hidden, dtype, depth, few=few): None
        for window, hidden, dtype, order, depth in VARIANTS
        for few in (False, True)
    }
    for variant in variants:
        compiled = compile_kernel(variant, target)
        record_property(f"{variant}", f"{compiled.registers} registers, {compiled.shared} bytes shared")
        assert compiled.registers > 0, "ptxas reported nothing: NVRTC may have found the code in its cache"
        assert compiled.spills == 0, f"{variant} spills {compiled.spills} bytes on {target}"
        assert compiled.registers * variant.threads * variant.groups <= 65536, "a block must fit a multiprocessor"
        assert compiled.shared == _shared(variant)
        assert not variant.stages or compiled.shared <= DECLARED_SHARED


def _shared(variant: Variant) -> int:
    """Logits of the largest window; or two sums of norms a warp and where a walk's tokens are; or a sum a warp and token."""
    if variant.stages:
        sums = 2 * 4 * 4 * (variant.threads // 32) if variant.threads > 32 else 0
        return -(-(sums + 4 * 6 * (LATE_STEPS + 1)) // 16) * 16
    return 16 * 4 * variant.window**2 if variant.window else 4096


def test_blocks_hold_whole_warps_and_every_vector_of_a_token():
    for dtype, size in (("float32", 4), ("float16", 2)):
        for hidden in range(8, 20000, 8):
            for window in (1, 2, 3, 7):
                variant = variant_for(StGridPool(window=window), hidden, dtype)
                assert variant.threads % 32 == 0
                assert 32 <= variant.threads * variant.groups <= 512
                assert not variant.window or variant.threads * variant.vectors * 16 >= hidden * size
                assert variant.window or variant.groups == 1


@pytest.mark.parametrize("hidden", [896, 3584])
def test_launches_that_overlap_wait_before_they_read_scratch_and_before_they_end(hidden: int):
    """On a stand-in launches follow one another, so a wait that is missing shows nowhere but in the code."""
    lines = compile_kernel(variant_for(StGridPool(), hidden, "bfloat16"), "compute_90").code.decode().splitlines()

    def of(instruction):
        return [number for number, line in enumerate(lines) if instruction in line]

    before_walks, before_cells, at_the_end = of("griddepcontrol.wait")
    assert of("griddepcontrol.launch_dependents")[0] < before_walks < min(of("cp.async.cg"))
    assert max(of("cp.async.cg")) < before_cells < min(of("ld.global.cg"))
    assert at_the_end > max(of("ld.global") + of("cp.async.cg") + of("st.global"))
    older = compile_kernel(variant_for(StGridPool(), hidden, "bfloat16"), "compute_87").code.decode()
    assert "griddepcontrol" not in older


def test_ptx_is_text_that_the_driver_can_compile_later():
    variant = variant_for(StGridPool(), 896, "float16", depth=3)
    compiled = compile_kernel(variant, "compute_87")
    ptx = compiled.code.decode()
    assert (compiled.registers, compiled.spills, compiled.shared) == (0, 0, 0)
    assert ".target sm_87" in ptx
    assert ".entry st_gridpool" in ptx


def test_a_target_that_does_not_exist_is_a_one_line_error():
    with pytest.raises(EngineError, match="sm_12345"):
        compile_kernel(variant_for(StGridPool(), 896, "float16"), "sm_12345")
