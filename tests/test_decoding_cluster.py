"""The cluster kernel: compiled for the CPU it chooses what the plain loop chooses, and NVRTC takes it."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from autogaze.decoding import cluster
from autogaze.decoding.packed_weights import PackedWeights
from autogaze.decoding.workspace import Plan, Workspace
from autogaze.model import AutoGaze, AutoGazeConfig

ROOT = Path(__file__).parent.parent
BASE = cluster.Shape(C=192, HEADS=6, LAYERS=4, HIDDEN=384, K=10, VOCABULARY=266)
SMALL = cluster.Shape(C=64, HEADS=2, LAYERS=2, HIDDEN=64, K=3, VOCABULARY=21)  # the model of cluster_emulated.py


@pytest.fixture(scope="module")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[cluster.Shape], Path]:
    """Compiles the kernel of a shape for the CPU and returns the library's path."""
    compiler = shutil.which("g++")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the emulator needs g++ on Linux")
    folder = tmp_path_factory.mktemp("emulator")

    def build(shape: cluster.Shape) -> Path:
        library = folder / f"{shape.C}.so"
        defines = [f"-D{name}={value}" for name, value in asdict(shape).items()]
        subprocess.run([compiler, "-std=c++17", "-O2", "-shared", "-fPIC", "-I", str(cluster.SOURCES), "-I", "tests",
                        *defines, "tests/cuda_emulator.cpp", "-o", str(library)], check=True, cwd=ROOT)
        return library

    return build


def test_emulated_clusters_choose_what_the_plain_loop_chooses(emulate: Callable[[cluster.Shape], Path]) -> None:
    pytest.importorskip("triton", reason="Triton comes with CUDA builds of PyTorch only")
    run = subprocess.run([sys.executable, "-m", "tests.cluster_emulated", str(emulate(SMALL))], cwd=ROOT,
                         capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    cases = [json.loads(line) for line in run.stdout.splitlines()]
    assert [case["case"] for case in cases] == ["ratio", "per clip", "stop", "window"]
    for before, case in zip([{"launches": 0}, *cases], cases, strict=False):
        assert case["launches"] > before["launches"], "the steps were not decoded by the kernel"
        assert case["equal_ids"] == 1 and case["equal_chosen"] and case["loss_difference"] < 0.01, case


@pytest.mark.parametrize("shape", [BASE, SMALL])
def test_host_and_kernel_agree_on_shared_memory(emulate: Callable[[cluster.Shape], Path], shape: cluster.Shape) -> None:
    exact = ctypes.CDLL(str(emulate(shape))).shared_bytes(0)
    assert exact <= cluster.shared_bytes(shape) <= exact + 1024


def test_nvrtc_compiles_the_kernel_without_a_gpu() -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings comes with CUDA builds of PyTorch only")
    code = cluster.compile_kernel(BASE, "sm_90")
    assert code[:4] == b"\x7fELF"


def test_a_kernel_that_does_not_compile_says_why() -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings comes with CUDA builds of PyTorch only")
    with pytest.raises(RuntimeError, match="static assertion failed"):
        cluster.compile_kernel(replace(BASE, HIDDEN=100), "sm_90")


@pytest.mark.parametrize(("change", "fits"), [({}, True), ({"C": 64, "HEADS": 2, "HIDDEN": 64}, True),
                                              ({"HEADS": 12, "C": 384}, False), ({"K": 13}, False),
                                              ({"HIDDEN": 100}, False), ({"VOCABULARY": 5000}, False)])
def test_shapes_are_refused_before_they_are_compiled(change: dict[str, int], fits: bool) -> None:
    assert (replace(BASE, **change).why_not() == "") == fits


def test_a_device_that_takes_no_cluster_decodes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def launch(self, arguments: cluster.Arguments, clips: int, table: int) -> None:
            raise RuntimeError("CUDA_ERROR_CLUSTER_OUT_OF_RESOURCES")

    monkeypatch.setattr(cluster, "load_kernel", lambda device, shape: Refuses())
    model = AutoGaze(AutoGazeConfig()).eval()
    plan = Plan(batch=1, ring=2, slots=10, dtype=torch.bfloat16, stops=False, samples=False)
    space = Workspace(model, PackedWeights(model.gaze_decoder, torch.bfloat16), plan)
    assert space.cluster is None and "CLUSTER_OUT_OF_RESOURCES" in space.without_cluster
