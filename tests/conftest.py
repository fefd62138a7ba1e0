"""Settings of every test: few threads, the shared real data, and GPU tests that may be made compulsory."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run side by side on two cores

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
gc.disable()  # until all tests are imported, see autogaze.garbage


def shared_dir() -> Path | None:
    """The folder of real clips and recorded cases: AUTOGAZE_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("AUTOGAZE_SHARED", ROOT.parent / "shared"))
    return folder if folder.is_dir() else None


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_dir()
    if folder is None:
        pytest.skip("needs the shared data: set AUTOGAZE_SHARED to its folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


MOST_CPU_S = 60.0  # of a test with its processes; a busy machine takes longer on the clock, hardly on the processor


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    before = os.times()
    try:
        return (yield)
    finally:
        spent = sum(os.times()[:4]) - sum(before[:4])
        item.user_properties.append(("cpu_s", round(spent, 1)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests that take too much of a small machine, by name."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            spent = dict(getattr(report, "user_properties", ())).get("cpu_s", 0.0)
            if getattr(report, "when", "") == "call" and spent > MOST_CPU_S:
                terminalreporter.write_line(f"over {MOST_CPU_S:.0f} s of CPU: {report.nodeid} took {spent:.0f} s")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        if os.environ.get("AUTOGAZE_REQUIRE_GPU") == "1":
            pytest.fail("AUTOGAZE_REQUIRE_GPU=1 but there is no CUDA device")
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained tiny model that gazes at a tenth of the patches."""
    from dataclasses import replace

    from autogaze.model import AutoGaze, AutoGazeConfig

    torch.manual_seed(0)
    config = replace(AutoGazeConfig.tiny(), gazing_ratio=0.1, task_loss_requirement=None)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    AutoGaze(config).save_pretrained(folder)
    return folder
