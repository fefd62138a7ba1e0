"""The four stages, each reading the files of the one before it in the run's folder and leaving its own.

RUN/reconstructor/   RUN/labels.parquet   RUN/pretrain/   RUN/rl/   ->   RUN/model/ (calibrated, to be used)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from autogaze.core.grid import PatchGrid
from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.pipeline.pictures import Pictures
from autogaze.pretrain.judge import RECONSTRUCTOR, AnyJudge, make_judge, pasted_distance
from autogaze.pretrain.labels.clips import LabelledClips
from autogaze.pretrain.labels.feature_greedy import PastedPictures
from autogaze.pretrain.labels.file import read_labels
from autogaze.pretrain.labels.greedy import GreedySettings
from autogaze.pretrain.labels.make import LabelSettings, join_shards
from autogaze.pretrain.labels.make import make_labels as search_labels
from autogaze.pretrain.module import PretrainModule
from autogaze.pretrain.on_policy import OnPolicyModule
from autogaze.pretrain.reconstructor.module import ReconstructorModule
from autogaze.pretrain.reconstructor.network import Reconstructor, ReconstructorConfig
from autogaze.rl.module import GRPOModule
from autogaze.training.data.sources import RunClips
from autogaze.training.launch import launch
from autogaze.training.recipes import PretrainRecipe, Recipes, TrainerRecipe
from autogaze.training.trainer import LAST, StageResult, batches_of, finished, fit, read_result
from autogaze.training.world import is_launched, rank, wait, world

WEIGHTS = "model.safetensors"
PPO_CLIPS = 32  # that PPO plays on


@dataclass(frozen=True)
class Run:
    """A run of `autogaze train`: its folder, its data, what to do."""

    folder: Path
    data: Path
    recipes: Recipes
    resume: bool = False

    def stage(self, name: str) -> Path:
        return self.folder / name

    @property
    def labels(self) -> Path:
        return self.folder / "labels.parquet"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def needs(self, stage: str) -> Path:
        """The folder of an earlier stage, which must have left a model."""
        if not (self.stage(stage) / WEIGHTS).is_file():
            raise FileNotFoundError(
                f"{self.stage(stage)} holds no model: run `autogaze train --stage {stage} --out {self.folder}` first"
            )
        return self.stage(stage)

    def judge(self, spec: str) -> AnyJudge:
        """The judge that a recipe names; only one with a reconstructor needs that stage."""
        return make_judge(spec, lambda: Reconstructor.from_pretrained(self.needs("reconstructor")))

    def index(self) -> None:
        """List the data before several processes read the list."""
        RunClips(self.data, self.folder, self.recipes.labels, 1, validate_clips=1)

    def clips(self, recipe: TrainerRecipe) -> RunClips:
        """Training clips for a stage that trains: one long epoch."""
        return RunClips(self.data, self.folder, recipe, recipe.batch_clips, recipe.validate_clips, epoch_size(recipe))


def epoch_size(recipe: TrainerRecipe) -> int:
    """Clips of a run, so that all of it is one epoch."""
    return batches_of(recipe, recipe.max_steps) * recipe.batch_clips * world().size


def device() -> torch.device:
    """The device of the parts of a run that Lightning does not drive."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_reconstructor(run: Run) -> StageResult:
    """Stage 1: RUN/reconstructor."""
    return _on_devices(_fit_reconstructor, run, run.recipes.reconstructor, "reconstructor")


def _fit_reconstructor(run: Run) -> StageResult:
    recipe = run.recipes.reconstructor
    torch.manual_seed(recipe.seed)
    config = replace(getattr(ReconstructorConfig, recipe.size)(), loss=recipe.loss)
    module = ReconstructorModule(
        Reconstructor(config), recipe.learning_rate, recipe.weight_decay, recipe.seed, recipe.compile
    )
    return fit(module, run.clips(recipe), recipe, run.stage("reconstructor"), run.resume)


@dataclass(frozen=True)
class LabelsResult:
    """Result of the labels stage."""

    clips: int
    minutes: float


def make_labels(run: Run) -> LabelsResult:
    """Stage 2: RUN/labels.parquet."""
    devices, begun = run.recipes.labels.devices, time.monotonic()
    if run.recipes.labels.judge == RECONSTRUCTOR:
        run.needs("reconstructor")
    if is_launched():
        _search_labels(run)
        wait()
        if rank() == 0:
            join_shards(run.labels)
        wait()
    elif devices == 1:
        _search_labels(run)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # of the clips that were held: the next stage may run in other processes
    else:
        run.index()
        launch(_search_labels, devices, run)
    return LabelsResult(len(join_shards(run.labels)), round((time.monotonic() - begun) / 60, 3))


def _search_labels(run: Run) -> None:
    """The share of the labels that falls to this process."""
    recipe = run.recipes.labels
    where = torch.device("cpu") if recipe.accelerator == "cpu" else device()
    judge: Reconstructor | PastedPictures
    if recipe.judge == RECONSTRUCTOR:
        judge = Reconstructor.from_pretrained(run.needs("reconstructor"), where)
    else:
        judge = PastedPictures(pasted_distance(recipe.judge, where), recipe.judge, PatchGrid())
    clips = RunClips(run.data, run.folder, recipe, recipe.batch_clips, validate_clips=1)
    search = "fast" if recipe.mode == "difference" else recipe.mode
    greedy = GreedySettings(search, at_once=max(256, 8 * recipe.batch_clips))
    settings = LabelSettings(
        recipe.clips,
        recipe.batch_clips,
        recipe.mean_ratio,
        recipe.seed,
        "difference" if recipe.mode == "difference" else "greedy",
        greedy,
    )
    here, begun = world(), time.monotonic()
    several = f" ({here.size} processes)" if here.size > 1 else ""
    with tqdm(total=recipe.clips, desc=f"labels{several}", unit="clip", mininterval=1.0, disable=here.rank > 0) as bar:

        def progress(done: int, wanted: int) -> bool:
            bar.update(round(done / wanted * recipe.clips) - bar.n)  # the others are about as far
            return recipe.max_minutes is None or time.monotonic() - begun < 60 * recipe.max_minutes

        search_labels(judge, clips, run.labels, settings, where, here.rank, here.size, progress)


def pretrain(run: Run) -> StageResult:
    """Stage 3: RUN/pretrain, by next-token prediction."""
    return _on_devices(_fit_pretrain, run, run.recipes.pretrain, "pretrain")


def _fit_pretrain(run: Run) -> StageResult:
    recipe = run.recipes.pretrain
    model = beginning(recipe.start) if recipe.start else untrained(recipe)
    if recipe.on_policy:
        own = OnPolicyModule(model, run.judge(recipe.judge), recipe)
        return fit(own, run.clips(recipe), recipe, run.stage("pretrain"), run.resume, [Pictures()])
    files = [Path(name.strip()) for name in recipe.labels.split(",")] if recipe.labels else [run.labels]
    data = LabelledClips(
        run.data,
        run.folder,
        recipe,
        recipe.batch_clips,
        recipe.validate_clips,
        epoch_size(recipe),
        labels=[label for file in files for label in read_labels(file)],
        grid=model.grid,
    )
    module = PretrainModule(model, run.judge(recipe.judge), recipe)
    return fit(module, data, recipe, run.stage("pretrain"), run.resume, [Pictures()])


def beginning(name: str | Path) -> AutoGaze:
    """A trained model to go on from; its stop rule was calibrated for what it was."""
    return AutoGaze.from_pretrained(name).with_calibration(()).train()


def untrained(recipe: PretrainRecipe) -> AutoGaze:
    """The model that pretraining starts from."""
    torch.manual_seed(recipe.seed)
    config = AutoGazeConfig.tiny() if recipe.size == "tiny" else AutoGazeConfig.base()
    model = AutoGaze(
        replace(
            config,
            residual_map=recipe.residual_map,
            perceptual=recipe.perceptual or recipe.gated,
            residual_blur_px=recipe.residual_blur_px,
        )
    )
    if model.residual_map is not None and recipe.gated and not recipe.perceptual:
        model.residual_map.measure_plainly()
    return model


def train_rl(run: Run) -> Any:
    """Stage 4: RUN/rl, by GRPO, or by PPO where the recipe says so."""
    recipe = run.recipes.rl
    if recipe.algorithm == "ppo":
        if is_launched():
            raise ValueError("PPO runs in one process: start it without torchrun")
        return train_ppo(run)
    return _on_devices(_fit_grpo, run, recipe, "rl")


def _fit_grpo(run: Run) -> StageResult:
    recipe = run.recipes.rl
    model = beginning(recipe.start or run.needs("pretrain"))
    module = GRPOModule(model, run.judge(recipe.judge), recipe)
    return fit(module, run.clips(recipe), recipe, run.stage("rl"), run.resume, [Pictures()])


def train_ppo(run: Run) -> Any:
    """PPO on the Gymnasium environment; leaves RUN/rl/ppo.zip, and no new model."""
    from autogaze.rl.sb3 import train_ppo as learn  # Stable-Baselines3, which only PPO needs

    recipe = run.recipes.rl
    start = recipe.start or (run.stage("pretrain") if (run.stage("pretrain") / WEIGHTS).is_file() else None)
    model = AutoGaze.from_pretrained(start) if start else untrained(run.recipes.pretrain)
    data = run.clips(recipe)
    clips = data.render([data.recipe(0, k) for k in range(PPO_CLIPS)]).video
    held_out = data.render(data.validation_recipes()).video
    if recipe.judge != RECONSTRUCTOR:
        raise ValueError(
            f"PPO rewards single patches by a reconstructor: judge must be reconstructor, got {recipe.judge!r}"
        )
    judge = Reconstructor.from_pretrained(run.needs("reconstructor"))
    return learn(model, judge, list(clips), list(held_out), recipe, run.stage("rl"))


def _on_devices(work: Callable[[Run], StageResult], run: Run, recipe: TrainerRecipe, stage: str) -> StageResult:
    """Train in this process, alone or with those that torchrun or SLURM started; else in a new one for each device."""
    if is_launched() or recipe.devices == 1:
        return work(run)
    folder = run.stage(stage)
    if run.resume and (result := finished(folder, recipe)):
        return result
    run.index()
    launch(work, recipe.devices, run)
    return read_result(folder, folder / LAST)


def set_aside(folder: Path) -> None:
    """Rename what an earlier run of a stage left: a new start never destroys training."""
    if not folder.exists():
        return
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.{n}").exists())
    shutil.move(folder, folder.with_name(f"{folder.name}.{number}"))
