"""A network of five operations in the form that cxrlib runs, made without TensorFlow, for tests that need a bundle and
not a good one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

SIZE, GRID, FEATURES = 32, 4, 16


def network(seed: int = 0, labels: int = 2) -> Any:
    """The network as the schema's objects, for tests that damage it before it is packed."""
    rng = np.random.default_rng(seed)
    model = schema.ModelT()
    model.version, model.buffers, model.operatorCodes = 3, [schema.BufferT()], []
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []

    def tensor(name: str, shape: tuple[int, ...], data: np.ndarray | None = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name, list(shape), 0
        made.type = (
            schema.TensorType.INT32 if data is not None and data.dtype == np.int32 else schema.TensorType.FLOAT32
        )
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operation(code: int, kind: int, options: Any, inputs: list[int], outputs: list[int]) -> None:
        opcode = schema.OperatorCodeT()
        opcode.builtinCode = opcode.deprecatedBuiltinCode = code
        opcode.version = 1
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes), inputs, outputs
        made.builtinOptionsType, made.builtinOptions = kind, options
        model.operatorCodes.append(opcode)
        graph.operators.append(made)

    def convolution(name: str, image: int, channels: int) -> int:
        stride = SIZE // GRID
        weights = tensor(
            f"{name}/weights",
            (channels, stride, stride, 1),
            rng.normal(0, 0.3, (channels, stride, stride, 1)).astype(np.float32),
        )
        bias = tensor(f"{name}/bias", (channels,), np.zeros(channels, np.float32))
        options = schema.Conv2DOptionsT()
        options.strideH = options.strideW = stride
        options.padding = schema.Padding.VALID
        result = tensor(name, (1, GRID, GRID, channels))
        operation(
            schema.BuiltinOperator.CONV_2D,
            schema.BuiltinOptions.Conv2DOptions,
            options,
            [image, weights, bias],
            [result],
        )
        return result

    def mean(name: str, features: int, channels: int) -> int:
        axes = tensor(f"{name}/axes", (2,), np.array([1, 2], np.int32))
        result = tensor(name, (1, channels))
        operation(
            schema.BuiltinOperator.MEAN,
            schema.BuiltinOptions.ReducerOptions,
            schema.ReducerOptionsT(),
            [features, axes],
            [result],
        )
        return result

    image = tensor("image", (1, SIZE, SIZE, 1))
    evidence = convolution("evidence", image, labels)
    logits = mean("logits", evidence, labels)
    probabilities = tensor("probabilities", (1, labels))
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    operation(schema.BuiltinOperator.SOFTMAX, schema.BuiltinOptions.SoftmaxOptions, options, [logits], [probabilities])
    embedding = mean("embedding", convolution("features", image, FEATURES), FEATURES)

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = (
        [_named("image", image)],
        [
            _named("embedding", embedding),
            _named("evidence", evidence),
            _named("probabilities", probabilities),
        ],
    )
    graph.inputs, graph.outputs = [image], [embedding, evidence, probabilities]
    model.subgraphs, model.signatureDefs = [graph], [signature]
    return model


def _named(name: str, index: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made


def pack(model: Any) -> bytes:
    """The network as the bytes of a `model.tflite`."""
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def files(
    seed: int = 0,
    extra: Mapping[str, bytes] | None = None,
    labels: tuple[str, ...] = ("NORMAL", "PNEUMONIA"),
    **changes: Any,
) -> dict[str, bytes]:
    """A whole bundle by file name; `extra` replaces or adds files (a network too, whatever the probe says), `changes`
    replaces fields of its config, and all hashes are right. Three labels have no operating points."""
    from cxrlib import bundle
    from cxrlib.config import BundleConfig, DefaultRecipe, OperatingPoint, to_dict
    from cxrlib.runtime.litert import Runtime

    runtime = pack(network(seed, len(labels)))
    content = {"model.tflite": runtime, "README.md": b"---\nlibrary_name: cxrlib\n---\n# Tiny\n", **(extra or {})}
    probe = tuple(float(p) for p in Runtime(runtime, threads=1).run(bundle.probe_image(SIZE)[None]).probabilities[0])
    points = {"balanced": OperatingPoint(threshold=0.4, sensitivity=0.9, specificity=0.9)}
    config = to_dict(
        BundleConfig(
            labels=labels,
            image_size=SIZE,
            decoder=1,
            preprocessing="squashed to 32 x 32",
            temperature=1.3,
            recipe=DefaultRecipe(),
            probe=probe,
            operating_points=points if len(labels) == 2 else {},
            default_point="balanced" if len(labels) == 2 else None,
            files={name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
        )
    )
    return {"config.json": json.dumps({**config, **changes}).encode(), **content}


def write(folder: Path, content: Mapping[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tolerant_gate(features: int = FEATURES) -> dict[str, Any]:
    """The statistics of a gate that refuses for no reason but what the pixels say."""
    from cxrlib.config import Array, to_dict
    from cxrlib.runtime.gate import GateConfig

    one = np.ones(1)
    arrays = {
        "weights": np.zeros((features + 256, 1)),
        "bias": np.full(1, -20.0),
        "centre": one,
        "scale": one,
        "directions": np.ones((1, 1)),
        "spread": one,
    }
    limits = {"score": (0.0, 1.0), "rest": 1.0, "distance": (0.0, 1.0), "refuse": 1e9, "warn": 1e9}
    content: dict[str, Any] = to_dict(
        GateConfig(kinds=("other",), **{name: Array.pack(value) for name, value in arrays.items()}, **limits)
    )
    return content
