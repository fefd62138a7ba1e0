"""GazedViT as a whole: recorded cases, places, contracts, errors."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autogaze import Gaze, PatchGrid
from autogaze.vit import GazedViT

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

from timm.models.vision_transformer import VisionTransformer  # noqa: E402

GRID = PatchGrid((8, 16, 32), 8)


def _vit(**options: object) -> nn.Module:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**size, **options}).eval()


def _gaze(share: float = 0.4, clips: int = 2, frames: int = 3) -> Gaze:
    return Gaze.from_patch_mask(torch.rand(clips, frames, GRID.patches_per_frame) < share, GRID)


def _video(clips: int = 2, frames: int = 3, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randn(clips, frames, 3, *size)


def test_the_recorded_siglip_tower_is_reproduced(shared: Path) -> None:
    from safetensors.torch import load_file

    parts, tiny = shared / "compat" / "parts", load_file(shared / "compat" / "tiny" / "cases.safetensors")
    known = transformers.SiglipVisionConfig().to_dict()
    config = {
        k: v for k, v in json.loads((parts / "siglip_config.json").read_text()).items() if k in known and v is not None
    }
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**config)).eval()
    weights = load_file(parts / "siglip_model.safetensors")
    if not hasattr(model, "vision_model"):
        weights = {name.removeprefix("vision_model."): weight for name, weight in weights.items()}
    model.load_state_dict(weights)
    info = {key: tiny[f"threshold.{key}"] for key in ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")}
    gaze = Gaze.from_gazing_info(info, PatchGrid((16, 32, 64), 16))
    expected = load_file(parts / "parts.safetensors")
    hidden, valid = expected["siglip.last_hidden_state"], expected["siglip.valid"]
    with torch.no_grad():
        got = GazedViT(model, attention="block_causal")(tiny["video"], gaze)
    assert len(got.features) == valid.sum()
    assert (got.features - hidden[valid]).abs().max() < 1e-4


@torch.no_grad()
def test_attention_reaches_as_far_as_it_says() -> None:
    model, gaze, video = _vit(class_token=False, global_pool="map"), _gaze(), _video()
    changed = video.clone()
    changed[0, 1] += 1.0  # frame 1 of clip 0
    reach = {"frame": [(0, 1)], "block_causal": [(0, 1), (0, 2)], "joint": [(0, 0), (0, 1), (0, 2)]}
    for attention, expected in reach.items():
        gazed = GazedViT(model, attention)
        before, after = gazed(video, gaze), gazed(changed, gaze)
        differs = (before.features != after.features).any(-1)
        places = set(zip(before.clip[differs].tolist(), before.frame[differs].tolist(), strict=True))
        assert places == set(expected)


@torch.no_grad()
def test_features_do_not_depend_on_the_order_of_slots() -> None:
    gaze, video, gazed = _gaze(), _video(), GazedViT(_vit())
    order = torch.randperm(gaze.ids.shape[-1])
    shuffled = Gaze(gaze.ids[..., order], gaze.chosen[..., order], GRID)
    a, b = gazed(video, gaze), gazed(video, shuffled)
    assert torch.allclose(a.dense(), b.dense(), atol=1e-5) and torch.allclose(a.pool(), b.pool(), atol=1e-5)
    assert torch.equal(b.ids, shuffled.ids[shuffled.chosen])


@torch.no_grad()
def test_a_map_takes_the_finest_chosen_patch_and_fills_the_rest() -> None:
    ids = torch.tensor([[[GRID.id_at(1, 0, 0), GRID.id_at(2, 1, 1), GRID.id_at(2, 3, 3)]]])
    features = GazedViT(_vit())(_video(1, 1), Gaze(ids, torch.ones_like(ids, dtype=torch.bool), GRID))
    dense = features.dense(fill=-7.0)[0, 0]
    assert dense.shape == (32, 4, 4)
    coarse, fine, corner = features.features
    assert torch.equal(dense[:, 0, 1], coarse) and torch.equal(dense[:, 1, 0], coarse)
    assert torch.equal(dense[:, 1, 1], fine) and torch.equal(dense[:, 3, 3], corner)
    assert (dense[:, 2:, :3] == -7.0).all() and (dense[:, :3, 2:] == -7.0).all()


@torch.no_grad()
def test_joint_attention_pools_a_clip_and_frame_attention_a_frame() -> None:
    video, gaze = _video(), _gaze()
    assert GazedViT(_vit(), "frame")(video, gaze).pool().shape == (2, 3, 32)
    assert GazedViT(_vit(), "block_causal")(video, gaze).pool().shape == (2, 3, 32)
    joint = GazedViT(_vit(), "joint")(video, gaze)
    assert joint.pool().shape == (2, 32) and joint.prefix.shape == (2, 1, 1, 32)


@torch.no_grad()
def test_nothing_chosen_is_legal() -> None:
    empty = Gaze(torch.zeros(2, 3, 0, dtype=torch.long), torch.zeros(2, 3, 0, dtype=torch.bool), GRID)
    for model in (_vit(), _vit(class_token=False, global_pool="map"), _vit(class_token=False, global_pool="avg")):
        features = GazedViT(model)(_video(), empty)
        assert features.features.shape == (0, 32) and not features.dense().any()
        pooled = features.pool()
        assert pooled.shape == (2, 3, 32) and pooled.isfinite().all()
        assert model.has_class_token or not pooled.any()
        assert torch.equal(GazedViT(model)(_video(), empty, capacity=4).pool(), pooled)


@torch.no_grad()
def test_frames_of_any_size_are_taken_as_they_are() -> None:
    gazed, gaze, video = GazedViT(_vit()), _gaze(), _video(size=(90, 160))
    resized = torch.nn.functional.interpolate(video.flatten(0, 1), (32, 32), mode="bicubic").unflatten(0, (2, 3))
    fine = Gaze(gaze.ids, gaze.chosen & (gaze.ids >= GRID.offsets[-1]), GRID)
    assert torch.allclose(gazed(video, fine).features, gazed(resized, fine).features, atol=1e-4)


@torch.no_grad()
def test_a_model_at_another_input_size_equals_its_dense_self() -> None:
    model, grid = _vit(dynamic_img_size=True), PatchGrid((16, 48), 8)
    video = _video(1, 2, (48, 48))
    mask = torch.zeros(1, 2, grid.patches_per_frame, dtype=torch.bool)
    mask[..., grid.offsets[-1] :] = True
    dense = model.forward_features(video[0])[:, 1:]
    assert torch.allclose(
        GazedViT(model)(video, Gaze.from_patch_mask(mask, grid)).features, dense.flatten(0, 1), atol=1e-4
    )


def test_other_patch_sizes_are_refused_with_the_call_that_fits() -> None:
    vit = GazedViT(_vit(img_size=378, patch_size=14, depth=1))
    grid = PatchGrid()
    gaze = Gaze.from_patch_mask(torch.ones(1, 1, grid.patches_per_frame, dtype=torch.bool), grid)
    with pytest.raises(
        ValueError, match=r"16 px, this ViT's 14 px.*target_scales=\(56, 112, 196, 378\), target_patch_size=14"
    ):
        vit(torch.zeros(1, 1, 3, 378, 378), gaze)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(2, 3, 32, 32, 3), r"must be \(B, T, 3, H, W\) float"),
        (torch.zeros(2, 3, 3, 32, 32, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(2, 4, 3, 32, 32), "2 clips of 4 frames, the gaze 2 of 3"),
    ],
)
def test_videos_that_do_not_fit_are_refused(video: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GazedViT(_vit())(video, _gaze())


def test_too_small_a_capacity_is_refused() -> None:
    gaze = _gaze()
    with pytest.raises(ValueError, match="patches were chosen but capacity is 3"):
        GazedViT(_vit())(_video(), gaze, capacity=3)


@torch.no_grad()
def test_cells_are_cells_whatever_their_pixels() -> None:
    """A gaze on 4 x 4 cells of 16 px is one for 4 x 4 patches of 8 px, where the frames have so many."""
    coarse = PatchGrid((16, 32, 64), 16)
    gaze = _gaze()
    video, gazed = _video(), GazedViT(_vit())
    expected = gazed(video, gaze)
    found = gazed(video, Gaze(gaze.ids, gaze.chosen, coarse))
    assert found.grid == GRID and torch.equal(found.features, expected.features)


def test_a_preprocessor_makes_what_the_vit_was_trained_on() -> None:
    vit = timm.create_model("vit_tiny_patch16_224")
    made = GazedViT(vit).preprocessor
    assert made.size == (224, 224) and made.mean == tuple(vit.pretrained_cfg["mean"])
    dino = transformers.Dinov2Model(
        transformers.Dinov2Config(hidden_size=12, num_hidden_layers=1, num_attention_heads=2)
    )
    made = GazedViT(dino, size=196).preprocessor
    assert made.size == (196, 196) and made.mean == (0.485, 0.456, 0.406)
    siglip = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12
        )
    )
    black = GazedViT(siglip).preprocessor(torch.zeros(1, 30, 40, 3, dtype=torch.uint8))
    assert black.shape == (1, 1, 3, 224, 224) and torch.allclose(black, torch.tensor(-1.0))


def test_a_frozen_vit_is_told_what_it_can_use() -> None:
    plan = GazedViT(_vit()).recommended()
    assert plan.attention == "nearest" and plan.finest and "frames in full" in plan.reason
    counts = plan.counts(196, 16, 26)
    assert sum(counts) == 416 and counts[4] == counts[12] == 196 and max(counts[:4]) <= 2
    assert plan.keys(196, 16, 26) == [4, 12] and plan.keys(196, 16, 13) == [8]
    stream = GazedViT(_vit()).recommended(stream=True)
    assert stream.attention == "memory" and stream.counts(196, 16, 26)[0] == 196


def test_training_a_model_with_attention_dropout_is_refused() -> None:
    gazed = GazedViT(_vit(attn_drop_rate=0.1))
    gazed(_video(), _gaze())
    with pytest.raises(ValueError, match="attention dropout 0.1"):
        gazed.train()(_video(), _gaze())


def test_unknown_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="frame, block_causal, joint, memory, nearest, got 'causal'"):
        GazedViT(_vit(), attention="causal")


def test_the_weights_are_the_models_own() -> None:
    model = _vit()
    gazed = GazedViT(model)
    assert gazed.model is model and {id(w) for w in gazed.parameters()} == {id(w) for w in model.parameters()}


@torch.no_grad()
def test_a_copy_uses_its_own_weights() -> None:
    gazed, video, gaze = GazedViT(_vit()), _video(), _gaze()
    copied = copy.deepcopy(gazed)
    before = gazed(video, gaze).features
    for weight in copied.parameters():
        weight.mul_(2.0)
    assert torch.equal(gazed(video, gaze).features, before) and not torch.equal(copied(video, gaze).features, before)


@torch.no_grad()
def test_adapters_in_place_of_layers_are_used() -> None:
    class Adapter(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + x.mean(-1, keepdim=True)

    model, video = _vit(), _video()
    for block in model.blocks:
        block.attn.qkv, block.mlp.fc1 = Adapter(block.attn.qkv), Adapter(block.mlp.fc1)
    mask = torch.zeros(2, 3, GRID.patches_per_frame, dtype=torch.bool)
    mask[..., GRID.offsets[-1] :] = True
    features = GazedViT(model)(video, Gaze.from_patch_mask(mask, GRID)).features
    assert torch.allclose(features, model.forward_features(video.flatten(0, 1))[:, 1:].flatten(0, 1), atol=1e-4)


@torch.no_grad()
def test_half_precision_follows_the_model() -> None:
    features = GazedViT(_vit().to(torch.bfloat16))(_video(), _gaze())
    assert features.features.dtype == torch.bfloat16 and features.pool().dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 4, 16])
def test_cost_follows_the_number_of_chosen_patches(count: int) -> None:
    """Nothing is spent on patches that were not chosen: no whole frame is embedded."""
    from torch.utils.flop_counter import FlopCounterMode

    model, video = _vit(class_token=False, global_pool="avg"), _video()
    ids = torch.rand(2, 3, 16).argsort(-1)[..., :count] + GRID.offsets[-1]
    gaze = Gaze(ids, torch.ones_like(ids, dtype=torch.bool), GRID)
    with FlopCounterMode(display=False) as dense:
        model.forward_features(video.flatten(0, 1))
    with FlopCounterMode(display=False) as gazed:
        GazedViT(model)(video, gaze)
    assert gazed.get_total_flops() == dense.get_total_flops() * count // 16  # torch counts linear layers here
