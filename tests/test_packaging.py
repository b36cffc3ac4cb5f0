"""The built wheel and sdist: what they contain, and that the commands of an installed wheel work away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import runtime

ROOT = Path(__file__).resolve().parent.parent
NOT_INSTALLED = (".md", ".cmake", ".sh")  # belongs to the checkout: pages, and how the C++ runtime is built

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    _run([sys.executable, "-m", "build", "--outdir", out, ROOT], cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' directory of a new environment with the wheel and the extra `runtime`."""
    environment = tmp_path_factory.mktemp("venv")
    _run([sys.executable, "-m", "venv", environment])
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[runtime]"])
    return environment / "bin"


def test_the_wheel_has_every_module_and_data_file(wheel: Path) -> None:
    tracked = {PurePosixPath(name) for name in _run(["git", "ls-files", "export", "runtime", "plugins"], cwd=ROOT).splitlines()}
    expected = {str(path) for path in tracked if path.suffix not in NOT_INSTALLED and "cpp" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        contained = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert expected <= contained
    assert contained <= {str(path) for path in tracked}
    assert {f"{package}/py.typed" for package in ("export", "runtime", "plugins")} <= contained


def test_check_wheel_contents_finds_nothing(wheel: Path) -> None:
    _run([Path(sys.executable).with_name("check-wheel-contents"), wheel], cwd=ROOT)


def test_one_version_in_the_wheel_the_sdist_and_the_cpp_runtime(built: Path) -> None:
    assert sorted(path.name for path in built.iterdir()) == [
        f"st_gridpool-{runtime.__version__}-py3-none-any.whl",
        f"st_gridpool-{runtime.__version__}.tar.gz",
    ]
    assert f"project(gridpool VERSION {runtime.__version__} " in (ROOT / "runtime/cpp/CMakeLists.txt").read_text()


def test_the_sdist_is_the_project(built: Path) -> None:
    """Whoever packages it builds the C++ runtime, the plugin and the docs from it, and runs the tests."""
    tracked = set(_run(["git", "ls-files"], cwd=ROOT).splitlines()) - {".gitignore"}
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        contained = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked - contained == set()


def test_the_commands_of_an_installed_wheel(installed: Path, bundle_path: Path, clip: Path, tmp_path: Path) -> None:
    def command(*arguments: str | Path) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        called = [installed / arguments[0], *arguments[1:]]
        return subprocess.run(called, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)

    run = command("gridpool", "run", bundle_path, clip, "what color is the cross ?", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["visual_tokens"] == 257
    wrong = command("gridpool", "inspect", tmp_path / "nothing")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    without_torch = command("gridpool-export", "--model", "llava-ov")
    assert without_torch.returncode == 2
    assert "st-gridpool[export" in without_torch.stderr
    assert len(without_torch.stderr.splitlines()) == 1


def _run(command: list, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
