"""benchmarks/random_checkpoint.py: its checkpoints are ones that transformers and our own loader read, of the shapes they claim."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ("hf", "published")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint in each layout, in several shards."""
    made = {}
    for layout in LAYOUTS:
        made[layout] = tmp_path_factory.mktemp("random") / layout
        command = ["benchmarks/random_checkpoint.py", "--size", "tiny", "--layout", layout, "--shard-size", "200KB"]
        subprocess.run([sys.executable, *command, "--out", str(made[layout])], cwd=ROOT, check=True, capture_output=True)
    return made


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch):
    """The module random_checkpoint; benchmarks are scripts, not a package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import random_checkpoint

    return random_checkpoint


def test_both_layouts_load_in_transformers_with_equal_weights(checkpoints):
    states = {layout: _transformers(path) for layout, path in checkpoints.items()}
    assert states["hf"].keys() == states["published"].keys()
    for name, tensor in states["hf"].items():
        assert torch.equal(tensor, states["published"][name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_loader_reads_what_transformers_reads(checkpoints, layout):
    from export.checkpoint import open_checkpoint
    from export.families.llava_ov import load_llm, load_vision

    expected = _transformers(checkpoints[layout])
    vision = load_vision(open_checkpoint(str(checkpoints[layout])))
    llm = load_llm(open_checkpoint(str(checkpoints[layout])))
    assert torch.equal(vision.newline[0], expected["model.image_newline"])
    ours = {
        "multi_modal_projector": vision.projector.state_dict(),
        "language_model": llm.model.state_dict(),
        "vision_tower": vision.reference_encoder.tower.state_dict(),
    }
    compared = 1
    for part, state in ours.items():
        for name, tensor in state.items():
            assert torch.equal(tensor, expected[f"model.{part}.{name}"]), name
            compared += 1
    assert compared == sum(name.startswith("model.") for name in expected)


def test_shards_and_their_index_agree(checkpoints):
    from safetensors import safe_open

    for path in checkpoints.values():
        index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        files = sorted(path.glob("*.safetensors"))
        assert len(files) > 2
        assert all(file.stat().st_size < 220_000 for file in files)
        held = {}
        for file in files:
            with safe_open(file, "np") as shard:
                held |= dict.fromkeys(shard.keys(), file.name)
        assert held == index


def test_published_layout_has_the_published_names(checkpoints):
    index = json.loads((checkpoints["published"] / "model.safetensors.index.json").read_text())["weight_map"]
    assert {
        "image_newline",
        "multi_modal_projector.linear_1.weight",
        "language_model.model.layers.0.self_attn.q_proj.bias",
        "language_model.model.norm.weight",
        "vision_tower.vision_model.encoder.layers.1.mlp.fc2.weight",
    } <= index.keys()
    assert not any(name.startswith("model.") for name in index)


@pytest.mark.parametrize("size", ["tiny", "0.5b", "7b-vision"])
def test_every_shape_is_that_of_transformers_own_module(sizes, size):
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    chosen = sizes.SIZES[size]
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**sizes.config(chosen)))
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    if not chosen.llm_weights:
        expected = {name: shape for name, shape in expected.items() if not name.startswith(("model.language_model.", "lm_head."))}
    assert {name: shape for name, shape, _, _ in sizes.weights(chosen)} == expected


def test_the_half_billion_size_is_that_of_the_published_models(sizes):
    counts = {"vision_tower": 0, "language_model": 0, "multi_modal_projector": 0}
    for name, shape, _, _ in sizes.weights(sizes.SIZES["0.5b"]):
        part = name.split(".")[1]
        if part in counts:
            counts[part] += int(np.prod(shape))
    # Qwen2-0.5B has 494,032,768 parameters with 151,936 embedding rows; here are 152,000.
    assert counts["language_model"] == 494_032_768 + (152_000 - 151_936) * 896
    # SigLIP-so400m/14 at 384 pixels has 428,225,600; this family leaves out its 27th layer and its pooling head.
    layer = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    head = 1152 + 4 * (1152 * 1152 + 1152) + 2 * 1152 + 2 * 1152 * 4304 + 4304 + 1152
    assert counts["vision_tower"] == 428_225_600 - layer - head
    assert counts["multi_modal_projector"] == 1152 * 896 + 896 + 896 * 896 + 896


def test_activations_stay_near_one(checkpoints):
    from export.checkpoint import open_checkpoint
    from export.families.llava_ov import load_llm, load_vision

    checkpoint = open_checkpoint(str(checkpoints["hf"]))
    vision, llm = load_vision(checkpoint), load_llm(checkpoint)
    pixels = torch.empty(2, 3, 112, 112).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = vision.projector(vision.encoder(pixels))
        logits = llm(inputs_embeds=tokens.reshape(1, -1, tokens.shape[-1])).logits
    assert 0.1 < tokens.std() < 10
    assert 0.1 < logits.std() < 10


@pytest.mark.parametrize("first_special_id", [500, 151_643])
def test_tokenizer_keeps_text_and_special_ids(monkeypatch, first_special_id):
    from tokenizers import Tokenizer

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from random_tokenizer import SPECIAL_TOKENS, tokenizer_json

    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json(first_special_id)))
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(first_special_id, first_special_id + 5))
    assert all(tokenizer.id_to_token(index) is not None for index in (0, 255, 256, first_special_id - 1))
    text = "What's in the vidéo <video> of 你好 12:34?<|im_end|>\n"
    encoded = tokenizer.encode(text)
    assert encoded.ids.count(first_special_id + 4) == 1  # <video>
    assert encoded.ids.count(first_special_id + 2) == 1  # <|im_end|>
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text


def test_a_bundle_comes_out_of_it(checkpoints, tmp_path):
    from export.options import ExportOptions
    from export.pipeline import export_bundle
    from runtime.bundle import Bundle
    from runtime.prompt import Prompt

    out = tmp_path / "bundle"
    export_bundle(ExportOptions(checkpoint=str(checkpoints["published"]), out=str(out), frames=8, max_context=512))
    bundle = Bundle.open(out)
    assert bundle.manifest.tokens_per_clip == 8 * 4 * 4 + 1
    assert bundle.prompt.video_token_id == 504
    assert len(Prompt(bundle).ids("What is it?")) > 4


def test_an_unknown_shard_size_is_refused():
    command = ["benchmarks/random_checkpoint.py", "--size", "tiny", "--out", "unused", "--shard-size", "ten"]
    run = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "500MB" in run.stderr


def _transformers(path: Path) -> dict[str, torch.Tensor]:
    """The state dict as transformers loads it, with no key missing or left over."""
    from transformers import LlavaOnevisionForConditionalGeneration

    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(path, output_loading_info=True, local_files_only=True)
    assert not any(info.values()), info
    state = model.state_dict()
    tied = state.pop("lm_head.weight")
    assert torch.equal(tied, state["model.language_model.embed_tokens.weight"])
    return state
