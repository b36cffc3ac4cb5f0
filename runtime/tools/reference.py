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

import numpy as np

from runtime.bundle import Bundle
from runtime.bundle.files import read_array
from runtime.core.errors import BundleError, missing_package
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
    except Exception as error:  # NumPy's header parser raises errors of many kinds
        raise BundleError(f"{path} is not a list of one feed with one input ({_line(error)}); export the bundle again") from None
    return array


def outputs(bundle: Bundle, name: str, needed: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of reference/<name>.json: "torch" (the graph's outputs) or "stages" (each flattened and thinned).

    needed: one that must be among them.
    """
    path = bundle.file(f"reference/{name}.json")
    with quiet_polygraphy():
        from polygraphy.comparator import RunResults

        try:
            ((_, (iteration,)),) = RunResults.load(str(path)).lst
            arrays = {str(key): np.asarray(array) for key, array in iteration.items()}
        except Exception as error:  # Polygraphy's, and those of what it calls
            raise BundleError(f"{path} does not hold Polygraphy's results ({_line(error)}); export the bundle again") from None
    if needed is not None and needed not in arrays:
        raise BundleError(f"{path} has no {needed}; export the bundle again")
    for key, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise BundleError(f"{path}: {key} holds {array.dtype}, expected numbers; export the bundle again")
    return arrays


def llm(bundle: Bundle) -> LLMReference:
    """What transformers' LLM answered."""
    path = bundle.file("reference/llm.json")
    try:
        values = json.loads(path.read_text())
        before, after, greedy = ([_id(one) for one in values[key]] for key in ("before", "after", "greedy"))
        margins = [float(one) for one in values["margins"]]
        rounding = float(values.get("rounding", 0.0))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{path} does not hold lists of ids and margins ({_line(error)}); export the bundle again") from None
    if len(greedy) != len(margins):
        raise BundleError(f"{path} has {len(greedy)} greedy ids and {len(margins)} margins; export the bundle again")
    visual_tokens = np.asarray(read_array(bundle.file("reference/llm_visual_tokens.npy"), 2))
    logits = np.asarray(read_array(bundle.file("reference/llm_logits.npy"), 1))
    return LLMReference(PromptIds((before, after)), visual_tokens, logits, greedy, margins, rounding)


@contextmanager
def quiet_polygraphy() -> Iterator[None]:
    """Polygraphy imported and silent: it logs to stdout, where results stand alone."""
    try:
        from polygraphy.logger import G_LOGGER
    except ImportError:
        raise missing_package("polygraphy", "reading the reference outputs", "runtime") from None
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):  # what is critical it raises as well
        yield


def _id(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r} is not a token id")
    return value


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
