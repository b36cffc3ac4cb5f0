"""The Python example of docs/server.md, word for word but for the port."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_example_asks_a_server(server, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "server.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert "http://127.0.0.1:8000/" in example
    exec(compile(example.replace("http://127.0.0.1:8000", server.url), "docs/server.md", "exec"), {})
    assert capsys.readouterr().out.startswith("cross {'spec': 'ptg:sizes=4/4/4")
