"""ONNX nodes from Python expressions: a small builder, so that exported graphs are exactly what is written.

`a @ b + c` adds two nodes. Values know their element type only; the caller knows the shapes. Nothing is traced, so a
graph of thousands of nodes is written in a fraction of a second and has no node that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autogaze.export.tensors import TensorSpec
from autogaze.extras import explain

try:
    import onnx
    from onnx import TensorProto, helper
except ImportError as error:
    raise explain(error, "exporting") from error

ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.bool: TensorProto.BOOL,
    torch.uint8: TensorProto.UINT8,
}
OPSET = 18
IR_VERSION = 8  # the oldest that opset 18 allows: ONNX Runtime 1.14, TensorRT 10


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor of a graph that is being written."""

    nodes: Nodes
    name: str
    dtype: torch.dtype

    def __matmul__(self, other: Value | Tensor) -> Value:
        return self.nodes.op("MatMul", self, other)

    def __add__(self, other: Operand) -> Value:
        return self.nodes.op("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.nodes.op("Sub", self, other)

    def __mul__(self, other: Operand) -> Value:
        return self.nodes.op("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        return self.nodes.op("Div", self, other)

    def __neg__(self) -> Value:
        return self.nodes.op("Neg", self)

    def __and__(self, other: Value | Tensor) -> Value:
        return self.nodes.op("And", self, other)

    def __invert__(self) -> Value:
        return self.nodes.op("Not", self)

    def __lt__(self, other: Operand) -> Value:
        return self.nodes.op("Less", self, other, dtype=torch.bool)

    def __le__(self, other: Operand) -> Value:
        return self.nodes.op("LessOrEqual", self, other, dtype=torch.bool)

    def abs(self) -> Value:
        return self.nodes.op("Abs", self)

    def equals(self, other: Operand) -> Value:
        return self.nodes.op("Equal", self, other, dtype=torch.bool)

    def to(self, dtype: torch.dtype) -> Value:
        return self if dtype == self.dtype else self.nodes.op("Cast", self, dtype=dtype, to=ELEMENT_TYPES[dtype])

    def reshape(self, *shape: int) -> Value:
        """0 keeps a dimension of the input, -1 is what is left."""
        return self.nodes.op("Reshape", self, torch.tensor(shape))

    def transpose(self, *order: int) -> Value:
        return self.nodes.op("Transpose", self, perm=list(order))

    def unsqueeze(self, *axes: int) -> Value:
        return self.nodes.op("Unsqueeze", self, torch.tensor(axes))

    def cut(self, axis: int, start: int, stop: int | None = None) -> Value:
        """self[start:stop] along an axis."""
        stop = (1 << 31) - 1 if stop is None else stop
        return self.nodes.op("Slice", self, *(torch.tensor([n]) for n in (start, stop, axis)))

    def split(self, sizes: Sequence[int], axis: int) -> tuple[Value, ...]:
        if len(sizes) == 1:
            return (self,)
        return self.nodes.ops("Split", self, torch.tensor(sizes), outputs=len(sizes), axis=axis)

    def gather(self, indices: Value | Tensor, axis: int) -> Value:
        return self.nodes.op("Gather", self, indices, axis=axis)

    def sum(self, axis: int, keep: bool = False) -> Value:
        return self.nodes.op("ReduceSum", self, torch.tensor([axis]), keepdims=int(keep))

    def max(self, axis: int, keep: bool = False) -> Value:
        return self.nodes.op("ReduceMax", self, torch.tensor([axis]), keepdims=int(keep))

    def softmax(self) -> Value:
        return self.nodes.op("Softmax", self, axis=-1)


Operand = Value | Tensor | float


class Nodes:
    """The nodes and constants of a graph that is being written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._names: dict[tuple[object, ...], str] = {}
        self._scope: list[str] = []

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes written inside carry this name in front of theirs."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def op(self, kind: str, *inputs: Operand, dtype: torch.dtype | None = None, **attributes: Any) -> Value:
        """One node with one output, of the first input's element type unless told."""
        return self.ops(kind, *inputs, dtype=dtype, **attributes)[0]

    def ops(
        self, kind: str, *inputs: Operand, outputs: int = 1, dtype: torch.dtype | None = None, **attributes: Any
    ) -> tuple[Value, ...]:
        """One node with several outputs."""
        known = next(value for value in inputs if isinstance(value, Value))
        values = [value if isinstance(value, Value) else self.constant(value, known.dtype) for value in inputs]
        name = "/".join([*self._scope, f"{kind}_{len(self.nodes)}"])
        names = [name if outputs == 1 else f"{name}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, [value.name for value in values], names, name=name, **attributes))
        return tuple(Value(self, output, dtype or known.dtype) for output in names)

    def constant(self, value: Tensor | float, dtype: torch.dtype | None = None) -> Value:
        """A constant, kept once however often it is used."""
        tensor = value.detach().cpu().contiguous() if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor  # numpy has no bfloat16
        key = (tensor.dtype, tuple(tensor.shape), bits.numpy().tobytes())
        if key not in self._names:
            self._names[key] = name = f"constant_{len(self.constants)}"
            self.constants[name] = helper.make_tensor(name, ELEMENT_TYPES[tensor.dtype], tensor.shape, key[2], raw=True)
        return Value(self, self._names[key], tensor.dtype)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        return values[0] if len(values) == 1 else self.op("Concat", *values, axis=axis)

    def where(self, condition: Value, yes: Operand, no: Operand) -> Value:
        known = yes if isinstance(yes, Value) else no
        assert isinstance(known, Value)
        yes, no = (self.constant(v, known.dtype) if not isinstance(v, Value) else v for v in (yes, no))
        return self.op("Where", condition, yes, no, dtype=known.dtype)

    def argmax(self, value: Value) -> Value:
        """Index of the largest entry along the last axis, which stays as 1."""
        return self.op("ArgMax", value, dtype=torch.int64, axis=-1, keepdims=1)

    def conv(self, x: Value, weight: Tensor, bias: Tensor, stride: int = 1) -> Value:
        """2-D convolution that keeps its size at stride 1."""
        kernel, pad = list(weight.shape[2:]), weight.shape[-1] // 2 if stride == 1 else 0
        return self.op("Conv", x, weight, bias, kernel_shape=kernel, strides=[stride, stride], pads=[pad] * 4)

    def layer_norm(self, x: Value, weight: Tensor, bias: Tensor, eps: float) -> Value:
        return self.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)

    def model(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[tuple[TensorSpec, Value]],
        batch: str | int,
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """The finished model; every output gets its public name. A batch that is a word may vary."""
        for spec, value in outputs:
            self.nodes.append(helper.make_node("Identity", [value.name], [spec.name], name=f"output/{spec.name}"))
        taken, given = (
            [helper.make_tensor_value_info(s.name, ELEMENT_TYPES[s.dtype], (batch, *s.shape)) for s in specs]
            for specs in (inputs, [spec for spec, _ in outputs])
        )
        graph = helper.make_graph(self.nodes, "autogaze", taken, given, list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = "autogaze"
        helper.set_model_props(model, metadata)
        return model
