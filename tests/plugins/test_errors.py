"""What an error suggests: the nearest name, the pip command."""

from __future__ import annotations

import pytest

from plugins import errors
from plugins.errors import missing_package, nearest


def test_the_nearest_name_or_all_of_them() -> None:
    assert nearest("windw", ["window", "order"]) == '; did you mean "window"?'
    assert nearest("xyz", ["window", "order"]) == "; known: order, window"


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("ab", ["abcdef"], '; did you mean "abcdef"?'),  # half of what both have is in common
        ("ab", ["abcdefg"], "; known: abcdefg"),
        ("x", [], "; known: "),
        ("b", ["bb", "ba", "bb"], '; did you mean "bb"?'),
        ("x", ["c", "a", "c"], "; known: a, c"),
    ],
)
def test_a_name_is_near_where_half_of_it_is_right(name: str, known: list[str], message: str) -> None:
    assert nearest(name, known) == message


def test_a_missing_package_names_what_needs_it_and_the_command() -> None:
    message = str(missing_package("av", "decoding a video", "runtime"))
    assert "decoding a video" in message and '"av"' in message and message.endswith('pip install "st-gridpool[runtime]"')


@pytest.mark.parametrize("gpu", [False, True])
def test_the_wheel_for_gpus_is_not_replaced_by_the_one_for_cpus(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package != "onnxruntime-gpu" or not gpu:
            raise errors.metadata.PackageNotFoundError(package)
        return "1.30"

    monkeypatch.setattr(errors.metadata, "version", version)
    runtime = "gpu" if gpu else "runtime"
    assert errors.install_command("runtime") == f'pip install "st-gridpool[{runtime}]"'
    assert errors.install_command("export,runtime,rtx") == f'pip install "st-gridpool[export,{runtime},rtx]"'
    assert errors.install_command("serve") == 'pip install "st-gridpool[serve]"'
