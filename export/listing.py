"""What `python -m export --list` shows: families, presets, and the stages with their options."""

from __future__ import annotations

from typing import Any

from export.compress import presets, stage_help, stage_options
from export.families import FAMILIES, family


def options_table() -> dict[str, Any]:
    """{"families": {name: published checkpoint}, "presets": {name: spec}, "stages": {name: {option: default}}}."""
    return {
        "families": {name: family(name).HUB_ID for name in FAMILIES},
        "presets": presets(),
        "stages": {name: {option.name: option.default for option in options} for name, options in stage_options().items()},
    }


def listing_text() -> str:
    """The same for a person, with a line on what each stage and option does."""
    lines = ["families"]
    lines += [f"  {name:<16}{family(name).HUB_ID}" for name in FAMILIES]
    lines.append("presets")
    lines += [f"  {name:<16}{spec}" for name, spec in presets().items()]
    lines.append("stages (a spec is stage[:key=value,...][+stage...], lists with /)")
    for name, text in stage_help().items():
        lines.append(f"  {name:<16}{text}")
        lines += [f"    {option.name + '=' + option.default:<20}{option.help}" for option in stage_options()[name]]
    return "\n".join(lines)
