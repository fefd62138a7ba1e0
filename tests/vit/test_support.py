"""The support table is what these models really do: it is generated from them and compared with the page.

Write the page anew with `AUTOGAZE_WRITE_DOCS=1 pytest tests/vit/test_support.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from autogaze import Gaze, PatchGrid
from autogaze.files import write_text
from autogaze.vit import GazedViT
from autogaze.vit.towers.registry import REFUSALS

pytest.importorskip("timm")
pytest.importorskip("transformers")

import transformers  # noqa: E402
from timm.models.beit import Beit  # noqa: E402
from timm.models.convnext import ConvNeXt  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.hiera import Hiera  # noqa: E402
from timm.models.swin_transformer import SwinTransformer  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402
from timm.models.vision_transformer_sam import VisionTransformerSAM  # noqa: E402

from tests.vit.vit_models import CASES, SIZE, Case  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vit-support.md"

HEADER = """# Which ViTs can be gazed

Written by `tests/vit/test_support.py` from the models themselves (tiny, random weights). In every row of the first
table, with every patch of the finest scale chosen and `attention="frame"`, features, class and register tokens and the
pooled output equal the dense model's within 1e-4. With some patches chosen, every attention gives each clip what it
gets alone, gradients reach the weights, a capacity changes nothing. With `memory`, where nothing moves, a frame in
which little is chosen equals the dense model too, and a stream equals the whole clip. timm 1.0.16 to
1.0.31 and transformers 4.51 to 5.x were tried; patch sizes and input sizes are free. Of the 242 architectures that timm
1.0.31 registers for these three classes 239 are taken; the three with differential attention are refused.

The contract: a model is known by its exact class, also inside `torch.compile`, PEFT (adapters of layers),
`DataParallel`, `DistributedDataParallel` and `...ForImageClassification`. Linear layers, norms and MLPs are called as
they are: adapters, quantised layers, pruning, parametrisations and hooks on them act as in the dense model, and so do
hooks on blocks and attention, which see images of the chosen patches. What would be skipped is refused by name:
another module in the place of a block or an attention, a hook on the whole model, a backward hook on a block.
`fully_shard` works before and after wrapping; wrap with `DistributedDataParallel` outside of GazedViT to train.

Class and register tokens stand in front of every frame, or once in front of a clip with `joint` attention. Positions
of a scale are the model's own embedding interpolated to the scale's grid by the family's own rule; rotary positions are
evaluated where a coarse patch's centre falls among the finest patches. Attention dropout is refused in training;
stochastic depth drops tokens one by one instead of whole images.

| family | checked as | class and register tokens | positions | pooling | attention |
| --- | --- | --- | --- | --- | --- |
"""

POOLING = {
    "Dinov2ForImageClassification": "class token and average",
    "Dinov2WithRegistersForImageClassification": "class token and average",
    "SiglipForImageClassification": "average",
    "CLIPForImageClassification": "average",
    "ViTModel": "class token, pooler",
    "ViTMSNModel": "class token",
    "DeiTModel": "class token, pooler",
}

REFUSED = """
Not these: `GazedViT` raises a `ValueError` that says why.

| model | why patches cannot be left out | what works |
| --- | --- | --- |
"""

UNSUPPORTED: dict[str, Callable[[], nn.Module]] = {
    "Swin": lambda: SwinTransformer(32, 4, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4),
    "Swin (HF)": lambda: transformers.SwinModel(
        transformers.SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1])
    ),
    "ConvNeXt": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 4, 4, 4)),
    "ConvNeXt (HF)": lambda: transformers.ConvNextModel(
        transformers.ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[4, 4, 4, 4])
    ),
    "Hiera": lambda: Hiera(img_size=(64, 64), embed_dim=8, num_heads=1, stages=(1, 1, 1, 1)),
    "SAM": lambda: VisionTransformerSAM(img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=1),
    "BEiT": lambda: Beit(**SIZE),
    "DeiT, distilled": lambda: VisionTransformerDistilled(**SIZE),
    "Qwen2-VL": lambda: _qwen("Qwen2VL", "qwen2_vl", "Qwen2VisionTransformerPretrainedModel"),
    "Qwen2.5-VL": lambda: _qwen("Qwen2_5_VL", "qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel"),
}


def _qwen(prefix: str, folder: str, name: str) -> nn.Module:
    module = getattr(transformers.models, folder)
    config = getattr(getattr(module, f"configuration_{folder}"), f"{prefix}VisionConfig")
    return getattr(getattr(module, f"modeling_{folder}"), name)._from_config(
        config(depth=1, hidden_size=16, num_heads=1)
    )


@torch.no_grad()
def _row(case: Case) -> str:
    model = case.build().eval()
    gazed = GazedViT(model)
    grid = PatchGrid((gazed.patch_size, 4 * gazed.patch_size), gazed.patch_size)
    learned, rotary = gazed.tower.positions(grid) is not None, gazed.tower.rotary(grid) is not None
    positions = " and ".join(kind for kind, has in (("embedding", learned), ("rotary", rotary)) if has)
    pooling = getattr(model, "global_pool", None) or ("attention" if not gazed.tower.prefix_tokens else "class token")
    if case.name in POOLING:
        pooling = POOLING[case.name]
    names = {"token": "class token", "avg": "average", "map": "attention", "avgmax": "average and maximum"}
    return (
        f"| {case.family} | {case.name} | {gazed.tower.prefix_tokens or 'none'} | {positions} | "
        f"{names.get(pooling, pooling)} | frame, block_causal, joint, memory, nearest |"
    )


def _page() -> str:
    rows = "\n".join(_row(case) for case in CASES)
    refused = "\n".join(f"| {refusal.name} | {refusal.reason} | {refusal.instead} |" for refusal in REFUSALS)
    return f"{HEADER}{rows}\n{REFUSED}{refused}\n"


def test_the_page_says_what_the_models_do() -> None:
    page = _page()
    if os.environ.get("AUTOGAZE_WRITE_DOCS") == "1":
        write_text(PAGE, page)
    assert PAGE.read_text() == page


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_models_that_cannot_be_gazed_say_why(name: str) -> None:
    model = UNSUPPORTED[name]()
    works = "What works: (input selection only|whole units)"
    with pytest.raises(ValueError, match=f"^{type(model).__name__} cannot be gazed: .*{works}"):
        GazedViT(model)


class _Unusual(VisionTransformer):
    """A subclass may change anything."""


@pytest.mark.parametrize(("model", "message"), [
    (lambda: nn.Linear(2, 2), "does not know torch.nn.modules.linear.Linear"),
    (lambda: _Unusual(**SIZE), "does not know tests.vit.test_support._Unusual"),
    (lambda: VisionTransformer(**SIZE, patch_drop_rate=0.1), "patch_drop_rate=0"),
    (lambda: VisionTransformer(**SIZE, attn_layer="diff"), "DiffAttention, which GazedViT does not know"),
    (lambda: VisionTransformer(**{**SIZE, "img_size": (32, 64), "patch_size": (8, 16)}), "needs square patches"),
])  # fmt: skip
def test_variants_that_are_not_known_are_refused(model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GazedViT(model())


@torch.no_grad()
@pytest.mark.parametrize(("options", "message"), [
    ({"global_pool": ""}, r"without pooling \(global_pool=''\)"),
    ({"global_pool": "prr"}, "AttentionPoolPrr needs every patch"),
])  # fmt: skip
def test_pooling_that_does_not_work_on_some_patches_is_refused(options: dict, message: str) -> None:
    grid = PatchGrid((8, 32), 8)
    gaze = _whole(grid)
    features = GazedViT(VisionTransformer(**{**SIZE, **options}).eval())(torch.randn(1, 1, 3, 32, 32), gaze)
    with pytest.raises(ValueError, match=message):
        features.pool()


def _whole(grid: PatchGrid) -> Gaze:
    return Gaze.from_patch_mask(torch.ones(1, 1, grid.patches_per_frame, dtype=torch.bool), grid)
