"""Does an exported file choose what PyTorch chooses? Asked before a file is kept.

Both look at scenes that the project renders, with a different budget and requirement for every sample. Where they
part, the two choices must be a near tie for PyTorch; after that the clips are different sequences and are compared no
further.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autogaze.core.gaze import Gaze
from autogaze.decoding.clip import decode_clip
from autogaze.decoding.request import make_request
from autogaze.export.metadata import Metadata
from autogaze.export.runner import Engine
from autogaze.media.scenes import render_scene
from autogaze.model import AutoGaze

# Largest gap between two choices that counts as a tie, in nats of log-probability and in predicted loss.
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 3e-1}


class ParityError(RuntimeError):
    """An exported file that does not do what PyTorch does; the file is not kept."""


@dataclass(frozen=True)
class Parity:
    """Comparison of an exported file with PyTorch."""

    slots: int  # id slots compared, over all frames and samples
    equal: int  # of them equal: same id, chosen alike
    ties: int  # clips that parted at a near tie
    worst_loss_gap: float  # largest difference of predicted losses where both chose the same

    @property
    def share(self) -> float:
        return self.equal / max(1, self.slots)


def share_words(parity: dict[int, Parity]) -> str:
    """The worst agreement over batch sizes, in words."""
    worst = min(parity.values(), key=lambda one: one.share)
    batches = " and ".join(map(str, parity))
    return f"at batch {batches} {worst.share:.1%} of {worst.slots} slots equal PyTorch's"


def scenes(metadata: Metadata, batch: int, frames: int) -> Tensor:
    """Rendered clips (B, T, H, W, 3) uint8 at the file's input size."""
    return torch.from_numpy(np.stack([render_scene(seed, frames, metadata.input_size) for seed in range(batch)]))


@torch.no_grad()
def compare(model: AutoGaze, engine: Engine, clips: Tensor) -> Parity:
    """Run both on the same clips, each sample with its own budget and requirement.

    Args:
        model: float32, on the CPU or a GPU.
        clips: (B, T, H, W, 3) uint8 at the file's input size.

    Raises:
        ParityError: if they part where PyTorch sees no tie, or predicted losses differ by more than the tolerance.
    """
    metadata = engine.metadata
    video = metadata.preprocessor(clips)
    batch, limit = len(clips), (metadata.budget + 0.5) / model.grid.patches_per_frame
    ratio = torch.tensor([min(1.0, limit) / (1 + i % 2) for i in range(batch)], dtype=torch.float64)[:, None]
    ratio = ratio.clamp(min=1 / model.grid.patches_per_frame).expand(batch, clips.shape[1])
    free = _generate(model, video, ratio, None, metadata)
    assert free.task_loss is not None
    losses = free.task_loss[free.chosen]
    requirement = torch.full((batch, clips.shape[1]), float("-inf"))
    requirement[1::2] = losses.float().quantile(0.2).cpu()
    expected = _generate(model, video, ratio, requirement, metadata).to("cpu")
    pixels = clips if metadata.pixels == "uint8" else video
    got = engine.generate(pixels, ratio, requirement).to("cpu")
    threshold = model.config.threshold(requirement)
    return _judge(model, video, expected, got, threshold, metadata)


def _generate(model: AutoGaze, video: Tensor, ratio: Tensor, requirement: Tensor | None, metadata: Metadata) -> Gaze:
    """PyTorch's choice among the ids that the file may choose."""
    scales = metadata.allowed_scales or None
    request = make_request(model.grid, len(video), video.shape[1], ratio, requirement, scales=scales)
    return decode_clip(model, video.to(model.device), request)


def _judge(model: AutoGaze, video: Tensor, expected: Gaze, got: Gaze, threshold: Tensor, metadata: Metadata) -> Parity:
    tolerance = TOLERANCE[metadata.precision]
    width = metadata.budget
    expected, got = _wide(expected, width), _wide(got, width)
    assert expected.task_loss is not None and got.task_loss is not None
    same = (expected.chosen == got.chosen) & ((expected.ids == got.ids) | ~expected.chosen)
    slots = equal = ties = 0
    worst = 0.0
    for i in range(len(video)):
        flat = same[i].flatten()
        end = int((~flat).nonzero()[0]) if not bool(flat.all()) else len(flat)
        both = (expected.chosen[i] & got.chosen[i]).flatten()[:end]
        gap = (expected.task_loss[i].flatten()[:end] - got.task_loss[i].flatten()[:end]).abs()[both]
        worst = max(worst, float(gap.max()) if len(gap) else 0.0)
        slots, equal = slots + min(end + 1, len(flat)), equal + end
        if end < len(flat):
            ties += 1
            _check_tie(
                model,
                video[i : i + 1],
                expected[i : i + 1],
                got[i : i + 1],
                threshold[i],
                divmod(end, width),
                tolerance,
            )
    if worst > tolerance:
        raise ParityError(f"worst predicted-loss difference {worst:.1e} exceeds {tolerance:.0e} ({metadata.precision})")
    return Parity(slots, equal, ties, worst)


def _check_tie(
    model: AutoGaze,
    video: Tensor,
    expected: Gaze,
    got: Gaze,
    threshold: Tensor,
    where: tuple[int, int],
    tolerance: float,
) -> None:
    """Raise unless the two gazes part at a near tie of PyTorch."""
    frame, slot = where
    group = model.config.num_multi_token_pred
    parted = f"PyTorch and the file part at frame {frame}, slot {slot}"
    if bool(expected.chosen[0, frame, slot] != got.chosen[0, frame, slot]):
        losses = [value.task_loss[0, frame, max(0, slot - group) : slot + group] for value in (expected, got)]  # type: ignore[index]
        gap = min(float((values - threshold[frame]).abs().min()) for values in losses)
        if gap > tolerance:
            raise ParityError(
                f"{parted}: one stops, and no predicted loss is within {tolerance:.0e} of the requirement"
            )
        return
    head = video[:, : frame + 1]
    ids, chosen = expected.ids[:, : frame + 1].clone(), expected.chosen[:, : frame + 1]
    log_probs = []
    for other in (expected, got):
        ids[0, frame, slot] = other.ids[0, frame, slot]
        scores = model.score(head.to(model.device), Gaze(ids, chosen, model.grid).to(model.device))
        log_probs.append(float(scores.log_action_probs[0, frame, slot]))
    if abs(log_probs[0] - log_probs[1]) > tolerance:
        raise ParityError(
            f"{parted}: id {int(expected.ids[0, frame, slot])} (log-probability {log_probs[0]:.4f}) against "
            f"{int(got.ids[0, frame, slot])} ({log_probs[1]:.4f}), tolerance {tolerance:.0e}"
        )


def _wide(gaze: Gaze, width: int) -> Gaze:
    pad = width - gaze.ids.shape[2]
    if pad <= 0:
        return gaze
    assert gaze.task_loss is not None
    ids, chosen, loss = (torch.nn.functional.pad(value, (0, pad)) for value in (gaze.ids, gaze.chosen, gaze.task_loss))
    return Gaze(ids, chosen, gaze.grid, loss)
