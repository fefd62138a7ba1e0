"""Claims that other people's code leans on: the docstring of each test is a line of docs/api/model.md."""

from __future__ import annotations

import ast
import copy
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

import autogaze
from autogaze import AutoGaze, Gaze, PatchGrid, checkpoint
from autogaze.media.preprocess import Preprocessor
from autogaze.media.source import open_source
from autogaze.vit import GazedViT
from tests.gaze_models import random_video, small_model

USER_SCRIPT = """
import autogaze
from autogaze import AutoGaze, Gaze, PatchGrid, checkpoint
from autogaze.media.preprocess import Preprocessor
from autogaze.media.source import open_source
from autogaze.vit import GazedViT

def look(path: str) -> Gaze:
    model = AutoGaze.from_pretrained("autogaze-base", device="cpu")
    gaze = model.gaze(path, gazing_ratio=0.1)
    for clip in gaze:
        print(clip.counts, clip.ratio, clip[0].boxes().shape)
    return gaze

print(autogaze.__version__)
"""


RESULTS = ("Gaze", "Iterator[Gaze]", "GazeStream")


@pytest.fixture(scope="module")
def model() -> AutoGaze:
    return small_model(residual_map=True)


@pytest.fixture(scope="module")
def gaze(model: AutoGaze) -> Gaze:
    return model.generate(random_video(3, 4), gazing_ratio=0.5)


def test_the_package_says_its_version_and_that_it_is_typed() -> None:
    """`autogaze.__version__` is the installed version, and the package is typed."""
    assert autogaze.__version__ == version("autogaze")
    assert (Path(autogaze.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_a_user_script_passes_strict_type_checks(tmp_path: Path) -> None:
    """A script that uses the package passes `mypy --strict`."""
    pytest.importorskip("mypy")
    config, script, wrong = (tmp_path / name for name in ("mypy.ini", "user.py", "wrong.py"))
    libraries = "torch.*,numpy.*,cv2.*,PIL.*,av.*"  # which take three quarters of the time to read
    config.write_text(f"[mypy]\nstrict = True\nfollow_imports = silent\n[mypy-{libraries}]\nfollow_imports = skip\n")
    script.write_text(USER_SCRIPT)
    wrong.write_text(USER_SCRIPT.replace("return gaze", "return model.grid"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir", tmp_path / "cache", script, wrong],
        capture_output=True,
        text=True,
        cwd=Path(autogaze.__file__).parents[1],
    )
    assert "user.py" not in done.stdout and "incompatible return value" in done.stdout.lower(), done.stdout
    assert "Found 1 error" in done.stdout


def test_a_gaze_prints_shapes_and_no_tensors(gaze: Gaze) -> None:
    """A `Gaze` prints its shapes, no tensors."""
    words = repr(gaze)
    assert len(words) < 200 and "3 clips" in words and "4 frames" in words and "tensor" not in words


def test_a_gaze_has_a_length_and_gives_its_clips(gaze: Gaze) -> None:
    """A `Gaze` has a length and is indexed and iterated clip by clip."""
    assert len(gaze) == 3 and [len(clip) for clip in gaze] == [1, 1, 1]
    assert torch.equal(gaze[1].ids, gaze.ids[1:2]) and torch.equal(gaze[-1].ids, gaze.ids[2:])
    with pytest.raises(IndexError):
        gaze[3]


def test_a_gaze_is_cut_along_its_frames(gaze: Gaze) -> None:
    """`gaze[:, 1:3]` is the gaze of these frames."""
    assert torch.equal(gaze[:, 1:3].ids, gaze.ids[:, 1:3])


def test_a_list_means_what_a_tensor_and_an_array_mean(model: AutoGaze) -> None:
    """A list of limits means what an array or a tensor of its shape means."""
    video = random_video(3, 4)
    ratios = [[0.2], [0.5], [0.9]]
    found = [model.generate(video, gazing_ratio=value) for value in (ratios, torch.tensor(ratios), np.array(ratios))]
    assert all(torch.equal(one.ids, found[0].ids) for one in found)


def test_every_call_has_the_models_own_defaults(model: AutoGaze) -> None:
    """Without limits every call has the model's own; a stream too."""
    video = random_video(1, 2)
    own = model.generate(video)
    asked = model.generate(
        video, gazing_ratio=model.config.gazing_ratio, task_loss_requirement=model.config.task_loss_requirement
    )
    stream = model.stream()
    frames = [stream.step(video[:, t]) for t in range(2)]
    assert torch.equal(own.patch_mask(), asked.patch_mask())
    assert all(torch.equal(own.patch_mask()[:, t], frame.patch_mask()[:, 0]) for t, frame in enumerate(frames))


def test_a_calibrated_model_is_another_model(model: AutoGaze) -> None:
    """`with_calibration` returns another model and leaves its own as it was."""
    other = model.with_calibration(((0.1, 0.2),))
    assert other is not model and model.config.calibration == () and other.config.calibration == ((0.1, 0.2),)


@pytest.mark.parametrize("ratio", ["0.1", True, -0.1, 1.5, float("nan")])
def test_a_ratio_that_makes_no_sense_is_refused(model: AutoGaze, ratio: object) -> None:
    """A gazing ratio that is no number in [0, 1] is refused."""
    with pytest.raises((TypeError, ValueError), match="gazing_ratio"):
        model.generate(random_video(1, 2), gazing_ratio=ratio)  # type: ignore[arg-type]


@pytest.mark.parametrize("requirement", ["0.1", True, -0.1, float("nan")])
def test_a_requirement_that_makes_no_sense_is_refused(model: AutoGaze, requirement: object) -> None:
    """A task loss requirement that is NaN, negative or no number is refused."""
    with pytest.raises((TypeError, ValueError), match="task_loss_requirement"):
        model.generate(random_video(1, 2), task_loss_requirement=requirement)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 255.0])
def test_video_that_cannot_be_right_is_refused(model: AutoGaze, value: float) -> None:
    """Video with NaN, infinite or 0 to 255 pixels is refused."""
    video = random_video(1, 2).clamp(-1, 1)
    video[0, 1, 0, 3, 3] = value
    with pytest.raises(ValueError, match="video"):
        model.generate(video, gazing_ratio=0.5)


def test_only_the_asked_scales_are_chosen_from(model: AutoGaze) -> None:
    """With `scales=` only patches of these scales are chosen."""
    gaze = model.generate(random_video(2, 2), gazing_ratio=0.5, scales=(model.grid.scales[-1],))
    first = model.grid.offsets[-1]
    assert bool((gaze.ids[gaze.chosen] >= first).all())


def test_four_calls_gaze_at_frames() -> None:
    """Four calls gaze at frames: `generate`, `gaze`, `gaze_frames` and `stream`."""
    calls = {name: call for name, call in inspect.getmembers(AutoGaze, inspect.isfunction) if not name.startswith("_")}
    made = {name for name, call in calls.items() if call.__annotations__.get("return") in RESULTS}
    assert made == {"generate", "gaze", "gaze_frames", "stream"}


def test_a_clip_is_decoded_as_if_alone(model: AutoGaze) -> None:
    """A clip's gaze is the same alone and in any batch."""
    video = random_video(3, 4)
    together = model.generate(video, gazing_ratio=0.5)
    for i in range(3):
        alone = model.generate(video[i : i + 1], gazing_ratio=0.5)
        assert torch.equal(alone.patch_mask(), together[i].patch_mask())


def test_a_stream_chooses_what_generate_chooses(model: AutoGaze) -> None:
    """`stream` chooses frame by frame what `generate` chooses in the whole clip."""
    video, stream = random_video(2, 4), model.stream(gazing_ratio=0.4, batch=2)
    frames = [stream.step(video[:, t]).patch_mask() for t in range(4)]
    assert torch.equal(torch.cat(frames, 1), model.generate(video, gazing_ratio=0.4).patch_mask())


def test_gaze_is_generate_with_preprocessing(model: AutoGaze) -> None:
    """`gaze` of frames is `generate` of what `model.preprocessor` makes of them."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 50, 70, 3), np.uint8)
    own = model.generate(model.preprocessor(frames), gazing_ratio=0.4)
    assert torch.equal(model.gaze(frames, gazing_ratio=0.4).ids, own.ids)


def test_frames_in_parts_give_the_gaze_of_the_whole(model: AutoGaze) -> None:
    """`gaze_frames` gives in parts what `gaze` gives at once."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    parts = list(model.gaze_frames(iter(frames), gazing_ratio=0.4, at_once=2))
    assert [part.ids.shape[1] for part in parts] == [2, 2, 1]
    assert torch.equal(Gaze.join(parts).patch_mask(), model.gaze(frames, gazing_ratio=0.4).patch_mask())


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
def test_a_frame_never_spends_more_than_its_ratio(model: AutoGaze, ratio: float) -> None:
    """A frame never spends more than its ratio; 0 looks at nothing."""
    gaze = model.generate(random_video(2, 3), gazing_ratio=ratio)
    assert bool((gaze.counts == (model.grid.budget(ratio) if ratio else 0)).all())


def test_no_patch_is_chosen_twice(gaze: Gaze) -> None:
    """No patch is chosen twice in a frame."""
    assert int(gaze.patch_mask().sum()) == int(gaze.chosen.sum())


def test_none_is_no_limit(model: AutoGaze) -> None:
    """`None` is a limit that is given: none."""
    gaze = model.generate(random_video(1, 2), gazing_ratio=None, task_loss_requirement=None)
    assert bool(gaze.patch_mask().all())


def test_shape_says_per_frame_or_per_clip(model: AutoGaze) -> None:
    """A limit is one number, one a frame (T,), one a clip (B, 1), or (B, T), by its shape; (T,) is refused if B = T."""
    video = random_video(2, 3)
    frames, clips = (
        model.generate(video, gazing_ratio=[0.2, 0.8, 0.2]),
        model.generate(video, gazing_ratio=[[0.2], [0.8]]),
    )
    low, high = model.grid.budget(0.2), model.grid.budget(0.8)
    assert frames.counts.tolist() == [[low, high, low]] * 2 and clips.counts.tolist() == [[low] * 3, [high] * 3]
    with pytest.raises(ValueError, match="one a frame or one a clip"):
        model.generate(video[:, :2], gazing_ratio=[0.2, 0.8])


def test_a_looser_requirement_keeps_fewer_patches(model: AutoGaze) -> None:
    """A looser requirement never keeps more patches of the first frame; a requirement alone sets no ratio."""
    video = random_video(2, 1)
    counts = [model.generate(video, task_loss_requirement=loss).counts for loss in (0.0, 0.5, 2.0, 1e9)]
    assert all(bool((more >= fewer).all()) for more, fewer in zip(counts, counts[1:], strict=False))
    assert int(counts[0].max()) > model.grid.budget(model.config.gazing_ratio) or model.config.gazing_ratio == 1


def test_an_argument_beats_the_environment(model: AutoGaze, monkeypatch: pytest.MonkeyPatch) -> None:
    """`model.decoding` beats the environment variable AUTOGAZE_DECODING."""
    own = copy.deepcopy(model)
    monkeypatch.setenv("AUTOGAZE_DECODING", "no such back end")
    own.decoding = "reference"
    own.generate(random_video(1, 1), gazing_ratio=0.1)
    own.decoding = "auto"
    with pytest.raises(ValueError, match="decoding must be auto or one of reference, cpu, cuda"):
        own.generate(random_video(1, 1), gazing_ratio=0.1)


def test_options_of_a_few_words_are_literal() -> None:
    """Options that take one of a few words have a `Literal` type."""
    calls = ((GazedViT.__init__, "attention"), (open_source, "decoder"), (Preprocessor.__init__, "resample"))
    for call, name in calls:
        hint = get_type_hints(call)[name]
        assert get_origin(hint) is Literal and len(get_args(hint)) > 1, name


def test_weights_are_float32_or_of_the_dtype_that_is_asked_for(model: AutoGaze, tmp_path: Path) -> None:
    """`from_pretrained` gives float32 on the CPU, or the `dtype=` and `device=` asked for."""
    model.save_pretrained(tmp_path / "saved", torch.bfloat16)
    assert next(AutoGaze.from_pretrained(tmp_path / "saved").parameters()).dtype == torch.float32
    assert next(AutoGaze.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_a_saved_model_chooses_the_same(model: AutoGaze, tmp_path: Path) -> None:
    """A saved model chooses what it chose; its preprocessing and its stop rule are saved with it."""
    own = model.with_calibration(((0.1, 0.2),))
    own.save_pretrained(tmp_path / "saved")
    loaded, video = AutoGaze.from_pretrained(tmp_path / "saved"), random_video(1, 3)
    assert loaded.config == own.config and loaded.preprocessor == own.preprocessor
    assert torch.equal(loaded.generate(video).ids, own.generate(video).ids)


def test_a_revision_is_one_of_the_hub(model: AutoGaze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`revision=` names a branch, tag or commit of the hub, and is refused for what lies on the disk."""
    model.save_pretrained(tmp_path / "saved")
    asked = []
    monkeypatch.setattr(checkpoint, "_download", lambda name, revision: asked.append(revision) or tmp_path / "saved")
    AutoGaze.from_pretrained("someone/gaze", revision="v2")
    assert asked == ["v2"]
    with pytest.raises(ValueError, match="revision='v2' is for models of the hub"):
        AutoGaze.from_pretrained(tmp_path / "saved", revision="v2")


def test_a_checkpoint_that_is_not_there_is_named() -> None:
    """A checkpoint that is not there is a `FileNotFoundError` that lists the shipped ones."""
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nowhere'.*autogaze-base"):
        AutoGaze.from_pretrained("nowhere")


def test_the_published_dict_comes_and_goes(gaze: Gaze) -> None:
    """`to_gazing_info` gives the published dict, and `Gaze.from_gazing_info` takes it."""
    again = Gaze.from_gazing_info(gaze.to_gazing_info(), gaze.grid)
    assert torch.equal(again.patch_mask(), gaze.patch_mask())


def test_a_gaze_does_not_change(gaze: Gaze) -> None:
    """A `Gaze` cannot be changed; `to` returns another one."""
    with pytest.raises(AttributeError):
        gaze.ids = gaze.ids  # type: ignore[misc]
    assert torch.equal(gaze.to("cpu").ids, gaze.ids)


def test_gazing_leaves_everything_as_it_was(model: AutoGaze) -> None:
    """Gazing changes neither its input nor the model, and without a temperature draws no random number."""
    video = random_video(2, 2)
    before, state, weights = video.clone(), torch.random.get_rng_state(), copy.deepcopy(model.state_dict())
    model.generate(video, gazing_ratio=0.5)
    assert torch.equal(video, before) and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_generator_repeats_what_was_drawn(model: AutoGaze) -> None:
    """With a temperature ids are drawn, and a generator repeats them."""
    video = random_video(2, 2)
    drawn = [
        model.generate(video, 0.3, temperature=1.0, generator=torch.Generator().manual_seed(seed)).ids
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_gaze_on_another_grid_is_asked_for_by_the_grid(model: AutoGaze) -> None:
    """`grid=` gives the gaze on another grid, of another ViT or of larger frames."""
    grid = PatchGrid((32, 64, 128), 16)
    gaze = model.generate(random_video(1, 2, side=128), gazing_ratio=0.5, grid=grid)
    assert gaze.grid == grid and 0 < gaze.ratio <= 0.5


def test_a_model_is_copied_and_pickled(model: AutoGaze) -> None:
    """A copy of a model chooses the same."""
    video = random_video(1, 2)
    assert torch.equal(copy.deepcopy(model).generate(video, 0.4).ids, model.generate(video, 0.4).ids)


def test_every_claim_is_a_line_of_the_reference() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "api" / "model.md").read_text(encoding="utf-8")
    tests = [node for node in ast.parse(Path(__file__).read_text()).body if isinstance(node, ast.FunctionDef)]
    claims = [ast.get_docstring(node) for node in tests if node.name.startswith("test_") and ast.get_docstring(node)]
    lines = [line.removeprefix("- ") for line in page.splitlines() if line.startswith("- ")]
    assert lines == claims and len(claims) > 30
