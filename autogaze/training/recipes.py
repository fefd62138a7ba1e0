"""Recipes: what a stage of training does, one flat typed record a stage, read from YAML.

A recipe file is the flat fields of one stage; a file for several stages has one section a stage. Unknown keys are
refused. Order of precedence: preset, then file, then `key=value` (`rl.group_size=8`, or `group_size=8` for every
stage that has the key).
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from autogaze.core.checks import check_options
from autogaze.files import read_text

STAGES = ("reconstructor", "labels", "pretrain", "rl")
CALIBRATE = "calibrate"  # no stage of training: fit the stop rule of the newest model again
PRESETS = ("tiny", "base")


@dataclass(frozen=True)
class DataRecipe:
    """Settings of the data that every stage reads."""

    seed: int = 0
    frames: int = 16  # frames of a training clip
    workers: int = 0  # decoding processes a device; 0 decodes in the training process
    photo_share: float = 0.5  # share of training clips that are camera pans over photos, where there are photos
    max_clips: int | None = None  # use only the first so many training files; None: all
    longest_stride: int = 4  # file frames from one frame of a training clip to the next: 1 to this, as far as it fits
    camera: float = 0.0  # probability of a sensor's noise, of flicker and of shake in a training clip

    def __post_init__(self) -> None:
        check_options(self)
        if not 0 <= self.camera <= 1:
            raise ValueError(f"camera must be in [0, 1], got {self.camera}")
        if not 0 <= self.photo_share <= 1:
            raise ValueError(f"photo_share must be in [0, 1], got {self.photo_share}")
        _positive(self, "frames", "longest_stride")


@dataclass(frozen=True)
class TrainerRecipe(DataRecipe):
    """Settings of all stages that train. A stage ends at `max_steps` or `max_minutes`, whichever comes first.

    With several devices each takes `batch_clips` clips a step and their gradients are averaged: a step sees `devices`
    times as many clips. `learning_rate` is used as it is given, never scaled by that.
    """

    max_steps: int = 1000  # optimiser steps
    max_minutes: float | None = None  # wall clock, over all resumed runs; the learning rate decays along it
    batch_clips: int = 16  # clips a step on each device, before accumulation
    accumulate: int = 1  # batches a step
    learning_rate: float = 3e-4  # peak
    final_learning_rate: float = 0.05  # share of the peak at the end
    warmup_steps: int = 50
    weight_decay: float = 0.05
    gradient_clip: float = 1.0  # largest gradient norm; 0 does not clip
    ema_decay: float = 0.0  # moving average of the weights, which is validated and kept; 0: none
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    accelerator: str = "auto"  # as Lightning's
    devices: int = 1  # processes, one a GPU
    validate_every: int = 200  # steps
    validate_clips: int = 32
    checkpoint_every: int = 200  # steps

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(
            self,
            "max_steps",
            "batch_clips",
            "accumulate",
            "learning_rate",
            "devices",
            "validate_every",
            "validate_clips",
            "checkpoint_every",
        )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes must be positive, got {self.max_minutes}")


@dataclass(frozen=True)
class ReconstructorRecipe(TrainerRecipe):
    """The judge: a masked auto-encoder that says what was lost by not looking."""

    size: Literal["tiny", "small", "base"] = "tiny"
    loss: str = "l1+0.5*gradient"  # terms and weights, see autogaze.pretrain.reconstructor.losses
    compile: bool = False  # torch.compile; pays off on a GPU after about a minute


@dataclass(frozen=True)
class LabelsRecipe(DataRecipe):
    """Greedy gazes of the training clips, which the next stage imitates."""

    clips: int = 64  # clips to label; more than there are files: further cuts and pans
    batch_clips: int = 8  # clips searched side by side
    mean_ratio: float = 0.07  # mean share of a frame's patches that a label chooses
    judge: str = "reconstructor"  # or terms of pasted pictures, see pretrain.judge: these are searched in one way
    mode: Literal["fast", "exact", "difference"] = "fast"  # exact: the paper's search; difference: greedy on pixels
    max_minutes: float | None = None
    accelerator: Literal["auto", "cpu"] = "auto"
    devices: int = 1  # processes, one a GPU, that take the clips in turn

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "clips", "batch_clips", "mean_ratio", "devices")
        if self.judge != "reconstructor" and self.mode != "fast":
            raise ValueError(f"mode={self.mode!r} needs judge='reconstructor', got {self.judge!r}: leave mode out")


@dataclass(frozen=True)
class PretrainRecipe(TrainerRecipe):
    """Next-token prediction on labels, or on corrections of the model's own gazes."""

    size: Literal["tiny", "base"] = "tiny"  # base: the published size
    residual_map: bool = True  # patches are scored by what is wrong without them; False: as published
    perceptual: bool = False  # of a residual map: differences count as features see them, through a learned gate
    gated: bool = False  # of a residual map that is not perceptual: the gate, and differences as they are
    gate_rate: float = 1.0  # learning rate of the gate, as a multiple of the others'
    residual_blur_px: float = 0.0  # sigma by which frames are smoothed before a residual map compares them
    start: str | None = None  # go on from shipped weights, a folder or a run, with its size and parts; None: new
    labels: str | None = None  # files, joined by commas; a clip in several counts as in the last; None: the run's own
    on_policy: bool = False  # True: no labels; the model's own gazes are corrected as it goes
    min_gazing_ratio: float = 0.02  # on policy each clip's budget is drawn log-uniformly between the two
    max_gazing_ratio: float = 0.4
    softness: float = 0.1  # on policy: patches within about this share of the best one's worth are taught too; 0: none
    foresight: float = 0.0  # on policy: share by which the worth of a patch in the next frame counts, then its square
    judge: str = "reconstructor"  # terms and weights, see pretrain.judge; the stop rule is calibrated by it too
    task_loss_weight: float = 1.0  # weight of the loss head
    relative_task_loss: bool = False  # the loss head's errors count as shares of the true loss; published: False
    calibration_thresholds: int = 16  # tried when the stop rule is calibrated at the end
    calibration_clips: int = 64  # training videos that calibrate it besides the held-out ones, with `residual_map`

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "calibration_thresholds", "gate_rate")
        if self.calibration_clips < 0:
            raise ValueError(f"calibration_clips must not be negative, got {self.calibration_clips}")
        if self.softness < 0:
            raise ValueError(f"softness must not be negative, got {self.softness}")
        if not 0 <= self.foresight < 1:
            raise ValueError(f"foresight must be in [0, 1), got {self.foresight}")
        _ratio_range(self)


@dataclass(frozen=True)
class RLRecipe(TrainerRecipe):
    """GRPO (or PPO on the Gymnasium environment) with what the judge says as reward."""

    algorithm: Literal["grpo", "ppo"] = "grpo"  # ppo: by Stable-Baselines3
    start: str | None = None  # go on from shipped weights, a folder or a run; None: the run's pretrain stage
    judge: str = "reconstructor"  # terms and weights, see pretrain.judge
    group_size: int = 12  # rollouts a clip
    relative_reward: bool = False  # a frame's loss counts as a share of the mean loss of its clip's rollouts
    discount: float = 0.99  # per id between a choice and the frame's end that it is credited for
    temperature: float = 1.0  # of sampling, at the start
    final_temperature: float = 1.0  # at the end; linear in between
    min_gazing_ratio: float = 0.02  # each clip's budget is drawn log-uniformly between the two
    max_gazing_ratio: float = 0.2
    biased: bool = False  # True: score without temperature and mask of taken ids, the published form
    clip: float | None = None  # PPO's epsilon; None: off (matters from two updates a rollout on)
    updates_per_rollout: int = 1
    kl_weight: float = 0.0  # keeps the policy near its start
    length_price: float = 0.0  # reconstruction loss that a whole frame of patches must be worth
    task_loss_requirement: float | None = None  # let rollouts stop by the stop rule; None: budgets only
    task_loss_weight: float = 1.0  # weight of the loss head
    relative_task_loss: bool = False  # the loss head's errors count as shares of the true loss; published: False
    score_rollouts: int = 96  # rollouts scored at a time: bounds the memory of an update

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "updates_per_rollout", "score_rollouts", "temperature", "final_temperature")
        if self.group_size < 2:
            raise ValueError(f"GRPO compares rollouts: group_size must be at least 2, got {self.group_size}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be in (0, 1], got {self.discount}")
        _ratio_range(self)


RECIPES: dict[str, type[DataRecipe]] = {
    "reconstructor": ReconstructorRecipe,
    "labels": LabelsRecipe,
    "pretrain": PretrainRecipe,
    "rl": RLRecipe,
}


@dataclass(frozen=True)
class Recipes:
    """One recipe a stage."""

    reconstructor: ReconstructorRecipe
    labels: LabelsRecipe
    pretrain: PretrainRecipe
    rl: RLRecipe


def load_recipes(
    preset: Literal["tiny", "base"] = "tiny",
    config: str | Path | None = None,
    overrides: Iterable[str] = (),
    stages: Iterable[str] = STAGES,
) -> Recipes:
    """Put preset, file and overrides together.

    Args:
        preset: "tiny" (2 CPU cores, minutes) or "base" (the published size, a GPU).
        config: a YAML file; flat for one stage, or one section a stage.
        overrides: `key=value` or `stage.key=value`.
        stages: those that will run; a bare key must belong to one of them, and a flat file describes the only one.

    Raises:
        ValueError: on unknown keys, values of another type, or a file that is no mapping.
        FileNotFoundError: if `config` does not exist.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset}")
    stages = tuple(stages)
    settings = {stage: read_yaml(preset_file(stage, preset)) for stage in STAGES}
    if config is not None:
        for stage, section in _sections(read_yaml(Path(config)), stages, str(config)).items():
            settings[stage].update(section)
    recipes = {stage: make_recipe(RECIPES[stage], settings[stage], stage) for stage in STAGES}
    for text in overrides:
        for stage, changes in _override(text, stages).items():
            recipes[stage] = _change(recipes[stage], changes, stage)
    return Recipes(**recipes)  # type: ignore[arg-type]


def preset_file(stage: str, preset: str) -> Path:
    """The packaged recipe of a stage."""
    package = Path(__file__).resolve().parent.parent
    return package / ("rl" if stage == "rl" else "pretrain") / "recipes" / f"{stage}-{preset}.yaml"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe file")
    try:
        data = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold `key: value` lines, got {type(data).__name__}")
    return data


def make_recipe(kind: type[DataRecipe], settings: Mapping[str, Any], source: str) -> DataRecipe:
    """A recipe of plain values, each checked against its field."""
    return _change(kind(), settings, source)


def _change(recipe: DataRecipe, settings: Mapping[str, Any], source: str) -> DataRecipe:
    hints = typing.get_type_hints(type(recipe))
    for key in settings:
        if key not in hints:
            raise ValueError(
                f"{source}: unknown key {key!r}{_suggest(key, hints)}; keys are {', '.join(sorted(hints))}"
            )
    try:
        return replace(recipe, **{key: _typed(value, hints[key], key) for key, value in settings.items()})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _sections(data: dict[str, Any], stages: tuple[str, ...], source: str) -> dict[str, dict[str, Any]]:
    if any(isinstance(value, dict) for value in data.values()):
        for stage, section in data.items():
            if stage not in STAGES or not isinstance(section, dict):
                raise ValueError(f"{source}: {stage!r} is not a section; sections are {', '.join(STAGES)}")
        return data
    if len(stages) != 1:
        raise ValueError(
            f"{source} is a flat recipe of one stage: name it with --stage, or use one section a stage "
            f"({', '.join(STAGES)})"
        )
    return {stages[0]: data}


def _override(text: str, stages: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    name, equals, raw = text.partition("=")
    if not equals or not name:
        raise ValueError(f"settings are written key=value, got {text!r}")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r}: the value is not readable") from error
    stage, dot, key = name.partition(".")
    if dot:
        if stage not in STAGES:
            raise ValueError(f"{text!r}: no stage {stage!r}; stages are {', '.join(STAGES)}")
        return {stage: {key: value}}
    found = [stage for stage in stages if name in _keys(stage)]
    if not found:
        known = sorted({key for stage in stages for key in _keys(stage)})
        raise ValueError(f"unknown key {name!r}{_suggest(name, known)}; keys are {', '.join(known)}")
    return {stage: {name: value} for stage in found}


def _keys(stage: str) -> list[str]:
    return [field.name for field in fields(RECIPES[stage])]


def _typed(value: Any, hint: Any, key: str) -> Any:
    """The value as its field's type; YAML reads 1e-4 as text, and 1 for a float is fine."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in allowed:
        return None
    kind = next(kind for kind in allowed if kind is not types.NoneType)
    kind = str if typing.get_origin(kind) is Literal else kind
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    raise ValueError(f"{key} must be {kind.__name__}{' or null' if len(allowed) > 1 else ''}, got {value!r}")


def _suggest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _positive(recipe: DataRecipe, *names: str) -> None:
    for name in names:
        if not getattr(recipe, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(recipe, name)}")


def _ratio_range(recipe: PretrainRecipe | RLRecipe) -> None:
    if not 0 < recipe.min_gazing_ratio <= recipe.max_gazing_ratio <= 1:
        raise ValueError(
            "need 0 < min_gazing_ratio <= max_gazing_ratio <= 1, got "
            f"{recipe.min_gazing_ratio} and {recipe.max_gazing_ratio}"
        )
