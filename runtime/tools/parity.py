"""Does an engine compute what torch computed? A table, stage by stage, judged by Polygraphy's comparator.

In: a bundle's `reference/` (input, torch's stages and tokens, transformers' logits and greedy ids) and the backends to compare with it.
Out: one row a stage and backend.

A float16 bundle is also computed with arithmetic that rounds where the graph says float16, which ONNX Runtime's CPU provider
does not do (runtime/tools/float16.py): the rows "… (float16)".

error = max |got - expected| / max |expected|, see runtime/tools/compare.py, where the tolerances are too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from runtime.bundle import DECODER, VISION, Bundle
from runtime.core.errors import BundleError, EngineError, UserError
from runtime.core.progress import step
from runtime.engine import BACKENDS, EngineOptions, backend_class, placed
from runtime.llm.decoder import LocalDecoder
from runtime.prompt import Prompt
from runtime.tools import reference
from runtime.tools.compare import Row
from runtime.tools.llm_rows import compare_llm
from runtime.tools.table import table
from runtime.tools.vision_rows import compare_vision


@dataclass(frozen=True)
class ParityReport:
    """rows in the order of the data's way, backend by backend; not_run: {backend: why it can't run here}."""

    bundle: str
    precision: str
    rows: tuple[Row, ...]
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether something was compared and all of it was within tolerance."""
        return bool(self.rows) and all(self.rows)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok, "rows": [row.as_dict() for row in self.rows]}


def parity(bundle: Bundle, backends: Sequence[str] = (), options: EngineOptions = EngineOptions()) -> ParityReport:
    """Compare every stage of `bundle` on each of `backends`; () for all backends, of which those that can't run are listed.

    A backend that was named and can't run is an EngineError.
    """
    rows: list[Row] = []
    not_run: dict[str, str] = {}
    for backend in dict.fromkeys(backends or BACKENDS):
        kind = backend_class(backend)
        # --device is for backends that have the choice; TensorRT has only the GPU
        only_gpu = backend.startswith("tensorrt")
        here = replace(options, device="cuda") if only_gpu else placed(bundle, backend, options)
        try:
            if not backends and (reason := kind.unavailable(here.device)) is not None:
                raise EngineError(reason)
            rows += _compare_backend(bundle, backend, here)
        except UserError as error:
            if backends or isinstance(error, BundleError):
                raise
            not_run[backend] = str(error)
    return ParityReport(str(bundle.path), bundle.manifest.precision, tuple(rows), not_run)


def text(report: ParityReport) -> str:
    """The table for people."""
    rows = []
    for row in report.rows:
        numbers = [f"{row.max_abs:.1e}", f"{row.error:.1e}", f"{row.tolerance:.0e}"]
        rows.append([row.stage, row.backend, "×".join(map(str, row.shape)), *numbers, "ok" if row.ok else "FAIL", row.note])
    note = "note" if any(row.note for row in report.rows) else ""
    header = ["stage", "backend", "shape", "max abs", "error", "allowed", "", note]
    lines = [table(header, rows, right=(3, 4, 5))] if rows else []
    lines += [f"{backend} was not run: {reason}" for backend, reason in report.not_run.items()]
    failed = [f"{row.stage} on {row.backend}" for row in report.rows if not row]
    if not report.rows:
        verdict = "nothing was compared"
    elif failed:
        verdict = f"{len(failed)} of {len(report.rows)} stages differ from torch, the first is {failed[0]}"
    else:
        verdict = f"all {len(report.rows)} stages agree with torch ({report.precision})"
    return "\n".join([*lines, verdict])


def _compare_backend(bundle: Bundle, backend: str, options: EngineOptions) -> list[Row]:
    rows: list[Row] = []
    if bundle.has(VISION):
        with step(f"comparing the vision encoder on {backend}"):
            rows += compare_vision(bundle, backend, options)
    if bundle.has(DECODER):
        with step(f"comparing the LLM on {backend}"):
            decoder = LocalDecoder.open(bundle, backend, options)
            try:
                rows += compare_llm(decoder, Prompt(bundle), reference.llm(bundle), bundle.manifest.llm_precision)
            finally:
                decoder.engine.close()
        if backend == "onnx" and bundle.manifest.llm_precision == "fp16":
            from runtime.tools import float16_rows

            with step("computing the LLM in float16"):
                rows += float16_rows.compare_llm_float16(bundle, reference.llm(bundle))
    return rows
