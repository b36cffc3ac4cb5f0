"""Pages and pictures outside docs/ become part of the site, and links between files of the repository become links of the site.

Every Markdown file keeps the links that work in a checkout (`../benchmarks/RESULTS.md`). While the site is built, a link to a file that
has a page there is pointed at the page; a link to any other file of the repository, such as a header, is left as its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
OUTSIDE = {  # path in the repository -> path in the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "export/demo/checkpoint/README.md": "demo-checkpoint.md",
    "benchmarks/RESULTS.md": "results/index.md",
    **{f"benchmarks/results/{page.name}": f"results/{page.name}" for page in RESULTS.glob("*.md")},
    **{f"benchmarks/{picture.name}": f"results/{picture.name}" for picture in RESULTS.parent.glob("*.png")},
}
_LINK = re.compile(r"(?P<text>\[[^\]\n]*\])\((?P<path>[^():#\s]+)(?P<anchor>#[^()\s]*)?\)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    for path, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return site_links(markdown, page.file.src_uri)


def site_links(markdown: str, uri: str) -> str:
    """The text of the page at `uri` of the site, its links those of the site."""
    source = next((path for path, at in OUTSIDE.items() if at == uri), f"docs/{uri}")

    def replaced(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        at = OUTSIDE.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if at:
            return f"{link['text']}({posixpath.relpath(at, posixpath.dirname(uri) or '.')}{link['anchor'] or ''})"
        return link["text"][1:-1] if (ROOT / target).exists() else link[0]

    return _LINK.sub(replaced, markdown)
