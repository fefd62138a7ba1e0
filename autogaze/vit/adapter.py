"""An adapter: what a ViT learns for gazed patches, a few MB beside its own weights.

- An embedding of the scale, added to the tokens of each scale of patches.
- With memory, an offset of the keys of each block by their age: how many frames ago a cell was last looked at, in the
  steps 1, 2-3, 4-7, 8-15 and 16 or more. A new token has none.
- LoRA on the linear layers of the blocks (through `peft`), or all weights. Read from a file, LoRA is added to the
  weights: encoding takes no longer than without.

Embeddings and LoRA are zero at the start: before training nothing changes. A file holds everything as safetensors and
knows which ViT it was made for: names and shapes of its weights, and some of them. Another one is refused. Layers have
the names of today's transformers in a file, also where an older version made or reads it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from autogaze.checkpoint import SHIPPED
from autogaze.core.checks import check_options
from autogaze.core.grid import PatchGrid
from autogaze.extras import explain
from autogaze.files import atomic_path
from autogaze.vit.packing import Attention
from autogaze.vit.towers.wrapped import inner, plain_class

if TYPE_CHECKING:
    from autogaze.vit.gazed import GazedViT

FORMAT = "autogaze-vit-adapter-1"
FILE = "adapter.safetensors"
AGES = 5  # steps of age: 1, 2-3, 4-7, 8-15, 16 or more frames
NAME = "gaze"  # of the LoRA layers in the model
Weights = Literal["lora", "all", "none"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
SAMPLES = 16  # weights of a layer that a file remembers of its ViT
RENAMED = (  # layers of transformers before 5.18 or so, and what they are called since; in this order
    ("attention.attention.query.", "attention.q_proj."),
    ("attention.attention.key.", "attention.k_proj."),
    ("attention.attention.value.", "attention.v_proj."),
    ("attention.output.dense.", "attention.o_proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
)
SAME_WITHIN = 0.01  # of the largest of them: what half precision and rounding may change


@dataclass(frozen=True)
class AdapterConfig:
    """Parts of an adapter, and the settings that it was trained for."""

    attention: Attention = "memory"
    scales: int = 4  # of the grid; coarser ones have their own rows of the embedding
    weights: Weights = "lora"  # "none": the embeddings alone
    rank: int = 16  # of LoRA

    def __post_init__(self) -> None:
        check_options(self)
        if self.rank < 1 or self.scales < 1:
            raise ValueError(f"rank and scales must be positive, got {self.rank} and {self.scales}")


class Adapter(nn.Module):
    """The learned embeddings; LoRA layers stand inside the ViT.

    Args:
        width: of the ViT.
        keys: (heads, head size) of the keys of each attention.
        scales: of the grid.
    """

    def __init__(self, width: int, keys: list[tuple[int, int]], scales: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(scales, width))
        self.age = nn.ParameterList(nn.Parameter(torch.zeros(AGES, *shape)) for shape in keys)

    def of_scale(self, scale: Tensor, scales: int) -> Tensor:
        """(N, D) embeddings of scale indices on a grid of so many scales, counted from the finest."""
        from_finest = scales - 1 - scale
        return self.scale[(len(self.scale) - 1 - from_finest).clamp(min=0)]

    def of_age(self, attention: int, age: Tensor) -> Tensor:
        """(..., heads, head size) offsets of the keys of one attention by their age in frames; zero for age 0."""
        table = torch.cat([torch.zeros_like(self.age[attention][:1]), self.age[attention]])
        return table[age_step(age)]


def age_step(age: Tensor) -> Tensor:
    """0 for a new token, then 1 for 1 frame, 2 for 2 and 3, 3 for 4 to 7 ..."""
    steps = torch.zeros_like(age)
    for step in range(AGES):
        steps = steps + (age >= 1 << step)
    return steps


def install(gazed: GazedViT, config: AdapterConfig) -> None:
    """Put a new adapter, which changes nothing yet, into a GazedViT; its parts want gradients, nothing else does.

    Raises:
        ImportError: if LoRA is asked for and `peft` is not installed.
    """
    if gazed.adapter is not None:
        raise ValueError("this GazedViT has an adapter already; load the ViT anew for another")
    root = inner(gazed.model)
    gazed.adapter_base = fingerprint(root)
    width, keys = _shapes(gazed)
    gazed.model.requires_grad_(config.weights == "all")
    if config.weights == "lora":
        _add_lora(gazed.tower.root, config.rank, _linear_layers(gazed))
    device = next(root.parameters()).device
    gazed.adapter = Adapter(width, keys if config.attention == "memory" else [], config.scales).to(device)
    gazed.adapter_config = config


def save_adapter(gazed: GazedViT, path: str | Path, facts: dict[str, Any] | None = None) -> None:
    """Write an adapter file.

    Args:
        facts: anything worth knowing of its training, as JSON.
    """
    from safetensors.torch import save_file

    if gazed.adapter is None or gazed.adapter_config is None:
        raise ValueError("this GazedViT has no adapter to save")
    tensors = {f"embed.{name}": value for name, value in gazed.adapter.state_dict().items()}
    inside = {_today(name): value for name, value in gazed.tower.root.state_dict().items()}
    if gazed.adapter_config.weights == "lora":
        layers = {f"lora.{name}": value for name, value in inside.items() if f".{NAME}." in name}
        if not layers:
            raise ValueError("this adapter was read from a file and is part of the ViT's weights now: copy the file")
        tensors |= layers
    elif gazed.adapter_config.weights == "all":
        tensors |= {f"model.{name}": value for name, value in inside.items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(gazed.adapter_config)),
        "model": json.dumps(gazed.adapter_base),
        "facts": json.dumps(facts or {}),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary, metadata)


def load_adapter(gazed: GazedViT, path: str | Path, scale: float = 1.0) -> dict[str, Any]:
    """Put an adapter from a file into the ViT that it was made for; returns the facts of its training.

    Args:
        scale: of what it changes, in [0, 1]. Weights between a frozen and a trained network are often better than
            either, arXiv:2109.01903.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no adapter, or was made for another ViT or attention.
    """
    path = Path(path).expanduser()
    if not 0 <= scale <= 1:
        raise ValueError(f"the scale of an adapter must be in [0, 1], got {scale}")
    metadata, config, tensors = _read(path)
    _check_same(fingerprint(inner(gazed.model)), json.loads(metadata["model"]), path)
    if gazed.attention != config.attention:
        raise ValueError(
            f"{path} was trained for attention={config.attention!r}, this GazedViT has {gazed.attention!r}"
        )
    trained = [parameter.requires_grad for parameter in gazed.model.parameters()]
    install(gazed, config)
    assert gazed.adapter is not None
    learned = {name.removeprefix("embed."): scale * v for name, v in tensors.items() if name.startswith("embed.")}
    gazed.adapter.load_state_dict(learned)
    inside = {name.partition(".")[2]: value for name, value in tensors.items() if not name.startswith("embed.")}
    before = gazed.tower.root.state_dict()
    own = {_today(name): name for name in before}
    named = {own.get(name, name): value for name, value in inside.items()}
    if scale != 1:
        named = {name: _scaled(name, value, before.get(name), scale) for name, value in named.items()}
    missing = gazed.tower.root.load_state_dict(named, strict=False)
    if missing.unexpected_keys:
        raise ValueError(f"{path} does not fit this ViT: {', '.join(missing.unexpected_keys[:3])} ...")
    if config.weights == "lora":
        _merge_lora(gazed.tower.root)
    gazed.requires_grad_(any(trained))
    return dict(json.loads(metadata.get("facts", "{}")))


def _scaled(name: str, value: Tensor, before: Tensor | None, scale: float) -> Tensor:
    """A weight part of the way from what it was; of LoRA's pairs of matrices one is scaled."""
    if f".{NAME}." in name:
        return scale * value if ".lora_B." in name else value
    return value if before is None or not value.is_floating_point() else torch.lerp(before.to(value), value, scale)


def adapter_attention(path: str | Path) -> Attention:
    """The attention that an adapter was trained for.

    Raises:
        FileNotFoundError, ValueError: as `load_adapter`.
    """
    return _read(path)[1].attention


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """A fingerprint of a ViT: a hash of names and shapes, and some of the weights."""
    plain = {
        _today(name.replace(".base_layer", "")): value
        for name, value in model.named_parameters()
        if f".{NAME}." not in name
    }
    text = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(plain.items()))
    large = sorted(
        (name for name, value in plain.items() if value.ndim > 1), key=lambda name: (-plain[name].numel(), name)
    )
    picked = large[:: max(1, len(large) // 8)][:8]
    values = {}
    for name in picked:
        flat = plain[name].detach().flatten()
        values[name] = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].float().tolist()
    shapes = hashlib.blake2s(text.encode()).hexdigest()[:16]
    return {"class": plain_class(model).__name__, "shapes": shapes, "weights": values}


def _today(name: str) -> str:
    """A parameter's name in today's transformers."""
    for before, since in RENAMED:
        name = name.replace(before, since)
    return name


def _read(path: str | Path) -> tuple[dict[str, str], AdapterConfig, dict[str, Tensor]]:
    """Metadata, config and tensors of an adapter file, of `adapter.safetensors` in a folder, or of a shipped one."""
    from safetensors import SafetensorError, safe_open

    path = Path(path).expanduser()
    path = next((found for found in (path / FILE, SHIPPED / path / FILE) if found.is_file()), path)
    if not path.is_file():
        raise FileNotFoundError(f"no adapter {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not an adapter: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not an adapter of this version ({FORMAT}), got {metadata.get('format')!r}")
    return metadata, AdapterConfig(**json.loads(metadata["config"])), tensors


def _check_same(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    if found["shapes"] != wanted["shapes"]:
        raise ValueError(f"{path} was made for another ViT ({wanted['class']}), this {found['class']} has other layers")
    for name, values in wanted["weights"].items():
        own, theirs = (
            torch.tensor(x, dtype=torch.float32, device="cpu") for x in (found["weights"].get(name, []), values)
        )
        if own.shape != theirs.shape or (own - theirs).abs().max() > SAME_WITHIN * theirs.abs().max():
            raise ValueError(f"{path} was made for a ViT with other weights: {name} is not the same")


def _linear_layers(gazed: GazedViT) -> list[str]:
    """Names of the linear layers of the blocks."""
    root = gazed.tower.root
    blocks = {id(part.module) for part in gazed.tower.parts() if part.block}
    names = []
    for path, module in root.named_modules():
        if id(module) in blocks:
            names += [f"{path}.{n}" for n, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    return names


def _add_lora(root: nn.Module, rank: int, names: list[str]) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise explain(error, "LoRA") from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), root, NAME)


def _merge_lora(root: nn.Module) -> None:
    """Add LoRA to the weights of its layers, which take its place: encoding costs what it did without."""
    from peft.tuners.lora import LoraLayer

    for path, layer in [(path, layer) for path, layer in root.named_modules() if isinstance(layer, LoraLayer)]:
        layer.merge()  # type: ignore[attr-defined]
        parent, _, name = path.rpartition(".")
        setattr(root.get_submodule(parent), name, layer.get_base_layer())


@torch.no_grad()
def _shapes(gazed: GazedViT) -> tuple[int, list[tuple[int, int]]]:
    """Width of the ViT and (heads, head size) of the keys of each attention: found by encoding one patch."""
    tower = gazed.tower
    weight = next(tower.root.parameters())
    patch = torch.zeros(1, 3, tower.patch_size, tower.patch_size, dtype=weight.dtype, device=weight.device)
    keys: list[tuple[int, int]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        keys.append((k.shape[-2], k.shape[-1]))
        return v

    tokens = tower.embed(patch)
    tower.encode(tokens, attend, _no_rotation(gazed, tokens))
    return tokens.shape[-1], keys


def _no_rotation(gazed: GazedViT, tokens: Tensor) -> Tensor | None:
    patch = gazed.patch_size
    rotary = gazed.tower.rotary(PatchGrid((patch,), patch))
    return None if rotary is None else rotary[:1]
