"""Ctrl-C in a place where Python drops exceptions: the command ends all the same, and nothing is made final."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from refusal import naming

from runtime.core import interrupts
from runtime.core.errors import exit_code
from runtime.core.interrupts import leave_on_ctrl_c, noting_ctrl_c, postponing_ctrl_c, raise_if_interrupted

# A destructor is such a place; the signal is there before `del` has returned.
PROLOGUE = """
import signal, sys
from pathlib import Path
from runtime.core.errors import exit_code
from runtime.core.files import atomic_directory, atomic_file
from runtime.core.progress import step

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
goal = Path(sys.argv[1])

class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def press():
    thing = Deaf()
    del thing
    print("went on", flush=True)
"""
FILE = """
def command():
    with atomic_file(goal) as path:
        path.write_text("new")
        press()
"""
DIRECTORY = """
def command():
    with atomic_directory(goal) as path:
        (path / "file").write_text("new")
        press()
"""
IN_A_STEP = """
def command():
    with step("a long step"):
        press()
    goal.write_text("new")
"""
BEFORE_A_STEP = """
def command():
    press()
    with step("a long step"):
        goal.write_text("new")
"""


def run(body: str, goal: Path, entry: str = "sys.exit(exit_code(command))") -> subprocess.CompletedProcess:
    code = PROLOGUE + body + entry
    root = Path(__file__).parents[3]
    return subprocess.run([sys.executable, "-c", code, str(goal)], capture_output=True, text=True, cwd=root, check=False)


@pytest.mark.parametrize("body", [FILE, DIRECTORY, IN_A_STEP, BEFORE_A_STEP])
def test_a_command_ends_though_the_interrupt_was_dropped(body: str, tmp_path: Path) -> None:
    done = run(body, tmp_path / "goal")
    assert naming("error: interrupted").match(done.stderr.removesuffix("\n"))
    assert (done.returncode, done.stdout) == (130, "went on\n")
    assert list(tmp_path.iterdir()) == []


# The signal comes as the first file of what was there before is about to be removed.
WHILE_IT_REPLACES = """
def press_once(event, args, left=[True]):
    if event == "os.remove" and left:
        left.clear()
        signal.raise_signal(signal.SIGINT)

def command():
    with atomic_directory(goal) as path:
        (path / "file").write_text("new")
        sys.addaudithook(press_once)
"""


@pytest.mark.parametrize("entry", ["sys.exit(exit_code(command))", "command()"], ids=["command line", "library"])
def test_what_replaces_a_directory_comes_to_its_end(entry: str, tmp_path: Path) -> None:
    goal = tmp_path / "goal"
    goal.mkdir()
    (goal / "older").write_text("older")
    done = run(WHILE_IT_REPLACES, goal, entry)
    assert [path.name for path in tmp_path.rglob("*")] == ["goal", "file"]
    if entry == "command()":
        assert done.stderr.endswith("KeyboardInterrupt\n")
    else:
        assert (done.returncode, done.stderr) == (0, "")  # nothing was left to interrupt


# The signal comes again while what an interrupted command wrote is about to be removed.
TWICE = """
def press_again(event, args):
    if event in ("os.remove", "os.rmdir"):
        signal.raise_signal(signal.SIGINT)

def command():
    with atomic_directory(goal / "directory") as path, atomic_file(goal / "file") as file:
        (path / "file").write_text("new")
        sys.addaudithook(press_again)
        signal.raise_signal(signal.SIGINT)
"""


def test_a_second_ctrl_c_leaves_no_temporary_names(tmp_path: Path) -> None:
    done = run(TWICE, tmp_path)
    assert (done.returncode, done.stderr) == (130, "error: interrupted; nothing that was there before has been changed\n")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_in_destructors_are_still_printed(tmp_path: Path) -> None:
    body = """
class Broken:
    def __del__(self):
        raise ValueError("a bug")

def command():
    thing = Broken()
"""
    done = run(body, tmp_path)
    assert done.returncode == 0
    assert "ValueError: a bug" in done.stderr


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_a_handler_that_is_there_stays(handler: object) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with noting_ctrl_c():
            assert signal.getsignal(signal.SIGINT) is handler
            signal.raise_signal(signal.SIGINT)
            raise_if_interrupted()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_is_pressed_while_it_is_postponed_comes_afterwards_and_under_the_handler_of_before() -> None:
    before, went_on = signal.signal(signal.SIGINT, signal.default_int_handler), []
    try:
        with pytest.raises(KeyboardInterrupt), postponing_ctrl_c():
            signal.raise_signal(signal.SIGINT)
            went_on.append("library")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with noting_ctrl_c():
            noting = signal.getsignal(signal.SIGINT)
            with postponing_ctrl_c():
                signal.raise_signal(signal.SIGINT)
                went_on.append("command")
            assert signal.getsignal(signal.SIGINT) is noting
            with pytest.raises(KeyboardInterrupt):
                raise_if_interrupted()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert went_on == ["library", "command"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_next_command_begins_anew() -> None:
    before, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    try:
        assert exit_code(lambda: signal.raise_signal(signal.SIGINT)) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert sys.unraisablehook is hook
        raise_if_interrupted()
        assert exit_code(raise_if_interrupted) == 0
    finally:
        signal.signal(signal.SIGINT, before)


MODULE = "import runpy; runpy.run_module({0!r}, run_name='__main__', alter_sys=True)"
SCRIPT = "from {0}.__main__ import main; sys.exit(main())"


@pytest.mark.parametrize("way", [MODULE, SCRIPT], ids=["python -m", "console script"])
@pytest.mark.parametrize(("module", "late"), [("runtime", "runtime.engine"), ("export", "export.pipeline")])
def test_ctrl_c_while_a_command_is_still_importing(module: str, late: str, way: str):
    code = f"""
import signal, sys
class Pressing:
    def find_spec(self, name, path=None, target=None):
        if name == {late!r}:
            signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Pressing())
{way.format(module)}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert naming("error: interrupted").match(done.stderr.removesuffix("\n"))


def test_a_command_takes_over_from_the_handler_of_the_imports():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        leave_on_ctrl_c()
        leaving = signal.getsignal(signal.SIGINT)
        assert leaving is not signal.default_int_handler
        assert exit_code(lambda: signal.raise_signal(signal.SIGINT)) == 130  # raised, not left
        leave_on_ctrl_c()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        leave_on_ctrl_c()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("code", [0, 1])
def test_ctrl_c_after_the_command_leaves_its_exit_code(code: int):
    """At exit, and in the destructor of a module's variable, where Python has taken its own handlers down."""
    program = f"""
import atexit, signal, sys
from runtime.core.errors import exit_code
from runtime.core.interrupts import leave_on_ctrl_c

class Pressing:
    def __del__(self, press=signal.raise_signal, number=signal.SIGINT, write=sys.stdout.write):
        write("pressed\\n")
        press(number)

signal.signal(signal.SIGINT, signal.default_int_handler)
leave_on_ctrl_c()
atexit.register(signal.raise_signal, signal.SIGINT)
late = Pressing()
sys.exit(exit_code(lambda: {code}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "pressed\n", "")


@pytest.fixture
def handler():
    """handler() is that of SIGINT; handler(new) sets it. The one of before comes back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def get_or_set(*new: object) -> object:
        if new:
            signal.signal(signal.SIGINT, *new)
        return signal.getsignal(signal.SIGINT)

    yield get_or_set
    signal.signal(signal.SIGINT, before)


def test_while_it_imports_a_command_leaves_with_130_and_its_line(handler, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[object] = []
    monkeypatch.setattr("os.write", lambda *arguments: left.append(arguments))
    monkeypatch.setattr("os._exit", lambda code: left.append(code))
    leave_on_ctrl_c()
    signal.raise_signal(signal.SIGINT)
    assert left == [(2, b"error: interrupted; nothing that was there before has been changed\n"), 130]


@pytest.mark.parametrize(("leaves", "after"), [(True, signal.SIG_IGN), (False, signal.default_int_handler)])
def test_after_a_command_that_left_on_ctrl_c_it_is_ignored_else_as_before(handler, leaves: bool, after: object) -> None:
    if leaves:
        leave_on_ctrl_c()
    hook = sys.unraisablehook
    with noting_ctrl_c():
        assert handler() is interrupts._note and sys.unraisablehook is not hook
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert handler() is after and sys.unraisablehook is hook
    raise_if_interrupted()


def test_what_python_dropped_is_printed_unless_it_is_an_interrupt(handler, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[type] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: printed.append(error.exc_type))
    with noting_ctrl_c():
        for error in (KeyboardInterrupt, ValueError, type("Pressed", (KeyboardInterrupt,), {})):
            sys.unraisablehook(type("Arguments", (), {"exc_type": error}))
    assert printed == [ValueError]


@pytest.mark.parametrize("within", [noting_ctrl_c, postponing_ctrl_c])
def test_in_other_threads_and_under_other_handlers_nothing_changes(handler, within) -> None:
    seen: list[object] = []

    def look() -> None:
        hook = sys.unraisablehook
        with within():
            seen.append((signal.getsignal(signal.SIGINT), sys.unraisablehook is hook))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()

    def own(number: int, frame: object) -> None:
        pass

    for other in (own, signal.SIG_IGN, signal.SIG_DFL):
        handler(other)
        look()
        assert handler() is other
    assert seen == [(one, True) for one in (signal.default_int_handler, own, signal.SIG_IGN, signal.SIG_DFL)]


@pytest.mark.parametrize("command", [True, False])
def test_a_postponed_interrupt_is_one_exception_after_the_block(handler, command: bool) -> None:
    with noting_ctrl_c() if command else contextlib.nullcontext():
        before = handler()
        with contextlib.nullcontext() if command else pytest.raises(KeyboardInterrupt), postponing_ctrl_c():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert interrupts._pressed.is_set() is command and handler() is not before
        assert handler() is before
        with postponing_ctrl_c():
            pass
        assert handler() is before
    raise_if_interrupted()


def test_an_error_under_a_postponed_interrupt_is_that_error(handler) -> None:
    with pytest.raises(ValueError, match="a bug"), postponing_ctrl_c():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("a bug")
    assert handler() is signal.default_int_handler
