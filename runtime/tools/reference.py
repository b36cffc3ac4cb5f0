"""Reading `reference/`: the fixed input of a bundle and what torch computed for it, in Polygraphy's formats.

T frames, h, w pixels, D hidden, V vocabulary, n visual tokens of the LLM's reference prompt.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import BundleError, missing_package
from runtime.prompt import PromptIds


@dataclass(frozen=True)
class LLMReference:
    """ids: the prompt around visual_tokens [n, D]; logits [V] after it; greedy ids, each with its margin over the best other one.

    rounding: what float32 alone does to these logits, as `error` of runtime.tools.compare; 0 in bundles that did not measure it.
    """

    ids: PromptIds
    visual_tokens: np.ndarray
    logits: np.ndarray
    greedy: list[int]
    margins: list[float]
    rounding: float = 0.0


def clip(bundle: Bundle) -> np.ndarray:
    """The reference clip as the vision graph takes it: pixel values float32 [T, 3, h, w], or frames uint8 [T, h, w, 3].

    Polygraphy's JSON holds an array as the base64 of a .npy file. It is read here without Polygraphy, which would import
    torch where that is installed: a measurement of this runtime must not carry torch along.
    """
    path = bundle.file("reference/inputs.json")
    try:
        (feed,) = json.loads(path.read_text())
        (value,) = feed.values()
        array = np.load(io.BytesIO(base64.b64decode(value["array"])), allow_pickle=False)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is no list of one feed with one input ({error!r}); export the bundle again") from None
    return array


def outputs(bundle: Bundle, name: str) -> dict[str, np.ndarray]:
    """The arrays of reference/<name>.json: "torch" (the graph's outputs) or "stages" (each flattened and thinned)."""
    path = bundle.file(f"reference/{name}.json")
    with quiet_polygraphy():
        from polygraphy.comparator import RunResults

        results = RunResults.load(str(path))
        ((_, (iteration,)),) = results.lst
        return {key: np.asarray(array) for key, array in iteration.items()}


def llm(bundle: Bundle) -> LLMReference:
    """What transformers' own LLM answered."""
    facts = json.loads(bundle.file("reference/llm.json").read_text())
    return LLMReference(
        PromptIds(facts["before"], facts["after"]),
        _array(bundle, "reference/llm_visual_tokens.npy"),
        _array(bundle, "reference/llm_logits.npy"),
        facts["greedy"],
        facts["margins"],
        facts.get("rounding", 0.0),
    )


@contextmanager
def quiet_polygraphy() -> Iterator[None]:
    """Polygraphy imported and silent: it logs to stdout, where results stand alone."""
    try:
        from polygraphy.logger import G_LOGGER
    except ImportError:
        raise missing_package("polygraphy", "reading the reference outputs", "runtime") from None
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield


def _array(bundle: Bundle, name: str) -> np.ndarray:
    path: Path = bundle.file(name)
    return np.load(path)
