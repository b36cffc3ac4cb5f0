"""The shipped checkpoint with query and key biases so large that their product dwarfs what the softmax must tell apart.

Published Qwen2 checkpoints are like that: q·k reaches 7e4 in the slowest rotary pairs, and float16 has steps of 32 there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from export.demo import CHECKPOINT

HEAD = 32  # channels of a head, of the encoder and of the LLM
SLOWEST = [13, 14, 15, 29, 30, 31]  # the three rotary pairs that turn least


def loud_checkpoint(directory: Path, vision: float, llm: float, layers: int) -> str:
    """vision: the bias in the encoder; llm: in the slowest rotary pairs of the LLM; layers: how many, from the first, have it."""
    shutil.copytree(CHECKPOINT, directory)
    weights = load_file(CHECKPOINT / "model.safetensors")
    sign = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], HEAD))
    for name, tensor in weights.items():
        if name.endswith(("q_proj.bias", "k_proj.bias")) and any(f".layers.{layer}." in name for layer in range(layers)):
            heads = tensor.view(-1, HEAD)
            if "vision_tower" in name:
                heads[:] = vision * sign
            else:
                heads[:, SLOWEST] = (llm * sign)[SLOWEST].to(tensor.dtype)
    (directory / "model.safetensors").unlink()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return str(directory)
