"""The tables of a campaign: counts by kind against the goal, and what was found."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping

from benchmarks.campaign.state import State
from benchmarks.campaign.verdicts import ROOT

GOALS = {"inputs": 100_000, "kills": 1_000, "interrupts": 500, "full disks": 50, "requests": 100_000}
_UNITS = (*GOALS, "executions")  # libFuzzer's, of functions: no goal counts them


def line(counts: Mapping[str, float]) -> str:
    """What a kind has done so far."""
    done = ", ".join(f"{int(counts[unit]):,} {unit}" for unit in _UNITS if counts.get(unit))
    return f"{done or 'nothing yet'}, {int(counts.get('findings', 0))} with findings"


def tables(state: State) -> str:
    """Markdown: a row a kind, a row a goal, a row a finding."""
    rows = ["| kind | done | minutes | findings |", "|---|--:|--:|--:|"]
    kinds_of_findings = Counter(key.partition(":")[0] for key in state.findings)
    for kind, counts in state.counts.items():
        done = ", ".join(f"{int(counts[unit]):,} {unit}" for unit in _UNITS if counts.get(unit))
        rows.append(f"| {kind} | {done} | {counts.get('seconds', 0) / 60:.0f} | {kinds_of_findings[kind]} |")
    rows += [f"| {kind} | left out: {reason} | | |" for kind, reason in state.skipped.items()]
    rows += ["", "| in all | done | goal | met |", "|---|--:|--:|--:|"]
    for unit, goal in GOALS.items():
        done = int(sum(counts.get(unit, 0) for counts in state.counts.values()))
        rows.append(f"| {unit} | {done:,} | {goal:,} | {'yes' if done >= goal else 'no'} |")
    if state.findings:
        rows += ["", "| finding | times | first |", "|---|--:|---|"]
        for key, finding in state.findings.items():
            rows.append(f"| {key.replace('|', '/')} | {finding['times']:,} | {finding['id']} |")
    else:
        rows += ["", "Nothing was found."]
    return "\n".join(rows)


def write_results(state: State) -> None:
    """Write the tables between their markers in results/campaign.md, under the command that makes such a run, and the machine."""
    script = ROOT / "benchmarks" / "campaign.py"
    minutes = round(sum(counts.get("seconds", 0) for counts in state.counts.values()) / 60)
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), "--seed", str(state.seed), "--minutes", str(minutes)]  # what the section is stamped with
    from harness import write_section

    write_section("campaign", f"One process, {minutes} minutes in all.\n\n{tables(state)}")
