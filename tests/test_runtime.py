import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import cxrlib.runtime.litert
from cxrlib.config import BundleError
from cxrlib.runtime.litert import Runtime, usable_cores

SIDE = 8


def tiny_model(*, names=("probabilities", "evidence", "embedding"), side=SIDE, signature=True) -> bytes:
    """A graph of five nodes: evidence = (-image, image), logits = its means, probabilities = their softmax, embedding =
    the mean of the image."""
    model = schema.ModelT(version=3, description="tiny", buffers=[schema.BufferT()])
    graph = schema.SubGraphT(name="main", tensors=[], operators=[], inputs=[0])

    def tensor(name, shape, dtype=schema.TensorType.FLOAT32, data=None, dynamic=True):
        buffer = 0
        if data is not None:
            buffer = len(model.buffers)
            model.buffers.append(schema.BufferT(data=np.frombuffer(np.asarray(data, np.int32).tobytes(), np.uint8)))
        any_batch = [-1, *shape[1:]] if dynamic else None
        graph.tensors.append(
            schema.TensorT(name=name, shape=list(shape), shapeSignature=any_batch, type=dtype, buffer=buffer)
        )
        return len(graph.tensors) - 1

    codes: list[int] = []

    def node(code, inputs, output, kind=schema.BuiltinOptions.NONE, options=None):
        if code not in codes:
            codes.append(code)
        graph.operators.append(
            schema.OperatorT(
                opcodeIndex=codes.index(code),
                inputs=inputs,
                outputs=[output],
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )

    image = tensor("image", (1, side, side, 1))
    axes = tensor("axes", (2,), schema.TensorType.INT32, [1, 2], dynamic=False)
    negative, evidence = tensor("negative", (1, side, side, 1)), tensor("evidence", (1, side, side, 2))
    logits, probabilities, embedding = (
        tensor("logits", (1, 2)),
        tensor("probabilities", (1, 2)),
        tensor("embedding", (1, 1)),
    )
    op, kinds = schema.BuiltinOperator, schema.BuiltinOptions
    node(op.NEG, [image], negative)
    node(
        op.CONCATENATION, [negative, image], evidence, kinds.ConcatenationOptions, schema.ConcatenationOptionsT(axis=3)
    )
    node(op.MEAN, [evidence, axes], logits, kinds.ReducerOptions, schema.ReducerOptionsT(keepDims=False))
    node(op.SOFTMAX, [logits], probabilities, kinds.SoftmaxOptions, schema.SoftmaxOptionsT(beta=1.0))
    node(op.MEAN, [image, axes], embedding, kinds.ReducerOptions, schema.ReducerOptionsT(keepDims=False))
    outputs = [probabilities, evidence, embedding]
    graph.outputs = outputs
    model.subgraphs = [graph]
    model.operatorCodes = [
        schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=1) for code in codes
    ]
    if signature:
        entries = [schema.TensorMapT(name=name, tensorIndex=i) for name, i in zip(names, outputs, strict=True)]
        inputs = [schema.TensorMapT(name="image", tensorIndex=image)]
        model.signatureDefs = [
            schema.SignatureDefT(inputs=inputs, outputs=entries, signatureKey="serving_default", subgraphIndex=0)
        ]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


MODEL = tiny_model()


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, SIDE, SIDE, 1), dtype=np.float32)


def holds(x: np.ndarray, output: cxrlib.runtime.litert.Output) -> bool:
    """Whether the output is what NumPy computes."""
    evidence = np.concatenate([-x, x], axis=3)
    logits = evidence.mean((1, 2))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wanted = {"probabilities": probabilities, "evidence": evidence, "embedding": x.mean((1, 2))}
    return all(
        getattr(output, name).shape == value.shape
        and getattr(output, name).dtype == np.float32
        and np.allclose(getattr(output, name), value, atol=1e-6)
        for name, value in wanted.items()
    )


def test_run_computes_the_graph_for_any_number_of_images():
    runtime = Runtime(MODEL, threads=2)
    assert (runtime.input_size, runtime.labels_count) == (SIDE, 2)
    for n in (1, 3, 0, 17, 1):
        x = images(n, n)
        assert holds(x, runtime.run(x))


def test_one_image_and_the_same_image_in_a_batch_agree_to_the_bit():
    runtime = Runtime(MODEL, threads=3)
    x = images(9)
    together = runtime.run(x)
    for i in range(9):
        alone = runtime.run(x[i : i + 1])
        assert np.array_equal(alone.probabilities[0], together.probabilities[i])
        assert np.array_equal(alone.evidence[0], together.evidence[i])


def test_an_image_that_is_not_to_be_spread_leaves_the_wide_interpreter_alone(monkeypatch):
    runtime, x = Runtime(MODEL, threads=2), images(1)
    spread = runtime.run(x)
    monkeypatch.setattr(runtime, "_wide", None)
    assert np.array_equal(runtime.run(x, spread=False).probabilities, spread.probabilities)
    with pytest.raises(AttributeError):
        runtime.run(x)


def test_path_and_bytes_and_strided_images(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(MODEL)
    x = images(4)
    for model in (path, str(path), MODEL):
        assert holds(x[::-1, :, ::-1], Runtime(model, threads=1).run(x[::-1, :, ::-1]))


def test_many_threads_get_their_own_answers():
    runtime = Runtime(MODEL, threads=2)
    wrong: list[str] = []
    start = threading.Barrier(16)

    def visitor(seed: int) -> None:
        start.wait()
        for turn in range(20):
            x = images(1 + (seed + turn) % 5, 100 * seed + turn)
            if not holds(x, runtime.run(x)):
                wrong.append(f"{seed} {turn}")

    threads = [threading.Thread(target=visitor, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_an_error_in_one_call_frees_the_interpreters_for_the_next(monkeypatch):
    runtime = Runtime(MODEL, threads=2)
    calls = []

    def broken(interpreter, image):
        calls.append(image)
        raise KeyboardInterrupt if len(calls) % 10 == 1 else RuntimeError

    monkeypatch.setattr(runtime, "_one", broken)
    for _ in range(4):
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            runtime.run(np.zeros((1000, *images(1).shape[1:]), np.float32))
    assert len(calls) < 40  # the helpers stop too
    monkeypatch.undo()
    x = images(5)
    assert holds(x, runtime.run(x))


def _child(queue) -> None:
    x = images(3)
    queue.put(holds(x, _RUNTIME.run(x)) and holds(x[:1], _RUNTIME.run(x[:1])))


def _child_of_threads(queue) -> None:
    right, start, slow = [], threading.Barrier(4), _RUNTIME._interpreter

    def interpreter(threads: int):
        time.sleep(0.1)  # for the others to come meanwhile
        return slow(threads)

    def visitor() -> None:
        x = images(3)
        start.wait()
        right.append(holds(x, _RUNTIME.run(x)) and holds(x[:1], _RUNTIME.run(x[:1])))

    _RUNTIME._interpreter = interpreter
    threads = [threading.Thread(target=visitor, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    queue.put(right == [True] * 4)


_RUNTIME: Runtime


def _forked(work) -> bool:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=work, args=(queue,))
    child.start()
    try:
        answer = queue.get(timeout=30)
        child.join(30)
        return answer and child.exitcode == 0
    finally:
        child.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_may_go_on_with_the_runtime():
    global _RUNTIME
    _RUNTIME = Runtime(MODEL, threads=2)
    _RUNTIME.run(images(8))  # its threads exist
    assert _forked(_child)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_threads_of_a_process_that_was_forked_from_a_busy_one():
    global _RUNTIME
    _RUNTIME = Runtime(MODEL, threads=2)
    taken = [_RUNTIME._narrow.get() for _ in range(2)]  # as if images were under way
    with _RUNTIME._lock:
        assert _forked(_child_of_threads)
    for interpreter in taken:
        _RUNTIME._narrow.put(interpreter)
    x = images(3)
    assert holds(x, _RUNTIME.run(x))


def test_a_fork_that_python_was_not_told_of(monkeypatch):
    runtime, x = Runtime(MODEL, threads=2), images(3)
    inherited = runtime._wide
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert holds(x, runtime.run(x))
    assert runtime._wide is not inherited
    assert any(orphans[0] is inherited for orphans in cxrlib.runtime.litert._ORPHANS)  # destroying it might hang
    again = runtime._wide
    runtime.run(x)
    assert runtime._wide is again


def test_what_run_refuses():
    runtime = Runtime(MODEL, threads=1)
    for bad, said in (
        (images(2).astype(np.float64), "shape=(2, 8, 8, 1), dtype=float64"),
        (images(2)[..., 0], "shape=(2, 8, 8), dtype=float32"),
        (np.zeros((1, SIDE, SIDE, 3), np.float32), "shape=(1, 8, 8, 3)"),
        (np.zeros((1, 9, 9, 1), np.float32), "shape=(1, 9, 9, 1)"),
        ([[0.0]], "Received: list"),
    ):
        with pytest.raises(ValueError, match="float32 array of shape") as caught:
            runtime.run(bad)
        assert said in str(caught.value)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        Runtime(MODEL, threads=0)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (b"", "it is not a LiteRT model"),
        (b"GIF89a" * 100, "it is not a LiteRT model"),
        (b"\x1c\0\0\0TFL3", "damaged"),
        (b"\x1c\0\0\0TFL3" + bytes(5000), "has 0 graphs, not one"),
        (MODEL[: len(MODEL) // 2], "damaged"),
        (MODEL[:-1], "damaged"),
        (tiny_model(signature=False), "must have one signature"),
        (tiny_model(names=("probabilities", "evidence", "features")), "it has 1 and evidence, features, probabilities"),
        (tiny_model(names=("embedding", "evidence", "probabilities")), "wrong shapes or types"),
        (tiny_model(side=4096), "wrong shapes or types"),
    ],
)
def test_garbage_is_a_named_error(model, said):
    with pytest.raises(BundleError, match=said) as caught:
        Runtime(model)
    assert str(caught.value).startswith("model: ")


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(BundleError, match=r"absent\.tflite: it cannot be read \(No such file"):
        Runtime(tmp_path / "absent.tflite")
    with pytest.raises(BundleError, match="it cannot be read"):
        Runtime(tmp_path)
    path = tmp_path / "large.tflite"
    path.write_bytes(MODEL)
    monkeypatch.setattr("cxrlib.runtime.litert._MAX_BYTES", 100)
    with pytest.raises(BundleError, match="larger than"):
        Runtime(path)


def test_altered_bytes_never_end_the_process():
    script = """
import sys, numpy as np
from cxrlib.config import BundleError
from cxrlib.runtime.litert import Runtime
model, rng, refused = bytes.fromhex(sys.stdin.read()), np.random.default_rng(0), 0
for _ in range(60):
    altered = bytearray(model)
    for place in rng.integers(8, len(model), 3):
        altered[place] = rng.integers(256)
    try:
        Runtime(bytes(altered), threads=1).run(np.zeros((1, 8, 8, 1), np.float32))
    except (BundleError, ValueError, RuntimeError):
        refused += 1
print(refused)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(cxrlib.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], input=MODEL.hex(), capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert 10 < int(done.stdout) <= 60


def test_cores_obey_the_quota_of_a_container(monkeypatch, tmp_path):
    quota, real_open = tmp_path / "cpu.max", open
    monkeypatch.setattr(
        "builtins.open", lambda path, *a, **k: real_open(quota if path == "/sys/fs/cgroup/cpu.max" else path, *a, **k)
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for text, wanted in (("200000 100000", 2), ("max 100000", 16), ("50000 100000", 1), ("9999999 100000", 16)):
        quota.write_text(text)
        assert usable_cores() == wanted
    quota.unlink()
    assert usable_cores() == 16
