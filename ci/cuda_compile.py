"""Every kernel that the device layer makes for CUDA, compiled to machine code; neither a GPU nor a driver is needed.

    python3 ci/cuda_compile.py [--arch 75,86,90] [--jobs 2] [--no-cache] [-k OPERATOR] [--texts FOLDER]

Models are ONNX's backend test cases, as they are, with constant weights, in float16 and in double, and the list of
larger ones below, for kernels that small sizes do not reach. They are planned by sessions on a device that computes
nothing, which keeps the texts. A text that fails to compile is an error; a kernel that spills registers or keeps
arrays in local memory is listed as a warning. Results are cached by content.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the parent of ci: here, ci/venv.py would hide Python's venv

from ci.venv import cuda_check, enter  # noqa: E402 - found through the line above

if TYPE_CHECKING:
    import numpy as np
    import onnx

ARCHS = "75,86,90"  # Turing, Ampere, Hopper: the oldest that every supported CUDA compiles for, and two in wide use
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_LOCAL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


class W(tuple[int, ...]):
    """A shape of constant weights."""

    __slots__ = ()


# What the backend tests are too small for: operator; inputs, where a shape is data that is fed and a list a constant;
# attributes.
LARGER: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("MatMul", [(256, 256), W((256, 256))], {}),
    ("MatMul", [(256, 256), (256, 256)], {}),
    ("MatMul", [(8, 12, 128, 64), (8, 12, 64, 128)], {}),
    ("MatMul", [(4, 1, 33, 65), (1, 7, 65, 31)], {}),
    ("MatMul", [(1, 2048), W((2048, 1000))], {}),
    ("MatMul", [(300, 2048), (2048,)], {}),
    ("Gemm", [(64, 2048), W((1000, 2048)), W((1000,))], {"transB": 1}),
    ("Gemm", [(2048, 64), (2048, 1000), (64, 1)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("Conv", [(1, 3, 224, 224), W((64, 3, 7, 7)), W((64,))], {"strides": [2, 2], "pads": [3, 3, 3, 3]}),
    ("Conv", [(1, 64, 56, 56), W((64, 64, 3, 3))], {"pads": [1, 1, 1, 1]}),
    ("Conv", [(1, 64, 56, 56), W((256, 64, 1, 1)), W((256,))], {}),
    ("Conv", [(2, 96, 28, 28), W((96, 1, 3, 3)), W((96,))], {"pads": [1, 1, 1, 1], "group": 96}),
    ("Conv", [(1, 32, 20, 20), W((64, 16, 5, 5))], {"pads": [2, 2, 2, 2], "group": 2, "dilations": [1, 1]}),
    ("Conv", [(1, 32, 20, 20), (64, 32, 3, 3)], {"dilations": [2, 2]}),
    ("Conv", [(1, 80, 3000), W((384, 80, 3)), W((384,))], {"pads": [1, 1]}),
    ("Conv", [(1, 8, 10, 20, 20), W((16, 8, 3, 3, 3))], {}),
    ("ConvTranspose", [(1, 64, 32, 32), W((64, 32, 2, 2)), W((32,))], {"strides": [2, 2]}),
    ("MaxPool", [(1, 64, 112, 112)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [(1, 64, 56, 56)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("GlobalAveragePool", [(1, 2048, 7, 7)], {}),
    ("GlobalAveragePool", [(1, 16, 512, 512)], {}),
    ("BatchNormalization", [(1, 64, 56, 56), *[W((64,))] * 4], {}),
    ("LayerNormalization", [(4, 128, 768), W((768,)), W((768,))], {}),
    ("LayerNormalization", [(2, 3, 20000), W((20000,))], {}),
    ("InstanceNormalization", [(1, 32, 128, 128), W((32,)), W((32,))], {}),
    ("GroupNormalization", [(1, 32, 64, 64), W((32,)), W((32,))], {"num_groups": 8}),
    ("RMSNormalization", [(4, 128, 768), W((768,))], {}),
    ("Softmax", [(8, 12, 128, 128)], {}),
    ("Softmax", [(2, 50000)], {}),
    ("Softmax", [(2, 1000, 300)], {"axis": 1}),
    ("LogSoftmax", [(4, 1000)], {}),
    ("ReduceSum", [(4, 300000), [1]], {}),
    ("ReduceMean", [(4, 64, 56, 56), [2, 3]], {}),
    ("ReduceMax", [(3000, 300), [0]], {}),
    ("ReduceLogSumExp", [(4, 300000), [1]], {}),
    ("ReduceL2", [(2, 1000, 300), [0, 1]], {}),
    ("ArgMax", [(4, 50000)], {"axis": 1}),
    ("ArgMax", [(4, 1000, 300)], {"axis": 1}),
    ("CumSum", [(4, 100000), [1]], {}),
    ("TopK", [(4, 50000), [100]], {}),
    ("Transpose", [(8, 128, 12, 64)], {"perm": [0, 2, 1, 3]}),
    ("Transpose", [(1000, 1000)], {"perm": [1, 0]}),
    ("LSTM", [(20, 2, 128), W((1, 1024, 128)), W((1, 1024, 256)), W((1, 2048))], {"hidden_size": 256}),
    ("GRU", [(20, 2, 128), W((1, 768, 128)), W((1, 768, 256)), W((1, 1536))], {"hidden_size": 256}),
    ("Attention", [(1, 8, 128, 64), (1, 8, 128, 64), (1, 8, 128, 64)], {}),
    ("Attention", [(1, 8, 1, 64), (1, 8, 700, 64), (1, 8, 700, 64)], {}),
    ("com.microsoft.GroupQueryAttention",
     [(2, 1, 256), (2, 1, 64), (2, 1, 64), (2, 2, 9, 32), (2, 2, 9, 32), [7, 9], [10]],
     {"num_heads": 8, "kv_num_heads": 2}),
    *(("com.microsoft.GroupQueryAttention",
       [(1, 5, 384), None, None, *past, [4 + room], [5 + room], (40, 16), (40, 16)],
       {"num_heads": 8, "kv_num_heads": 2, "do_rotary": 1, "rotary_interleaved": interleaved})
      for room, past in ((0, (None, None)), (3, ((1, 2, 9, 32), (1, 2, 9, 32)))) for interleaved in (0, 1)),
]  # fmt: skip


@dataclass
class Result:
    """What the compiler said of one text for one architecture."""

    ok: bool
    log: str = ""
    registers: int = 0
    local: dict[str, int] = field(default_factory=dict)  # entry -> bytes of stack and spills
    seconds: float = 0.0


def models() -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    """(name, model, feeds) of everything that is planned."""
    import onnx
    import onnx.numpy_helper
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases overflow on purpose
        cases = collect_testcases(None)
    for case in cases:
        graph = case.model.graph
        if any(node.op_type == "Loop" for node in graph.node):
            continue  # its trip count would be whatever this device did not compute
        given = [onnx.numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in case.data_sets[0][0]]
        feeds = dict(zip((i.name for i in graph.input), given, strict=False))
        yield case.name, case.model, feeds
        if len(graph.node) == 1:
            yield from variants(case.name, case.model, feeds)
    for number, (op_type, inputs, attrs) in enumerate(LARGER):
        name = f"larger_{number}_{op_type}"
        model, feeds = larger(op_type, inputs, attrs)
        yield name, model, feeds
        yield from variants(name, model, feeds)


def variants(name: str, model: onnx.ModelProto, feeds: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The same node with all inputs but the first as weights, in float16 and double, with SiLU behind or before it."""
    import numpy as np
    import onnx

    op_type = model.graph.node[0].op_type
    reduces = "Softmax" in op_type or op_type.startswith(("Reduce", "Global"))
    reduces = reduces or op_type.endswith(("Normalization", "Pool"))
    if reduces or op_type in ("Gemm", "MatMul"):
        fed = onnx.ModelProto.FromString(model.SerializeToString())
        data = fed.graph.node[0].input[0]
        fed.graph.node[0].input[0] = "data"
        fed.graph.node.insert(0, onnx.helper.make_node("Mul", [data, "gate_of_data"], ["data"]))
        fed.graph.node.insert(0, onnx.helper.make_node("Sigmoid", [data], ["gate_of_data"]))
        yield f"{name}/fed", fed, feeds
    if reduces or op_type in ("Conv", "Gemm", "MatMul"):
        followed = onnx.ModelProto.FromString(model.SerializeToString())
        product = followed.graph.node[0].output[0]
        followed.graph.node[0].output[0] = "product"
        followed.graph.node.append(onnx.helper.make_node("Sigmoid", ["product"], ["gate"]))
        followed.graph.node.append(onnx.helper.make_node("Mul", ["product", "gate"], [product]))
        yield f"{name}/followed", followed, feeds
    if len(feeds) > 1 and all(isinstance(v, np.ndarray) for v in feeds.values()):
        fixed = onnx.ModelProto.FromString(model.SerializeToString())
        rest = list(feeds)[1:]
        fixed.graph.initializer.extend(onnx.numpy_helper.from_array(feeds[n], n) for n in rest)
        kept = [i for i in fixed.graph.input if i.name not in rest]
        del fixed.graph.input[:]
        fixed.graph.input.extend(kept)
        yield f"{name}/weights", fixed, {n: v for n, v in feeds.items() if n not in rest}
    for code, dtype in ((onnx.TensorProto.FLOAT16, np.float16), (onnx.TensorProto.DOUBLE, np.float64)):
        other = onnx.ModelProto.FromString(model.SerializeToString())
        types = [v.type.tensor_type for v in (*other.graph.input, *other.graph.output)]
        floats = [t for t in types if t.elem_type == onnx.TensorProto.FLOAT]
        if not floats:
            return
        for t in floats:
            t.elem_type = code
        for tensor in other.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                array = onnx.numpy_helper.to_array(tensor).astype(dtype)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        with np.errstate(over="ignore"):
            cast = {n: v.astype(dtype) if getattr(v, "dtype", None) == np.float32 else v for n, v in feeds.items()}
        yield f"{name}/{np.dtype(dtype)}", other, cast


def larger(op_type: str, inputs: Sequence[Any], attrs: dict[str, Any]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node, and zeros to feed it."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    feeds, fixed, names = {}, [], []
    domain, _, kind = op_type.rpartition(".")
    for i, what in enumerate(inputs):
        names.append("" if what is None else f"x{i}")
        if what is None:
            continue
        if isinstance(what, list):
            content = np.array(what[0] if op_type == "CumSum" else what, np.int32 if domain else np.int64)
            fixed.append(numpy_helper.from_array(content, names[-1]))
        elif isinstance(what, W):
            fixed.append(numpy_helper.from_array(np.full(what, 0.01, np.float32), names[-1]))
        else:
            feeds[names[-1]] = np.zeros(what, np.float32)
    outputs = ["y", "i"] if op_type == "TopK" else ["y", "k", "v"] if domain else ["y"]
    integer = {"i", *(["y"] if op_type.startswith("Arg") else [])}
    value = partial(helper.make_tensor_value_info, shape=None)
    graph = helper.make_graph(
        [helper.make_node(kind, names, outputs, domain=domain, **attrs)],
        op_type,
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in feeds.items()],
        [value(n, onnx.TensorProto.INT64 if n in integer else onnx.TensorProto.FLOAT) for n in outputs],
        fixed,
    )
    opsets = [helper.make_opsetid("", 24), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11), feeds


def texts() -> tuple[dict[str, str], Counter[str]]:
    """Text -> operator of every kernel, and how often planning ended in which error."""
    import gpurt
    from gpurt import registry
    from gpurt.testing.null import NullProvider, collect

    provider = NullProvider.open(None, {"dialect": "cuda"})
    assert isinstance(provider, NullProvider)

    class Shared(NullProvider):
        @classmethod
        def open(cls, index: int | None, options: Any) -> NullProvider:  # noqa: ARG003 - all sessions share one
            return provider

    registry.register(Shared)
    ended: Counter[str] = Counter()
    for name, model, feeds in models():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                gpurt.InferenceSession(model, gpurt.SessionOptions(partitioning="greedy"), providers=["null"]).run(
                    None, feeds
                )
            ended["planned"] += 1
        except Exception as e:  # noqa: BLE001 - variants may not exist, and what follows from no computation may fail
            kind = "no such model" if "/" in name else type(e).__name__
            ended[kind] += 1
            if "/" not in name:
                print(f"  {name}: {type(e).__name__}: {str(e).splitlines()[0][:150]}")
    registry.unregister("null")
    return collect(provider), ended


def compile_one(task: tuple[str, str, int, str | None]) -> Result:
    """Compile one text for one architecture, or take the result from the cache."""
    from cupy.cuda import nvrtc

    from gpurt.errors import EPFail
    from gpurt_cuda.compiler import STANDARD, compile_text

    text, name, arch, folder = task
    key = hashlib.sha256(f"{text}\0{arch} {nvrtc.getVersion()} {STANDARD}".encode()).hexdigest()
    path = Path(folder, f"{key}.json") if folder else None
    if path is not None:
        with suppress(OSError, ValueError, TypeError):
            return Result(**json.loads(path.read_text(encoding="utf-8")))
    start = time.perf_counter()
    try:
        compiled = compile_text(text, name, arch, ("--ptxas-options=-v",))
        result = Result(True)
        entry = ""
        for line in compiled.log.splitlines():
            if found := _ENTRY.search(line):
                entry = found[1]
            elif found := _LOCAL.search(line):
                if total := sum(map(int, found.groups())):
                    result.local[entry] = total
            elif found := _REGISTERS.search(line):
                result.registers = max(result.registers, int(found[1]))
    except EPFail as e:
        result = Result(False, e.message)
    result.seconds = time.perf_counter() - start
    if path is not None:
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(asdict(result)), encoding="utf-8")
        part.replace(path)
    return result


def report(found: dict[str, str], archs: Sequence[int], results: dict[tuple[str, int], Result]) -> int:
    """Print the table, failures and warnings; returns the number of failures."""
    by_op: dict[str, list[str]] = defaultdict(list)
    for text, op in found.items():
        by_op[op].append(text)
    heads = "".join(f"{f'sm_{a}':>8}" for a in archs)
    print(f"\n{'operator':34}{'texts':>6}{heads}  most registers")
    for op, of_op in sorted(by_op.items()):
        good = [sum(results[t, a].ok for t in of_op) for a in archs]
        registers = max(results[t, a].registers for t in of_op for a in archs)
        print(f"{op[:33]:34}{len(of_op):6}{''.join(f'{n:8}' for n in good)}  {registers}")
    local = Counter(
        f"{found[t]}: {entry}, {size} bytes on sm_{a}"
        for (t, a), r in results.items()
        for entry, size in r.local.items()
    )
    for line, count in sorted(local.items()):
        print(f"warning: local memory: {line}" + (f" ({count} texts)" if count > 1 else ""))
    failed = 0
    logs: dict[str, int] = Counter()
    for (text, arch), result in results.items():
        if not result.ok:
            failed += 1
            logs[f"{found[text]}: {result.log.replace(f'sm_{arch}', 'sm')[:1500]}"] += 1
    for log, count in logs.items():
        print(f"\nFAILED ({count} times) {log}")
    return failed


def main() -> int:
    """Collect, compile, report; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compiles every CUDA kernel of gpurt without a GPU.")
    parser.add_argument("--arch", default=ARCHS, help=f"compute capabilities without the point (default {ARCHS})")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--no-cache", action="store_true", help="compile again what has been compiled before")
    parser.add_argument("--texts", metavar="FOLDER", help="also write the texts there")
    parser.add_argument("-k", metavar="OPERATOR", dest="only", help="only texts of operators with this in their name")
    arguments = parser.parse_args()
    archs = [int(a) for a in arguments.arch.split(",")]
    enter(cuda_check())

    start = time.perf_counter()
    found, ended = texts()
    if arguments.only:
        found = {t: op for t, op in found.items() if arguments.only.lower() in op.lower()}
    made = ", ".join(f"{count} {what}" for what, count in ended.most_common())
    seconds = time.perf_counter() - start
    print(f"{len(found)} kernel texts of {len(set(found.values()))} operators in {seconds:.1f} s ({made})")
    if not found:
        print("There is nothing to compile.")
        return 1
    if arguments.texts:
        Path(arguments.texts).mkdir(parents=True, exist_ok=True)
        for i, (text, op) in enumerate(found.items()):
            Path(arguments.texts, f"{op}_{i}.cu").write_text(text, encoding="utf-8")

    folder = None
    if not arguments.no_cache:
        from platformdirs import user_cache_dir

        folder = str(Path(os.environ.get("GPURT_CACHE_DIR") or user_cache_dir("gpurt"), "cuda-check"))
        Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    start = time.perf_counter()
    tasks = [(text, op, arch, folder) for arch in archs for text, op in found.items()]
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        done = pool.map(compile_one, tasks, chunksize=8)
        results = {(text, arch): result for (text, _, arch, _), result in zip(tasks, done, strict=True)}
    failed = report(found, archs, results)
    spent = sum(r.seconds for r in results.values())
    named = ", ".join(f"sm_{a}" for a in archs)
    print(f"\n{len(results) - failed} of {len(results)} compiled ({len(found)} texts for {named}), {failed} failed")
    print(f"It took {time.perf_counter() - start:.1f} s; without the cache, {spent:.1f} s of one core")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
