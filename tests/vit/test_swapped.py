"""Whatever a user puts on or in the place of a layer acts as in the dense model, or is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from autogaze import Gaze, PatchGrid
from autogaze.vit import GazedViT

timm = pytest.importorskip("timm")
pytest.importorskip("transformers")

from tests.vit.vit_models import CASES, Case  # noqa: E402

NAMES = (
    "VisionTransformer, class token",
    "DINOv3: rotary only, registers",
    "class token, convolutional embedding",
    "SiglipVisionModel",
    "Siglip2VisionModel",
    "CLIPVisionModel",
    "Dinov2Model",
    "ViTModel",
    "DINOv3ViTModel",
)
FAMILIES = pytest.mark.parametrize("case", [case for case in CASES if case.name in NAMES], ids=lambda case: case.name)
ORDERS = pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
PROJECTIONS = ("proj", "patch_embedding", "projection", "patch_embeddings")


class _Low(nn.Module):
    """A low-rank adapter beside a layer, by its own code."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        if isinstance(base, nn.Conv2d):
            self.delta: nn.Module = nn.Conv2d(3, base.out_channels, base.kernel_size, base.stride, bias=False)
        else:
            self.delta = nn.Linear(base.in_features, base.out_features, bias=False)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.delta(x)


class _Quantised(nn.Module):
    """A linear layer with 8-bit weights, as quantising libraries put in place of nn.Linear."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        scale = layer.weight.detach().abs().amax() / 7
        self.weight = nn.Parameter((layer.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


def _each(model: nn.Module, kind: type, change: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Change every layer of a kind that belongs to the ViT's own path (not to torch's attention module)."""
    for parent in list(model.modules()):
        if isinstance(parent, nn.MultiheadAttention):
            continue
        for name, child in list(parent.named_children()):
            if type(child) is kind and (swapped := change(child)) is not None:
                setattr(parent, name, swapped)
    return model


def _adapt_convolutions(model: nn.Module) -> nn.Module:
    _each(model, nn.Conv2d, _Low)
    return _each(model, nn.Linear, _Low)


def _quantise(model: nn.Module) -> nn.Module:
    """All linear layers but SigLIP2's embedding, which turns its input into the dtype of its weight."""
    kept = getattr(getattr(model, "embeddings", None), "patch_embedding", None)
    return _each(model, nn.Linear, lambda layer: None if layer is kept else _Quantised(layer))


def _prune(model: nn.Module) -> nn.Module:
    def change(layer: nn.Module) -> None:
        prune.l1_unstructured(layer, "weight", 0.5)

    _each(model, nn.Linear, change)
    return _each(model, nn.Conv2d, change)


def _weight_norm(model: nn.Module) -> nn.Module:
    def change(layer: nn.Module) -> None:
        parametrizations.weight_norm(layer)
        layer.parametrizations.weight.original0.data.mul_(1.3)

    _each(model, nn.Linear, change)
    return _each(model, nn.Conv2d, change)


def _hook_layers(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 1.1,))
            module.register_forward_hook(lambda _, inputs, output: output + 0.1)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__.endswith(("Block", "Layer"))]


def _hook_blocks(model: nn.Module) -> nn.Module:
    def change(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.cat([output[:, :1] * 2, output[:, 1:] + 0.1], dim=1)  # the first token is not like the others

    for block in _blocks(model):
        block.register_forward_hook(change)
        block.register_forward_pre_hook(lambda _, args, kwargs: ((args[0] * 0.9, *args[1:]), kwargs), with_kwargs=True)
    return model


SWAPS = {
    "adapters": _adapt_convolutions,
    "quantised": _quantise,
    "pruned": _prune,
    "weight norm": _weight_norm,
    "hooks on layers": _hook_layers,
    "hooks on blocks": _hook_blocks,
}


def _whole(patch: int, clips: int = 1, frames: int = 2) -> tuple[Tensor, Gaze]:
    grid = PatchGrid((patch, 4 * patch), patch)
    mask = torch.zeros(clips, frames, grid.patches_per_frame, dtype=torch.bool)
    mask[..., grid.offsets[-1] :] = True
    return torch.randn(clips, frames, 3, grid.height_px, grid.width_px), Gaze.from_patch_mask(mask, grid)


def _compare(case: Case, model: nn.Module, gazed: GazedViT, pools: bool = True) -> None:
    video, gaze = _whole(gazed.patch_size)
    with torch.no_grad():
        dense = case.dense(model, video.flatten(0, 1))
    features = gazed(video, gaze)
    assert (features.features.view_as(dense.patches) - dense.patches).abs().max() < 1e-4
    assert torch.allclose(features.prefix.flatten(0, 1), dense.prefix, atol=1e-4)
    if pools and dense.pooled is not None:
        assert (features.pool().flatten(0, 1) - dense.pooled).abs().max() < 1e-4


@FAMILIES
@ORDERS
@pytest.mark.parametrize("swap", SWAPS)
def test_swapped_layers_act_as_in_the_dense_model(case: Case, before: bool, swap: str) -> None:
    model = case.build().eval()
    plain = copy.deepcopy(model)
    gazed = None if before else GazedViT(model)
    SWAPS[swap](model)
    _compare(case, model, gazed or GazedViT(model))
    video, gaze = _whole(GazedViT(plain).patch_size)
    with torch.no_grad():
        changed = GazedViT(model)(video, gaze).features - GazedViT(plain)(video, gaze).features
    assert changed.abs().max() > 1e-6, "the swap must matter"


@FAMILIES
def test_the_gradient_reaches_adapters_on_every_layer(case: Case) -> None:
    gazed = GazedViT(case.build().eval())
    _adapt_convolutions(gazed.model)
    video, gaze = _whole(gazed.patch_size)
    features = gazed(video, gaze)
    (features.features.square().sum() + features.pool().sum()).backward()
    deltas = [(name, weight.grad) for name, weight in gazed.named_parameters() if ".delta." in name]
    used = [name for name, grad in deltas if grad is not None and grad.abs().sum() > 0]
    assert any("patch_embed" in name or "embeds" in name for name in used)
    assert len(used) >= 8


@FAMILIES
@ORDERS
def test_peft_adapters_act_as_in_the_dense_model(case: Case, before: bool) -> None:
    peft = pytest.importorskip("peft")
    model = case.build().eval()
    gazed = None if before else GazedViT(model)
    leaves = {name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    targets = sorted(leaves - {"out_proj"} | ({"out_proj"} if "Siglip" not in case.name else set()))
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, bias="none")
    ).eval()
    _compare(case, model, gazed or GazedViT(adapted))
    assert "lora" in "".join(name for name, _ in model.named_parameters())


@FAMILIES
def test_wrappers_are_looked_through(case: Case) -> None:
    for wrap in (nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile):
        model = case.build().eval()
        _compare(case, model, GazedViT(wrap(model)))


@FAMILIES
def test_compiled_blocks_are_looked_through(case: Case) -> None:
    model = case.build().eval()
    gazed, video_gaze = GazedViT(model), None
    video_gaze = _whole(gazed.patch_size)
    expected = gazed(*video_gaze).features
    for parent in list(model.modules()):
        if isinstance(parent, nn.ModuleList | nn.Sequential):
            for name, block in list(parent.named_children()):
                if block in _blocks(model):
                    parent[int(name)] = torch.compile(block)
    assert torch.allclose(gazed(*video_gaze).features, expected, atol=1e-5)


def test_ddp_inside_is_looked_through_with_one_process() -> None:
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        case = CASES[0]
        model = case.build().eval()
        _compare(case, model, GazedViT(nn.parallel.DistributedDataParallel(model)))
        gazed = nn.parallel.DistributedDataParallel(GazedViT(model))
        gazed(*_whole(8)).features.sum().backward()
        assert all(weight.grad is not None for name, weight in model.named_parameters() if "blocks" in name)
    finally:
        distributed.destroy_process_group()


def test_sharded_models_train_in_both_orders() -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = CASES[0].build().eval()
        video, gaze = _whole(8)
        expected = GazedViT(model)(video, gaze)
        expected.features.square().sum().backward()
        gradient = model.blocks[0].attn.qkv.weight.grad
        for order in ("before", "after"):
            sharded = copy.deepcopy(model)
            sharded.zero_grad()
            gazed = GazedViT(sharded) if order == "after" else None
            for block in sharded.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(gazed or sharded, mesh=mesh)
            gazed = gazed or GazedViT(sharded)
            features = gazed(video, gaze)
            assert torch.allclose(features.features, expected.features, atol=1e-5)
            features.features.square().sum().backward()
            found = sharded.blocks[0].attn.qkv.weight.grad.full_tensor()
            assert torch.allclose(found, gradient, atol=1e-4)
            assert sharded.pos_embed.grad is not None
    finally:
        distributed.destroy_process_group()


class _Other(nn.Module):
    """Not what it stands in the place of."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _replace_attention(model: nn.Module) -> None:
    model.blocks[1].attn = _Other()


def _replace_block(model: nn.Module) -> None:
    model.blocks[0] = _Other()


def _replace_patch_embed(model: nn.Module) -> None:
    model.patch_embed = _Other()


def _overlapping(model: nn.Module) -> None:
    model.patch_embed.proj = nn.Conv2d(3, 32, 10, 8, padding=1)


class _Blurring(nn.Module):
    """A patch embedding that sees its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.blur, self.proj = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 32, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.blur(x))


def _blurring(model: nn.Module) -> None:
    model.patch_embed.proj = _Blurring()


def _replace_forward(model: nn.Module) -> None:
    model.blocks[0].attn.forward = lambda x: x


def _replace_method(model: nn.Module) -> None:
    model._pos_embed = lambda x: x


def _hook_the_model(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, inputs, output: output * 2)


def _backward_hook(model: nn.Module) -> None:
    model.blocks[0].register_full_backward_hook(lambda module, grad_in, grad_out: None)


@ORDERS
@pytest.mark.parametrize(("swap", "message"), [
    (_replace_attention, r"blocks.1.attn of this ViT is a .*_Other, which GazedViT does not know"),
    (_replace_block, "_Other"),
    (_replace_patch_embed, "_Other"),
    (_overlapping, r"do not overlap, got \(10, 10\) every \(8, 8\) px in patch_embed.proj"),
    (_blurring, "patch_embed.proj of this ViT is a _Blurring that does not turn every patch alone"),
    (_replace_forward, r"forward\(\) of blocks.0.attn of this ViT \(Attention\) was replaced"),
    (_replace_method, r"_pos_embed\(\) of this ViT \(VisionTransformer\) was replaced"),
    (_hook_the_model, r"this ViT \(VisionTransformer\) has a forward hook \(_hook_the_model"),
    (_backward_hook, r"blocks.0 of this ViT \(Block\) has a backward hook"),
])  # fmt: skip
def test_what_would_be_skipped_is_refused_by_name(
    before: bool, swap: Callable[[nn.Module], None], message: str
) -> None:
    model = CASES[0].build().eval()
    gazed = None if before else GazedViT(model)
    swap(model)
    with pytest.raises(ValueError, match=message):
        (gazed or GazedViT(model))(*_whole(8))


def test_hooks_see_images_not_packed_rows() -> None:
    model, seen = CASES[0].build().eval(), []
    model.blocks[0].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape, output.shape)))
    grid = PatchGrid((8, 32), 8)
    ids = torch.tensor([[[3, 5, 7], [4, 0, 0]]])
    chosen = torch.tensor([[[True, True, True], [True, False, False]]])
    GazedViT(model)(torch.randn(1, 2, 3, 32, 32), Gaze(ids, chosen, grid))
    assert seen == [((2, 4, 32), (2, 4, 32))]  # two frames, a class token and three patches


def test_hooks_change_some_patches_as_they_change_an_image_of_them() -> None:
    model = CASES[0].build().eval()
    grid = PatchGrid((8, 32), 8)
    mask = torch.rand(2, 3, grid.patches_per_frame) < 0.4
    video, gaze = torch.randn(2, 3, 3, 32, 32), Gaze.from_patch_mask(mask, grid)
    for attention in ("frame", "block_causal", "joint"):
        gazed = GazedViT(model, attention)
        expected = gazed(video, gaze)
        handle = model.blocks[0].register_forward_hook(lambda _, inputs, output: output)
        found = gazed(video, gaze)
        handle.remove()
        assert torch.allclose(found.features, expected.features, atol=1e-5)
        assert torch.allclose(found.prefix, expected.prefix, atol=1e-5)


def test_another_model_put_in_its_place_is_used() -> None:
    first, second = (CASES[0].build().eval() for _ in range(2))
    gazed = GazedViT(first)
    gazed.model = second
    _compare(CASES[0], second, gazed)


def test_gradient_checkpointing_gives_the_same_gradient() -> None:
    model = CASES[0].build().train()
    video, gaze = _whole(8)
    gradients = []
    for save in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(save)
        GazedViT(model)(video, gaze).features.square().sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("part", ["blocks", "patch_drop"])
def test_hooks_on_what_is_never_called_are_refused(part: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32).eval()
    gazed = GazedViT(model)
    model.get_submodule(part).register_forward_hook(lambda _, __, output: output * 2)
    grid = PatchGrid((16, 32), 16)
    gaze = Gaze.from_patch_mask(torch.ones(1, 1, grid.patches_per_frame, dtype=torch.bool), grid)
    with pytest.raises(ValueError, match=f"{part} of this ViT .* has a forward hook"):
        gazed(torch.zeros(1, 1, 3, 32, 32), gaze)
    setattr(model, part, torch.nn.Flatten(0))
    with pytest.raises(ValueError, match="Flatten|patch_drop"):
        GazedViT(model)
