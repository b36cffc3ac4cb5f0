"""What `python -m export --list` shows: families, presets, and the stages with their options."""

from __future__ import annotations

from typing import Any

from export.compress import presets, stage_options
from export.families import FAMILIES, family


def options_table() -> dict[str, Any]:
    """{"families": {name: published checkpoint}, "presets": {name: spec}, "stages": {name: {option: default}}}."""
    return {
        "families": {name: family(name).HUB_ID for name in FAMILIES},
        "presets": presets(),
        "stages": stage_options(),
    }


def listing_text() -> str:
    """The same for a person."""
    table = options_table()
    lines = ["families"]
    lines += [f"  {name:<14} {hub}" for name, hub in table["families"].items()]
    lines.append("presets")
    lines += [f"  {name:<14} {spec}" for name, spec in table["presets"].items()]
    lines.append("stages (a spec is stage[:key=value,...][+stage...])")
    for name, options in table["stages"].items():
        lines.append(f"  {name:<14} " + ", ".join(f"{key}={value}" for key, value in options.items()))
    return "\n".join(lines)
