"""What TensorRT-RTX does with engines on a GPU that it does not list: each is read and run, and the message of a refusal is kept.

    python benchmarks/gpu_tensorrt_rtx.py --make FOLDER      here, no GPU needed: engines, and ONNX Runtime's numbers beside them
    python benchmarks/gpu_tensorrt_rtx.py FOLDER             there: read each, make a context, run it, compare
    python benchmarks/gpu_tensorrt_rtx.py --device cpu       both on this machine, in a temporary folder

NVIDIA lists no sm_90 for TensorRT-RTX, so that a refusal is what a data-centre GPU is expected to get; it counts as an answer.
Each engine has its own process, because a library may end the process, or hang, instead of refusing. Exit status 1 where one
did that, where numbers are wrong, or where nothing could be tried.

    FOLDER/probe.onnx, probe.npz     a convolution, a matrix product and a softmax in float32; inputs and outputs by name
    FOLDER/probe-<target>.engine     built for "any" GPU from Ampere on, and for single architectures
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import processes
from json_file import write_json

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.core.errors import UserError
from runtime.engine import cuda

TARGETS = ("any", "sm80", "sm89", "sm120")
CURRENT = "current"  # built where it runs
LIMIT = 40  # seconds an engine; the step of gpu.py has room for all
TOLERANCE = 1e-2  # of the largest output: products may drop to TF32
RAN, REFUSED, WRONG = "ran", "refused", "wrong"
CRASHED, HUNG = "crashed", "hung"  # no words of the library: no answer


@dataclass(frozen=True)
class Answer:
    """reached: the step that was the last to work; words: the library's, or how near the numbers are."""

    engine: str
    verdict: str
    reached: str
    words: str
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="what --make wrote")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="build the engines, which needs onnx and onnxruntime")
    parser.add_argument("--plan", action="store_true", help="print what would be tried and how long it should take")
    parser.add_argument("--json", type=Path, help="write the answers here")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # one engine, in its own process
    args = parser.parse_args()
    if args.plan:
        most = (len(TARGETS) + 1) * LIMIT
        print(f"read and run probe-*.engine for {', '.join(TARGETS)}, and one built there: about 30 s, at most {most} s")
        return 0
    try:
        if args.one:
            print(json.dumps(asdict(_tried(args.folder, args.one))))
            return 0
        with processes.none_left(), tempfile.TemporaryDirectory(prefix="tensorrt-rtx-") as temporary:
            folder = args.make or args.folder or Path(temporary)
            if args.make or args.device == "cpu":
                make(folder)
            return 0 if args.make else _print_answers(folder, args.json)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def make(folder: Path) -> None:
    """Write the probe, ONNX Runtime's numbers for it, and its engines."""
    import onnxruntime

    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "probe.onnx"
    _write_probe(model)
    x = np.random.default_rng(0).standard_normal((2, 8, 16, 16)).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.savez(folder / "probe.npz", x=x, y=y)
    for target in TARGETS:
        file = folder / f"probe-{target}.engine"
        file.write_bytes(_built(model, target))
        print(f"{file.name}: {file.stat().st_size} bytes", file=sys.stderr, flush=True)


def _print_answers(folder: Path, report: Path | None) -> int:
    engines = sorted(file.name for file in folder.glob("probe-*.engine"))
    names = [*engines, CURRENT] if (folder / "probe.onnx").exists() else engines
    gpu = f"{cuda.gpus()[0].name}, {cuda.gpus()[0].target}" if cuda.gpus() else cuda.no_gpu()
    print(f"{gpu}\n\n| engine | verdict | last step that worked | s | words |\n|---|---|---|---:|---|", flush=True)
    answers = []
    for name in names:
        answers.append(_in_a_process(folder, name))
        answer = answers[-1]
        words = answer.words.replace("|", "\\|")
        print(f"| {answer.engine} | {answer.verdict} | {answer.reached} | {answer.seconds:.1f} | {words} |", flush=True)
        write_json(report, {"gpu": gpu, "engines": [asdict(one) for one in answers]})
    tried = [answer for answer in answers if answer.reached != "nothing"]
    return int(not tried or any(answer.verdict not in (RAN, REFUSED) for answer in answers))


def _in_a_process(folder: Path, name: str) -> Answer:
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = processes.start([sys.executable, __file__, folder, "--one", name], stdout=out, stderr=errors)
        status = processes.wait(process, LIMIT)
        printed, words = (_text_of(file) for file in (out, errors))
    if status is None:
        answer = Answer(name, HUNG, "unknown", f"not done after {LIMIT} s")
    elif status:
        words = " ".join((words or printed).split())[-600:]
        answer = Answer(name, CRASHED, "unknown", f"the process ended with status {status}: {words}")
    else:
        answer = Answer(**json.loads(printed.splitlines()[-1]))
    return replace(answer, seconds=round(time.perf_counter() - started, 1))


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _tried(folder: Path, name: str) -> Answer:
    """Go as far as the library lets us."""
    try:
        import tensorrt_rtx as trt
    except (ImportError, OSError) as error:
        return Answer(name, REFUSED, "nothing", f"tensorrt_rtx does not load: {error}")
    reached, logger = "import", _logger(trt)
    try:
        content = _built(folder / "probe.onnx", CURRENT, logger) if name == CURRENT else (folder / name).read_bytes()
        reached = "build" if name == CURRENT else "import"
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            return Answer(name, REFUSED, reached, logger.all())
        reached = "deserialise"
        context = engine.create_execution_context()
        if context is None:
            return Answer(name, REFUSED, reached, logger.all())
        reached = "context"
        error = _error_of(engine, context, folder / "probe.npz", logger)
    except (UserError, RuntimeError) as failure:
        return Answer(name, REFUSED, reached, f"{failure}; {logger.all()}")
    words = f"largest error / largest value against ONNX Runtime {error:.1e}; {logger.all()}"
    return Answer(name, RAN if error < TOLERANCE else WRONG, "run", words)


def _error_of(engine: Any, context: Any, numbers: Path, logger: Any) -> float:
    with np.load(numbers) as file:
        x, expected = file["x"], file["y"]
    gpu = cuda.Cuda()
    try:
        source, target, got = gpu.allocate(x.nbytes), gpu.allocate(expected.nbytes), np.full_like(expected, np.nan)
        gpu.to_device(source, x)
        gpu.to_device(target, got)
        for address, name in ((source, "x"), (target, "y")):
            if not context.set_tensor_address(name, address):
                raise UserError(f"the address of {name} was refused")
        if not context.execute_async_v3(gpu.stream):
            raise UserError("the run was refused")
        gpu.to_host(got, target)
        gpu.synchronize()
    finally:
        gpu.close()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def _built(model: Path, target: str, logger: Any = None) -> bytes:
    import tensorrt_rtx as trt

    logger = logger or _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        raise UserError("the parser refused the probe")
    config = builder.create_builder_config()
    if target != "any":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise UserError(f"no engine for {target} was built")
    return bytes(content)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps warnings and errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.lines.append(f"{severity.name}: {' '.join(message.split())}")

        def all(self) -> str:
            return " / ".join(self.lines) or "no message"

    return Logger()


def _write_probe(file: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(1)
    weights = {
        "kernel": random.standard_normal((16, 8, 3, 3)).astype(np.float32),
        "matrix": random.standard_normal((256, 64)).astype(np.float32) / 16,
        "rows": np.array([2, 16, 256], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "rows"], ["c"]),
        helper.make_node("MatMul", ["c", "matrix"], ["d"]),
        helper.make_node("Softmax", ["d"], ["y"], axis=-1),
    ]
    values = [
        helper.make_tensor_value_info(*one)
        for one in (("x", TensorProto.FLOAT, [2, 8, 16, 16]), ("y", TensorProto.FLOAT, [2, 16, 64]))
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "probe", values[:1], values[1:], initializers)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(file))


if __name__ == "__main__":
    sys.exit(main())
