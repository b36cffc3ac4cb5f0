"""Outputs appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import names_under, naming

from runtime.core import files
from runtime.core.errors import OutputError
from runtime.core.files import atomic_directory, atomic_file, require_writable, sha256_of, sweep

ROOT = Path(__file__).parents[3]


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture(params=["one call", "two renames"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Directories are exchanged by the kernel, or, where it can't, by two renames."""
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange_at_once", lambda new, goal: False)
    elif not sys.platform.startswith("linux"):
        pytest.skip("only Linux has renameat2")
    return request.param


def write(directory: Path, **contents: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name).write_text(content)
    return directory


class TestFile:
    def test_it_appears_when_it_is_whole(self, tmp_path: Path) -> None:
        goal = tmp_path / "new" / "folder" / "file"
        with atomic_file(goal) as temporary:
            temporary.write_text("whole")
            assert temporary.parent == goal.parent and not goal.exists()
        assert names_under(tmp_path) == ["new", "new/folder", "new/folder/file"]
        assert goal.read_text() == "whole"

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(errno.ENOSPC, "No space left on device")])
    def test_an_interruption_leaves_the_old_one(self, tmp_path: Path, error: BaseException) -> None:
        goal = tmp_path / "file"
        goal.write_text("old")
        with pytest.raises(error if isinstance(error, type) else type(error)), atomic_file(goal) as temporary:
            temporary.write_text("half")
            raise error
        assert names_under(tmp_path) == ["file"]
        assert goal.read_text() == "old"

    def test_what_killed_runs_left_is_swept(self, tmp_path: Path) -> None:
        for name in ("file", "other"):
            (tmp_path / f".{name}.tmp-{dead_pid()}").write_text("half")
        write(tmp_path / ".file.tmp-1")
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("whole")
        assert [re.sub(r"\d+", "N", name) for name in names_under(tmp_path)] == [".file.tmp-N", ".other.tmp-N", "file"]

    def test_leftovers_that_cannot_be_removed_stay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / f".file.tmp-{dead_pid()}").write_text("another user's, in /tmp")
        unlink = Path.unlink

        def refusing(path: Path, missing_ok: bool = False) -> None:
            if not path.name.endswith(f"-{os.getpid()}"):
                raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
            unlink(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", refusing)
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("whole")
        assert (tmp_path / "file").read_text() == "whole"

    def test_a_full_disk_names_the_output(self, tmp_path: Path) -> None:
        with pytest.raises(OSError) as caught, atomic_file(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert caught.value.filename == str(tmp_path / "file")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
    def test_a_write_that_numpy_cuts_short_is_an_error_that_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=naming("file", "in full")), atomic_file(tmp_path / "file"):
            np.ones(1 << 16).tofile("/dev/full")  # raises an OSError without a number

    def test_a_directory_and_a_device_are_no_goals(self, tmp_path: Path) -> None:
        for goal, message in ((tmp_path, "is a directory"), (Path("/dev/null"), "is not a regular file")):
            with pytest.raises(OutputError, match=message), atomic_file(goal):
                raise AssertionError("not reached")
        assert not Path("/dev/null").is_file()

    def test_below_a_file_there_is_no_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=naming("x/y", tmp_path / "file", "directory")):
            require_writable(tmp_path / "file" / "x" / "y")

    @pytest.mark.parametrize(("allowed", "refused"), [("rx", True), ("rw", True), ("rwx", False)])
    def test_a_folder_must_be_one_to_write_in_and_to_enter(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, refused: bool
    ) -> None:
        bits = sum({"r": 4, "w": 2, "x": 1}[letter] for letter in allowed)
        monkeypatch.setattr(os, "access", lambda path, mode: bool(mode) and path == tmp_path and mode & ~bits == 0)
        if not refused:
            require_writable(tmp_path / "a" / "b")
            return
        with pytest.raises(OutputError, match=naming("a/b", "permission", tmp_path)):
            require_writable(tmp_path / "a" / "b")

    @pytest.mark.parametrize("length", [250, 300])  # the temporary name, and the name itself
    @pytest.mark.parametrize("write_to", [atomic_file, atomic_directory])
    def test_a_name_that_is_too_long_is_named_with_the_reason(self, tmp_path: Path, length: int, write_to: Callable) -> None:
        refused = pytest.raises(OutputError, match=naming(tmp_path / ("x" * length), "File name too long"))
        with refused, write_to(tmp_path / ("x" * length)):
            raise AssertionError("not reached")

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
        with atomic_file(tmp_path / "link") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "file").read_text() == "new"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What reaches the disk, in order: the inode of each file that is flushed, "renamed"."""
    events: list[object] = []
    flush, replace, rename = os.fsync, os.replace, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_ino), flush(fd)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("renamed"), replace(old, new)))
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append("renamed"), rename(old, new)))
    return events


def test_contents_are_on_the_disk_before_they_get_the_name(tmp_path: Path, disk: list[object]) -> None:
    """Else a power cut leaves an empty file under it."""
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert disk == [(tmp_path / "file").stat().st_ino, "renamed"]
    disk.clear()
    with atomic_directory(tmp_path / "goal") as folder:
        write(folder / "inner", a="1")
        write(folder, b="2")
    assert set(disk[:-1]) == {(tmp_path / "goal" / name).stat().st_ino for name in ("inner/a", "b")} and disk[-1] == "renamed"


class TestDirectory:
    def test_it_appears_when_it_is_whole(self, tmp_path: Path) -> None:
        goal = tmp_path / "goal"
        with atomic_directory(goal) as temporary:
            write(temporary, a="1")
            assert not goal.exists()
        assert names_under(tmp_path) == ["goal", "goal/a"]

    def test_another_one_is_replaced_as_a_whole(self, tmp_path: Path, exchange: str) -> None:
        goal = write(tmp_path / "goal", old="1", both="1")
        with atomic_directory(goal) as temporary:
            write(temporary, both="2")
            assert names_under(goal) == ["both", "old"]
        assert names_under(tmp_path) == ["goal", "goal/both"]
        assert (goal / "both").read_text() == "2"

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
    def test_an_interruption_leaves_the_old_one(self, tmp_path: Path, error: type[BaseException], exchange: str) -> None:
        goal = write(tmp_path / "goal", old="1")
        with pytest.raises(error), atomic_directory(goal) as temporary:
            write(temporary, new="2")
            raise error
        assert names_under(tmp_path) == ["goal", "goal/old"]

    def test_a_rename_that_fails_half_way_is_taken_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "_exchange_at_once", lambda new, goal: False)
        goal = write(tmp_path / "goal", old="1")
        rename = os.rename

        def second_fails(source: Path, target: Path) -> None:
            if ".tmp-" in str(source):
                raise OSError(errno.EIO, "Input/output error")
            rename(source, target)

        monkeypatch.setattr(os, "rename", second_fails)
        with pytest.raises(OSError, match="Input/output error"), atomic_directory(goal) as temporary:
            write(temporary, new="2")
        assert names_under(tmp_path) == ["goal", "goal/old"]

    def test_a_link_stays_a_link(self, tmp_path: Path, exchange: str) -> None:
        (tmp_path / "link").symlink_to(write(tmp_path / "v1", old="1"))
        with atomic_directory(tmp_path / "link") as temporary:
            write(temporary, new="2")
        assert names_under(tmp_path) == ["link", "v1", "v1/new"]

    def test_the_current_directory_is_a_goal_like_any_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        with atomic_directory(Path()) as temporary:
            write(temporary, new="2")
        assert names_under(tmp_path) == ["here", "here/new"]

    def test_a_second_one_that_can_t_begin_leaves_the_first_alone(self, tmp_path: Path) -> None:
        with atomic_directory(tmp_path / "goal") as temporary:
            write(temporary, first="1")
            with pytest.raises(OutputError, match=naming("goal", "File exists")), atomic_directory(tmp_path / "goal"):
                raise AssertionError("not reached")
            write(temporary, more="2")
        assert names_under(tmp_path) == ["goal", "goal/first", "goal/more"]

    def test_a_file_is_no_goal(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputError, match="is a file"), atomic_directory(tmp_path / "file"):
            raise AssertionError("not reached")


class TestExchangeAtOnce:
    """What the kernel is asked, on a stand-in for libc; the numbers are those of fcntl.h and linux/fs.h."""

    AT_FDCWD, RENAME_EXCHANGE = -100, 1 << 1

    @pytest.fixture
    def kernel(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """errno: that of the next call, 0 where it works; asked: arguments of the calls."""
        kernel = SimpleNamespace(errno=0, asked=[])
        kernel.renameat2 = lambda *arguments: kernel.asked.append(arguments) or (-1 if kernel.errno else 0)
        monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: kernel if use_errno else None)
        monkeypatch.setattr(ctypes, "get_errno", lambda: kernel.errno)
        return kernel

    def test_both_names_change_places_in_one_call(self, kernel: SimpleNamespace) -> None:
        assert files._exchange_at_once(Path("/a/new"), Path("/a/goal"))
        assert kernel.asked == [(self.AT_FDCWD, b"/a/new", self.AT_FDCWD, b"/a/goal", self.RENAME_EXCHANGE)]

    @pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
    def test_a_kernel_or_file_system_without_it_is_no_error(self, kernel: SimpleNamespace, number: int) -> None:
        kernel.errno = number
        assert not files._exchange_at_once(Path("new"), Path("goal"))

    def test_any_other_failure_is(self, kernel: SimpleNamespace) -> None:
        kernel.errno = errno.EACCES
        with pytest.raises(PermissionError, match="goal"):
            files._exchange_at_once(Path("new"), Path("goal"))

    def test_a_system_without_the_call_is_no_error(self, kernel: SimpleNamespace) -> None:
        del kernel.renameat2
        assert not files._exchange_at_once(Path("new"), Path("goal"))


class TestSweep:
    def test_only_what_dead_processes_left_of_this_very_goal_goes(self, tmp_path: Path) -> None:
        write(tmp_path / f".goal.tmp-{dead_pid()}", half="1")
        (tmp_path / f".goal.tmp-{dead_pid()}").write_text("half")
        kept = [
            f".goal.tmp-{os.getpid()}",
            ".goal.tmp-1",
            f".other.tmp-{dead_pid()}",
            f".goal.tmp-{dead_pid()}x",
            f".goal.x.tmp-{dead_pid()}",
        ]
        for name in kept:
            write(tmp_path / name)
        sweep(tmp_path / "goal")
        assert names_under(tmp_path) == sorted(kept)

    def test_names_are_taken_literally(self, tmp_path: Path) -> None:
        write(tmp_path / f".g[o]*.tmp-{dead_pid()}")
        write(tmp_path / f".goal.tmp-{dead_pid()}")
        sweep(tmp_path / "g[o]*")
        assert len(names_under(tmp_path)) == 1

    def test_a_link_among_leftovers_is_not_followed(self, tmp_path: Path) -> None:
        write(tmp_path / "precious", file="mine")
        (tmp_path / f".goal.tmp-{dead_pid()}").symlink_to(tmp_path / "precious")
        sweep(tmp_path / "goal")
        assert names_under(tmp_path) == ["precious", "precious/file"]

    def test_the_old_content_comes_back_where_two_renames_were_cut_off(self, tmp_path: Path) -> None:
        pid = dead_pid()
        write(tmp_path / f".goal.old-{pid}", old="1")
        write(tmp_path / f".goal.tmp-{pid}", new="2")
        sweep(tmp_path / "goal")
        assert names_under(tmp_path) == ["goal", "goal/old"]

    def test_old_content_that_was_replaced_goes(self, tmp_path: Path) -> None:
        write(tmp_path / f".goal.old-{dead_pid()}", old="1")
        write(tmp_path / "goal", new="2")
        sweep(tmp_path / "goal")
        assert names_under(tmp_path) == ["goal", "goal/new"]


@pytest.mark.parametrize("at", ["body", "sync", "exchanged"])
def test_kill_9_leaves_the_old_directory_or_the_new_one(tmp_path: Path, at: str) -> None:
    goal = write(tmp_path / "goal", old="1")
    code = textwrap.dedent(f"""
        import os, signal, shutil
        from pathlib import Path
        from runtime.core import files
        die = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        if {at!r} == "sync":
            files._sync = die
        if {at!r} == "exchanged":
            shutil.rmtree = die
        with files.atomic_directory(Path({str(goal)!r})) as temporary:
            (temporary / "new").write_text("2")
            if {at!r} == "body":
                die()
    """)
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert names_under(goal) == (["new"] if at == "exchanged" else ["old"])
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".")]) == 1
    with atomic_directory(goal) as temporary:
        write(temporary, newest="3")
    assert names_under(tmp_path) == ["goal", "goal/newest"]


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "file") == expected
