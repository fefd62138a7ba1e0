"""Adapters: nothing changes before training, a file goes back into its own ViT and no other."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autogaze import Gaze, PatchGrid
from autogaze.vit import GazedViT, ViTStream
from autogaze.vit.adapter import AdapterConfig, _today, adapter_attention, age_step, install, load_adapter, save_adapter

pytest.importorskip("timm")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.vit.vit_models import CASES, Case  # noqa: E402

FAMILIES = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}: {case.name}")


def _input(patch: int, clips: int = 2, frames: int = 5) -> tuple[Tensor, Gaze]:
    grid = PatchGrid((2 * patch, 4 * patch), patch)
    mask = torch.rand(clips, frames, grid.patches_per_frame) < 0.4
    return torch.randn(clips, frames, 3, grid.height_px, grid.width_px), Gaze.from_patch_mask(mask, grid)


def _disturb(gazed: GazedViT) -> None:
    """As training would: every part of the adapter gets other numbers."""
    with torch.no_grad():
        for parameter in gazed.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@FAMILIES
@pytest.mark.parametrize("attention", ["memory", "frame"])
def test_a_new_adapter_changes_nothing_and_all_of_it_trains(case: Case, attention: str) -> None:
    gazed = GazedViT(case.build().eval(), attention)
    video, gaze = _input(gazed.patch_size)
    with torch.no_grad():
        before = gazed(video, gaze)
    install(gazed, AdapterConfig(attention, 2, "lora", 2))
    after = gazed(video, gaze)
    assert torch.equal(after.features, before.features)
    assert torch.equal(after.prefix, before.prefix)
    _disturb(gazed)
    changed = gazed(video, gaze)
    assert not torch.allclose(changed.features, before.features, atol=1e-4)
    (changed.features.square().sum() + changed.prefix.square().sum()).backward()
    trained = {name: p.grad for name, p in gazed.named_parameters() if p.requires_grad}
    assert all("adapter." in name or "lora" in name for name in trained)
    assert all(grad is not None and grad.isfinite().all() for grad in trained.values())
    assert attention == "frame" or all(trained[f"adapter.age.{k}"].abs().sum() > 0 for k in range(2))


@FAMILIES
@torch.no_grad()
def test_an_adapter_goes_back_into_its_own_vit(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(0)
    gazed = GazedViT(case.build().eval(), "memory")
    video, gaze = _input(gazed.patch_size)
    plain = {name: value.clone() for name, value in gazed.model.state_dict().items()}
    install(gazed, AdapterConfig("memory", 2, "lora", 2))
    _disturb(gazed)
    save_adapter(gazed, tmp_path / "adapter.safetensors", {"steps": 3})
    again = GazedViT(case.build().eval(), "memory")
    again.model.load_state_dict(plain)
    assert load_adapter(again, tmp_path) == {"steps": 3}
    torch.testing.assert_close(again(video, gaze).features, gazed(video, gaze).features, atol=1e-4, rtol=1e-4)
    assert set(again.model.state_dict()) == set(plain)  # LoRA is part of the weights: nothing is computed beside them
    with pytest.raises(ValueError, match="copy the file"):
        save_adapter(again, tmp_path / "again.safetensors")


@pytest.mark.parametrize("weights", ["lora", "all", "none"])
@torch.no_grad()
def test_an_adapter_can_be_taken_in_part(weights: str, tmp_path: Path) -> None:
    """At 0 it changes nothing, at 1 all that it learned; in between its changes are scaled."""
    torch.manual_seed(0)
    model = CASES[0].build().eval()
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    gazed = GazedViT(model, "memory")
    video, gaze = _input(8)
    dense = gazed(video, gaze).features
    install(gazed, AdapterConfig("memory", 2, weights, 2))
    _disturb(gazed)
    save_adapter(gazed, tmp_path / "adapter.safetensors")
    found = {}
    for scale in (0.0, 0.5, 1.0):
        again = GazedViT(CASES[0].build().eval(), "memory")
        again.model.load_state_dict(plain)
        load_adapter(again, tmp_path, scale)
        found[scale] = again(video, gaze).features, {n: v.clone() for n, v in again.model.state_dict().items()}
    torch.testing.assert_close(found[0.0][0], dense)
    torch.testing.assert_close(found[1.0][0], gazed(video, gaze).features, atol=1e-4, rtol=1e-4)
    for name, value in found[0.5][1].items():
        torch.testing.assert_close(value, (found[0.0][1][name] + found[1.0][1][name]) / 2)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 1.5"):
        load_adapter(gazed, tmp_path, 1.5)


@torch.no_grad()
def test_all_weights_can_be_an_adapter(tmp_path: Path) -> None:
    gazed = GazedViT(CASES[0].build().eval(), "memory")
    video, gaze = _input(8)
    plain = {name: value.clone() for name, value in gazed.model.state_dict().items()}
    install(gazed, AdapterConfig("memory", 2, "all"))
    _disturb(gazed)
    save_adapter(gazed, tmp_path / "adapter.safetensors")
    again = GazedViT(CASES[0].build().eval(), "memory")
    again.model.load_state_dict(plain)
    load_adapter(again, tmp_path / "adapter.safetensors")
    torch.testing.assert_close(again(video, gaze).features, gazed(video, gaze).features, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_adapted_stream_equals_the_adapted_clip() -> None:
    gazed = GazedViT(CASES[0].build().eval(), "memory")
    video, gaze = _input(8)
    install(gazed, AdapterConfig("memory", 2, "none"))
    _disturb(gazed)
    clip, stream = gazed(video, gaze), ViTStream(gazed, 2)
    steps = [stream.step(video[:, t : t + 1], Gaze(gaze.ids[:, t : t + 1], gaze.chosen[:, t : t + 1], gaze.grid))
             for t in range(video.shape[1])]  # fmt: skip
    assert torch.allclose(torch.cat([step.dense() for step in steps], 1), clip.dense(), atol=1e-5)
    assert torch.allclose(torch.cat([step.pool() for step in steps], 1), clip.pool(), atol=1e-5)


def test_ages_double_from_step_to_step() -> None:
    assert age_step(torch.arange(20)).tolist() == [0, 1, 2, 2, 3, 3, 3, 3, *[4] * 8, *[5] * 4]


def test_an_adapter_of_another_vit_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "adapter.safetensors"
    gazed = GazedViT(CASES[0].build().eval(), "memory")
    half = copy.deepcopy(gazed.model).to(torch.bfloat16).float()
    install(gazed, AdapterConfig("memory", 2, "lora", 2))
    save_adapter(gazed, path)
    load_adapter(GazedViT(half, "memory"), path)  # the same weights, rounded
    other = CASES[0].build().eval()
    with pytest.raises(ValueError, match="made for a ViT with other weights: .* is not the same"):
        load_adapter(GazedViT(other, "memory"), path)
    with pytest.raises(ValueError, match=r"made for another ViT \(VisionTransformer\), this Eva has other layers"):
        load_adapter(GazedViT(next(c for c in CASES if "Eva" in c.family).build().eval(), "memory"), path)
    with pytest.raises(FileNotFoundError, match="no adapter"):
        load_adapter(gazed, tmp_path / "none")
    path.write_text("not an adapter")
    with pytest.raises(ValueError, match="is not an adapter"):
        load_adapter(gazed, path)


def test_a_file_has_the_names_of_todays_transformers() -> None:
    """Older versions called the layers of a DINOv2 otherwise; an adapter made with one goes into the other."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    layer = "encoder.layer.0.attention."
    before = [f"{layer}attention.{name}.weight" for name in ("query", "key", "value")] + [f"{layer}output.dense.weight"]
    since = [f"{layer}{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    assert [_today(name) for name in before] == since
    named = [_today(name) for name, _ in Dinov2Model(config).named_parameters()]
    assert set(since) <= set(named) and len(named) == len(set(named))


def test_the_shipped_adapter_is_read_by_its_name() -> None:
    from transformers import Dinov2Config, Dinov2Model

    assert adapter_attention("dinov2-small-nearest") == "nearest"
    other = GazedViT(Dinov2Model(Dinov2Config(num_hidden_layers=1, hidden_size=32, num_attention_heads=2)), "nearest")
    with pytest.raises(ValueError, match="dinov2-small-nearest.*was made for another ViT"):
        load_adapter(other, "dinov2-small-nearest")


def test_the_shipped_adapter_changes_what_dinov2_says(shared: Path) -> None:
    folder = shared / "models/dinov2-small"
    plain, adapted = (
        GazedViT.from_pretrained(folder, adapter=name, attention="nearest", size=196)
        for name in (None, "dinov2-small-nearest")
    )
    grid = PatchGrid((196,), 14)
    mask = torch.rand(1, 2, grid.patches_per_frame, generator=torch.Generator().manual_seed(0)) < 0.2
    video, gaze = torch.randn(1, 2, 3, 196, 196), Gaze.from_patch_mask(mask, grid)
    before, after = plain(video, gaze).pool(), adapted(video, gaze).pool()
    near = float(torch.nn.functional.cosine_similarity(before, after, dim=-1).mean().detach())
    assert 0.8 < near < 0.9999
