"""The C++ library: the same numbers as PyTorch's for every shape and instruction set, built safely, optional."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from autogaze import AutoGaze, Gaze
from autogaze.cli.info import describe
from autogaze.core.grid import PatchGrid
from autogaze.decoding.backends import chosen_backend
from autogaze.decoding.choice import choose_group
from autogaze.decoding.cpu import backend, build
from autogaze.decoding.cpu.build import library
from autogaze.decoding.cpu.residual import PLACES_PX, NativeResidualMap, residual_map
from autogaze.decoding.request import Request
from autogaze.model import AutoGazeConfig
from autogaze.network.residual import ResidualMap
from tests.gaze_models import random_video, small_model, typical_loss

needs_library = pytest.mark.skipif(isinstance(library(), str), reason=f"no native library: {library()}")
INSTRUCTION_SETS = ("x86-64", "x86-64-v3") if platform.machine() in ("x86_64", "AMD64") else ()


def ways(model: AutoGaze, video: torch.Tensor, *arguments: Any) -> tuple[Gaze, Gaze]:
    gazes = []
    for model.decoding in ("reference", "cpu"):
        gazes.append(model.generate(video, *arguments))
    return gazes[0], gazes[1]


def assert_same(ours: Gaze, theirs: Gaze) -> None:
    assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.chosen, theirs.chosen)
    torch.testing.assert_close(ours.task_loss, theirs.task_loss, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.fixture
def two_threads() -> Any:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache folder, and nothing loaded."""
    monkeypatch.setattr(build, "_loaded", [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "autogaze"


@needs_library
@pytest.mark.parametrize(
    "shape",
    [
        {"head_dim": 16, "num_attention_heads": 3, "hidden_size": 48},
        {"head_dim": 32, "num_attention_heads": 2, "hidden_size": 32},  # heads wider than the model
        {"head_dim": 64, "num_attention_heads": 1, "hidden_size": 64, "num_hidden_layers": 1},
        {"num_multi_token_pred": 15, "rms_norm_eps": 0.1},
        {"num_multi_token_pred": 1, "num_hidden_layers": 3},
    ],
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_shape_equals_the_reference(shape: dict, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        # 144 visual tokens a frame: several panels of queries, several blocks of keys
        model, video = small_model(1, scales=(48, 96, 192), **shape), random_video(2, 4, side=192)
        assert_same(*ways(model, video, 0.15))
    finally:
        torch.set_num_threads(1)


@needs_library
def test_many_clips_side_by_side_equal_the_reference(two_threads: None) -> None:
    model, video = small_model(), random_video(37, 2)
    assert_same(*ways(model, video, 0.7))
    assert_same(*ways(model, video, torch.rand(37), typical_loss(model, video)))


@needs_library
def test_the_base_model_chooses_the_same_ids(two_threads: None) -> None:
    model, video = AutoGaze().eval(), random_video(1, 3, side=224)
    assert_same(*ways(model, video, 0.2))


@needs_library
@pytest.mark.parametrize("architecture", INSTRUCTION_SETS)
def test_other_instruction_sets_choose_the_same_ids(
    architecture: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [f"-march={architecture}" if flag.startswith("-march") else flag for flag in build.flags()]
    monkeypatch.setattr(build, "flags", lambda: flags)
    model = small_model(scales=(48, 96, 192), head_dim=32, num_multi_token_pred=10)
    assert_same(*ways(model, random_video(3, 3, side=192), 0.2))
    assert len(list(fresh.glob("*.so"))) == 1


@needs_library
def test_choosing_equals_choose_group_with_equal_logits_and_without_ids_left() -> None:
    memory = backend.NativeMemory(backend.Passes(small_model().gaze_decoder), 3, 1, 16)
    for _ in range(20):
        scores = torch.randint(0, 5, (3, 4 * 22 + 4)).float()
        logits, taken = scores[:, :88].unflatten(1, (4, 22)), torch.rand(3, 21) < 0.7
        taken[0] = True
        theirs, losses = taken.clone(), torch.rand(3, 4)
        expected = choose_group(logits, losses, theirs)
        ids, same = memory.choose(logits, losses, taken, Request(torch.ones(3, 1)), None)
        assert torch.equal(ids[1:], expected[0][1:]) and torch.equal(taken, theirs) and same is losses


@needs_library
def test_choosing_with_residual_map_equals_choose_group_group_after_group() -> None:
    model = AutoGaze(AutoGazeConfig(residual_map=True)).eval()
    assert model.residual_map is not None
    native = NativeResidualMap(model.residual_map, model.grid)
    memory = backend.NativeMemory(backend.Passes(model.gaze_decoder, native), 2, 1, 16)
    frame, canvas = torch.randn(2, 1, 224, 224), torch.randn(2, 1, 224, 224)
    with torch.no_grad():
        error, own = model.residual_map.begin(frame, canvas), native.begin(frame, canvas)
        taken = torch.zeros(2, 265, dtype=torch.bool)
        theirs = taken.clone()
        for _ in range(27):  # to the last id: in the end every gain is 0 and the heads alone decide
            scores = 3 * torch.randn(2, 2660 + 10)
            logits = scores[:, :2660].unflatten(1, (10, 266))
            expected, losses = choose_group(logits, scores[:, 2660:], theirs, error=error)
            ids, left = memory.choose(logits, scores[:, 2660:], taken, Request(torch.ones(2, 1)), own)
            assert torch.equal(ids, expected) and torch.equal(taken, theirs)
            assert torch.equal(own.level, error.level)
            torch.testing.assert_close(left, losses, atol=1e-6, rtol=1e-6)
        assert taken.all()
        torch.testing.assert_close(own.scores(), error.scores())


@needs_library
@pytest.mark.parametrize("cell_px", PLACES_PX)
def test_errors_and_canvases_are_those_of_pytorch(cell_px: int) -> None:
    side = 6
    grid = PatchGrid((2 * cell_px, 3 * cell_px, side * cell_px), cell_px)
    rule = ResidualMap(grid, side, cell_px)
    rule.weight.data = torch.tensor([0.7, -0.3])  # which counts as 0
    for _ in range(2):
        native = NativeResidualMap(rule, grid)
        canvas, own = torch.zeros(2), torch.zeros(2)
        for t in range(3):
            frame = torch.randn(3, 2, 1, side * cell_px, side * cell_px)[:, 1]  # not contiguous
            canvas, own = (rule.open(frame), native.open(frame)) if t == 0 else (canvas, own)
            ids, chosen = torch.randint(0, grid.patches_per_frame, (3, 9)), torch.rand(3, 9) < 0.6
            with torch.no_grad():
                torch.testing.assert_close(native.begin(frame, own).errors, rule.begin(frame, canvas).errors)
                canvas, own = (each.look(held, frame, ids, chosen) for each, held in ((rule, canvas), (native, own)))
            torch.testing.assert_close(own, canvas)
            assert torch.equal(native.look(own, frame, ids[:, :0], chosen[:, :0]), own)
        rule.weight.data[1] = 0.4


@needs_library
@pytest.mark.parametrize("perceptual", [False, True])
def test_models_with_residual_map_choose_the_same_ids(two_threads: None, perceptual: bool) -> None:
    model = AutoGaze(AutoGazeConfig(residual_map=True, residual_blur_px=1.0 * perceptual, perceptual=perceptual)).eval()
    if model.residual_map is not None and model.residual_map.gate is not None:
        torch.nn.init.normal_(model.residual_map.gate.weight, std=0.1)
    video = random_video(2, 2, side=224)
    stop = 0.8 * float(model.generate(video, 0.01).task_loss[:, :, 0].mean())
    assert_same(*ways(model, video, 0.1))
    assert_same(*ways(model, video, torch.tensor([[0.1], [0.2]]), torch.tensor([[stop], [stop / 2]])))


def test_other_patch_sizes_are_left_to_pytorch() -> None:
    rule = ResidualMap(PatchGrid((4, 8), 2), 4, 2)
    assert residual_map(rule, PatchGrid((4, 8), 2)) is rule


@needs_library
def test_several_models_and_threads_do_not_disturb_each_other(two_threads: None) -> None:
    models, video = [small_model(seed) for seed in range(4)], random_video(2, 4)
    expected = [ways(model, video, 0.8)[0] for model in models]
    found: list[Gaze | None] = [None] * 4

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = models[i].generate(video, 0.8)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        assert_same(ours, theirs)


@needs_library
def test_without_openmp_it_makes_threads_of_its_own(monkeypatch: pytest.MonkeyPatch, two_threads: None) -> None:
    monkeypatch.setattr(backend, "openmp", lambda name: None)
    assert_same(*ways(small_model(), random_video(2, 3), 0.5))


@needs_library
def test_after_threads_stalled_one_does_the_work_for_a_while(two_threads: None) -> None:
    passes = backend.Passes(small_model().gaze_decoder)
    assert passes.usable_threads(1) == 2
    passes.alone = 2
    assert [passes.usable_threads(1) for _ in range(3)] == [1, 1, 2]


@needs_library
def test_a_processor_it_was_not_measured_on_gets_it_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    model = small_model()
    assert chosen_backend(model)[0] == "reference" and "measured" in chosen_backend(model)[1]
    model.decoding = "cpu"
    assert chosen_backend(model)[0] == "cpu"


def test_what_it_cannot_compute_is_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "measured", lambda: True)
    for model, reason in (
        (small_model().double(), "float32 only"),
        (small_model(head_dim=24), "head_dim"),
        (small_model(intermediate_size=40), "multiples of 16"),
    ):
        assert chosen_backend(model)[0] == "reference" and reason in chosen_backend(model)[1]
    with torch.autocast("cpu"):
        assert "autocast" in chosen_backend(small_model())[1]
    model.decoding = "cpu"
    with pytest.raises(ValueError, match='decoding="cpu" cannot be used: it needs'):
        model.generate(random_video())


@pytest.mark.parametrize("cause", ["compiler", "source", "folder", "owner"])
def test_without_a_library_the_reason_is_told_and_decoding_goes_on(
    cause: str, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    reason = {
        "compiler": "no C++ compiler",
        "source": "failed",
        "folder": "could not be compiled into",
        "owner": "belongs to another user",
    }[cause]
    if cause != "compiler" and build.shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    if cause == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    elif cause == "source":
        (tmp_path / "decoder.cpp").write_text("#error not today\n")
        monkeypatch.setattr(build, "SOURCES", tmp_path)
    elif cause == "folder":
        fresh.write_text("a file where the folder should be")
    else:
        monkeypatch.setattr(build, "build", lambda path: (path.parent.mkdir(), path.touch()))
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        if os.geteuid() == 0:
            monkeypatch.setattr(build, "TRUSTED", ())
    monkeypatch.setattr(backend, "measured", lambda: True)
    model = small_model()
    way, why = chosen_backend(model)
    assert way == "reference" and reason in why and reason in describe(str(tiny_checkpoint))["decoding_on_cpu"]
    model.decoding = "auto"
    assert model.generate(random_video(1, 1)).ids.numel()
    assert not list(fresh.glob(".build-*")) if fresh.is_dir() else True


@needs_library
def test_processes_that_build_at_once_leave_one_whole_library(tmp_path: Path) -> None:
    script = "from autogaze.decoding.cpu.build import library; assert not isinstance(library(), str), library()"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    runs = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(3)]
    assert [run.wait(200) for run in runs] == [0, 0, 0]
    assert [path.suffix for path in (tmp_path / "autogaze").iterdir()] == [".so"]
