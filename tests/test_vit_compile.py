"""Compiled parts give the same numbers, one block's code serves all blocks, and graphs replay on the GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("transformers")

from autogaze import Gaze, PatchGrid  # noqa: E402
from autogaze.vit import GazedViT, GraphedViT  # noqa: E402
from tests.vit_models import CASES, Case  # noqa: E402

BY_NAME = {case.name: case for case in CASES}
COMPILED = [BY_NAME[name] for name in ("VisionTransformer, class token", "RoPE-ViT: mixed rotary", "SiglipVisionModel")]
GRAPHED = [
    *COMPILED,
    *(
        BY_NAME[name]
        for name in ("DINOv3: rotary only, registers", "learned positions, linear embedding", "Dinov2Model")
    ),
]


def _inputs(gazed: GazedViT, clips: int = 2) -> tuple[torch.Tensor, Gaze]:
    patch = gazed.patch_size
    grid = PatchGrid((patch, 2 * patch, 4 * patch), patch)
    mask = torch.rand(clips, 3, grid.patches_per_frame) < 0.4
    return torch.randn(clips, 3, 3, grid.height_px, grid.width_px), Gaze.from_patch_mask(mask, grid)


@torch.no_grad()
@pytest.mark.parametrize("case", COMPILED, ids=lambda case: f"{case.family}: {case.name}")
def test_two_compiled_graphs_serve_the_whole_model(case: Case) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gazed = GazedViT(case.build().eval(), "block_causal")
    video, gaze = _inputs(gazed)
    expected = gazed(video, gaze, capacity=gaze.ids.numel())
    gazed.compile(backend="eager", fullgraph=True)
    got = gazed(video, gaze, capacity=gaze.ids.numel())
    count = int(gaze.chosen.sum())
    assert torch.allclose(got.features[:count], expected.features[:count], atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # cutting, and one block


def test_graphs_need_a_gpu() -> None:
    gazed = GazedViT(CASES[0].build().eval())
    video, gaze = _inputs(gazed)
    with pytest.raises(ValueError, match="CUDA graphs need a CUDA device, the video is on cpu"):
        GraphedViT(gazed, video, gaze)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("attention", ["frame", "block_causal", "joint"])
@pytest.mark.parametrize("case", GRAPHED, ids=lambda case: f"{case.family}: {case.name}")
def test_a_replayed_graph_gives_what_the_model_gives(case: Case, attention: str, compiled: bool) -> None:
    if compiled and (case is not GRAPHED[0] or attention == "frame"):
        pytest.skip("compiling takes long: one model, two kinds of attention")
    torch._dynamo.reset()
    eager = GazedViT(case.build().eval().cuda().bfloat16(), attention)
    video, whole = _inputs(eager)
    whole = Gaze.from_patch_mask(torch.ones(2, 3, whole.grid.patches_per_frame, dtype=torch.bool), whole.grid).to(
        "cuda"
    )
    graphed = GraphedViT(GazedViT(eager.model, attention), video.cuda().bfloat16(), whole, (24, 999), compiled)
    assert graphed.buckets == (24, whole.ids.numel())
    for _ in range(3):  # other videos and gazes than the captured ones
        video, gaze = _inputs(eager)
        video, gaze = video.cuda().bfloat16(), gaze.to("cuda")
        got, expected = graphed(video, gaze), eager(video, gaze)
        count = len(expected.features)
        assert torch.equal(got.offsets, expected.offsets) and torch.equal(got.ids[:count], expected.ids)
        assert (got.features[:count].float() - expected.features.float()).abs().max() < 6e-2
        assert (got.pool().float() - expected.pool().float()).abs().max() < 6e-2
