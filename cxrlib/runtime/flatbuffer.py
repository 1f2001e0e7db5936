"""Check that a LiteRT model is a plain network, before native code that trusts the file reads it."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from cxrlib.config import BundleError

MAX_OPERATIONS = 4096
MAX_TENSORS = 4 * MAX_OPERATIONS
MAX_ELEMENTS = 2**28  # of all intermediate results together: 1 GiB of float32

# Every operation that a network may consist of, by its least and largest number of inputs. Each has one output, and
# none keeps a state, branches, loops, or calls anything outside the network.
_ONE = (
    "AVERAGE_POOL_2D CAST DEQUANTIZE EXP HARD_SWISH LOGISTIC MAX_POOL_2D NEG RELU RELU6 RSQRT SHAPE SOFTMAX SQRT "
    "SQUARE TANH"
)
_TWO = (
    "ADD BATCH_MATMUL BROADCAST_TO DIV EXPAND_DIMS MAXIMUM MEAN MINIMUM MUL PAD POW REDUCE_MAX RESHAPE "
    "RESIZE_BILINEAR SQUARED_DIFFERENCE SUB SUM TILE TRANSPOSE"
)
_ALLOWED = {
    (1, 1): _ONE,
    (1, 64): "CONCATENATION PACK",
    (2, 2): _TWO,
    (3, 3): "CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED SLICE",
    (4, 4): "STRIDED_SLICE",
}
_INPUTS = {name: arity for arity, names in _ALLOWED.items() for name in names.split()}
# Names of their options in the schema, where they differ from the operation's: ADD has AddOptions, LOGISTIC has none.
_OPTIONS = {
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), "Pool2DOptions"),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX"), "ReducerOptions"),
    **dict.fromkeys(("MAXIMUM", "MINIMUM"), "MaximumMinimumOptions"),
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
}
_OPTIONAL_INPUT = {"FULLY_CONNECTED": 2}  # the bias
_TYPES = {"FLOAT32": 4, "FLOAT16": 2, "INT32": 4, "INT64": 8, "BOOL": 1}  # bytes per element


def check_graph(model: bytes) -> None:
    """Check that a LiteRT model is one feed-forward graph of known operations whose references are all valid.

    Args:
        model: The content of a `.tflite` file.

    Raises:
        BundleError: If it is anything else; the message says what.

    Example:
        >>> check_graph(b"garbage!")
        Traceback (most recent call last):
        cxrlib.config.BundleError: it is not a LiteRT model (8 bytes)
    """
    from ai_edge_litert import schema_py_generated as schema

    if model[4:8] != b"TFL3":
        raise BundleError(f"it is not a LiteRT model ({len(model)} bytes)")
    try:
        _check(schema, schema.Model.GetRootAs(model, 0))
    except BundleError:
        raise
    except (struct.error, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise BundleError(f"it is a damaged LiteRT model ({error})") from error


def has_fixed_shape(model: bytes) -> bool:
    """Tell whether a network takes one image at a time by its declaration, as LiteRT in browsers needs.

    Args:
        model: The content of a `.tflite` file, checked.

    Returns:
        Whether no side of its input is left open.
    """
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAs(model, 0).Subgraphs(0)
    image = graph.Tensors(int(graph.Inputs(0)))
    return all(image.ShapeSignature(k) >= 0 for k in range(image.ShapeSignatureLength()))


def layers_of(model: bytes) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Read the weights of a network's layers, in the order in which they compute.

    Args:
        model: The content of a `.tflite` file, checked.

    Returns:
        For each layer with constant weights its operation, `"CONV_2D"`, `"DEPTHWISE_CONV_2D"` or `"FULLY_CONNECTED"`,
        its kernel (out, height, width, in), (1, height, width, channels) or (out, in), and its bias (out,), float32.
    """
    from ai_edge_litert import schema_py_generated as schema

    network = schema.Model.GetRootAs(model, 0)
    graph = network.Subgraphs(0)
    made = {int(op.Outputs(0)): op for op in map(graph.Operators, range(graph.OperatorsLength()))}

    def constant(tensor: int) -> np.ndarray | None:
        found = graph.Tensors(tensor)
        content = network.Buffers(found.Buffer())
        if not content.DataLength():  # computed: of a constant in 16 bits, or of the image
            return (
                constant(int(made[tensor].Inputs(0))) if tensor in made and name(made[tensor]) == "DEQUANTIZE" else None
            )
        kind = np.float16 if found.Type() == schema.TensorType.FLOAT16 else np.float32
        values: np.ndarray = np.frombuffer(content.DataAsNumpy().tobytes(), kind).astype(np.float32)
        return values.reshape([int(found.Shape(k)) for k in range(found.ShapeLength())])

    def name(operator: Any) -> str:
        return _operation(schema, network.OperatorCodes(operator.OpcodeIndex()))[0]

    layers = []
    for operator in made.values():
        if name(operator) in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") and operator.InputsLength() == 3:
            kernel, bias = (constant(int(operator.Inputs(k))) for k in (1, 2))
            if kernel is not None and bias is not None:
                layers.append((name(operator), kernel, bias))
    return layers


def _check(schema: Any, model: Any) -> None:
    _need(model.SubgraphsLength() == 1, f"has {model.SubgraphsLength()} graphs, not one")
    graph = model.Subgraphs(0)
    n = graph.TensorsLength()
    _need(0 < n <= MAX_TENSORS and 0 < graph.OperatorsLength() <= MAX_OPERATIONS, "has no parts, or too many")
    _need(model.BuffersLength() <= n + 64 and model.OperatorCodesLength() <= 256, "has too many parts")
    kinds = {getattr(schema.TensorType, name): width for name, width in _TYPES.items()}
    lengths = [_buffer(model.Buffers(i), i) for i in range(model.BuffersLength())]
    constant, elements = set(), 0
    for i in range(n):
        size, is_constant = _check_tensor(graph.Tensors(i), i, kinds, lengths)
        if is_constant:
            constant.add(i)
        else:
            elements += size
    _need(elements <= MAX_ELEMENTS, f"needs room for {elements:,} numbers, more than the {MAX_ELEMENTS:,} allowed")

    inputs = _indices(graph.InputsAsNumpy(), n)
    _need(len(inputs) == 1 and not constant & set(inputs), "must have one input")
    known = constant | set(inputs)  # tensors that have a value when the next operation runs
    operations = [_operation(schema, model.OperatorCodes(i)) for i in range(model.OperatorCodesLength())]
    for i in range(graph.OperatorsLength()):
        known.add(_check_operation(graph.Operators(i), operations, known, n, i))
    outputs = set(_indices(graph.OutputsAsNumpy(), n))
    _need(outputs <= known - constant, "names an output that nothing computes")
    _need(model.SignatureDefsLength() == 1, "must have one signature")
    signature = model.SignatureDefs(0)
    most = max(signature.InputsLength(), signature.OutputsLength())
    _need(signature.SubgraphIndex() == 0 and most <= 16, "has another signature")
    named = {signature.Inputs(i).TensorIndex() for i in range(signature.InputsLength())}
    _need(named == set(inputs), "names an input that it does not have")
    named = {signature.Outputs(i).TensorIndex() for i in range(signature.OutputsLength())}
    _need(named == outputs, "names an output that it does not have")


def _buffer(buffer: Any, i: int) -> int:
    _need(buffer.Offset() == buffer.Size() == 0, f"has buffer {i} outside of the file")
    return int(buffer.DataLength())


def _check_tensor(tensor: Any, i: int, kinds: dict[int, int], lengths: list[int]) -> tuple[int, bool]:
    """Return its number of elements, and whether its values are in the file."""
    kind, dimensions, place, quantization = tensor.Type(), tensor.ShapeLength(), tensor.Buffer(), tensor.Quantization()
    _need(kind in kinds and dimensions <= 8, f"has tensor {i} of an unknown type")
    shape = [int(tensor.Shape(k)) for k in range(dimensions)]
    size = math.prod(shape)
    _need(all(side > 0 for side in shape) and size <= MAX_ELEMENTS, f"has tensor {i} of shape {shape}")
    plain = not tensor.IsVariable() and tensor.Sparsity() is None and tensor.VariantTensorsLength() == 0
    _need(plain, f"has tensor {i} of an unknown kind")
    plain = quantization is None or quantization.ScaleLength() == quantization.DetailsType() == 0
    _need(plain, f"has tensor {i} in quantised form")
    _need(place < len(lengths), f"has tensor {i} without a buffer")
    _need(lengths[place] in (0, size * kinds[kind]), f"has tensor {i} of shape {shape} with {lengths[place]:,} bytes")
    return size, lengths[place] > 0


def _operation(schema: Any, code: Any) -> tuple[str, set[int]]:
    """Return an operation's name, and the kinds of options that it may have."""
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = next((name for name in _INPUTS if getattr(schema.BuiltinOperator, name) == number), "")
    _need(name != "" and not code.CustomCode(), f"contains operation {number}, which is not allowed")
    options = _OPTIONS.get(name, name.title().replace("_", "") + "Options")
    return name, {0, getattr(schema.BuiltinOptions, options, 0)}


def _check_operation(operator: Any, operations: list[tuple[str, set[int]]], known: set[int], n: int, i: int) -> int:
    """Return the tensor that it computes."""
    _need(0 <= operator.OpcodeIndex() < len(operations), f"has no name for operation {i}")
    name, options = operations[operator.OpcodeIndex()]
    _need(operator.BuiltinOptionsType() in options, f"has a {name} with the options of another operation")
    others = (
        operator.CustomOptionsLength()
        or operator.MutatingVariableInputsLength()
        or operator.BuiltinOptions2Type()
        or operator.IntermediatesLength()
    )
    _need(not others, f"has a {name} with unknown parts")
    least, most = _INPUTS[name]
    right = least <= operator.InputsLength() <= most and operator.OutputsLength() == 1
    _need(right, f"has a {name} with a wrong number of inputs or outputs")
    used = [int(x) for x in operator.InputsAsNumpy()]
    if used[-1] == -1 and _OPTIONAL_INPUT.get(name) == len(used) - 1:
        used.pop()
    _need(set(used) <= known, f"has a {name} that uses what is not computed yet")
    [made] = _indices(operator.OutputsAsNumpy(), n)
    _need(made not in known, f"has a {name} that writes over another tensor")
    return made


def _indices(numbers: Any, n: int) -> list[int]:
    found = [int(x) for x in numbers]
    _need(all(0 <= x < n for x in found), "refers to a tensor that it does not have")
    return found


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise BundleError(f"it is not a network of cxrlib: it {otherwise}")
