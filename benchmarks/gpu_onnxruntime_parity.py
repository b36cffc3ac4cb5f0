"""Does ONNX Runtime's CUDA provider compute what torch computed, and which nodes does it leave to the CPU?

Parity is `python -m runtime parity --backend onnx --device cuda` over demo bundles in fp32 and fp16, of every variant of attention.
Placement is read from ONNX Runtime's own profile of one run: the provider of every node, and the copies put between them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from gpu_onnxruntime_report import Report
from gpu_onnxruntime_sessions import CPU, CUDA, clip_for, session
from harness import log, table

GRAPHS = ("vision", "llm/decoder", "llm/decoder.batch")
_COPIES = ("MemcpyFromHost", "MemcpyToHost")


def parity_of(args: argparse.Namespace, report: Report) -> None:
    for directory in args.bundles:
        report.attempt(f"parity of {directory.name}", lambda directory=directory: _parity(directory, args.device, report))


def _parity(directory: Path, device: str, report: Report) -> None:
    from runtime.bundle import Bundle
    from runtime.engine import EngineOptions
    from runtime.tools.parity import parity

    log(f"parity of {directory.name}")
    result = parity(Bundle.open(directory), ["onnx"], EngineOptions(device=device))
    rows = [[row.stage, f"{row.error:.1e}", f"{row.tolerance:.0e}", "yes" if row.ok else "**no**", row.note] for row in result.rows]
    text = table(("stage", "error", "allowed", "ok", "note"), rows)
    report.section(f"parity of {directory.name} on {device}", text, result.as_dict())
    if not result.ok:
        wrong = [row.stage for row in result.rows if not row.ok]
        report.failed(f"verdict on {directory.name}", f"not within tolerance: {', '.join(wrong) or 'nothing was compared'}")


def placement_of(args: argparse.Namespace, report: Report) -> None:
    rows, numbers = [], {}
    for directory in args.bundles:
        for graph in GRAPHS:
            if not (directory / f"{graph}.onnx").exists():  # a filled bundle has no graph for a batch
                continue
            name = f"{directory.name} {graph}"
            found = report.attempt(f"placement of {name}", lambda d=directory, g=graph: placement(d, g, args.device))
            if found is not None:
                numbers[name] = found
                rows.append([name, found["cuda"], found["cpu"], found["copies"], _words(found["on the CPU"])])
    text = table(("graph", "nodes on CUDA", "on the CPU", "copies", "operators on the CPU"), rows)
    report.section("where the nodes run", text, numbers)


def placement(directory: Path, graph: str, device: str) -> dict[str, Any]:
    """Nodes by provider in one run of `graph`, after ONNX Runtime's optimisations."""
    from runtime.bundle import Bundle

    log(f"placement of {directory.name} {graph}")
    bundle = Bundle.open(directory)
    with tempfile.TemporaryDirectory() as folder:
        made = session(bundle.model(graph), device, profile=Path(folder) / "profile")
        _run_once(bundle, graph, made, device)
        events = json.loads(Path(made.end_profiling()).read_text(encoding="utf-8"))
    return placement_from_profile(events)


def placement_from_profile(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Nodes of a profile by provider; the copies between host and device are counted apart."""
    nodes = {  # a node that ran twice is one
        (event["name"], event["args"].get("node_index")): (event["args"]["op_name"], event["args"]["provider"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event.get("args", {}).get("provider")
    }
    copies = Counter(operator for operator, _ in nodes.values() if operator in _COPIES)
    rest = [(operator, provider) for operator, provider in nodes.values() if operator not in _COPIES]
    return {
        "cuda": sum(provider == CUDA for _, provider in rest),
        "cpu": sum(provider == CPU for _, provider in rest),
        "copies": sum(copies.values()),
        "copies by kind": dict(copies),
        "on the CPU": dict(Counter(operator for operator, provider in rest if provider == CPU).most_common()),
        "on CUDA": dict(Counter(operator for operator, provider in rest if provider == CUDA).most_common()),
    }


def _run_once(bundle: Any, graph: str, made: Any, device: str) -> None:
    from runtime.engine.onnx import OnnxEngine
    from runtime.llm.decoder import LocalDecoder
    from runtime.llm.slots import SlotDecoder

    engine: Any = OnnxEngine(made, device)
    if graph == "vision":
        engine.run(clip_for(made, bundle))
        return
    prompt = np.random.default_rng(0).normal(0, 0.1, (9, bundle.manifest.hidden_size)).astype(np.float32)
    if graph == "llm/decoder":
        conversation = LocalDecoder(bundle, engine).conversation()
        conversation.extend(prompt[None, :8])
        conversation.extend(prompt[None, 8:])
        return
    slots = SlotDecoder(bundle, engine, 2)
    slots.extend(0, prompt[:3])
    slots.extend(1, prompt[:5])
    slots.step([0, 1], prompt[7:9])


def _words(operators: dict[str, int]) -> str:
    shown = [f"{count} {name}" for name, count in list(operators.items())[:12]]
    return ", ".join([*shown, f"{len(operators) - 12} more kinds"] if len(operators) > 12 else shown)
