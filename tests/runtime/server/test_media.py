"""Where a clip may come from, and the private files that it is stored in."""

from __future__ import annotations

import base64
import gc
import tempfile

import pytest
from refusal import naming

from runtime.server import media
from runtime.server.errors import ApiError
from runtime.server.media import Media, load
from runtime.server.options import ServerOptions
from runtime.server.schema import MediaUrl

ABC = "data:image/png;base64,YWJj"
NOTHING = "data:image/png;base64,"


def content(clip: Media) -> bytes:
    return b"".join(path.read_bytes() for path in clip.paths)


def _code(call, *args) -> str:
    with pytest.raises(ApiError) as raised:
        call(*args)
    return raised.value.code


def test_files_are_read_only_below_the_allowed_directories(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a b.mp4").write_bytes(b"content")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "clips" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "clips-too").mkdir()
    (tmp_path / "clips-too" / "b").write_bytes(b"x")
    options = ServerOptions(media_paths=(tmp_path / "clips",))
    assert content(load(MediaUrl(url=f"file://{tmp_path}/clips/a%20b.mp4"), options)) == b"content"
    refused = ["clips/link", "clips/../secret", "clips/%2e%2e/secret", "clips-too/b", "clips", "clips/none", "clips/a%00b"]
    assert {_code(load, MediaUrl(url=f"file://{tmp_path}/{path}"), options) for path in refused} == {"media_not_allowed"}
    assert _code(load, MediaUrl(url=f"file://elsewhere{tmp_path}/clips/a%20b.mp4"), options) == "media_not_allowed"


@pytest.mark.parametrize(
    ("asked", "status", "code", "named"),
    [
        ({}, 400, "invalid_media", ("url", "data", "frames")),
        ({"url": ABC, "data": "YWJj"}, 400, "invalid_media", ("url", "data", "frames")),
        ({"frames": [ABC], "data": "YWJj"}, 400, "invalid_media", ("url", "data", "frames")),
        ({"frames": []}, 400, "invalid_media", ("frames",)),
        ({"data": ""}, 422, "invalid_video", ("0 bytes",)),
        ({"frames": [ABC, NOTHING]}, 422, "invalid_video", ("0 bytes",)),
        ({"url": "https://clips.test/a"}, 400, "media_not_allowed", ("data:video/mp4;base64,",)),
        ({"url": "rtsp://clips.test/a"}, 400, "media_not_allowed", ("data:video/mp4;base64,",)),
        ({"url": "file:///a"}, 400, "media_not_allowed", ("data",)),
        ({"url": "data:video/mp4,YWJj"}, 400, "invalid_url", ("data:video/mp4;base64,",)),
        ({"url": f"data:video/mp4;a={'b' * 1024};base64,YWJj"}, 400, "invalid_url", ("data:video/mp4;base64,",)),
        ({"url": "data:text/html;base64,YWJj"}, 400, "invalid_media", ('"text/html"', "video/*", "image/*")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_a_clip_is_refused_with_what_is_expected(asked, status, code, named):
    with pytest.raises(ApiError) as raised:
        load(MediaUrl(**asked), ServerOptions())
    assert (raised.value.status, raised.value.code) == (status, code)
    assert all(one in str(raised.value) for one in named)


@pytest.mark.parametrize(
    "head",
    ["data:video/mp4;base64,", " data: video/mp4 ; Base64 , ", "data:binary/octet-stream;base64,", "DATA:VIDEO/MP4;BASE64,", "data:;base64,",
     "data:application/octet-stream;base64,", "data:IMAGE/png;base64,", "data:video/mp4;codecs=avc1.42E01E,mp4a.40.2;base64,",
     'data:video/webm;codecs="vp8, opus";base64,', "data:video/mp4;a=b;c=d;base64,", f"data:video/mp4;a={'b' * 900};base64,"],
    ids=lambda head: head[:40],
)  # fmt: skip
def test_a_data_url_may_name_any_video_or_image_type_with_any_parameters(head):
    """Decoding finds out what it really is."""
    assert content(load(MediaUrl(url=head + base64.b64encode(b"a clip").decode()), ServerOptions())) == b"a clip"


@pytest.mark.parametrize(
    ("asked", "contents", "fps"),
    [
        ({"url": ABC, "fps": 2.0}, [b"abc"], None),  # a file has its own rate
        ({"data": "YWJj", "fps": 2.0}, [b"abc"], None),
        ({"frames": [ABC]}, [b"abc"], 1.0),
        ({"frames": [ABC, ABC], "fps": 2.0}, [b"abc", b"abc"], 2.0),
        ({"url": "data:video/jpeg;base64,YWJj,YWI="}, [b"abc", b"ab"], 1.0),
        ({"url": "data:video/jpeg;base64,YWJj"}, [b"abc"], None),
    ],
)
def test_a_clip_of_frames_has_a_rate(asked, contents, fps):
    clip = load(MediaUrl(**asked), ServerOptions())
    assert ([path.read_bytes() for path in clip.paths], clip.fps) == (contents, fps)


def test_as_many_frames_as_are_taken_and_one_more(monkeypatch):
    monkeypatch.setattr(media, "MAX_FRAMES", 3)
    url = "data:video/jpeg;base64,YWJj,YWI=,YQ=="
    assert load(MediaUrl(url=url), ServerOptions()).size == 6
    with pytest.raises(ApiError, match=naming("3 frames")):
        load(MediaUrl(url=f"{url},YQ=="), ServerOptions())


def test_a_clip_may_have_as_many_bytes_as_are_taken():
    assert load(MediaUrl(data="YWJj"), ServerOptions(max_media=3)).size == 3
    with pytest.raises(ApiError, match=naming("2 bytes")) as raised:
        load(MediaUrl(data="YWJj"), ServerOptions(max_media=2))
    assert raised.value.status == 413


def test_equal_content_has_one_digest_however_it_came(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    options = ServerOptions(media_paths=(tmp_path,))
    digests = {
        load(MediaUrl(**one), options).digest
        for one in ({"url": f"file://{tmp_path}/a"}, {"data": "YWJj"}, {"url": "data:video/mp4;base64,YWJj"})
    }
    assert len(digests) == 1


def test_a_clip_s_files_go_with_it_and_where_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    clip = load(MediaUrl(frames=[ABC, "data:image/png;base64,YWI="]), ServerOptions())
    assert [path.read_bytes() for path in clip.paths] == [b"abc", b"ab"] and clip.size == 5
    assert sorted(tmp_path.iterdir()) == sorted(clip.paths)
    del clip
    gc.collect()
    assert not list(tmp_path.iterdir())
    for refused in ({"data": "A*AA"}, {"frames": [ABC, NOTHING]}):
        with pytest.raises(ApiError) as raised:  # which holds the frames that held the clip
            load(MediaUrl(**refused), ServerOptions())
        assert not list(tmp_path.iterdir()), raised


def test_frames_in_another_order_or_of_another_rate_are_another_clip():
    urls = [ABC, "data:image/png;base64,YWI="]
    asked = [{"frames": urls}, {"frames": urls[::-1]}, {"frames": urls, "fps": 2.0}, {"frames": urls[:1]}, {"url": urls[0]}]
    digests = [load(MediaUrl(**one), ServerOptions()).digest for one in asked]
    joined = load(MediaUrl(frames=["data:image/png;base64,YWJjYQ==", "data:image/png;base64,Yg=="]), ServerOptions()).digest
    assert len({*digests, joined}) == 6


def test_the_limit_holds_for_all_frames_of_a_clip_together():
    frame = "data:image/png;base64," + "QUJD" * 100
    options = ServerOptions(max_media=1000)
    assert load(MediaUrl(frames=[frame] * 3), options).size == 900
    assert _code(load, MediaUrl(frames=[frame] * 4), options) == "media_too_large"
