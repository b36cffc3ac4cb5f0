"""StGridPool as an ahead-of-time Python plugin of TensorRT >= 10.9: the engine carries PTX, and needs no library at run time.

`register(trt)` once, before a graph is parsed. Such a plugin is one kernel without a workspace, so summaries are computed on the fly
(DEPTH >= 0 in csrc/st_gridpool.cuh), which reads more tokens than the library's kernel does (docs/plugin.md). The plan, shapes and
numbers are constants of the kernel's source. The PTX is for compute capability 8.0; the driver compiles it for the GPU at hand.
"""

# Without `from __future__ import annotations`: TensorRT reads the types of annotations, not their text.
from typing import Any

import numpy as np
import numpy.typing as npt

from plugins.errors import EngineError, SpecError
from plugins.kernel.compile import KERNEL, compile_kernel
from plugins.kernel.variants import args_of, launches, variant_for
from plugins.op import DOMAIN, DTYPES, NAME, StGridPool, not_covered
from plugins.plan import Plan, in_one_launch

PTX_TARGET = "compute_80"
MAX_LEVELS = 4  # each level of summaries is another inlined loop


def kernel_for(
    ints: tuple[int, ...], temperature: float, order: float, hidden: int, dtype: str
) -> tuple[bytes, int, tuple[int, int]]:
    """For one call of the op: the PTX of KERNEL, whose parameters are x and tokens; blocks; and a block's (threads, windows).

    SpecError where the kernel does not cover the call.
    """
    plan = Plan(ints)
    spec = StGridPool((), (), plan.ints[6], temperature, order, plan.ints[7])  # the pyramid is in the plan
    reason = not_covered(spec, (*plan.ints[1:4], hidden), dtype)
    if not reason and plan.depth > MAX_LEVELS:
        reason = f"{plan.depth} levels that read each other; expected at most {MAX_LEVELS}"
    if reason:
        raise SpecError(f"the ahead-of-time plugin does not cover this call: {reason}; parse a graph with the plain body")
    plan = in_one_launch(plan)
    args = args_of(plan, spec, hidden, dtype)
    values = ", ".join(_literal(getattr(args, field[0])) for field in args._fields_)
    prelude = f"__device__ const int kPlan[] = {{{', '.join(map(str, plan.ints))}}};\n"
    variant = variant_for(spec, hidden, dtype, depth=plan.depth)
    ((*launch, blocks),) = launches(plan, variant)
    entry = (
        f'extern "C" __global__ void __launch_bounds__(%d, %d) {KERNEL}(const Vec* x, Vec* out) {{\n'
        f"  const Args args = {{{values}}};\n"
        f"  run%s(args, kPlan, x, nullptr, out, {{{', '.join(map(str, launch))}}});\n}}\n"
    )
    return compile_kernel(variant, PTX_TARGET, prelude, entry).code, blocks, (variant.threads, variant.groups)


def register(trt: Any) -> None:
    """Register the plugin with `trt`, the imported `tensorrt`. EngineError where the release has no ahead-of-time plugins."""
    if not hasattr(trt, "QuickPluginCreationRequest"):
        raise EngineError(f"TensorRT {trt.__version__} has no ahead-of-time plugins; use 10.9 or newer, or the plugin library")
    import tensorrt.plugin as trtp
    from tensorrt.plugin import TensorDesc  # tensorrt>=10.9

    plugin = f"{DOMAIN}::{NAME}"
    dtypes = dict(zip((trt.float32, trt.float16, trt.bfloat16), DTYPES, strict=True))

    @trtp.register(plugin)  # tensorrt>=10.9
    def describe(x: TensorDesc, plan: npt.NDArray[np.int32], temperature: float, order: float) -> TensorDesc:
        tokens = x.like()
        for axis, size in zip(range(3), Plan(tuple(map(int, plan))).shape, strict=True):
            tokens.shape_expr[axis] = size
        return tokens

    @trtp.autotune(plugin)  # tensorrt>=10.9
    def choose(x, outputs) -> list[trtp.AutoTuneCombination]:  # tensorrt>=10.9
        return [trtp.AutoTuneCombination("FP32|FP16|BF16, FP32|FP16|BF16", "LINEAR")]  # tensorrt>=10.9

    @trtp.aot_impl(plugin)  # tensorrt>=10.9
    def compile_call(
        x, plan, temperature, order, outputs, tactic
    ) -> tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:  # tensorrt>=10.9
        ints = tuple(map(int, plan))
        ptx, blocks, block = kernel_for(ints, float(temperature), float(order), int(x.shape[3]), dtypes[x.dtype])
        launch = trtp.KernelLaunchParams(blocks, 1, 1, *block)  # tensorrt>=10.9
        return KERNEL, ptx, launch, trtp.SymIntExprs(0)  # tensorrt>=10.9


def _literal(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "__int_as_float(0x7f800000)" if np.isinf(value) else f"{float(np.float32(value)).hex()}f"
