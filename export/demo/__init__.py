"""The small LLaVA-OneVision that ships with the package: its checkpoint, its sample clips, and how it was trained on export/scenes.

CHECKPOINT    a Hugging Face directory, loaded by the same code as any other
CLIPS         H.264 files, each with a JSON file beside it: {"clip", "seed", "questions": [{"kind", "question", "answer"}]}

    tiny.py       the untrained model and its tokenizer               warmup.py, mix.py, recipe.py, train.py      training it
    packing.py    many questions in one pass                          evaluate.py   counting right answers
    clips.py      generated clips as video files
"""

from __future__ import annotations

from pathlib import Path

from export.checkpoint import SHIPPED

CHECKPOINT = SHIPPED
CLIPS = Path(__file__).parent / "clips"
