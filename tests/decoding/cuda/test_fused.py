"""The Triton kernels: equal to the reference, on the CPU by Triton's interpreter and on a GPU for real."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autogaze import AutoGaze, Gaze
from autogaze.decoding.backends import chosen_backend
from autogaze.decoding.clip import decode_clip
from autogaze.decoding.cuda import backend
from autogaze.decoding.cuda.backend import Pool, why_not
from autogaze.decoding.request import make_request
from autogaze.media.scenes import render_scene
from autogaze.model import AutoGazeConfig

ROOT = Path(__file__).resolve().parents[3]


PASSES = ["perceptual", "published", "ratio", "per clip", "stop", "blocks"]
CASES = {  # parts of `fused_interpreter`, the first two with other block sizes each
    "spread columns": PASSES,
    "fused layers": PASSES,
    "requests": ["samples", "company", "scales", "nothing"],
    "streams and clips": ["window", "chunks", "stream", "clips"],
}


@pytest.mark.parametrize("part", CASES)
def test_kernels_choose_what_the_reference_chooses(part: str) -> None:
    pytest.importorskip("triton", reason="Triton comes with CUDA builds of PyTorch only")
    run = subprocess.run(
        [sys.executable, "-m", "tests.decoding.cuda.fused_interpreter", part],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    cases = [json.loads(line) for line in run.stdout.splitlines()]
    assert list(dict.fromkeys(case["case"] for case in cases)) == CASES[part]
    for case in cases:
        assert case["equal_ids"] == 1 and case["equal_chosen"] and case["loss_difference"] < 1e-4, case
    if part == "streams and clips":
        # of six frames all but the first, and but the one of another size; of clips the second and third of their form,
        # and the second with other weights
        assert {case["case"]: case["replayed"] for case in cases if "replayed" in case} == {"stream": 4, "clips": 3}


def test_cpu_model_says_why_the_kernels_are_not_used() -> None:
    model = AutoGaze(AutoGazeConfig.tiny())
    assert "CUDA device" in why_not(model, True)
    assert chosen_backend(model)[0] in ("cpu", "reference")
    model.decoding = "cuda"
    with pytest.raises(ValueError, match='decoding="cuda" cannot be used: the model is on cpu'):
        model.generate(torch.zeros(1, 1, 3, 224, 224))


def test_weights_on_the_device_follow_the_residual_map_in_place() -> None:
    model, pool = AutoGaze(replace(AutoGazeConfig.tiny(), residual_map=True)), Pool()
    weights = pool.weights_of(model, torch.bfloat16)
    assert model.residual_map is not None
    with torch.no_grad():
        model.residual_map.weight.copy_(torch.tensor([2.0, -1.0]))
        model.residual_map.strength.fill_(3.0)
    pool.weights_of(model, torch.bfloat16)
    assert weights["error_weight"].tolist() == [2.0, 0.0]  # float32, and not negative
    assert weights["strength"].tolist() == [3.0]


def test_weights_on_the_device_follow_training_in_place() -> None:
    model, pool = AutoGaze(AutoGazeConfig.tiny()), Pool()
    weights = pool.weights_of(model, torch.float32)
    address, before = weights["wo0"].data_ptr(), weights["wo0"].clone()
    with torch.no_grad():
        model.gaze_decoder.model.layers[0].self_attn.o_proj.weight.add_(1.0)
    assert pool.weights_of(model, torch.float32)["wo0"].data_ptr() == address
    torch.testing.assert_close(weights["wo0"], before + 1.0)


@pytest.fixture(scope="module")
def models() -> tuple[AutoGaze, AutoGaze]:
    """The base model with weights that choose clearly, in float32 and bfloat16 on the GPU."""
    torch.manual_seed(0)
    model = AutoGaze(AutoGazeConfig.base()).cuda().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(2.5)
    half = AutoGaze(AutoGazeConfig.base()).cuda().eval()
    half.load_state_dict(model.state_dict())
    return model, half.bfloat16()


def agreement(a: Gaze, b: Gaze) -> float:
    width = min(a.ids.shape[-1], b.ids.shape[-1])
    both = a.chosen[..., :width] & b.chosen[..., :width]
    assert int(a.chosen.sum()) == int(b.chosen.sum())
    return float((a.ids[..., :width] == b.ids[..., :width])[both].float().mean())


@torch.no_grad()
def assert_equal_but_for_ties(model: AutoGaze, video: torch.Tensor, plain: Gaze, fast: Gaze) -> None:
    """Where a clip's ids first differ, both must be as good: products are added up in another order."""
    assert torch.equal(plain.counts, fast.counts)
    width = plain.ids.shape[-1]
    different = (plain.ids != fast.ids[..., :width]) & plain.chosen
    for clip in different.flatten(1).any(1).nonzero()[:, 0].tolist():
        t, slot = different[clip].nonzero()[0].tolist()
        scores = []
        for id in (plain.ids[clip, t, slot], fast.ids[clip, t, slot]):
            ids = plain.ids[clip : clip + 1].clone()
            ids[0, t, slot] = id
            gaze = Gaze(ids, plain.chosen[clip : clip + 1], model.grid)
            found = model.score(video[clip : clip + 1], gaze, as_decoded=True).log_action_probs[0, t, slot]
            scores.append(float(found))
        assert abs(scores[0] - scores[1]) < 1e-3, (clip, t, slot, scores)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3, 24])
def test_gpu_ids_equal_the_reference_in_float32(models: tuple[AutoGaze, AutoGaze], batch: int) -> None:
    model, _ = models
    video = torch.randn(batch, 4, 3, 224, 224, device="cuda")
    model.decoding = "reference"
    loss = model.generate(video[:1], gazing_ratio=0.1).task_loss
    assert loss is not None
    asked = float(loss[~loss.isnan()].quantile(0.4))
    for request in (
        {"gazing_ratio": 0.1},
        {"gazing_ratio": torch.linspace(0.02, 0.3, batch)},
        {"gazing_ratio": 0.2, "task_loss_requirement": asked},
        {"gazing_ratio": 0.1, "scales": (32, 112)},
    ):
        made = make_request(model.grid, batch, 4, **request)
        model.decoding = "reference"
        plain = decode_clip(model, video, made)
        model.decoding = "cuda"
        assert_equal_but_for_ties(model, video, plain, decode_clip(model, video, made))


@pytest.mark.gpu
def test_gpu_a_clip_is_decoded_as_if_alone(models: tuple[AutoGaze, AutoGaze]) -> None:
    """By the same kernels, beside clips that are asked to go on for longer or to stop, whatever these are."""
    model, _ = models
    model.decoding = "cuda"
    video = torch.randn(4, 4, 3, 224, 224, device="cuda")
    loss = model.generate(video, gazing_ratio=0.2).task_loss
    assert loss is not None
    asked = float(loss[~loss.isnan()].quantile(0.4))
    expected = model.generate(video, gazing_ratio=0.2, task_loss_requirement=asked)
    for beside in (0.0, 9e9):
        requirements = torch.tensor([asked, beside, asked, beside])[:, None]
        gaze = model.generate(video, gazing_ratio=0.2, task_loss_requirement=requirements)
        for i in (0, 2):
            assert torch.equal(gaze[i : i + 1].packed().ids, expected[i : i + 1].packed().ids)


@pytest.mark.gpu
def test_gpu_new_shapes_compile_nothing() -> None:
    from autogaze.decoding.cuda import kernels

    def compiled() -> int:
        device = torch.cuda.current_device()
        return sum(len(getattr(kernels, name).device_caches[device][0]) for name in kernels.__all__)

    model = AutoGaze.from_pretrained("autogaze-base").cuda().bfloat16().eval()
    model.generate(torch.zeros(1, 1, 3, 224, 224, device="cuda").bfloat16(), 0.01)
    before = compiled()
    for batch, frames, ratio, requirement in (
        (1, 16, 0.1, None),
        (2, 8, 0.2, 0.7),
        (3, 12, 0.75, None),
        (16, 2, 0.05, 0.7),
        (33, 4, 0.13, None),
        (64, 3, 0.4, None),
    ):
        model.generate(torch.randn(batch, frames, 3, 224, 224, device="cuda").bfloat16(), ratio, requirement)
    assert compiled() == before


@pytest.mark.gpu
def test_gpu_stream_equals_the_clip_and_slides(models: tuple[AutoGaze, AutoGaze]) -> None:
    model, _ = models
    model.decoding = "cuda"
    video = torch.randn(2, 20, 3, 224, 224, device="cuda")
    stream = model.stream(gazing_ratio=0.05, batch=2)
    stepped = Gaze.join([stream.step(video[:, t]) for t in range(20)])
    whole = model.generate(video, gazing_ratio=0.05)
    assert agreement(stepped, whole) == 1.0


@pytest.mark.gpu
@pytest.mark.parametrize("clips", [1, 4, 24])  # steps by clusters, and by the kernels of a pass
def test_gpu_bfloat16_chooses_nearly_the_same_patches(clips: int) -> None:
    exact = AutoGaze.from_pretrained("autogaze-base").cuda().eval()
    half = AutoGaze.from_pretrained("autogaze-base").cuda().bfloat16().eval()
    scenes = torch.stack([torch.from_numpy(render_scene(seed, 8)) for seed in range(clips)]).cuda()
    video = exact.preprocessor.normalise(scenes.flatten(0, 1)).unflatten(0, scenes.shape[:2])
    full, fast = exact.generate(video, gazing_ratio=0.1), half.generate(video.bfloat16(), gazing_ratio=0.1)
    assert torch.equal(full.counts, fast.counts)
    # One near tie changes all that follows in its clip, so sets of patches are compared; the first frame says most.
    both = (full.patch_mask() & fast.patch_mask()).sum((0, 2)) / full.patch_mask().sum((0, 2))
    assert float(both[0]) > 0.97 and float(both.mean()) > 0.85, both


@pytest.mark.gpu
@pytest.mark.parametrize(("streams", "requirement"), [(1, None), (1, 0.08), (16, None), (16, 0.08)])
def test_gpu_recorded_frames_equal_frames_decoded_kernel_by_kernel(streams: int, requirement: float | None) -> None:
    model = AutoGaze.from_pretrained("autogaze-base").cuda().bfloat16().eval()
    video = torch.randn(streams, 20, 3, 224, 224, device="cuda").bfloat16()
    gazes = []
    for recorded in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not recorded:
                patch.setattr(backend, "can_record", lambda space: False)
            stream = model.stream(0.1, requirement, batch=streams)
            gazes.append(Gaze.join([stream.step(video[:, t]) for t in range(video.shape[1])]))
            assert (stream._decoding.frame is not None) == (recorded and (streams == 1 or requirement is None))
    assert torch.equal(gazes[0].ids, gazes[1].ids) and torch.equal(gazes[0].chosen, gazes[1].chosen)


@pytest.mark.gpu
@pytest.mark.parametrize(("clips", "requirement"), [(1, None), (2, 0.08), (24, None)])
def test_gpu_recorded_clips_equal_clips_decoded_frame_by_frame(clips: int, requirement: float | None) -> None:
    model = AutoGaze.from_pretrained("autogaze-base").cuda().bfloat16().eval()
    videos = torch.randn(4, clips, 16, 3, 224, 224, device="cuda").bfloat16()
    with torch.inference_mode():
        first = [model.generate(videos[0], 0.1, requirement), model.generate(videos[0], 0.1, requirement)]
    gazes = [model.generate(video, 0.1, requirement) for video in videos]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "can_record", lambda space: False)
        expected = [model.generate(video, 0.1, requirement) for video in videos]
    for gaze, one in zip([*first, *gazes], [expected[0], expected[0], *expected], strict=True):
        assert torch.equal(gaze.ids, one.ids) and torch.equal(gaze.chosen, one.chosen)


@pytest.mark.gpu
def test_gpu_sampling_follows_the_scores(models: tuple[AutoGaze, AutoGaze]) -> None:
    model, _ = models
    model.decoding = "cuda"
    video = torch.randn(1, 1, 3, 224, 224, device="cuda").expand(2048, -1, -1, -1, -1)
    gaze = model.generate(video, gazing_ratio=0.004, temperature=1.0, generator=torch.Generator().manual_seed(1))
    seen = torch.bincount(gaze.ids[:, 0, 0], minlength=265).float() / 2048
    every = Gaze(
        torch.arange(265, device="cuda")[:, None, None],
        torch.ones(265, 1, 1, dtype=torch.bool, device="cuda"),
        model.grid,
    )
    said = model.score(video[:265], every, temperature=1.0).log_action_probs[:, 0, 0].detach().exp()
    assert float((seen - said).abs().max()) < 0.05
