"""The cluster kernel: compiled for the CPU it chooses what the reference chooses, and NVRTC takes it."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autogaze.decoding.cuda import cluster
from autogaze.decoding.cuda.buffers import Buffers, Plan
from autogaze.decoding.cuda.weights import lay_out
from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.network.residual import patch_at

ROOT = Path(__file__).resolve().parents[3]
BASE = cluster.Shape(C=192, HEADS=6, LAYERS=4, HIDDEN=384, K=10, VOCABULARY=266)
SMALL = cluster.Shape(C=64, HEADS=2, LAYERS=2, HIDDEN=64, K=3, VOCABULARY=21)  # the models of cluster_emulated.py
BASE_KNOWING, SMALL_KNOWING = replace(BASE, PLACES=196, SCALES=4), replace(SMALL, PLACES=16, SCALES=2)


@pytest.fixture(scope="module")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[cluster.Shape], Path]:
    """Compiles the kernel of a shape for the CPU and returns the library's path."""
    compiler = shutil.which("g++")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the emulator needs g++ on Linux")
    folder = tmp_path_factory.mktemp("emulator")

    def build(shape: cluster.Shape) -> Path:
        library = folder / f"{shape.C}-{shape.PLACES}.so"
        defines = [f"-D{name}={value}" for name, value in cluster.defines(shape).items()]
        subprocess.run(
            [
                compiler,
                "-std=c++17",
                "-O2",
                "-shared",
                "-fPIC",
                "-I",
                str(cluster.SOURCES),
                "-I",
                "tests/decoding/cuda",
                *defines,
                "tests/decoding/cuda/cuda_emulator.cpp",
                "-o",
                str(library),
            ],
            check=True,
            cwd=ROOT,
        )
        return library

    return build


@pytest.mark.parametrize("kind", ["heads", "map"])
def test_emulated_clusters_choose_what_the_reference_chooses(
    kind: str, emulate: Callable[[cluster.Shape], Path]
) -> None:
    pytest.importorskip("triton", reason="Triton comes with CUDA builds of PyTorch only")
    library = emulate(SMALL if kind == "heads" else SMALL_KNOWING)
    run = subprocess.run(
        [sys.executable, "-m", "tests.decoding.cuda.cluster_emulated", kind, str(library)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    cases = [json.loads(line) for line in run.stdout.splitlines()]
    first = [f"{kind}: {case}" for case in ("stop at once", "few", "none", "one stops")]  # frames end with a group
    more = ["per clip"] if kind == "heads" else []
    assert [case["case"] for case in cases] == ["ratio", *more, "stop", *first, "scales", "window"]
    most = 0.01 if kind == "heads" else 1e-5  # of losses; bfloat16 takes no part in those of maps
    for before, case in zip([{"launches": 0}, *cases], cases, strict=False):
        assert case["launches"] > before["launches"], "the ids were not decoded by the kernel"
        assert case["equal_ids"] == 1 and case["equal_chosen"] and case["equal_empty"], case
        assert case["loss_difference"] < most, case


class Picks(ctypes.Structure):
    """`Picks` of `cuda_emulator.cpp`."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("arguments", "ids")]
        + [("count", ctypes.c_int)]
        + [(name, ctypes.c_void_p) for name in ("scores", "losses", "level")]
    )


def test_every_pick_changes_scores_and_losses_as_frame_error_says(emulate: Callable[[cluster.Shape], Path]) -> None:
    library = ctypes.CDLL(str(emulate(BASE_KNOWING)))
    config = AutoGazeConfig(residual_map=True)
    rule = AutoGaze(config).residual_map
    assert rule is not None
    frame, half = torch.randn(1, 1, 224, 224), torch.arange(224) < 112
    error = rule.begin(frame, frame.where(half, 0) + 0.05 * torch.randn(1, 1, 224, 224))  # half of it is known well
    assert 0.4 < (0.4 * error.errors[..., -2] > error.errors[..., 0]).float().mean() < 0.6
    patches, count = config.grid.patches_per_frame, 40
    ids = torch.randperm(patches)[:count].int()
    ids[:3] = torch.tensor([0, 200, 3])  # a coarse one, and one within another
    tables = cluster.grid_tables(patch_at(config.grid, rule.side), patches)
    errors, looked = error.errors[0].t().contiguous().detach(), torch.zeros(rule.side**2, dtype=torch.int8)
    scores, losses = torch.zeros(count, patches), torch.zeros(count)
    arguments = cluster.Arguments(errors=errors.data_ptr(), tables=tables.data_ptr(), strength=rule.strength.data_ptr())
    library.take(
        ctypes.byref(
            Picks(
                ctypes.addressof(arguments),
                ids.data_ptr(),
                count,
                scores.data_ptr(),
                losses.data_ptr(),
                looked.data_ptr(),
            )
        )
    )
    for i in range(count):
        torch.testing.assert_close(losses[i], error.predicted_loss()[0].detach(), atol=2e-6, rtol=0)
        torch.testing.assert_close(scores[i], error.scores()[0].detach(), atol=1e-3, rtol=1e-4)
        error.take(ids[i : i + 1].long())
    assert torch.equal(looked, error.level[0].to(torch.int8)) and (looked > 0).float().mean() > 0.3


@pytest.mark.parametrize("shape", [BASE, SMALL, BASE_KNOWING, SMALL_KNOWING])
def test_host_and_kernel_agree_on_shared_memory(emulate: Callable[[cluster.Shape], Path], shape: cluster.Shape) -> None:
    exact = ctypes.CDLL(str(emulate(shape))).shared_bytes(0)
    assert exact <= cluster.shared_bytes(shape) <= exact + 1024


@pytest.mark.parametrize("shape", [BASE, BASE_KNOWING])
def test_nvrtc_compiles_the_kernel_without_a_gpu(shape: cluster.Shape) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings comes with CUDA builds of PyTorch only")
    code = cluster.compile_kernel(shape, "sm_90")
    assert code[:4] == b"\x7fELF"


def test_a_kernel_that_does_not_compile_says_why() -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings comes with CUDA builds of PyTorch only")
    with pytest.raises(RuntimeError, match="static assertion failed"):
        cluster.compile_kernel(replace(BASE, HIDDEN=100), "sm_90")


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"C": 64, "HEADS": 2, "HIDDEN": 64}, True),
        ({"HEADS": 12, "C": 384}, False),
        ({"K": 13}, False),
        ({"HIDDEN": 100}, False),
        ({"VOCABULARY": 5000}, False),
        ({"PLACES": 196, "SCALES": 4}, True),
        ({"PLACES": 196, "SCALES": 13}, False),
        ({"PLACES": 1000, "SCALES": 5, "VOCABULARY": 1024}, False),
    ],
)
def test_shapes_are_refused_before_they_are_compiled(change: dict[str, int], fits: bool) -> None:
    assert replace(BASE, **change).fits == fits


def test_a_device_that_takes_no_cluster_decodes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(arguments: cluster.Arguments, clips: int, table: int) -> None:
        asked.append(clips)
        raise RuntimeError("CUDA_ERROR_CLUSTER_OUT_OF_RESOURCES")

    monkeypatch.setattr(cluster, "load_kernel", lambda device, shape: refuses)
    asked: list[int] = []
    model = AutoGaze(AutoGazeConfig()).eval()
    plan = Plan(batch=1, ring=2, slots=10, dtype=torch.bfloat16, stops=False, samples=False)
    buffers = Buffers(model, lay_out(model.gaze_decoder, torch.bfloat16, None), plan)
    assert cluster.steps_of(buffers) is None and asked == [1]


@pytest.mark.parametrize("config", [AutoGazeConfig.base(), AutoGazeConfig(scales=(48, 96, 192), residual_map=True)])
def test_tables_of_a_grid_say_where_terms_lie_and_what_a_pick_touches(config: AutoGazeConfig) -> None:
    rule = AutoGaze(config).residual_map
    assert rule is not None
    scales, places, patches = len(config.scales), rule.side**2, config.grid.patches_per_frame
    table = patch_at(config.grid, rule.side)
    parts = (
        cluster.grid_tables(table, patches)
        .long()
        .split([*cluster._table_sizes(places, scales, patches), *unused(places, scales, patches)])
    )
    first, touching, scale, term, place, touched = parts[:6]
    covered = rule.cover > 0
    for patch in range(patches):
        run = place[4 * first[patch] : 4 * first[patch + 1]]
        assert run[run < places].tolist() == covered[patch].nonzero().flatten().tolist()
        expected = (covered & covered[patch]).any(1).nonzero().flatten()
        assert torch.equal(touched[touching[patch] : touching[patch + 1]], expected)
        assert scale[patch] == config.grid.locate(torch.tensor(patch))[0]
    assert torch.equal(place[term].unflatten(0, (scales, places)), torch.arange(places).expand(scales, -1))
    assert torch.equal(torch.bucketize(term // 4, first, right=True) - 1, table.flatten())


def unused(places: int, scales: int, patches: int) -> list[int]:
    """Entries that fill tables up to whole 16 bytes."""
    return [-sum(cluster._table_sizes(places, scales, patches)) % 8]
