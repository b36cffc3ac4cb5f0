"""What `python -m export --list` shows: families, presets, and the stages with their options."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any

from export.compress import STAGES, presets
from export.families import FAMILIES, family
from plugins.spec import format_value


def options_table() -> dict[str, Any]:
    """{"families": {name: published checkpoint}, "presets": {name: spec}, "stages": {name: {option: default}}}."""
    return {
        "families": {name: family(name).HUB_ID for name in FAMILIES},
        "presets": presets(),
        "stages": {name: {f.name: format_value(f.default) for f in fields(stage.Options)} for name, stage in STAGES.items()},
    }


def listing_text() -> str:
    """The same for a person, with a line on what each stage and option does."""
    lines = []
    for title in ("families", "presets"):
        lines += [title, *(f"  {name:<16}{text}" for name, text in options_table()[title].items())]
    lines.append("stages (a spec is stage[:key=value,...][+stage...], lists with /)")
    for name, stage in STAGES.items():
        about = (sys.modules[stage.__module__].__doc__ or "").partition("\n")[0]
        lines.append(f"  {name:<16}{about}")
        lines += [f"    {f.name + '=' + format_value(f.default):<20}{f.metadata['help']}" for f in fields(stage.Options)]
    return "\n".join(lines)
