"""Savings of gazing for a video LLM on a GPU: time to first token, memory, where the time goes, requests a second.

    python -m benchmarks.mllm --out benchmarks/results/<date>-<device>-mllm.json

Models of the real sizes of Qwen2.5-VL-7B and Qwen3-VL-8B with random weights in bfloat16: time does not depend on what
weights say. From decoded frames (uint8, on the device that `--frames-on` says) to the first token, everything included.
Four are compared at every length:

- `dense`: processor and model as their documentation has them;
- `dense, cut on the device`: the same prompt through GazedVideoLM with every unit kept: normalised on the GPU, one
  placeholder a step in the text, variable-length attention in the tower. The strongest dense opponent;
- `gazed`: autogaze-base in front of the tower;
- `after the tower`: everything up to the tower dense as above, then as many tokens as `gazed` keeps, chosen by how
  unlike a token is to the one before it at its place (EVS, as its authors describe it).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from autogaze import AutoGaze
from autogaze.mllm import GazedVideoLM, Prompt
from autogaze.mllm.family import Features
from autogaze.mllm.prompt import build, videos_of
from benchmarks.mllm_models import MODELS, build_model
from benchmarks.timing import machine

PARTS = ("latency", "parts", "throughput")


@dataclass(frozen=True)
class Timing:
    """One way of answering, from idle device to idle device."""

    model: str
    way: str
    frames: int
    prompts: int
    new_tokens: int
    visual_tokens: int
    runs: int
    median_ms: float
    worst_ms: float
    peak_memory_mib: float | None  # besides the weights; None off the GPU
    requests_per_s: float


def messages(frames: Tensor) -> list[dict[str, Any]]:
    question = {"type": "text", "text": "what happens in this video"}
    return [{"role": "user", "content": [{"type": "video", "video": frames}, question]}]


def settings(frames: int) -> dict[str, Any]:
    """Of the processor's call: frames at two a second, all of them, at their own size."""
    metadata = {"total_num_frames": frames, "fps": 2.0, "duration": frames / 2, "frames_indices": list(range(frames))}
    return {"do_sample_frames": False, "video_metadata": metadata}


def scene(frames: int, side: int, device: torch.device) -> Tensor:
    """(T, 3, side, side) uint8: a textured picture that drifts slowly, with squares that move across it."""
    generator = torch.Generator().manual_seed(0)
    still = F.interpolate(torch.rand(1, 3, 40, 40, generator=generator), (2 * side, 2 * side), mode="bicubic")[0]
    still = (still.clamp(0, 1) * 255).to(torch.uint8)
    shots = []
    for t in range(frames):
        shot = still[:, t // 4 : t // 4 + side, t // 8 : t // 8 + side].clone()
        for k in range(3):
            size, x, y = side // 8, (t * (3 + k) * side // 200) % (side - side // 8), side * (k + 1) // 5
            shot[:, y : y + size, x : x + size] = torch.tensor([80 * k, 255 - 60 * k, 120], dtype=torch.uint8)[
                :, None, None
            ]
        shots.append(shot)
    return torch.stack(shots).to(device)


def answer_dense(model: nn.Module, processor: Any, batch: list, options: dict[str, Any], new: int) -> None:
    """As the model's documentation has it."""
    inputs = processor.apply_chat_template(
        batch, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt",
        processor_kwargs={"padding": True, **options},
    )  # fmt: skip
    model.generate(**inputs.to(model.device), **decoding(new))


def answer_after_tower(lm: GazedVideoLM, batch: list, options: dict[str, Any], new: int, share: float) -> None:
    """The tower runs on everything; then `share` of the tokens stay."""
    inputs = lm._read(batch, **options)
    family, rows = lm.family, inputs["input_ids"]
    marks, grids = [ids == family.step_token() for ids in rows], family.grids(inputs)
    whole = [torch.ones(grid.steps, grid.per_step, dtype=torch.bool) for grid in grids]
    features = family.encode(inputs, whole)
    kept = [unlike(part.tokens.view(grid.steps, grid.per_step, -1), round(share * len(grid))) for part, grid in
            zip(features, grids, strict=True)]  # fmt: skip
    features = [
        Features(part.tokens[mask.flatten()], tuple(layer[mask.flatten()] for layer in part.deepstack))
        for part, mask in zip(features, kept, strict=True)
    ]
    kept = [mask.cpu() for mask in kept]
    ids, mask, positions = (x.to(lm.model.device) for x in build(family, inputs, rows, marks, kept))
    owners = videos_of(marks, [grid.steps for grid in grids])
    prompt = Prompt(ids, mask, positions, tuple(kept), owners, {"video": features}, tuple(features), family)
    lm.generate(prompt, **decoding(new))


def unlike(tokens: Tensor, count: int) -> Tensor:
    """(steps, per_step) bool: the first step, then tokens least like the one before at their place."""
    change = 1 - F.cosine_similarity(tokens[1:].float(), tokens[:-1].float(), dim=-1)
    change = torch.cat([torch.full_like(change[:1], 255.0), change])
    mask = torch.zeros(change.numel(), dtype=torch.bool, device=change.device)
    mask[change.flatten().topk(count).indices] = True
    return mask.view_as(change)


def decoding(new: int) -> dict[str, Any]:
    return {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}


def time_it(call: Callable[[], object], device: torch.device, runs: int) -> tuple[list[float], float | None]:
    """Milliseconds of every run after two for warmth, and the peak of memory above what there was."""
    for _ in range(2):
        call()
    synchronise(device)
    before = 0.0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        synchronise(device)
        times.append((time.perf_counter() - start) * 1e3)
    peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20 if device.type == "cuda" else None
    return times, peak


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Bench:
    """One model in all ways of answering."""

    def __init__(self, name: str, gaze: AutoGaze, ratio: float, args: argparse.Namespace, device: torch.device) -> None:
        self.name, self.args, self.device = name, args, device
        self.model, self.processor = build_model(name, device, tiny=args.tiny)
        self.gazed = GazedVideoLM(self.model, self.processor, gaze, gazing_ratio=ratio)
        self.whole = GazedVideoLM(self.model, self.processor)
        self.rows: list[Timing] = []

    def ways(self, batch: list, options: dict[str, Any], new: int, share: float) -> dict[str, Callable[[], object]]:
        return {
            "dense": lambda: answer_dense(self.model, self.processor, batch, options, new),
            "dense, cut on the device": lambda: self.whole.generate(
                self.whole.prepare(batch, **options), **decoding(new)
            ),
            "gazed": lambda: self.gazed.generate(self.gazed.prepare(batch, **options), **decoding(new)),
            "after the tower": lambda: answer_after_tower(self.whole, batch, options, new, share),
        }

    def measure(self, frames: int, prompts: int, new: int, runs: int) -> None:
        where = torch.device(self.args.frames_on) if self.device.type == "cuda" else self.device
        clip = scene(frames, self.args.side, where)
        batch = [messages(clip.clone()) for _ in range(prompts)]
        options = settings(frames)
        if prompts > 1:
            options["video_metadata"] = [options["video_metadata"]] * prompts
        prompt = self.gazed.prepare(batch, **options)
        share, kept, full = prompt.ratio, prompt.visual_tokens, prompt.dense_tokens
        del prompt
        for way, call in self.ways(batch, options, new, share).items():
            if way not in self.args.ways:
                continue
            tokens = full if way.startswith("dense") else kept
            try:
                times, peak = time_it(call, self.device, runs)
            except torch.OutOfMemoryError:
                print(
                    json.dumps(
                        {"model": self.name, "way": way, "frames": frames, "prompts": prompts, "out_of_memory": True}
                    ),
                    file=sys.stderr,
                )
                torch.cuda.empty_cache()
                continue
            median = statistics.median(times)
            self.rows.append(Timing(
                self.name, way, frames, prompts, new, tokens, runs, round(median, 2), round(max(times), 2),
                None if peak is None else round(peak, 1), round(prompts * 1e3 / median, 3),
            ))  # fmt: skip
            print(json.dumps(asdict(self.rows[-1])), file=sys.stderr, flush=True)

    def parts(self, frames: int, runs: int) -> dict[str, Any]:
        """Milliseconds of each part of a gazed answer, with the device idle between them."""
        clip = scene(
            frames, self.args.side, torch.device(self.args.frames_on) if self.device.type == "cuda" else self.device
        )
        batch, options, lm = messages(clip), settings(frames), self.gazed
        found: dict[str, list[float]] = {}

        def clock(part: str, call: Callable[[], Any]) -> Any:
            synchronise(self.device)
            start = time.perf_counter()
            out = call()
            synchronise(self.device)
            found.setdefault(part, []).append((time.perf_counter() - start) * 1e3)
            return out

        def answer() -> None:
            inputs = clock("read, resize, write the text", lambda: lm._read(batch, **options))
            rows = inputs["input_ids"]
            marks = [ids == lm.family.step_token() for ids in rows]
            owners = videos_of(marks, inputs["steps"])
            kept = clock("gaze and choose units", lambda: lm._choose(inputs, owners, [None], None))
            features = clock("tower on kept units", lambda: lm.family.encode(inputs, kept))
            made = clock("ids and positions", lambda: build(lm.family, inputs, rows, marks, kept))
            made = [x.to(self.device) for x in made]
            prompt = Prompt(*made, tuple(kept), owners, {"video": features}, tuple(features), lm.family)
            clock("prefill and first token", lambda: lm.generate(prompt, **decoding(1)))

        for _ in range(runs + 1):
            answer()
        medians = {part: round(statistics.median(times[1:]), 3) for part, times in found.items()}
        return {
            "model": self.name,
            "frames": frames,
            "milliseconds": medians,
            "sum_ms": round(sum(medians.values()), 2),
        }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="what gazing saves a video LLM")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--ways", nargs="+", default=["dense", "dense, cut on the device", "gazed", "after the tower"])
    parser.add_argument("--frames", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--prompts", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--prompt-frames", type=int, default=64, help="frames of each prompt side by side")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens of each answer side by side")
    parser.add_argument("--gaze", default="autogaze-base", help="name or folder of the gaze model")
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--side", type=int, default=448, help="pixels of a frame")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames-on", default="cuda", choices=("cuda", "cpu"), help="where decoded frames are")
    parser.add_argument("--tiny", action="store_true", help="models of a few layers, to try the benchmark")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gaze = AutoGaze.from_pretrained(args.gaze, device).eval()
    gaze = gaze.to(torch.bfloat16) if device.type == "cuda" else gaze
    result: dict[str, Any] = {
        "machine": machine() | {"transformers": transformers.__version__},
        "options": vars(args) | {"out": str(args.out)},
    }
    result |= {"timings": [], "parts": []}
    for name in args.models:
        start = time.perf_counter()
        bench = Bench(name, gaze, args.ratio, args, device)
        print(f"{name}: built in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        if "latency" in args.parts:
            for frames in args.frames:
                bench.measure(frames, 1, 1, args.runs)
        if "parts" in args.parts:
            result["parts"] += [bench.parts(frames, args.runs) for frames in args.frames]
        if "throughput" in args.parts:
            for prompts in args.prompts:
                bench.measure(args.prompt_frames, prompts, args.new_tokens, max(2, args.runs // 2))
        result["timings"] += [asdict(row) for row in bench.rows]
        del bench
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
