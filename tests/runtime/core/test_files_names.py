"""Which leftovers belong to whom, what errors of writing say, and what an interrupt or a lost race leaves; in this process."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from refusal import names_under, naming

from runtime.core import files, interrupts
from runtime.core.errors import OutputError, UsageError
from runtime.core.files import atomic_directory, atomic_file, require_writable, sha256_of, sweep
from runtime.core.interrupts import noting_ctrl_c

DEAD = 1 << 22  # more than Linux gives out (PID_MAX_LIMIT)


@pytest.mark.parametrize(
    ("answer", "alive"), [(None, True), (PermissionError, True), (ProcessLookupError, False), (OverflowError, False)]
)
def test_a_process_is_asked_with_signal_0(monkeypatch: pytest.MonkeyPatch, answer: type[Exception] | None, alive: bool) -> None:
    asked: list[tuple[int, int]] = []

    def kill(pid: int, number: int) -> None:
        asked.append((pid, number))
        if answer:
            raise answer

    monkeypatch.setattr(os, "kill", kill)
    assert files._alive(77) is alive and asked == [(77, 0)]


@pytest.mark.parametrize("kind", ["tmp", "old"])
def test_leftovers_are_known_by_name_kind_and_number(tmp_path: Path, kind: str) -> None:
    ours = f".a\nb.{kind}-{DEAD}"
    others = [f".a\nb.{kind}-{os.getpid()}", f".a\nb.{kind}-x", f".a\nb.new-{DEAD}", f"a\nb.{kind}-{DEAD}", f".a.{kind}-{DEAD}"]
    for name in (ours, *others, "a\nb", f".a\nb.{kind}-{10**30}"):
        (tmp_path / name).write_text("x")
    sweep(tmp_path / "a\nb")
    assert names_under(tmp_path) == sorted([*others, "a\nb"])
    sweep(tmp_path / "none" / "at all")


def test_old_content_comes_back_only_where_nothing_has_the_name(tmp_path: Path) -> None:
    def leave() -> None:
        for kind in ("old", "tmp"):
            (tmp_path / f".goal.{kind}-{DEAD}").write_text(kind)

    leave()
    sweep(tmp_path / "goal")
    assert names_under(tmp_path) == ["goal"] and (tmp_path / "goal").read_text() == "old"
    (tmp_path / "goal").unlink()
    (tmp_path / "goal").symlink_to("nowhere")
    leave()
    sweep(tmp_path / "goal")
    assert os.listdir(tmp_path) == ["goal"] and os.readlink(tmp_path / "goal") == "nowhere"


@pytest.mark.parametrize("write_to", [atomic_file, atomic_directory])
class TestErrors:
    def test_a_user_s_error_stays_as_it_is(self, tmp_path: Path, write_to: Callable) -> None:
        error = UsageError("mine")
        with pytest.raises(UsageError) as raised, write_to(tmp_path / "goal"):
            raise error
        assert raised.value is error and names_under(tmp_path) == []
        with pytest.raises(OutputError) as raised, write_to(tmp_path / "goal"):
            raise OutputError("deeper")
        assert str(raised.value) == "deeper"

    def test_a_file_that_the_system_names_is_named(self, tmp_path: Path, write_to: Callable) -> None:
        for name, named in (("deeper", "deeper"), (None, str(tmp_path / "goal"))):
            with pytest.raises(OSError) as raised, write_to(tmp_path / "goal"):
                raise OSError(errno.EIO, "Input/output error", name)
            assert raised.value.filename == named

    def test_an_error_without_a_number_is_a_write_that_was_cut_short(self, tmp_path: Path, write_to: Callable) -> None:
        with (
            pytest.raises(OutputError, match=naming(tmp_path / "goal", "9 of 10")),
            write_to(tmp_path / "goal"),
        ):
            raise OSError("9 of 10")
        assert names_under(tmp_path) == []

    def test_an_interrupt_that_was_noted_keeps_the_name_from_being_given(self, tmp_path: Path, write_to: Callable) -> None:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with noting_ctrl_c(), pytest.raises(KeyboardInterrupt), write_to(tmp_path / "goal") as temporary:
                (temporary / "part" if temporary.is_dir() else temporary).write_text("new")
                interrupts._pressed.set()
        finally:
            signal.signal(signal.SIGINT, before)
        assert names_under(tmp_path) == []

    def test_what_the_file_system_refuses_is_said_before_anything_is_done(self, tmp_path, monkeypatch, write_to: Callable) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Path, "mkdir", refuse)
        refused = pytest.raises(OutputError, match=naming(tmp_path / "new" / "goal", "Read-only file system"))
        with refused, write_to(tmp_path / "new" / "goal"):
            raise AssertionError("not reached")

    def test_a_temporary_name_says_whose_it_is_and_may_be_gone(self, tmp_path: Path, write_to: Callable) -> None:
        with pytest.raises(FileNotFoundError), write_to(tmp_path / "goal") as temporary:
            assert temporary == tmp_path / f".goal.tmp-{os.getpid()}"
            temporary.rmdir() if temporary.is_dir() else temporary.unlink()
            raise FileNotFoundError(errno.ENOENT, "gone")
        assert names_under(tmp_path) == []


def test_two_renames_leave_the_old_content_under_the_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda old, new: (seen.append((old.name, new.name)), rename(old, new)))
    for at_once in (False, True):
        new, goal = tmp_path / f"new{at_once}", tmp_path / f"goal{at_once}"
        for folder in (new, goal):
            folder.mkdir()
            (folder / folder.name[:3]).write_text("")
        monkeypatch.setattr(files, "_exchange_at_once", lambda new, goal, at_once=at_once: at_once)
        files._exchange(new, goal)
        if not at_once:
            assert names_under(new) == ["goa"] and names_under(goal) == ["new"]
    aside = f".goalFalse.old-{os.getpid()}"
    assert seen == [("goalFalse", aside), ("newFalse", "goalFalse"), (aside, "newFalse")]


def test_a_path_can_be_written_where_its_nearest_folder_can(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b" / "c")
    (tmp_path / "file").write_text("")
    require_writable(tmp_path / "file")
    with pytest.raises(OutputError, match=naming(tmp_path / "file" / "b" / "c", tmp_path / "file", "directory")):
        require_writable(tmp_path / "file" / "b" / "c")
    assert names_under(tmp_path) == ["file"]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_digest_is_of_the_whole_file(tmp_path: Path, size: int) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    expected = hashlib.sha256(content[:size]).hexdigest()
    assert sha256_of(tmp_path / "file") == expected
