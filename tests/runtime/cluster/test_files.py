"""Which videos an argument stands for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from refusal import naming

from runtime.cluster.files import videos_of
from runtime.core.errors import UsageError


def test_what_stands_for_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.mp4", "a.mkv", "c.txt", "sub/d.MOV"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("list").write_text(f"b.mp4\n\n{tmp_path}/a.mkv\nmissing.mp4\n")
    assert videos_of(["."]) == [str(tmp_path / name) for name in ("a.mkv", "b.mp4", "sub/d.MOV")]
    assert videos_of(["*.mp4", "b.mp4", "@list"]) == [str(tmp_path / name) for name in ("b.mp4", "a.mkv", "missing.mp4")]
    Path("none").mkdir()
    for bad, named in (("*.avi", ['"*.avi"']), ("none", ["none", ".3gp", ".avi"]), ("@absent", ["absent", "one path per line"])):
        with pytest.raises(UsageError, match=naming(*named)):
            videos_of([bad])
    with pytest.raises(UsageError, match=naming("videos", "@FILE")):
        videos_of([])
    Path("sub/deep/g[1].mkv").mkdir(parents=True)
    for name in ("sub/deep/e.mp4", "sub/deep/g1.mp4", "sub/deep/g[1].mp4"):
        Path(name).touch()
    Path("list").write_text("  b.mp4 \n\t\n")
    assert videos_of(["@list"]) == [str(tmp_path / "b.mp4")]
    assert videos_of(["**/e.mp4"]) == [str(tmp_path / "sub/deep/e.mp4")]
    assert videos_of(["sub/deep/g[1].mp4"]) == [str(tmp_path / "sub/deep/g[1].mp4")]
    assert len(videos_of(["sub/deep"])) == 3  # a directory of a video's name is none
    shutil.rmtree("sub/deep")
    assert videos_of(["absent.mp4", "./absent.mp4", "sub"]) == [str(tmp_path / name) for name in ("absent.mp4", "sub/d.MOV")]
