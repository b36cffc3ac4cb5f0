"""The command line: time slices over the kinds, progress on stderr, results as JSON and a table.

Each slice goes to the kind that is furthest behind its share. The time to prepare a kind (imports, its corpus) is not counted.
Exit code 1 where something was found.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from benchmarks.campaign import findings, report
from benchmarks.campaign.kinds import kinds
from benchmarks.campaign.run import Kind, Run, log
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.verdicts import ROOT

SLICE = 45.0  # seconds


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    os.nice(max(0, args.nice - os.nice(0)))
    folder = args.out or ROOT / "build" / "campaign" / f"seed-{args.seed}"
    run, chosen = Run(folder.resolve(), args.seed), kinds()
    os.environ["XDG_CACHE_HOME"] = str(run.folder / "cache")
    if args.replay:
        return _replay(run, chosen, args.replay, args.only)
    if args.results:
        report.write_results(run.state)
        return 0
    unknown = sorted(set(args.only) - chosen.keys())
    if unknown:
        raise SystemExit(f"no kind {', '.join(unknown)}; known: {', '.join(chosen)}")
    campaign(run, {name: kind for name, kind in chosen.items() if not args.only or name in args.only}, args.minutes * 60)
    (run.folder / "results.json").write_text(json.dumps(run.state.as_dict(), indent=1) + "\n")
    (run.folder / "results.md").write_text(report.tables(run.state) + "\n")
    print(report.tables(run.state))
    return 1 if run.state.findings else 0


def campaign(run: Run, chosen: dict[str, Kind], seconds: float, slice_seconds: float = SLICE) -> None:
    """Work for `seconds`; kinds that can't run here are named once and left out."""
    left = {}
    for name, kind in chosen.items():
        reason = kind.lacking()
        if reason:
            run.state.skipped[name] = reason
            log(f"{name} is left out: {reason}")
        else:
            left[name] = kind
    prepared: set[str] = set()
    while left and seconds > 0:
        name = min(left, key=lambda name: run.counts(name)["seconds"] / left[name].share)
        if name not in prepared:
            left[name].prepare(run)
            prepared.add(name)
        began = time.monotonic()
        stop = began + min(seconds, slice_seconds)
        left[name].slice(run, lambda _: time.monotonic() >= stop)  # noqa: B023 - called within this turn
        spent = time.monotonic() - began
        seconds -= spent
        run.counts(name)["seconds"] += round(spent, 1)  # type: ignore[assignment]
        run.state.save()
        log(f"{name}: {report.line(run.counts(name))}; {max(0.0, seconds) / 60:.0f} min left")


def _replay(run: Run, chosen: dict[str, Kind], what: str, only: list[str]) -> int:
    """One input again; prints its fault."""
    name, _, index = what.rpartition(":")
    if name in chosen and index.isdecimal():
        kind = chosen[name]
        kind.prepare(run)
        case = kind.make(run, int(index))
    else:
        recorded, data, suffix = findings.read(Path(what))
        if not (recorded or only):
            raise SystemExit(f"{what} has no finding.json beside it; say its kind with --only KIND")
        kind, case = chosen[only[0] if only else str(recorded)], Case(data, suffix)
        kind.prepare(run)
    fault = kind.replay(run, case)
    print(f"{fault.signature}\n{fault.detail}" if fault else "no fault")
    return 1 if fault else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Mutated inputs, killed runs, full disks and hostile clients, from a seed.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND", help=f"of {', '.join(kinds())}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="state, corpus and findings (default: build/campaign/seed-N)")
    parser.add_argument("--replay", metavar="KIND:INDEX|FILE", help="run one input again and say what is wrong with it")
    parser.add_argument(
        "--results", action="store_true", help="write the table of DIR into benchmarks/results/campaign.md, and stop"
    )
    parser.add_argument("--nice", type=int, default=19)
    return parser
