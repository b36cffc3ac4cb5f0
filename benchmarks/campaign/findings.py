"""Findings on disk: `DIR/findings/KIND-NUMBER/` with the minimised input, finding.json, and what the program printed.

Equal findings, by kind and signature, are counted once more and not stored again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.campaign.state import State
from benchmarks.campaign.verdicts import Fault

INPUT = "input"


def store(state: State, kind: str, index: int, fault: Fault, data: bytes, suffix: str = "") -> Path | None:
    """Store a finding; None if there is one like it already, which is then counted."""
    key = f"{kind}: {fault.signature}"
    if key in state.findings:
        state.findings[key]["times"] += 1
        return None
    root = state.file.parent / "findings"
    number = 1 + max((int(found[1]) for path in root.glob(f"{kind}-*") if (found := re.search(r"-(\d+)$", path.name))), default=0)
    folder = root / f"{kind}-{number:03d}"
    folder.mkdir(parents=True)
    (folder / f"{INPUT}{suffix}").write_bytes(data)
    finding = {
        "id": f"{kind}:{index}",
        "kind": kind,
        "what": fault.what,
        "place": fault.place,
        "seed": state.seed,
        "input": f"{INPUT}{suffix}",
        "bytes": len(data),
        "replay": f"python benchmarks/campaign.py --seed {state.seed} --replay {folder / (INPUT + suffix)}",
    }
    (folder / "finding.json").write_text(json.dumps(finding, indent=1) + "\n")
    (folder / "output.txt").write_text(fault.detail)
    state.findings[key] = {"id": finding["id"], "folder": folder.name, "times": 1}
    return folder


def known(state: State, kind: str, fault: Fault) -> bool:
    return f"{kind}: {fault.signature}" in state.findings


def read(path: Path) -> tuple[str | None, bytes, str]:
    """(kind, if a finding.json beside it names one; bytes; suffix) of a file to replay."""
    finding = path.parent / "finding.json"
    kind = json.loads(finding.read_text())["kind"] if finding.exists() else None
    return kind, path.read_bytes(), "".join(path.suffixes)
