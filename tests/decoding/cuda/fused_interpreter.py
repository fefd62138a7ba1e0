"""Run by test_fused.py in a process of its own: the kernels under Triton's interpreter, on the CPU.

Prints one JSON object a case: share of equal ids, whether `chosen` is equal, largest difference of predicted losses.
"""

import json
import sys
import warnings
from dataclasses import replace

import torch

import tests.decoding.cuda.interpreter  # noqa: F401, I001 - before Triton and what imports it
from autogaze import AutoGaze, Gaze
from autogaze.decoding import clip
from autogaze.decoding.clip import decode_clip
from autogaze.decoding.cuda import backend, buffers, recording, tuning
from autogaze.decoding.request import make_request
from autogaze.model import AutoGazeConfig


def model(
    window: int,
    scales: tuple[int, ...] = (16, 32),
    group: int = 2,
    residual_map: bool = True,
    perceptual: bool = False,
) -> AutoGaze:
    torch.manual_seed(0)
    config = replace(
        AutoGazeConfig.tiny(),
        scales=scales,
        hidden_size=32,
        num_attention_heads=2,
        head_dim=16,
        intermediate_size=32,
        num_multi_token_pred=group,
        max_num_frames=window,
        residual_map=residual_map,
        perceptual=perceptual,
        residual_blur_px=0.8 * perceptual,
    )
    made = AutoGaze(config).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3)  # so that the best id wins clearly
    if made.residual_map is not None and made.residual_map.gate is not None:
        torch.nn.init.normal_(made.residual_map.gate.weight, std=0.3)
        torch.nn.init.normal_(made.residual_map.gate.bias, std=0.3)
    return made


def compare(name: str, gazer: AutoGaze, video: torch.Tensor, **request: object) -> Gaze:
    asked = make_request(gazer.grid, *video.shape[:2], **request)
    gazer.decoding = "reference"
    plain = decode_clip(gazer, video, asked)
    gazer.decoding = "cuda"
    fast = decode_clip(gazer, video, asked)
    width = plain.ids.shape[-1]
    rest = fast.chosen[..., width:]
    difference = (plain.task_loss - fast.task_loss[..., :width]).nan_to_num().abs().max()
    print(
        json.dumps(
            {
                "case": name,
                "equal_ids": float((plain.ids == fast.ids[..., :width]).float().mean()),
                "equal_chosen": bool(torch.equal(plain.chosen, fast.chosen[..., :width]) and not rest.any()),
                "loss_difference": float(difference),
            }
        )
    )
    return plain


def compare_company(gazer: AutoGaze, video: torch.Tensor) -> None:
    """A clip is decoded as if alone: in a batch that is asked one thing, or beside clips that are asked others."""
    loss = gazer.generate(video, gazing_ratio=1.0).task_loss
    asked = max(0.0, float(loss[~loss.isnan()].quantile(0.3)))
    plain = compare("company", gazer, video, gazing_ratio=1.0, task_loss_requirement=asked)
    assert plain.counts.unique().numel() > 1
    for beside in (0.0, 1e9):
        requirements = torch.tensor([[asked], [beside], [asked]])
        gaze = gazer.generate(video, gazing_ratio=1.0, task_loss_requirement=requirements)
        for i in (0, 2):
            assert torch.equal(gaze[i : i + 1].packed().ids, plain[i : i + 1].packed().ids)


def compare_samples(gazer: AutoGaze, video: torch.Tensor) -> None:
    """Samples are gazes that the reference could take, with the losses that scoring predicts after their ids."""
    gazer.decoding = "cuda"
    gaze = gazer.generate(video, gazing_ratio=0.8, temperature=3.0, generator=torch.Generator().manual_seed(0))
    again = gazer.generate(video, gazing_ratio=0.8, temperature=3.0, generator=torch.Generator().manual_seed(1))
    cold = gazer.generate(video, gazing_ratio=0.8, temperature=1e-3, generator=torch.Generator().manual_seed(0))
    gazer.decoding = "reference"
    plain = gazer.generate(video, gazing_ratio=0.8)
    assert not torch.equal(gaze.ids, again.ids)
    assert all(len(set(ids.tolist())) == len(ids) for ids in gaze.ids.flatten(0, 1))
    after = gazer.score(video, gaze, temperature=3.0).task_loss_prediction[..., :-1].detach()
    print(
        json.dumps(
            {
                "case": "samples",
                "equal_ids": float((plain.ids == cold.ids).float().mean()),  # without heat a sample is the best
                "equal_chosen": bool(torch.equal(plain.chosen, gaze.chosen)),
                "loss_difference": float((gaze.task_loss[..., 1:] - after).abs().max()),
            }
        )
    )


def compare_streams(gazer: AutoGaze, video: torch.Tensor) -> None:
    """Frames that are recorded once and replayed, with one of another size among them."""
    backend.can_record = lambda space: True
    recording.record = lambda enqueue: enqueue
    steps, gazes = [], []
    decode = recording.Recording.decode
    recording.Recording.decode = lambda self, video: steps.append(1) or decode(self, video)
    for way in ("reference", "cuda"):
        gazer.decoding = way
        stream = gazer.stream(gazing_ratio=0.6, batch=len(video))
        frames = [video[:, t] for t in range(video.shape[1])]
        frames[3] = torch.nn.functional.interpolate(frames[3], scale_factor=2.0)
        gazes.append(Gaze.join([stream.step(frame) for frame in frames]))
    recording.Recording.decode = decode
    plain, fast = gazes
    width = plain.ids.shape[-1]
    print(
        json.dumps(
            {
                "case": "stream",
                "equal_ids": float((plain.ids == fast.ids[..., :width]).float().mean()),
                "equal_chosen": bool(torch.equal(plain.chosen, fast.chosen[..., :width])),
                "loss_difference": float((plain.task_loss - fast.task_loss[..., :width]).nan_to_num().abs().max()),
                "replayed": len(steps),
            }
        )
    )


def refused(gazer: AutoGaze, video: torch.Tensor) -> list[Gaze]:
    """The gazes of clips that cannot be recorded, and that warn of it once."""
    record, recording.record = recording.record, raise_out_of_memory
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gazes = [gazer.generate(video, gazing_ratio=0.6) for _ in range(4)]
    recording.record = record
    assert len(caught) == (gazer.decoding == "cuda"), caught
    return gazes


def raise_out_of_memory(enqueue: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def compare_clips(gazer: AutoGaze, video: torch.Tensor) -> None:
    """Clips of a form that comes again are recorded; others, and a model whose weights moved, are not replayed."""
    replayed, ids = [], []
    decode = recording.Recording.decode
    recording.Recording.decode = lambda self, clips: replayed.append(1) or decode(self, clips)
    for way in ("reference", "cuda"):
        gazer.decoding = way
        with torch.inference_mode():  # a buffer made in here is found again outside
            gazes = [gazer.generate(video, gazing_ratio=0.6) for _ in range(2)]
        gazes += [
            gazer.generate(part, gazing_ratio=ratio)
            for part, ratio in ((-video, 0.6), (video[:, :2], 0.6), (video, 0.3))
        ]
        weight = gazer.vision_model.out_proj.weight
        weight.data = -weight.data  # elsewhere
        gazes += [gazer.generate(video, gazing_ratio=0.6) for _ in range(2)]
        weight.data = -weight.data
        gazes += refused(gazer, video[:1])
        ids.append([gaze.ids.where(gaze.chosen, -1)[..., :12] for gaze in gazes])
    equal = [bool(torch.equal(a, b[..., : a.shape[-1]])) for a, b in zip(*ids, strict=True)]
    print(
        json.dumps(
            {
                "case": "clips",
                "equal_ids": float(all(equal)),
                "equal_chosen": True,
                "loss_difference": 0.0,
                "replayed": len(replayed),
            }
        )
    )


def main(kind: str) -> None:
    if kind == "fused layers":
        small = tuning.Tuning(wide=False, pairs=16, hidden=16, keys=16, tail=16)
        buffers.Buffers.tuning = lambda self, prefill: small
        buffers.Buffers._frames_per_split = lambda self, prefill: self.plan.ring  # as in large batches
    video = torch.randn(2, 3, 3, 32, 32)
    parts = {"requests": compare_requests, "streams and clips": compare_streams_and_clips}
    parts.get(kind, compare_passes)(video)


def compare_passes(video: torch.Tensor) -> None:
    """Cases that depend on block sizes."""
    perceptive = model(window=16, scales=(16, 128), perceptual=True)  # the coarse scale leaves blocks of 8 pixels
    compare("perceptual", perceptive, torch.rand(1, 2, 3, 128, 128), gazing_ratio=0.1)
    compare("published", model(window=16, residual_map=False), video, gazing_ratio=0.8)
    gazer = model(window=16)
    plain = compare("ratio", gazer, video, gazing_ratio=0.8)
    stop = max(0.0, float(plain.task_loss[~plain.task_loss.isnan()].quantile(0.4)))
    requests = torch.tensor([0.3, 1.0]), torch.tensor([stop, 0.0])
    compare("per clip", gazer, video, gazing_ratio=requests[0], task_loss_requirement=requests[1])
    compare("stop", gazer, video[:1], gazing_ratio=1.0, task_loss_requirement=stop)
    # frames of more than a block of keys, and some clips with more than others
    ratios = torch.tensor([0.1, 0.4])
    compare("blocks", model(window=16, scales=(32, 64)), torch.randn(2, 4, 3, 64, 64), gazing_ratio=ratios)


def compare_requests(video: torch.Tensor) -> None:
    """Sampling, clips beside others, scales, frames without a budget."""
    gazer = model(window=16)
    compare_samples(gazer, video[:, :2])
    compare_company(model(window=16, group=4), torch.randn(3, 4, 3, 32, 32))
    compare("scales", gazer, video, gazing_ratio=0.9, scales=(32,))
    compare("scales", model(window=16, residual_map=False), video[:1], gazing_ratio=0.9, scales=(16,))
    compare("nothing", gazer, video, gazing_ratio=torch.tensor([[0.0, 0.5, 0.0], [0.5, 0.0, 0.5]]))


def compare_streams_and_clips(video: torch.Tensor) -> None:
    """The window, chunks, streams and recorded clips."""
    compare("window", model(window=2), torch.randn(1, 5, 3, 32, 32), gazing_ratio=0.6)
    clip.FRAMES_AT_ONCE = 2
    compare("chunks", model(window=2), torch.randn(2, 5, 3, 32, 32), gazing_ratio=0.6)
    clip.FRAMES_AT_ONCE = 16
    compare_streams(model(window=2), torch.randn(2, 6, 3, 32, 32))
    compare_clips(model(window=16), video)


main(sys.argv[1])
