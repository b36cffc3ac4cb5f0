"""A bundle of the other kind: compression before the projector, a select stage last, no LLM."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def selecting_bundle(tmp_path_factory: pytest.TempPathFactory):
    from export.options import ExportOptions
    from export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "selecting"
    return export_bundle(
        ExportOptions(out=str(out), compress="st-gridpool-8x", place="before-projector", only="vision", frames=12)
    ).bundle
