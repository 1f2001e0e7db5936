"""A model file is looked through before native code reads it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_network
from ai_edge_litert import schema_py_generated as schema

from cxrlib.config import BundleError, DefaultRecipe, TextbookRecipe
from cxrlib.runtime import flatbuffer as graph
from cxrlib.runtime.flatbuffer import check_graph

ROOT = Path(__file__).parents[1]


def test_a_sound_network_passes() -> None:
    check_graph(tiny_network.pack(tiny_network.network()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras's own
@pytest.mark.parametrize(
    ("backbone", "labels"),
    [
        (name, ("A", "B"))
        for name in ("mobilenet_v2", "mobilenet_v3_large", "efficientnet_v2_b0", "densenet121", "resnet50_v2")
    ]
    + [("mobilenet_v2", ("A", "B", "C"))],
)
def test_every_backbone_passes(backbone: str, labels: tuple[str, ...]) -> None:
    pytest.importorskip("tensorflow")
    from cxrlib.network.model import build_model, export_litert

    recipe = DefaultRecipe(backbone=backbone, image_size=64)
    check_graph(export_litert(build_model(labels, recipe=recipe, weights=None)))


@pytest.mark.slow
@pytest.mark.parametrize("labels", [("A", "B"), ("A", "B", "C")])
def test_a_network_with_a_dense_layer_passes(labels: tuple[str, ...]) -> None:
    pytest.importorskip("tensorflow")
    from cxrlib.network.model import build_model, export_litert

    check_graph(export_litert(build_model(labels, recipe=TextbookRecipe(image_size=64), weights=None)))


# What is wrong with a network: (what to do to it, what the message says)


def _set(path: str, value: Any) -> Callable[[Any], None]:
    """Set a field of the network, as in `subgraphs[0].tensors[1].shape`."""

    def change(model: Any) -> None:
        place, _, name = path.rpartition(".")
        target = eval(f"model.{place}" if place else "model")
        setattr(target, name, value)

    return change


def _code(name: str, options: str = "") -> Callable[[Any], None]:
    """Let the first operation be another one."""

    def change(model: Any) -> None:
        code = getattr(schema.BuiltinOperator, name)
        model.operatorCodes[0].builtinCode, model.operatorCodes[0].deprecatedBuiltinCode = code, min(code, 127)

    return change


def _custom(model: Any) -> None:
    _code("CUSTOM")(model)
    model.operatorCodes[0].customCode = "FlexPyFunc"


def _twice(model: Any) -> None:
    model.subgraphs.append(model.subgraphs[0])


def _cut(model: Any) -> None:
    model.buffers[1].data = model.buffers[1].data[:-4]


def _quantised(model: Any) -> None:
    made = schema.QuantizationParametersT()
    made.scale, made.zeroPoint = np.array([0.1], np.float32), np.array([0])
    model.subgraphs[0].tensors[1].quantization = made


def _sparse(model: Any) -> None:
    model.subgraphs[0].tensors[1].sparsity = schema.SparsityParametersT()


def _more_outputs(model: Any) -> None:
    model.subgraphs[0].operators[0].outputs = [3, 5]


def _reversed(model: Any) -> None:
    model.subgraphs[0].operators.reverse()


def _no_operations(model: Any) -> None:
    model.subgraphs[0].operators = []


TENSOR, OPERATOR = "subgraphs[0].tensors[1]", "subgraphs[0].operators[0]"
WRONG: list[tuple[Callable[[Any], None], str]] = [
    (_custom, r"contains operation 32, which is not allowed"),
    (_code("WHILE"), r"contains operation 119, which"),
    (_code("CALL_ONCE"), r"contains operation 129, which"),
    (_code("VAR_HANDLE"), r"contains operation 142, which"),
    (_code("MAX_POOL_2D"), r"has a MAX_POOL_2D with the options of another operation"),
    (_code("DEPTHWISE_CONV_2D"), r"has a DEPTHWISE_CONV_2D with the options of another operation"),
    (_twice, r"has 2 graphs, not one"),
    (_no_operations, r"has no parts, or too many"),
    (_cut, r"has tensor 1 of shape \[2, 8, 8, 1\] with 508 bytes"),
    (_quantised, r"has tensor 1 in quantised form"),
    (_sparse, r"has tensor 1 of an unknown kind"),
    (_set(f"{TENSOR}.isVariable", True), r"has tensor 1 of an unknown kind"),
    (_set(f"{TENSOR}.type", schema.TensorType.RESOURCE), r"has tensor 1 of an unknown type"),
    (_set(f"{TENSOR}.buffer", 999), r"has tensor 1 without a buffer"),
    (_set(f"{TENSOR}.shape", [2, 8, 8, -1]), r"has tensor 1 of shape \[2, 8, 8, -1\]"),
    (_set(f"{TENSOR}.shape", [0]), r"has tensor 1 of shape \[0\]"),
    (_set(f"{TENSOR}.shape", [2**31 - 1] * 4), r"has tensor 1 of shape \[2147483647, "),
    (
        _set("subgraphs[0].tensors[3].shape", [2**14, 2**14]),
        r"needs room for 268,\d\d\d,\d\d\d numbers, more than the 268,435,456 allowed",
    ),
    (_set("buffers[1].offset", 10**6), r"has buffer 1 outside of the file"),
    (_set(f"{OPERATOR}.opcodeIndex", 77), r"has no name for operation 0"),
    (_set(f"{OPERATOR}.inputs", [0, 1, 99]), r"has a CONV_2D that uses what is not computed yet"),
    (_set(f"{OPERATOR}.inputs", [0, 1, -1]), r"has a CONV_2D that uses what is not computed yet"),
    (_set(f"{OPERATOR}.inputs", [-1, 1, 2]), r"has a CONV_2D that uses what is not computed yet"),
    (_set(f"{OPERATOR}.inputs", [3, 1, 2]), r"has a CONV_2D that uses what is not computed yet"),
    (_set(f"{OPERATOR}.inputs", [0, 1]), r"has a CONV_2D with a wrong number of inputs or outputs"),
    (_more_outputs, r"has a CONV_2D with a wrong number of inputs or outputs"),
    (_set(f"{OPERATOR}.outputs", [-7]), r"refers to a tensor that it does not have"),
    (_set(f"{OPERATOR}.outputs", [0]), r"has a CONV_2D that writes over another tensor"),
    (_set(f"{OPERATOR}.outputs", [1]), r"has a CONV_2D that writes over another tensor"),
    (_set(f"{OPERATOR}.mutatingVariableInputs", [True]), r"has a CONV_2D with unknown parts"),
    (_reversed, r"uses what is not computed yet"),
    (_set("subgraphs[0].inputs", [0, 3]), r"must have one input"),
    (_set("subgraphs[0].inputs", [1]), r"must have one input"),
    (_set("subgraphs[0].inputs", [-1]), r"refers to a tensor that it does not have"),
    (_set("subgraphs[0].outputs", [-1]), r"refers to a tensor that it does not have"),
    (_set("subgraphs[0].outputs", [1]), r"names an output that nothing computes"),
    (_set("signatureDefs", []), r"must have one signature"),
    (_set("signatureDefs[0].subgraphIndex", 5), r"has another signature"),
    (_set("signatureDefs[0].inputs[0].tensorIndex", 4), r"names an input that it does not have"),
    (_set("signatureDefs[0].outputs[0].tensorIndex", 9999), r"names an output that it does not have"),
]


def test_the_schema_knows_every_name() -> None:
    assert all(hasattr(schema.BuiltinOperator, name) for name in graph._INPUTS)
    assert all(hasattr(schema.BuiltinOptions, name) for name in graph._OPTIONS.values())
    own = {
        name
        for name in graph._INPUTS
        if name not in graph._OPTIONS and not hasattr(schema.BuiltinOptions, name.title().replace("_", "") + "Options")
    }
    assert own == {"LOGISTIC", "RELU", "RELU6", "RSQRT", "SQRT", "TANH"}, "these have no options"


@pytest.mark.parametrize(("change", "reason"), WRONG)
def test_what_is_wrong_is_named(change: Callable[[Any], None], reason: str) -> None:
    model = tiny_network.network()
    change(model)
    with pytest.raises(BundleError, match=rf"it is not a network of cxrlib: it .*{reason}"):
        check_graph(tiny_network.pack(model))


def test_too_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_OPERATIONS", 4)
    with pytest.raises(BundleError, match="has no parts, or too many"):
        check_graph(tiny_network.pack(tiny_network.network()))


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0\0\0\0TFL", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_model(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"it is not a LiteRT model \(\d+ bytes\)$"):
        check_graph(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x20\0\0\0TFL3",
        b"\xff\xff\xff\xffTFL3" + bytes(50),
        b"\0\0\0\0TFL3" + bytes(50),
        b"\x08\0\0\0TFL3" + b"\xff" * 100,
    ],
)
def test_what_only_begins_like_one(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"it is (a damaged LiteRT model|not a network of cxrlib: )"):
        check_graph(data)


def test_any_damage_is_passed_or_named() -> None:
    sound = tiny_network.pack(tiny_network.network())
    refused = 0
    for seed in range(1500):
        rng = random.Random(seed)
        damaged = bytearray(sound[: rng.randrange(8, len(sound))] if seed % 3 == 0 else sound)
        for _ in range(rng.choice([1, 2, 8, 64])):
            damaged[rng.randrange(8, len(damaged))] = rng.randrange(256)
        try:
            check_graph(bytes(damaged))
        except BundleError:
            refused += 1
    assert refused > 700


DAMAGED = """
import random, sys
import numpy as np
import tiny_network
from ai_edge_litert import schema_py_generated as schema
from cxrlib.config import BundleError, DefaultRecipe, TextbookRecipe
from cxrlib.runtime.flatbuffer import check_graph
from cxrlib.runtime.litert import Runtime

numbers = [-2, -1, 0, 1, 2, 3, 5, 9, 100, 2**16, 2**31 - 1, -(2**31)]
image = np.zeros((1, tiny_network.SIZE, tiny_network.SIZE, 1), np.float32)
for seed in range(400):
    rng, model = random.Random(seed), tiny_network.network()
    graph = model.subgraphs[0]
    for _ in range(rng.choice([1, 1, 2])):
        tensor, operator = rng.choice(graph.tensors), rng.choice(graph.operators)
        kind = rng.randrange(7)
        if kind == 0:
            tensor.shape[rng.randrange(len(tensor.shape))] = rng.choice(numbers)
        elif kind == 1:
            tensor.type = rng.randrange(18)
        elif kind == 2:
            operator.inputs[rng.randrange(len(operator.inputs))] = rng.choice(numbers)
        elif kind == 3:
            operator.outputs[0] = rng.choice(numbers)
        elif kind == 4:
            code = rng.choice(model.operatorCodes)
            code.builtinCode = rng.randrange(200)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        elif kind == 5:
            graph.outputs[rng.randrange(3)] = rng.choice(numbers)
        else:
            for name in vars(operator.builtinOptions):
                setattr(operator.builtinOptions, name, rng.choice([0, 1, 2]))
    try:
        data = tiny_network.pack(model)
    except Exception:
        continue
    try:
        check_graph(data)
        Runtime(data, threads=1).run(image)
    except (BundleError, RuntimeError, ValueError):
        pass
sys.stdout.write("survived")
"""


def test_no_damage_crashes_the_process() -> None:
    """Without the check a good part of these end the process with a segmentation fault."""
    path = f"{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-c", DAMAGED], check=False, capture_output=True, text=True, env={"PYTHONPATH": path}
    )
    assert (done.returncode, done.stdout) == (0, "survived"), done.stderr[-1000:]
