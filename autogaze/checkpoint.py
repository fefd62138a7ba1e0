"""Checkpoints: a folder with `config.json` and `model.safetensors` in the published format.

`read` takes the name of shipped weights ("autogaze-base"), a folder, a run of `autogaze train`, or a model id of the
Hugging Face hub. Published checkpoints load as they are. Weights in bfloat16 on disk are float32 in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from autogaze.core.grid import PatchGrid
from autogaze.extras import explain
from autogaze.media.preprocess import Preprocessor
from autogaze.network.config import AutoGazeConfig
from autogaze.network.decoder import RopeConfig
from autogaze.network.network import GazeNetwork

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
SHIPPED = Path(__file__).parent / "weights"
SHIPPED_RECONSTRUCTOR = "autogaze-reconstructor"
PREFIX = "gazing_model."
DEFAULT_CHECKPOINT = "autogaze-base"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Contents of a checkpoint folder."""

    folder: Path
    config: AutoGazeConfig
    tensors: dict[str, Tensor]  # float32, by the names of the network's parameters
    preprocessor: Preprocessor | None  # None: there is no such file

    def tensors_for(self, network: GazeNetwork) -> dict[str, Tensor]:
        """The tensors, if they are those of a network of this config.

        Raises:
            ValueError: if one is missing, is too many, or has another shape.
        """
        own, tensors = network.state_dict(), self.tensors
        missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        wrong = sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape)
        if missing or extra or wrong:
            raise ValueError(
                f"{self.folder / WEIGHTS} does not fit its {CONFIG}: missing {missing[:3]}, unknown {extra[:3]}, "
                f"of another shape {wrong[:3]}"
            )
        return tensors


def read(name: str | Path, revision: str | None = None) -> Checkpoint:
    """Read a checkpoint; see the module's docstring for what `name` may be. `revision`: of a model of the hub.

    Raises:
        FileNotFoundError: if there is no such checkpoint, naming what was looked for.
        ValueError: if the files are not a checkpoint of this model, or are damaged.
    """
    folder = find(name, revision)
    config = config_from_published(_read_json(folder / CONFIG), folder / CONFIG)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or not a safetensors file: {error}") from error
    tensors = {_own_name(key): tensor.float() for key, tensor in tensors.items()}
    settings = folder / PREPROCESSOR
    preprocessor = Preprocessor.from_dict(dict(_read_json(settings))) if settings.is_file() else None
    return Checkpoint(folder, config, tensors, preprocessor)


def _own_name(key: str) -> str:
    """A published key without its prefix; what version 0.1 called `paste_error` is the residual map."""
    return key.removeprefix(PREFIX).replace("paste_error.", "residual_map.")


def find(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint; `revision` is a branch, tag or commit of the hub."""
    path = Path(name)
    for folder in (path, path / "model", SHIPPED / str(name)):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            if revision is not None:
                raise ValueError(f"revision={revision!r} is for models of the hub, but {str(name)!r} is {folder}")
            return folder
    if path.exists():
        raise FileNotFoundError(f"{path} holds no checkpoint: expected {CONFIG} and {WEIGHTS} in it or in its model/")
    if len(path.parts) == 2 and not path.is_absolute() and path.parts[0] not in (".", ".."):
        return _download(str(name), revision)
    shipped = sorted(folder.name for folder in SHIPPED.glob("*") if (folder / CONFIG).is_file())
    raise FileNotFoundError(
        f"no checkpoint {str(name)!r}: neither a folder, nor shipped weights "
        f"({', '.join(shipped) or 'none are shipped'}), nor a hub id such as owner/name"
    )


def _download(repository: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise explain(error, f"there is no folder {repository!r}; loading it from the hub") from error
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.json", WEIGHTS]))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(f"no folder {repository!r}, and the hub did not give it: {error}") from error


def save(model: GazeNetwork, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint; the folder appears whole, and an older one is replaced, or nothing changes.

    Args:
        model: the model.
        folder: where; its parent is made if need be.
        dtype: of the weights on disk.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        tensors = {
            PREFIX + key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in model.state_dict().items()
        }
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        (fresh / CONFIG).write_text(json.dumps(config_to_published(model.config), indent=2) + "\n")
        shutil.copymode(fresh / CONFIG, fresh / WEIGHTS)  # safetensors makes files that only their owner may read
        model.preprocessor.save(fresh / PREPROCESSOR)
        if folder.exists():
            for name in (CONFIG, WEIGHTS, PREPROCESSOR):  # keep what else the folder holds, such as a model card
                os.replace(fresh / name, folder / name)
        else:
            shutil.move(str(fresh), folder)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold one JSON object, got {type(data).__name__}")
    return data


def config_from_published(data: Mapping[str, Any], path: Path | str = CONFIG) -> AutoGazeConfig:
    """Read a published `config.json`; keys that this model has no use for are left alone."""
    try:
        gaze = data["gaze_model_config"]
        vision, decoder = gaze["vision_model_config"], gaze["gaze_decoder_config"]
        width, heads = decoder["hidden_size"], decoder["num_attention_heads"]
        scales = PatchGrid.parse(data["scales"], vision["kernel_size"]).scales
        ours = {
            "num_key_value_heads": (decoder.get("num_key_value_heads", heads), heads),
            "hidden_act": (decoder.get("hidden_act", "silu"), "silu"),
            "out_dim": (vision["out_dim"], width),
            "hidden_dim": (vision["hidden_dim"], width),
            "temporal_patch_size": (vision.get("temporal_patch_size", 1), 1),
            "input_img_size": (gaze.get("input_img_size", scales[-1]), scales[-1]),
        }
        for name, (found, expected) in ours.items():
            if found != expected:
                raise ValueError(
                    f"{path} describes another architecture: {name} is {found}, this model needs {expected}"
                )
        requirement = data.get("task_loss_requirement_config", {}).get("fixed", {}).get("task_loss_requirement", 0.7)
        ratio = data.get("gazing_ratio_config", {}).get("fixed", {}).get("gazing_ratio", 0.75)
        needs = data.get("has_task_loss_requirement_during_inference", True)
        return AutoGazeConfig(
            scales=scales,
            patch_size=vision["kernel_size"],
            hidden_size=width,
            num_hidden_layers=decoder["num_hidden_layers"],
            num_attention_heads=heads,
            head_dim=decoder.get("head_dim") or width // heads,
            intermediate_size=decoder["intermediate_size"],
            encoder_depth=vision["depth"],
            temporal_kernel=vision["trunk_temporal_kernel_size"],
            spatial_kernel=vision["trunk_spatial_kernel_size"],
            num_multi_token_pred=decoder["num_multi_token_pred"],
            rms_norm_eps=decoder["rms_norm_eps"],
            rope=_rope(decoder),
            max_num_frames=data.get("max_num_frames", 16),
            residual_map=bool(data.get("residual_map", data.get("paste_error", False))),  # its name in version 0.1
            residual_blur_px=float(data.get("residual_blur_px", 0.0)),
            perceptual=bool(data.get("perceptual", False)),
            gazing_ratio=ratio,
            task_loss_requirement=requirement if needs else None,
            calibration=tuple((float(a), float(b)) for a, b in data.get("calibration", ())),
        )
    except KeyError as error:
        raise ValueError(f"{path} is not the config of an AutoGaze model: it lacks {error}") from error
    except TypeError as error:
        raise ValueError(f"{path} is not the config of an AutoGaze model: {error}") from error


def _rope(decoder: Mapping[str, Any]) -> RopeConfig:
    scaling = decoder.get("rope_scaling") or decoder.get("rope_parameters") or {}
    theta = decoder.get("rope_theta") or scaling.get("rope_theta", 500000.0)
    if scaling.get("rope_type", "default") != "llama3":
        return RopeConfig(theta, scaled=False)
    return RopeConfig(
        theta,
        scaling["factor"],
        scaling["low_freq_factor"],
        scaling["high_freq_factor"],
        scaling["original_max_position_embeddings"],
    )


def config_to_published(config: AutoGazeConfig) -> dict[str, Any]:
    """The published form of a config, with our `calibration` and `residual_map` beside it."""
    patches = config.grid.patches_per_frame
    return {
        "model_type": "autogaze",
        "architectures": ["AutoGaze"],
        "scales": "+".join(map(str, config.scales)),
        "max_num_frames": config.max_num_frames,
        "residual_map": config.residual_map,
        "residual_blur_px": config.residual_blur_px,
        "perceptual": config.perceptual,
        "num_vision_tokens_each_frame": patches,
        "attn_mode": "sdpa",
        "gazing_ratio_config": _sampled("fixed", {"gazing_ratio": config.gazing_ratio}),
        "gazing_ratio_each_frame_config": _sampled("uniform", {}),
        "task_loss_requirement_config": _sampled("fixed", {"task_loss_requirement": config.task_loss_requirement}),
        "has_task_loss_requirement_during_inference": config.task_loss_requirement is not None,
        "has_task_loss_requirement_during_training": False,
        "calibration": [list(pair) for pair in config.calibration],
        "gaze_model_config": {
            "input_img_size": config.scales[-1],
            "num_vision_tokens_each_frame": patches,
            "vision_model_config": {
                "hidden_dim": config.hidden_size,
                "out_dim": config.hidden_size,
                "depth": config.encoder_depth,
                "kernel_size": config.patch_size,
                "temporal_patch_size": 1,
                "trunk_temporal_kernel_size": config.temporal_kernel,
                "trunk_spatial_kernel_size": config.spatial_kernel,
            },
            "connector_config": {
                "hidden_dim": config.hidden_size,
                "num_tokens": (config.scales[-1] // config.patch_size) ** 2,
            },
            "gaze_decoder_config": _decoder_to_published(config),
        },
    }


def _sampled(strategy: str, values: dict[str, Any]) -> dict[str, Any]:
    """Config entries of how a limit is drawn, in training and after it."""
    return {
        "sample_strategy_during_inference": strategy,
        "sample_strategy_during_training": strategy,
        strategy: values,
    }


def _decoder_to_published(config: AutoGazeConfig) -> dict[str, Any]:
    rope, patches = config.rope, config.grid.patches_per_frame
    scaling = {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_position,
    }
    return {
        "model_type": "llama",
        "vocab_size": patches + 1,
        "eos_token_id": patches,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "num_multi_token_pred": config.num_multi_token_pred,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
        "rope_theta": rope.theta,
        "rope_scaling": scaling if rope.scaled else None,
    }
