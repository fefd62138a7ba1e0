"""The native library: the same numbers as PyTorch's for every shape and instruction set, built safely, optional."""

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
from autogaze.decoding import native_build, native_pass
from autogaze.decoding.choice import choose_group
from autogaze.decoding.engine import chosen_way
from autogaze.decoding.native_build import library
from autogaze.info import describe
from tests.gaze_models import random_video, small_model, typical_loss

needs_library = pytest.mark.skipif(isinstance(library(), str), reason=f"no native library: {library()}")
INSTRUCTION_SETS = ("x86-64", "x86-64-v3") if platform.machine() in ("x86_64", "AMD64") else ()


def ways(model: AutoGaze, video: torch.Tensor, *arguments: Any) -> tuple[Gaze, Gaze]:
    gazes = []
    for model.decoding in ("plain", "native"):
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
    monkeypatch.setattr(native_build, "_loaded", [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "autogaze"


@needs_library
@pytest.mark.parametrize("shape", [
    {"head_dim": 16, "num_attention_heads": 3, "hidden_size": 48},
    {"head_dim": 32, "num_attention_heads": 2, "hidden_size": 32},  # heads wider than the model
    {"head_dim": 64, "num_attention_heads": 1, "hidden_size": 64, "num_hidden_layers": 1},
    {"num_multi_token_pred": 15, "rms_norm_eps": 0.1}, {"num_multi_token_pred": 1, "num_hidden_layers": 3}])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_shape_equals_the_plain_loop(shape: dict, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        # 144 visual tokens a frame: several panels of queries, several blocks of keys
        model, video = small_model(1, scales=(48, 96, 192), **shape), random_video(2, 4, side=192)
        assert_same(*ways(model, video, 0.15))
    finally:
        torch.set_num_threads(1)


@needs_library
def test_many_clips_side_by_side_equal_the_plain_loop(two_threads: None) -> None:
    model, video = small_model(), random_video(37, 2)
    assert_same(*ways(model, video, 0.7))
    assert_same(*ways(model, video, torch.rand(37), typical_loss(model, video)))


@needs_library
def test_the_base_model_chooses_the_same_ids(two_threads: None) -> None:
    model, video = AutoGaze().eval(), random_video(1, 3, side=224)
    assert_same(*ways(model, video, 0.2))


@needs_library
@pytest.mark.parametrize("architecture", INSTRUCTION_SETS)
def test_other_instruction_sets_choose_the_same_ids(architecture: str, fresh: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [f"-march={architecture}" if flag.startswith("-march") else flag for flag in native_build.flags()]
    monkeypatch.setattr(native_build, "flags", lambda: flags)
    model = small_model(scales=(48, 96, 192), head_dim=32, num_multi_token_pred=10)
    assert_same(*ways(model, random_video(3, 3, side=192), 0.2))
    assert len(list(fresh.glob("*.so"))) == 1


@needs_library
def test_choosing_equals_choose_group_with_equal_logits_and_without_ids_left() -> None:
    trunk = native_pass.NativeTrunk(small_model().gaze_decoder)
    for _ in range(20):
        scores = torch.randint(0, 5, (3, 4 * 22 + 4)).float()
        logits, taken = scores[:, :88].unflatten(1, (4, 22)), torch.rand(3, 21) < 0.7
        taken[0] = True
        theirs = taken.clone()
        expected = choose_group(logits, theirs)
        ids = trunk.choose(logits, taken, None, None)
        assert torch.equal(ids[1:], expected[1:]) and torch.equal(taken, theirs)


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
    monkeypatch.setattr(native_pass, "openmp", lambda name: None)
    assert_same(*ways(small_model(), random_video(2, 3), 0.5))


@needs_library
def test_after_threads_stalled_one_does_the_work_for_a_while(two_threads: None) -> None:
    trunk = native_pass.NativeTrunk(small_model().gaze_decoder)
    assert trunk._threads(1) == 2
    trunk.alone = 2
    assert [trunk._threads(1) for _ in range(3)] == [1, 1, 2]


@needs_library
def test_a_processor_it_was_not_measured_on_gets_it_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    model = small_model()
    assert chosen_way(model)[0] == "cached" and "measured" in chosen_way(model)[1]
    model.decoding = "native"
    assert chosen_way(model)[0] == "native"


def test_what_it_cannot_compute_is_left_to_the_cached_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_pass, "measured", lambda: True)
    for model, reason in ((small_model().double(), "float32 only"), (small_model(head_dim=24), "head_dim"),
                          (small_model(intermediate_size=40), "multiples of 16")):
        assert chosen_way(model)[0] == "cached" and reason in chosen_way(model)[1]
    with torch.autocast("cpu"):
        assert "autocast" in chosen_way(small_model())[1]
    model.decoding = "native"
    with pytest.raises(ValueError, match="the native library cannot be used: it needs"):
        model.generate(random_video())


@pytest.mark.parametrize("cause", ["compiler", "source", "folder", "owner"])
def test_without_a_library_the_reason_is_told_and_decoding_goes_on(cause: str, fresh: Path, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch,
                                                                   tiny_checkpoint: Path) -> None:
    reason = {"compiler": "no C++ compiler", "source": "failed", "folder": "could not be compiled into",
              "owner": "belongs to another user"}[cause]
    if cause != "compiler" and native_build.shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    if cause == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    elif cause == "source":
        (tmp_path / "decoder.cpp").write_text("#error not today\n")
        monkeypatch.setattr(native_build, "SOURCES", tmp_path)
    elif cause == "folder":
        fresh.write_text("a file where the folder should be")
    else:
        monkeypatch.setattr(native_build, "build", lambda path: (path.parent.mkdir(), path.touch()))
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        if os.geteuid() == 0:
            monkeypatch.setattr(native_build, "TRUSTED", ())
    monkeypatch.setattr(native_pass, "measured", lambda: True)
    model = small_model()
    way, why = chosen_way(model)
    assert way == "cached" and reason in why and reason in describe(str(tiny_checkpoint))["decoding_on_cpu"]
    model.decoding = "auto"
    assert model.generate(random_video(1, 1)).ids.numel()
    assert not list(fresh.glob(".build-*")) if fresh.is_dir() else True


@needs_library
def test_processes_that_build_at_once_leave_one_whole_library(tmp_path: Path) -> None:
    script = "from autogaze.decoding.native_build import library; assert not isinstance(library(), str), library()"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    runs = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(3)]
    assert [run.wait(200) for run in runs] == [0, 0, 0]
    assert [path.suffix for path in (tmp_path / "autogaze").iterdir()] == [".so"]
