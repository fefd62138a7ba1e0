"""The two forms of an exported file: their inputs and outputs, and how the graphs are put together from their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from autogaze.export.graph.attention import Rotary
from autogaze.export.graph.decoder import FrameDecoder
from autogaze.export.graph.encoder import Encoder
from autogaze.export.graph.nodes import Nodes, Value
from autogaze.export.graph.pixels import normalised, resized
from autogaze.export.graph.residual import FrameResiduals, ResidualState, looked
from autogaze.export.graph.sizes import Asked, FrameValues, GraphSizes, Past
from autogaze.export.graph.weights import GraphWeights, encoder_dtype, graph_weights
from autogaze.export.metadata import Metadata
from autogaze.export.tensors import GAZE, TensorSpec
from autogaze.model import AutoGaze

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def graph_sizes(model: AutoGaze, metadata: Metadata) -> GraphSizes:
    """The fixed sizes of the graph that the metadata describes."""
    return GraphSizes(
        model.visual_tokens,
        metadata.grid.patches_per_frame,
        metadata.budget,
        metadata.group,
        metadata.frames,
        metadata.allowed,
    )


def state_specs(model: AutoGaze, metadata: Metadata) -> tuple[TensorSpec, ...]:
    """A stream's memory; all zeros at its start."""
    config, sizes, dtype = model.config, graph_sizes(model, metadata), PRECISIONS[metadata.precision]
    side, past = model.vision_model.side, model.vision_model.past_frames
    cache = (config.num_hidden_layers * config.num_attention_heads, sizes.memory, config.head_dim)
    canvas = TensorSpec("canvas", torch.float32, (1, config.scales[-1], config.scales[-1]))
    return (
        TensorSpec("conv", encoder_dtype(dtype), (config.encoder_depth * past * config.hidden_size, side, side)),
        TensorSpec("keys", dtype, cache),
        TensorSpec("values", dtype, cache),
        TensorSpec("positions", torch.int32, (sizes.window * sizes.block,)),
        TensorSpec("last_ids", torch.int64, (sizes.group,)),
        *([canvas] if config.residual_map else []),
    )


def input_specs(model: AutoGaze, metadata: Metadata) -> tuple[TensorSpec, ...]:
    """Inputs in order."""
    frames = () if metadata.kind == "frame" else (metadata.frames,)
    height, width = metadata.input_size
    uint8 = metadata.pixels == "uint8"
    pixels = TensorSpec(
        "frames" if frames else "frame",
        torch.uint8 if uint8 else torch.float32,
        frames + ((height, width, 3) if uint8 else (3, height, width)),
    )
    asked = (
        TensorSpec("budget", torch.int32, frames),
        TensorSpec("requirement", torch.float32, frames),
    )
    return (pixels, *asked) if frames else (pixels, *asked, *state_specs(model, metadata))


def output_specs(model: AutoGaze, metadata: Metadata) -> tuple[TensorSpec, ...]:
    """Outputs in order."""
    frames = () if metadata.kind == "frame" else (metadata.frames,)
    dtypes = (torch.int64, torch.bool, torch.float32)
    gaze = tuple(TensorSpec(name, dtype, (*frames, metadata.budget)) for name, dtype in zip(GAZE, dtypes, strict=False))
    gaze += (TensorSpec("count", torch.int32, frames),)
    if frames:
        return gaze
    return gaze + tuple(
        TensorSpec(f"next_{spec.name}", spec.dtype, spec.shape) for spec in state_specs(model, metadata)
    )


def write_graph(model: AutoGaze, metadata: Metadata) -> onnx.ModelProto:
    """The ONNX graph of a model, in the form that the metadata describes."""
    nodes, dtype = Nodes(), PRECISIONS[metadata.precision]
    writer = _Writer(nodes, graph_weights(model, dtype), graph_sizes(model, metadata), metadata, dtype)
    inputs, outputs = input_specs(model, metadata), output_specs(model, metadata)
    values = {spec.name: Value(nodes, spec.name, spec.dtype) for spec in inputs}
    results = writer.frame(**values) if metadata.kind == "frame" else writer.clip(**values)
    batch = "batch" if metadata.batch[0] != metadata.batch[1] else metadata.batch[0]
    return nodes.model(inputs, list(zip(outputs, results, strict=True)), batch, metadata.to_properties())


class _Writer:
    """Writes one form of the graph."""

    def __init__(
        self, nodes: Nodes, weights: GraphWeights, sizes: GraphSizes, metadata: Metadata, dtype: torch.dtype
    ) -> None:
        self.nodes, self.weights, self.sizes, self.metadata = nodes, weights, sizes, metadata
        self.encoder = Encoder(nodes, weights, encoder_dtype(dtype))
        self.decoder = FrameDecoder(nodes, weights, sizes, dtype)
        self.residual_map = None if weights.residual_map is None else ResidualState(nodes, weights.residual_map)
        self.rotary = Rotary(nodes, weights.frequencies, sizes.window * sizes.block + sizes.visual + sizes.fed, dtype)

    def frame(
        self,
        frame: Value,
        budget: Value,
        requirement: Value,
        conv: Value,
        keys: Value,
        values: Value,
        positions: Value,
        last_ids: Value,
        canvas: Value | None = None,
    ) -> list[Value]:
        """One frame and the memory to its gaze and the new memory; `canvas` is of models with a residual map."""
        nodes, sizes, window = self.nodes, self.sizes, self.sizes.window
        with nodes.scope("encoder"):
            pixels = self._pixels(frame)
            visual, next_conv = self.encoder.frame(pixels, conv)
        errors = self._begin(pixels, canvas, visual)
        with nodes.scope("memory"):
            held = (
                positions.to(torch.float32) - 1.0
            )  # the file's positions begin at 1, so that a memory of zeros is empty
            count, new_positions = self.decoder.new_positions(held)
            parts = [sizes.memory, sizes.group + sizes.visual] + [sizes.group] * (sizes.steps - 1)
            remembered = nodes.op("Max", held.cut(1, 0, sizes.memory), 0.0)
            last_positions = self.decoder.last_positions(held, window)
            rotation, *rotations = self.rotary.at(
                nodes.concat([remembered, last_positions, new_positions], axis=1), parts
            )
            heads = [layer.heads for layer in self.weights.layers]
            past = Past(
                window,
                self.rotary.turn(keys, *rotation).split(heads, axis=1),
                values.split(heads, axis=1),
                held,
                last_ids,
            )
        asked = Asked(budget, self._threshold(requirement))
        new = self.decoder.write(visual, past, count, new_positions, rotations, True, asked, errors)
        next_canvas = self._look(new, errors, canvas)
        with nodes.scope("memory"):
            next_keys, next_values = (
                nodes.concat([old.cut(2, sizes.block), nodes.concat(blocks, axis=1)], axis=2)
                for old, blocks in ((keys, new.keys), (values, new.values))
            )
            next_positions = self._forget(held, new.positions)
        return [
            new.ids,
            new.chosen,
            new.task_loss,
            new.count,
            next_conv,
            next_keys,
            next_values,
            next_positions,
            new.last_ids,
            *([] if next_canvas is None else [next_canvas]),
        ]

    def _begin(self, frame: Value | None, canvas: Value | None, visual: Value) -> FrameResiduals | None:
        """The residual map of a frame (B, 3, side, side) with visual tokens (B, N, width), before anything is chosen in
        it; None for a model without one."""
        if self.residual_map is None or frame is None:
            return None
        with self.nodes.scope("residual_map"):
            return self.residual_map.begin(frame, canvas, visual)

    def _look(self, frame: FrameValues, errors: FrameResiduals | None, canvas: Value | None) -> Value | None:
        """`canvas` after a frame; None: the model does not have it."""
        if self.residual_map is None or errors is None:
            return None
        with self.nodes.scope("look"):
            level = looked(self.nodes, self.weights.patch_at, self.sizes.patches, frame.ids, frame.chosen)
            return self.residual_map.look(canvas, errors, level)

    def _forget(self, held: Value, new: Value) -> Value:
        """The window's positions without its oldest frame, counted from what is now its first token; from 1."""
        nodes, oldest = self.nodes, held.cut(1, 0, self.sizes.block)
        gone = (nodes.constant(-1.0, torch.float32) < oldest).to(torch.float32).sum(1, keep=True)
        kept = nodes.concat([held.cut(1, self.sizes.block), new], axis=1)
        return nodes.where(kept < 0.0, 0.0, kept - gone + 1.0).to(torch.int32)

    def clip(self, frames: Value, budget: Value, requirement: Value) -> list[Value]:
        """A whole clip to its gazes; every frame sees exactly the frames before it."""
        nodes, count = self.nodes, self.metadata.frames
        with nodes.scope("encoder"):
            pixels = self._pixels(frames.reshape(-1, *frames_shape(self.metadata)))
            visual = self.encoder.clip(pixels, count)
            side = self.metadata.scales[-1]
            shots = None if self.residual_map is None else pixels.reshape(-1, count, 3, side, side)
        threshold, past, canvas, gazes = self._threshold(requirement), None, None, []
        for t in range(count):
            index = torch.tensor(t)
            with nodes.scope(f"frame{t}"):
                asked = Asked(budget.gather(index, axis=1), threshold.gather(index, axis=1))
                tokens, positions = self.decoder.new_positions(past.positions if past else None)
                frame = visual.gather(index, axis=1)
                errors = self._begin(None if shots is None else shots.gather(index, axis=1), canvas, frame)
                rotations = self._rotations(past, positions)
                new = self.decoder.write(frame, past, tokens, positions, rotations, False, asked, errors)
                past = self._extend(past, new)
                canvas = self._look(new, errors, canvas)
            gazes.append((new.ids, new.chosen, new.task_loss, new.count))
        return [nodes.concat([value.unsqueeze(1) for value in values], axis=1) for values in zip(*gazes, strict=True)]

    def _rotations(self, past: Past | None, positions: Value) -> list[tuple[Value, Value]]:
        """Of a clip's frame: of its prefill, then of every later step."""
        nodes, sizes = self.nodes, self.sizes
        steps = [sizes.group] * (sizes.steps - 1)
        if past is None:
            return self.rotary.at(positions, [sizes.visual, *steps])
        last = self.decoder.last_positions(past.positions, past.frames)
        return self.rotary.at(nodes.concat([last, positions], axis=1), [sizes.group + sizes.visual, *steps])

    def _extend(self, past: Past | None, new: FrameValues) -> Past:
        """A clip's window with one more frame."""
        if past is None:
            return Past(1, tuple(new.keys), tuple(new.values), new.positions, new.last_ids)
        keys, values = (
            tuple(self.nodes.concat([held, block], axis=2) for held, block in zip(old, blocks, strict=True))
            for old, blocks in ((past.keys, new.keys), (past.values, new.values))
        )
        return Past(
            past.frames + 1, keys, values, self.nodes.concat([past.positions, new.positions], axis=1), new.last_ids
        )

    def _pixels(self, frames: Value) -> Value:
        """Preprocessed float32 frames (N, 3, side, side)."""
        if self.metadata.pixels == "float32":
            return frames
        side, preprocessor = self.metadata.scales[-1], self.metadata.preprocessor
        x = frames.to(torch.float32).transpose(0, 3, 1, 2)
        return normalised(
            self.nodes, resized(self.nodes, x, self.metadata.input_size, (side, side), preprocessor), preprocessor
        )

    def _threshold(self, requirement: Value) -> Value:
        """The calibrated threshold on the predicted loss (`AutoGazeConfig.threshold`), as a sum of ramps."""
        pairs, nodes = self.metadata.calibration, self.nodes
        if not pairs:
            return requirement
        (first, low), (last, _) = pairs[0], pairs[-1]
        threshold = nodes.op("Min", requirement - first, 0.0) + low + nodes.op("Max", requirement - last, 0.0)
        if len(pairs) == 1:
            return threshold
        asked, thresholds = torch.tensor(pairs, dtype=torch.float64).T
        width = asked.diff()
        climbed = nodes.op("Max", requirement.unsqueeze(-1) - asked[:-1].float(), 0.0)
        ramps = nodes.op("Min", climbed, width.float()) * (thresholds.diff() / width).float()
        return threshold + ramps.sum(-1)


def frames_shape(metadata: Metadata) -> tuple[int, int, int]:
    """Shape of one frame that goes in."""
    height, width = metadata.input_size
    return (height, width, 3) if metadata.pixels == "uint8" else (3, height, width)
