"""The small LLaVA-OneVision that ships with the package: its checkpoint, its sample clips, and the world they come from.

CHECKPOINT    a Hugging Face directory, loaded by the same code as any other
CLIPS         H.264 files, each with a JSON file beside it: {"clip", "seed", "questions": [{"kind", "question", "answer"}]}
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
CLIPS = Path(__file__).parent / "clips"
