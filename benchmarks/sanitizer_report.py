"""A command's output -> a verdict. What counts is what a report says, never that it says nothing.

A run passes where the program says how much it did, ended well, and, under compute-sanitizer, where the tool wrote a summary
without an error. A planted fault passes where the tool reports it in the words that it has for that fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PASSED, WRONG, MISSING = "passed", "wrong", "missing"
TOOLS = ("memcheck", "racecheck", "initcheck")  # synccheck found no fault that was planted for it on an H200, so it shows nothing

# what each tool calls the fault that is planted for it, and the leak; not a summary, which also counts other faults
PLANTED = {
    "memcheck": r"Invalid __global__ write",
    "racecheck": r"Race reported|hazard",
    "initcheck": r"Uninitialized __global__ memory read",
}
LEAK = r"Leaked [\d,]+ bytes"

_SUMMARIES = (r"ERROR SUMMARY: (\d+) errors?", r"RACECHECK SUMMARY: (\d+) hazards? displayed", r"LEAK SUMMARY: (\d+) bytes leaked")
_NOTHING_RAN = "terminated before first instrumented API call"
_NO_KERNEL = "terminated before first instrumented kernel launch"
_CHATTER = re.compile(r"COMPUTE-SANITIZER|SUMMARY|Saved host backtrace|Host Frame|^\s*(at |by |in )|^\s*$")


@dataclass(frozen=True)
class Verdict:
    """verdict: PASSED, WRONG or MISSING; words: what was seen, one line."""

    verdict: str
    words: str


def found_by_sanitizer(text: str) -> int | None:
    """Errors, hazards and leaked bytes that compute-sanitizer counted; None where it counted nothing, not even none."""
    counts = [int(count) for pattern in _SUMMARIES for count in re.findall(pattern, text)]
    return sum(counts) if counts else None


def first_words(text: str, pattern: str = "") -> str:
    """What compute-sanitizer says of the first thing that it found, of those that the pattern describes; "" where of none."""
    lines = [line.removeprefix("=========").strip() for line in text.splitlines() if line.startswith("=========")]
    return next((line for line in lines if not _CHATTER.search(line) and re.search(pattern, line)), "")


def judged(text: str, status: int, tool: str, proof: str, planted: str = "", kernels: bool = True) -> Verdict:
    """status: the exit status; proof: pattern whose first group is how much the program did, "" where it does not say.

    planted: pattern of the words in which the tool must report a planted fault, "" where there is none.
    kernels: whether the program launches kernels; one that does must not go unseen by the tool.
    """
    found = found_by_sanitizer(text) if tool else None
    if not kernels and _NO_KERNEL in text:
        found = found or 0
    if tool and (_NOTHING_RAN in text or (kernels and _NO_KERNEL in text)):
        return Verdict(WRONG, f"nothing ran on the GPU under {tool}: {_last(text)}")
    if tool and found is None:
        return Verdict(WRONG, f"{tool} wrote no summary, exit status {status}: {_last(text)}")
    if planted:
        words = first_words(text, planted)
        if found and words:
            return Verdict(PASSED, f"found: {words}")
        other = f", but: {first_words(text) or 'no words'}" if found else ""
        return Verdict(WRONG, f"{tool} did not find the planted fault{other}")
    if found:
        return Verdict(WRONG, f"{found} found by {tool}: {first_words(text) or 'no words'}")
    if status:
        return Verdict(WRONG, f"exit status {status}: {_last(text)}")
    done = re.search(proof, text, re.MULTILINE) if proof else None
    if proof and (not done or not int(done[1])):
        return Verdict(WRONG, f"it did not do all that it should: {_last(text)}")
    words = [f"{tool}: 0 errors"] if tool else []
    return Verdict(PASSED, "; ".join([*words, done.group(0).strip() if done else "exit status 0"]))


def _last(text: str) -> str:
    """What the program says of its failure, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("=========")]
    failures = [line for line in lines if re.match(r"WRONG|FAILED|ERROR|error:|case \d+: ", line)]
    return [*failures, *lines[-1:], "no output"][0][:300]
