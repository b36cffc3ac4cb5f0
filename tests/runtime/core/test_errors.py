"""Errors are one line and an exit code; what is no user's error keeps its traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.cli.arguments import ArgumentParser
from runtime.core import errors
from runtime.core.errors import OutputError, UserError, exit_code

ROOT = Path(__file__).parents[3]


def run(error: BaseException, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    def command() -> int:
        raise error

    code = exit_code(command)
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


def test_a_command_that_works_has_its_own_exit_code() -> None:
    assert [exit_code(lambda code=code: code) for code in (None, 0, 1)] == [0, 0, 1]


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UserError)])
def test_every_user_error_is_one_line_and_exit_code_2(kind: type[UserError], capsys: pytest.CaptureFixture) -> None:
    assert run(kind("what was got;\n  what to do"), capsys) == (2, "error: what was got; what to do\n")


def test_ctrl_c_is_one_line_and_exit_code_130(capsys: pytest.CaptureFixture) -> None:
    assert run(KeyboardInterrupt(), capsys) == (130, "error: interrupted; nothing that was there before has been changed\n")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EDQUOT, "Disk quota exceeded; free some space"),
        (errno.EFBIG, "File too large; "),
        (errno.EROFS, "Read-only file system; choose another path"),
        (errno.EACCES, "Permission denied; choose another path"),
    ],
)
def test_an_output_that_can_t_be_written_is_one_line(number: int, said: str, capsys: pytest.CaptureFixture) -> None:
    import os

    code, err = run(OSError(number, os.strerror(number), "out/vision.onnx"), capsys)
    assert code == 2
    assert err.startswith(f"error: out/vision.onnx: {said}")
    assert err.count("\n") == 1
    assert run(OSError(number, os.strerror(number)), capsys)[1].startswith(f"error: output: {said}")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), OSError(errno.EBADF, "a bug"), OSError("a bug")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    def command() -> int:
        raise error

    with pytest.raises(type(error), match="a bug"):
        exit_code(command)


def test_an_output_error_is_an_os_error_for_who_can_do_without_the_file() -> None:
    assert issubclass(OutputError, UserError) and issubclass(OutputError, OSError)


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from runtime.core.errors import exit_code\nexit(exit_code(lambda: [print('x' * 9999, flush=True) for _ in range(999)] and 0))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert process.stdout and process.stderr
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


class TestArguments:
    @pytest.fixture
    def parser(self) -> ArgumentParser:
        parser = ArgumentParser(prog="tool")
        run = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("run")
        run.add_argument("file")
        run.add_argument("--threads", type=int)
        run.add_argument("--device", choices=["cpu", "cuda"])
        return parser

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            ([], "the following arguments are required: COMMAND; `tool --help` shows what there is"),
            (["rum"], "argument COMMAND: invalid choice: 'rum'"),
            (["run"], "the following arguments are required: file; `tool run --help`"),
            (["run", "a", "--thread", "3"], 'no option --thread; did you mean "--threads"?'),
            (["run", "a", "--thraeds=3"], 'no option --thraeds; did you mean "--threads"?'),
            (["run", "a", "--threads", "x"], "argument --threads: invalid int value: 'x'"),
            (["run", "a", "--device", "gpu"], "argument --device: invalid choice: 'gpu'"),
            (["run", "a", "b"], "unrecognized arguments: b"),
        ],
    )
    def test_a_fault_is_one_line(self, parser: ArgumentParser, args: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
        assert exit_code(lambda: parser.parse_args(args)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"error: {said}")
        assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["short", "x" * 100_000])
def test_a_result_that_can_t_be_printed_is_an_error_however_short_it_is(text: str) -> None:
    """What is short stays in a buffer that the interpreter flushes after the command, where it is too late for an exit code of ours."""
    body = f"import sys; from runtime.core.errors import exit_code; sys.exit(exit_code(lambda: print({text!r})))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", body], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: output: No space left on device; free some space") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space or choose another disk"),
        (errno.EDQUOT, "free some space or choose another disk"),
        (errno.EFBIG, "choose a file system (or a ulimit -f) that takes files of that size"),
        (errno.EACCES, "choose another path or change its permissions"),
        (errno.EPERM, "choose another path or change its permissions"),
        (errno.EROFS, "choose another path or change its permissions"),
        (errno.ENAMETOOLONG, "choose another path"),
        (errno.ENOTDIR, "choose another path"),
        (errno.EISDIR, "choose another path"),
        (errno.ELOOP, "choose another path"),
        (errno.EIO, "check the disk"),
    ],
)
def test_what_can_be_done_about_an_output_is_said(number: int, advice: str, capsys: pytest.CaptureFixture) -> None:
    said = f"error: a: what; {advice}, nothing that was there before has been changed\n"
    assert run(OSError(number, "what", "a"), capsys) == (2, said)


@pytest.mark.parametrize(
    ("raised", "code"),
    [(BrokenPipeError(), 0), (OSError(errno.ENOSPC, "full"), 2), (UserError("x"), 2), (KeyboardInterrupt(), 130)],
)
def test_what_could_not_be_printed_goes_nowhere(raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter flushes stdout as it ends, and would complain anew."""
    reading, writing = os.pipe()
    opened, closed, open_, close = [], [], os.open, os.close
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(os, "open", lambda *arguments: opened.append(open_(*arguments)) or opened[-1])
        monkeypatch.setattr(os, "close", lambda descriptor: closed.append(descriptor) or close(descriptor))
        monkeypatch.setattr(sys, "stdout", stdout)

        def command() -> None:
            stdout.write("a result")
            raise raised

        assert exit_code(command) == code
        monkeypatch.undo()
    assert closed == opened and len(opened) == isinstance(raised, OSError)
    with os.fdopen(reading) as left:
        assert left.read() == ("" if isinstance(raised, OSError) else "a result")


def test_a_result_is_flushed_before_the_exit_code_is_known_and_no_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    for stdout, code in ((Full(), 2), (None, 7)):
        monkeypatch.setattr(sys, "stdout", stdout)
        assert exit_code(lambda: 7) == code
