"""The whole of `autogaze train`: stages in order, then calibration, the model to use, and what was learned."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autogaze.files import write_json
from autogaze.model import AutoGaze
from autogaze.pipeline.samplings import RunSamplings
from autogaze.pipeline.stages import (
    WEIGHTS,
    Run,
    device,
    make_labels,
    pretrain,
    set_aside,
    train_reconstructor,
    train_rl,
    untrained,
)
from autogaze.pipeline.summary import RATIO, UNTRAINED, UNTRAINED_WITHOUT_MAP, Summary, mean_loss, summarise
from autogaze.pretrain.judge import RECONSTRUCTOR, AnyJudge, parse_judge
from autogaze.stop_rule.calibration import calibrate
from autogaze.training.data.sources import resolve
from autogaze.training.recipes import CALIBRATE, PretrainRecipe, Recipes
from autogaze.training.trainer import quiet_lightning
from autogaze.training.world import connect, is_launched, rank, wait

WAYS: dict[str, Callable[[Run], Any]] = {
    "reconstructor": train_reconstructor,
    "labels": make_labels,
    "pretrain": pretrain,
    "rl": train_rl,
}


def train(stages: Sequence[str], recipes: Recipes, data: str | None, out: Path, resume: bool) -> dict[str, Any]:
    """Run stages and sum up.

    Args:
        stages: in order; or CALIBRATE alone, which trains nothing.
        recipes: of all stages.
        data: folder, or None or "scenes" for rendered scenes.
        out: folder of the run.
        resume: go on with stages that are not over; otherwise each stage starts anew, and what an earlier one left
            is set aside.

    Returns:
        What `RUN/summary.json` holds. Of several processes the first one alone sums up, the others get their stages.
    """
    quiet_lightning()
    connect()
    first = rank() == 0
    if not first:
        wait()  # until scenes are rendered and files are listed
    run = Run(out, resolve(data, out), recipes, resume)
    if first:
        out.mkdir(parents=True, exist_ok=True)
        if is_launched():
            run.index()
        wait()
    results: dict[str, Any] = {}
    for stage in (stage for stage in stages if stage in WAYS and needed(stage, stages, recipes)):
        if first:
            if not resume:
                set_aside(run.labels if stage == "labels" else run.stage(stage))
            print(f"autogaze: stage {stage}", file=sys.stderr, flush=True)
        wait()
        begun = time.monotonic()
        result = WAYS[stage](run)
        results[stage] = {**asdict(result), "this_call_minutes": round((time.monotonic() - begun) / 60, 2)}
        wait()
    if not first:
        wait()
        return results
    trained = any((run.stage(stage) / WEIGHTS).is_file() for stage in ("pretrain", "rl"))  # PPO leaves no model
    if CALIBRATE in stages and not trained:
        run.needs("pretrain")
    if trained and {"pretrain", "rl", CALIBRATE} & set(stages):
        results |= finish(run)
    summary = _record(run, results)
    wait()
    return summary


def needed(stage: str, stages: Sequence[str], recipes: Recipes) -> bool:
    """Whether anything reads what a stage leaves; one that is asked for by itself is always run."""
    on_policy = recipes.pretrain.on_policy
    if "pretrain" not in stages or stage not in ("reconstructor", "labels"):
        return True
    if stage == "labels":
        if not on_policy:
            return True
        print("autogaze: no labels are needed: pretraining corrects the model's own gazes (on_policy)", file=sys.stderr)
        return False
    judges = [recipes.pretrain.judge, *([recipes.rl.judge] if "rl" in stages else [])]
    judges += [recipes.labels.judge] if "labels" in stages and not on_policy else []
    if any(name == RECONSTRUCTOR for judge in judges for _, name, _ in parse_judge(judge)):
        return True
    print("autogaze: no reconstructor is needed: the judges compare pasted pictures", file=sys.stderr)
    return False


def finish(run: Run) -> dict[str, Any]:
    """Calibrate the best trained model, write RUN/model, and compare it with what it must beat."""
    recipe = run.recipes.pretrain
    trained_by_rl = (run.stage("rl") / WEIGHTS).is_file()
    judge = run.judge(run.recipes.rl.judge if trained_by_rl else recipe.judge).to(device())
    clips = RunSamplings(run, recipe)
    models = {UNTRAINED: untrained(recipe)}
    if recipe.residual_map:
        models[UNTRAINED_WITHOUT_MAP] = untrained(replace(recipe, residual_map=False))
    for stage, name in (("pretrain", "NTP"), ("rl", "NTP+RL")):
        if (run.stage(stage) / WEIGHTS).is_file():
            models[name] = AutoGaze.from_pretrained(run.stage(stage))
    models = {name: model.to(device()).eval() for name, model in models.items()}
    summary = summarise(models, judge, clips.held_out.spread.clips)
    trained = [name for name in models if name.startswith("NTP")] or [UNTRAINED]
    best = min(trained, key=lambda name: summary.reconstruction_loss[name])  # few steps of RL can end worse than NTP
    calibrated(models[best], judge, clips, recipe).save_pretrained(run.model)
    summary = replace(summary, kept=best, held_out=clips.data.holds_out)
    print(summary.lines(), file=sys.stderr)
    return {"val": _named(summary, best)}


def calibrated(model: AutoGaze, judge: AnyJudge, clips: RunSamplings, recipe: PretrainRecipe) -> AutoGaze:
    """The model with its stop rule calibrated, and with the loss that RATIO reaches on average as its requirement.

    A loss head tells the losses of clips that it learned from too well. The residual map is computed from pixels, with
    two weights: it has learned nothing by heart, so that training clips tell as much of it as held-out ones do.
    """
    data = clips.held_out
    reached = mean_loss(judge, data.spread.clips, lambda video: model.generate(video, gazing_ratio=RATIO))
    if model.residual_map is not None:
        data += clips.learned_from(recipe.calibration_clips)
    calibrate(
        model,
        judge,
        [sampling for sampling in (data.spread, data.closer) if sampling.clips],
        recipe.calibration_thresholds,
    )
    model.config = replace(model.config, task_loss_requirement=round(reached, 4))
    return model


def _named(summary: Summary, best: str) -> dict[str, Any]:
    """The summary as plain data; `trained` is the model that was kept."""
    data = asdict(summary)
    data["reconstruction_loss"]["trained"] = data["reconstruction_loss"][best]
    return data


def _record(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """Add this call's results to RUN/summary.json."""
    path = run.folder / "summary.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    summary = {**earlier, **results, "model": str(run.model)}
    write_json(path, summary)
    return summary
