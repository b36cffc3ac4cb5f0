"""The optional fused op `gridpool::StGridPool`: its contract, reference, CUDA kernel and TensorRT adapters.

plugins.st_gridpool(x, "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2")     on any CUDA array, see plugins/kernel/launch.py
"""

from __future__ import annotations

from typing import Any

from plugins.op import StGridPool, spec_from_text

__all__ = ["StGridPool", "spec_from_text", "st_gridpool"]


def st_gridpool(x: Any, spec: StGridPool | str, *, out: Any = None, stream: Any = None) -> Any:
    """`plugins.kernel.launch.st_gridpool`, loaded at the first call: it needs cuda-bindings, nvidia-cuda-nvrtc and a GPU."""
    from plugins.kernel.launch import st_gridpool as on_gpu

    return on_gpu(x, spec, out=out, stream=stream)
