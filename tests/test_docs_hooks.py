"""What makes the site of the pages: links between files, the diagram of the imports, lists of docstrings."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _hooks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("export.md", "[a](../benchmarks/results/speed.md#b)", "[a](results/speed.md#b)"),
        ("results/speed.md", "![a](../speed.png)", "![a](speed.png)"),
        ("results/accuracy.md", "[a](../../docs/compression.md)", "[a](../compression.md)"),
        ("index.md", "[a](docs/plugin.md)", "[a](plugin.md)"),
        ("cpp.md", "[gridpool.h](../runtime/cpp/include/gridpool/gridpool.h)", "gridpool.h"),
        ("cpp.md", "[gone](../runtime/gone.h)", "[gone](../runtime/gone.h)"),
        ("cpp.md", "[a](https://example.org/b.md)", "[a](https://example.org/b.md)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(page, link, expected):
    import repository_pages

    assert repository_pages.site_links(link, page) == expected


def test_an_import_that_others_imply_is_left_out():
    import architecture_diagram

    edges = {("chat", "llm"), ("llm", "core"), ("chat", "core"), ("chat", "media")}
    assert architecture_diagram.reduced(edges) == {("chat", "llm"), ("llm", "core"), ("chat", "media")}


def test_a_package_without_a_box_is_named(monkeypatch):
    import architecture_diagram

    boxes = {top: dict(units) for top, units in architecture_diagram.BOXES.items()}
    del boxes["runtime"]["media"]
    monkeypatch.setattr(architecture_diagram, "BOXES", boxes)
    with pytest.raises(ValueError, match=r"runtime\.media"):
        architecture_diagram.imports()


def test_lists_of_docstrings_become_lists():
    import docstring_lists

    text = "What.\n\n  frames    T, of\n            bundles/<model>\n  place     where\nAfter `a < b`."
    assert docstring_lists.as_lists(text) == (
        "What.\n\n\n- `frames`: T, of\n  bundles/&lt;model>\n- `place`: where\n\nAfter `a < b`."
    )
