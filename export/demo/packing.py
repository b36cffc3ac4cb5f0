"""Many questions about one clip in one pass: they share the clip's prefix and can't see each other.

    <|im_start|> user  visual tokens  image_newline | question 1 answer 1 | question 2 answer 2 | …

A block mask hides the questions from each other and positions start again after the prefix, so that each question's logits are
those of a separate prompt (tests/export/demo/test_packing.py). B clips, N visual tokens, K questions, L tokens of the longest,
V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from export.demo.tiny import VOCABULARY
from export.scenes.questions import Question

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration

ATTENTION = "gridpool_blocked"  # the name that transformers knows `blocked_attention` by
BLOCK = 128  # queries at a time
LENGTH = 13  # tokens of the longest question with its answer, checked where it is used
_IGNORED = -100
_WORD = {word: n for n, word in enumerate(VOCABULARY)}


@dataclass(frozen=True)
class Packed:
    """ids [B, K, L] of questions with answers; targets [B, K, L], the next id at the answer and at its end, else -100."""

    ids: torch.Tensor
    targets: torch.Tensor


def pack(questions: list[list[Question]], count: int) -> Packed:
    """Questions of B clips, padded to `count` each; a missing one has no targets."""
    ids = torch.zeros(len(questions), count, LENGTH, dtype=torch.int64)
    targets = torch.full_like(ids, _IGNORED)
    for clip, asked in enumerate(questions):
        for n, question in enumerate(asked):
            words = [*question.question.split(), "<|im_end|>", "<|im_start|>", "assistant"]
            tokens = [_WORD[word] for word in [*words, question.answer, "<|im_end|>"]]
            ids[clip, n, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            targets[clip, n, len(words) - 1 : len(tokens) - 1] = torch.tensor(tokens[len(words) :])
    return Packed(ids, targets)


def blocked_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention as plain matrix products. Under a mask, which must hide the future, BLOCK queries at a time over the keys that they
    can see, with each key head's queries side by side. On a CPU the backward pass of the library's kernel reads everything,
    slowly; with this one a training step takes about half the time.

    query [B, heads, S, d], key and value [B, key heads, S, d], attention_mask [1 or B, 1, S, S] or None -> [B, S, heads, d].
    """
    clips, heads, length, size = query.shape
    groups = heads // key.shape[1]
    query = (query * scaling).unflatten(1, (-1, groups))
    out = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        visible = length if attention_mask is None else end
        rows = query[:, :, :, start:end].reshape(-1, groups * (end - start), size)
        keys = key[:, :, :visible].flatten(0, 1).transpose(1, 2)
        if attention_mask is None:
            scores = torch.bmm(rows, keys)
        else:
            bias = attention_mask[:1, 0, start:end, :visible].repeat(1, groups, 1).to(rows.dtype)
            scores = torch.baddbmm(bias.expand(len(rows), -1, -1), rows, keys)
        seen = torch.bmm(scores.softmax(-1), value[:, :, :visible].flatten(0, 1))
        out.append(seen.unflatten(1, (groups, -1)).unflatten(0, (clips, -1)))
    return torch.cat(out, dim=3).flatten(1, 2).transpose(1, 2), None


def use_blocked_attention(model: LlavaOnevisionForConditionalGeneration) -> None:
    """Let the model attend with `blocked_attention`; it is saved as it was."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, blocked_attention)
    model.model.language_model.config._attn_implementation = ATTENTION
    model.model.vision_tower.config._attn_implementation = ATTENTION


def answer_logits(
    model: LlavaOnevisionForConditionalGeneration, visual: torch.Tensor, packed: Packed
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits [P, V] float32 and targets [P]) of the P positions that have a target, in the order of clips and questions;
    visual tokens [B, N, D] without the newline."""
    llm = model.model.language_model
    clips, device = visual.shape[0], visual.device
    embed = llm.get_input_embeddings()
    head = embed(torch.tensor([_WORD["<|im_start|>"], _WORD["user"]], device=device)).expand(clips, -1, -1)
    newline = model.model.image_newline.expand(clips, 1, -1)
    text = embed(packed.ids.flatten(1))
    hidden = torch.cat([part.to(visual.dtype) for part in (head, visual, newline, text)], dim=1)
    count, length = packed.ids.shape[1:]
    prefix = visual.shape[1] + 3
    total = prefix + count * length
    visible = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    visible[prefix:, prefix:] &= torch.block_diag(*[torch.ones(length, length)] * count).bool().to(device)
    bias = torch.zeros(total, total, dtype=visual.dtype, device=device)
    bias = bias.masked_fill(~visible, torch.finfo(visual.dtype).min)[None, None].expand(clips, 1, -1, -1)
    positions = torch.cat([torch.arange(prefix), prefix + torch.arange(length).repeat(count)]).to(device)
    out = llm(
        inputs_embeds=hidden, attention_mask=bias, position_ids=positions.expand(clips, -1), use_cache=False
    ).last_hidden_state[:, prefix:]
    targets = packed.targets.flatten(1)
    asked = targets != _IGNORED
    return model.lm_head(out[asked]).float(), targets[asked]
