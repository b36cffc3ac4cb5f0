"""The runtime on a device: no torch, no transformers, no export; and nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Importing any of these fails, as it would where it is not installed.
BLOCK = """
import json, pkgutil, importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is not to be imported by the runtime", name=name)
sys.meta_path.insert(0, Absent())
"""
BUILD_HOST = {"torch", "torchvision", "transformers", "safetensors", "huggingface_hub", "onnxscript", "onnx_graphsurgeon", "export"}
HEAVY = BUILD_HOST | {
    "onnxruntime", "onnx", "av", "PIL", "tokenizers", "jinja2", "polygraphy", "rich", "matplotlib", "tensorrt", "tensorrt_rtx"
}  # fmt: skip


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    def run(code: str, *args: str | Path, blocked: set[str] = BUILD_HOST) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", BLOCK.format(blocked=sorted(blocked)) + code, *map(str, args)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_every_module_of_the_runtime_imports(python: Callable[..., subprocess.CompletedProcess]) -> None:
    done = python("""
import runtime
modules = [m.name for m in pkgutil.walk_packages(runtime.__path__, "runtime.", onerror=lambda name: sys.exit(name))]
for name in modules:
    importlib.import_module(name)
print(json.dumps(modules))
""")
    modules = json.loads(done.stdout)
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "runtime").rglob("*.py") if path.stem != "__init__"]
    assert {".".join(file.parts) for file in files} <= set(modules)


def test_a_question_is_answered(python: Callable[..., subprocess.CompletedProcess], bundle_path: Path, clip: Path) -> None:
    ask = 'from runtime.__main__ import main\nsys.exit(main(["run", *sys.argv[1:], "what color is the cross ?", "--json"]))'
    answer = json.loads(python(ask, bundle_path, clip).stdout)
    assert answer["text"].strip()
    assert answer["visual_tokens"] == 257


@pytest.mark.parametrize("command", ["inspect", "parity"])
def test_tools_work(python: Callable[..., subprocess.CompletedProcess], bundle_path: Path, command: str) -> None:
    code = f'from runtime.__main__ import main\nsys.exit(main(["{command}", *sys.argv[1:], "--json"]))'
    assert json.loads(python(code, bundle_path).stdout)


def test_light_modules_load_the_standard_library_and_numpy_alone(python: Callable[..., subprocess.CompletedProcess]) -> None:
    code = """
known = set(sys.modules)
import runtime, runtime.__main__, runtime.chat, runtime.bundle, runtime.media.clip, runtime.prompt, runtime.engine.onnx
roots = {name.partition(".")[0] for name in set(sys.modules) - known}
print(json.dumps(sorted(roots - sys.stdlib_module_names)))
"""
    assert json.loads(python(code, blocked=HEAVY).stdout) == ["numpy", "plugins", "runtime"]


def test_the_package_offers_its_main_classes_and_loads_them_when_they_are_used(
    python: Callable[..., subprocess.CompletedProcess],
) -> None:
    code = """
import runtime
assert "numpy" not in sys.modules and "runtime.bundle" not in sys.modules
from runtime import Bundle, LiveEncoder, VideoChat
assert not hasattr(runtime, "Absent")
print(json.dumps([one.__module__ for one in (Bundle, LiveEncoder, VideoChat)]))
"""
    assert json.loads(python(code, blocked=HEAVY).stdout) == ["runtime.bundle.bundle", "runtime.vision.live", "runtime.chat"]


def test_a_bundle_is_opened_and_refused_with_numpy_and_jsonschema_alone(
    python: Callable[..., subprocess.CompletedProcess], bundle_path: Path, tmp_path: Path
) -> None:
    code = """
from runtime.__main__ import main
from runtime.bundle import Bundle
Bundle.open(sys.argv[1])
assert main(["run", sys.argv[2], "video.mp4", "what ?"]) == 2
"""
    done = python(code, bundle_path, tmp_path / "absent", blocked=HEAVY)
    assert done.stderr.startswith(f"error: no bundle at {tmp_path / 'absent'}: no such directory")


@pytest.mark.parametrize("package", ["onnxruntime", "av", "PIL", "tokenizers", "jinja2"])
def test_a_package_that_is_not_installed_is_named_with_the_command(
    python: Callable[..., subprocess.CompletedProcess], bundle_path: Path, clip: Path, package: str
) -> None:
    code = 'from runtime.__main__ import main\nassert main(["run", *sys.argv[1:], "what color is the cross ?"]) == 2'
    done = python(code, bundle_path, clip, blocked=BUILD_HOST | {package})
    assert (
        f'needs the package "{package.replace("PIL", "pillow")}", which is not installed: pip install "st-gridpool[runtime]"'
        in done.stderr
    )
    assert done.stderr.count("\n") == 1


def test_nothing_is_sent_to_the_maker_of_onnxruntime(bundle_path: Path, clip: Path, tmp_path: Path):
    """Its telemetry begins with an identifier and a queue in the user's cache; a continuous-integration variable alone stops it too."""
    suppressed = ("ORT_", "CI", "TF_BUILD", "GITHUB_", "GITLAB_", "BUILD_", "JENKINS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(suppressed)}
    homes = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "runtime", "run", bundle_path, clip, "which shape appears last ?", "--backend", "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment | homes, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("Microsoft"))
