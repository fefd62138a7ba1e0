"""Modules of earlier versions under old names, for one release: `import autogaze.video` gives `autogaze.media.video`.

A table and a finder, so that no file has to be kept where it was. Each old name warns once when it is first imported.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {  # old: new, both below `autogaze`
    "container": "media.container",
    "decoder": "network.decoder",
    "demo": "cli.demo",
    "encoder": "network.encoder",
    "evaluate.calibrate": "cli.calibrate",
    "evaluate.card": "cli.card",
    "evaluate.command": "cli.evaluate",
    "evaluate.gallery": "cli.gallery",
    "evaluate.oracle": "evaluate.methods",
    "evaluate.recompress": "media.recompress",
    "export.attention": "export.graph.attention",
    "export.command": "cli.export",
    "export.cuda_stream": "export.sessions.cuda_stream",
    "export.forms": "export.graph.forms",
    "export.frame_encoder": "export.graph.encoder",
    "export.nodes": "export.graph.nodes",
    "export.openvino_session": "export.sessions.openvino",
    "export.ort_session": "export.sessions.ort",
    "export.pixels": "export.graph.pixels",
    "export.residual": "export.graph.residual",
    "export.scratch": "export.sessions.scratch",
    "export.sizes": "export.graph.sizes",
    "export.stop": "export.graph.decoder",
    "export.trt_session": "export.sessions.trt",
    "export.weights": "export.graph.weights",
    "gaze": "core.gaze",
    "gaze_command": "gaze_video",
    "gaze_file": "core.gaze_file",
    "grid": "core.grid",
    "info": "cli.info",
    "paste_error": "network.residual",
    "patch_embedding": "network.patch_embedding",
    "preprocess": "media.preprocess",
    "pretrain.augment": "training.data.augment",
    "pretrain.calibration": "stop_rule.calibration",
    "pretrain.calibration_check": "stop_rule.check",
    "pretrain.callbacks": "training.callbacks",
    "pretrain.clip_index": "training.data.index",
    "pretrain.clips": "training.data.clip",
    "pretrain.command": "cli.train",
    "pretrain.data": "training.data.batches",
    "pretrain.difference": "pretrain.labels.difference",
    "pretrain.draws": "training.draws",
    "pretrain.gaze_mix": "pretrain.reconstructor.gaze_mix",
    "pretrain.greedy": "pretrain.labels.greedy",
    "pretrain.incremental": "pretrain.reconstructor.search",
    "pretrain.label_file": "pretrain.labels.file",
    "pretrain.labelled": "pretrain.labels.clips",
    "pretrain.launch": "training.launch",
    "pretrain.loss_head": "stop_rule.loss_head",
    "pretrain.losses": "pretrain.reconstructor.losses",
    "pretrain.manifest": "training.data.manifest",
    "pretrain.pans": "training.data.pans",
    "pretrain.paste": "pretrain.reconstructor.paste",
    "pretrain.pictures": "pipeline.pictures",
    "pretrain.pipeline": "pipeline.run",
    "pretrain.ranks": "training.ranks",
    "pretrain.recipes": "training.recipes",
    "pretrain.reconstructor_module": "pretrain.reconstructor.module",
    "pretrain.samplings": "pipeline.samplings",
    "pretrain.schedule": "training.schedule",
    "pretrain.sources": "training.data.sources",
    "pretrain.stages": "pipeline.stages",
    "pretrain.store": "training.data.store",
    "pretrain.summary": "pipeline.summary",
    "pretrain.trainer": "training.trainer",
    "report.overlay": "core.overlay",
    "report_page": "report.page",
    "scenes": "media.scenes",
    "selectors.coarse": "selectors.fixed",
    "selectors.evs": "selectors.change",
    "selectors.first_frame": "selectors.fixed",
    "selectors.pyramid": "selectors.change",
    "selectors.random": "selectors.fixed",
    "selectors.rlt": "selectors.change",
    "tiling": "decoding.frames",
    "video": "media.video",
    "vit.break_even": "report.break_even",
    "vit.family": "vit.towers.tower",
    "vit.heads": "vit.towers.heads",
    "vit.hf": "vit.towers.hf",
    "vit.positions": "vit.towers.positions",
    "vit.rotary": "vit.towers.rotary",
    "vit.timm": "vit.towers.timm",
    "vit.wrapped": "vit.towers.wrapped",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds a module under its old name and hands out the very module that has taken its place."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        return ModuleSpec(name, self) if package == "autogaze" and rest in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"autogaze.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {new}; the old name goes in version 0.3", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # importing set the old one


def install() -> None:
    """Let old names be found, before folders of the same name that hold no module (`pretrain/recipes`)."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())
