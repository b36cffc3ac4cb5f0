"""C++ against Python on one bundle: the same tokens, ids, text and JSON, on 20 clips, in three precisions and for either kind of input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cpp_build import ROOT, gridpool, onnxruntime_library, python

from export.demo.clips import ClipOptions, write_demo_clip
from runtime.bundle import Bundle
from runtime.chat import AskOptions, VideoChat
from runtime.llm.sampling import Sampling

CLIPS = 20
BUNDLES = {"fp32": "bundle_path", "fp16": "half_bundle_path", "int8": "quantized_bundle_path", "frames": "frames_bundle_path"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Generated clips of several sizes and lengths, each with one of its questions."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for seed in range(CLIPS):
        path = folder / f"{seed}.mp4"
        clip = write_demo_clip(path, ClipOptions(seed=seed, frames=16 + seed % 3 * 5, scale=1 + seed % 3))
        made.append((path, clip.questions[seed % len(clip.questions)].question))
    return made


@pytest.fixture(scope="module", params=[*list(BUNDLES)[:3], pytest.param("frames", marks=pytest.mark.slow)])
def chat(request: pytest.FixtureRequest) -> VideoChat:
    path = request.getfixturevalue(BUNDLES[request.param])
    return VideoChat.open(Bundle.open(path))


def test_tokens_and_answers_are_those_of_python(cpp: Path, chat: VideoChat, clips, tmp_path: Path):
    for video, question in clips:
        visual = chat.vision.encode(video)
        text = "".join(chat.ask_about(visual, question))
        written = gridpool(cpp, "tokens", chat.bundle.path, video, "-o", tmp_path / "tokens.npz", "--json")
        assert written.returncode == 0, written.stderr
        answered = gridpool(cpp, "run", chat.bundle.path, video, question, "--json")
        assert answered.returncode == 0, answered.stderr
        arrays, answer = np.load(tmp_path / "tokens.npz"), json.loads(answered.stdout)
        assert arrays["visual_tokens"].dtype == visual.tokens.dtype
        allowed = 1e-5 if visual.tokens.dtype == np.float32 else 2e-3
        error = np.abs(arrays["visual_tokens"].astype(np.float64) - visual.tokens).max() / np.abs(visual.tokens).max()
        assert error <= allowed, f"{video.name}: {error}"
        assert arrays["frames"].tolist() == list(visual.clip.indices)
        assert arrays["timestamps"].tolist() == list(visual.clip.timestamps)
        assert (answer["ids"], answer["text"]) == (chat.answer.ids, text), video.name
        assert answer.keys() == chat.answer.as_dict().keys()
        assert answer["seconds"].keys() == chat.answer.seconds.keys()


def test_a_seed_gives_the_same_answer_as_in_python(cpp: Path, bundle_path: Path, clips):
    chat = VideoChat.open(Bundle.open(bundle_path))
    video, question = clips[0]
    visual = chat.vision.encode(video)
    for seed in (0, 7, 2**40):
        "".join(chat.ask_about(visual, question, AskOptions(24, Sampling(3.0, 0.9, seed))))
        words = ("--json", "--temperature", "3", "--top-p", "0.9", "--seed", str(seed), "--max-new-tokens", "24")
        answer = json.loads(gridpool(cpp, "run", bundle_path, video, question, *words).stdout)
        assert answer["ids"] == chat.answer.ids


def test_a_repetition_penalty_gives_the_same_answer_as_in_python(cpp: Path, bundle_path: Path, clips, tmp_path: Path):
    path = shutil.copytree(bundle_path, tmp_path / "bundle")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["prompt"]["repetition_penalty"] = 50.0  # what was seen is out of the question, the end of an answer too
    (path / "manifest.json").write_text(json.dumps(manifest))
    chat = VideoChat.open(Bundle.open(path))
    video, question = clips[0]
    visual = chat.vision.encode(video)
    for words, sampling in (((), Sampling()), (("--temperature", "2", "--seed", "7"), Sampling(2.0, seed=7))):
        "".join(chat.ask_about(visual, question, AskOptions(24, sampling)))
        answer = json.loads(gridpool(cpp, "run", path, video, question, "--json", "--max-new-tokens", "24", *words).stdout)
        assert answer["ids"] == chat.answer.ids
        assert len(set(answer["ids"])) > 8


def test_the_answer_streams_as_text(cpp: Path, bundle_path: Path, clips):
    video, question = clips[1]
    said, expected = gridpool(cpp, "run", bundle_path, video, question), python("run", bundle_path, video, question)
    assert (said.stdout, said.stderr, said.returncode) == (expected.stdout, expected.stderr, 0)


def test_a_short_clip_is_said_to_repeat_frames(cpp: Path, bundle_path: Path, tmp_path: Path):
    from video_files import pattern, write_video

    video = write_video(tmp_path / "short.mp4", pattern(5))
    said, expected = gridpool(cpp, "run", bundle_path, video, "what ?"), python("run", bundle_path, video, "what ?")
    assert said.stderr == expected.stderr == "the clip is shorter than 16 frames: 11 are repeated\n"
    assert said.stdout == expected.stdout


def test_the_tokens_command_prints_what_python_prints(cpp: Path, bundle_path: Path, clips, tmp_path: Path):
    video = clips[0][0]
    words = ("tokens", bundle_path, video, "-o", tmp_path / "t.npz", "--json")
    said, expected = json.loads(gridpool(cpp, *words).stdout), json.loads(python(*words).stdout)
    assert {**said, "seconds": None} == {**expected, "seconds": None}
    assert said["seconds"].keys() == expected["seconds"].keys()


def test_a_name_without_a_directory_is_written_in_the_current_one(cpp: Path, bundle_path: Path, clips, tmp_path: Path):
    for name in ("tokens.npz", "new/tokens.npz"):
        done = gridpool(cpp, "tokens", bundle_path, clips[0][0], "-o", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert np.load(tmp_path / name)["visual_tokens"].shape == (257, 128)


def test_bench_reports_the_stages_of_python(cpp: Path, bundle_path: Path, clips):
    words = ("bench", bundle_path, "--video", clips[0][0], "--rounds", "1", "--max-new-tokens", "2", "--json")
    said, expected = json.loads(gridpool(cpp, *words).stdout), json.loads(python(*words).stdout)
    assert [(row["stage"], row["unit"]) for row in said["rows"]] == [(row["stage"], row["unit"]) for row in expected["rows"]]
    assert said["tokens"] == expected["tokens"] and said["backends"] == expected["backends"]
    assert (
        gridpool(cpp, "bench", bundle_path, "--rounds", "1", "--max-new-tokens", "1").stdout.splitlines()[0].endswith("new tokens")
    )


def test_the_example_of_the_header_answers(cpp: Path, bundle_path: Path, clips):
    video, question = clips[0]
    environment = {"LD_LIBRARY_PATH": str(onnxruntime_library().parent), "VIRTUAL_ENV": "", "PATH": ""}
    link = cpp / "tests" / "lib"
    link.mkdir(exist_ok=True)
    (link / "libonnxruntime.so.1").unlink(missing_ok=True)
    (link / "libonnxruntime.so.1").symlink_to(onnxruntime_library())
    environment["LD_LIBRARY_PATH"] = str(link)  # as a system has it
    command = [cpp / "tests" / "gridpool-example", bundle_path, video, question]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[-1] == "257 visual tokens"


def test_the_units_pass(cpp: Path):
    done = subprocess.run([cpp / "tests" / "gridpool-units"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_other_projects_find_the_installed_library(cpp: Path, tmp_path: Path):
    prefix, user = tmp_path / "prefix", tmp_path / "user"
    subprocess.run(["cmake", "--install", cpp, "--prefix", prefix], check=True, capture_output=True)
    user.mkdir()
    (user / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.22)\nproject(user CXX)\nfind_package(gridpool 0.1 REQUIRED)\n"
        "add_executable(user user.cpp)\ntarget_link_libraries(user gridpool::gridpool)\n"
    )
    (user / "user.cpp").write_text(
        "#include <gridpool/gridpool.h>\n#include <gridpool/error.hpp>\n#include <cstdio>\n"
        'int main() { std::puts(gridpool_version()); std::puts(gridpool::nearest("a", {"b"}).c_str()); }\n'
    )
    configure = ["cmake", "-S", user, "-B", user / "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}"]
    for command in (configure, ["cmake", "--build", user / "build"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    said = subprocess.run([user / "build" / "user"], capture_output=True, text=True, check=True)
    assert said.stdout == "0.1.0\n; known: b\n"
    installed = subprocess.run([prefix / "bin" / "gridpool", "--help"], capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr


def test_nothing_is_sent_to_the_maker_of_onnxruntime(cpp: Path, bundle_path: Path, clips, tmp_path: Path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # no CI variable, which would stop it too
    done = gridpool(cpp, "run", bundle_path, *clips[0], env=environment)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("Microsoft"))


def test_nothing_of_python_is_linked(cpp: Path):
    libraries = subprocess.run(["ldd", cpp / "gridpool"], capture_output=True, text=True, check=True).stdout
    assert "libgridpool.so.0" in libraries
    assert "python" not in libraries.replace(str(ROOT), "")
