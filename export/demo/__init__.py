"""The small LLaVA-OneVision that ships with the package: its checkpoint, its sample clips, and the world they come from.

CHECKPOINT    a Hugging Face directory, loaded by the same code as any other
CLIPS         H.264 files, each with a JSON file beside it: {"clip", "seed", "questions": [{"kind", "question", "answer"}]}

    world.py      what happens in a clip, and what can be asked       draw.py       its pictures and labels       clips.py    as files
    tiny.py       the untrained model and its tokenizer               warmup.py, mix.py, recipe.py, train.py      training it
    packing.py    many questions in one pass                          evaluate.py   counting right answers
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
CLIPS = Path(__file__).parent / "clips"
