"""A busy machine: two threads may not cost much more than one where others want the processors too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autogaze.decoding.cpu.build import library

ROOT = Path(__file__).resolve().parents[3]
MOST = 2.5  # times the processor time of one thread; threads that spin while they wait took 7 times (measured)
GAZE = """
import json, sys, time
import torch
torch.set_num_threads(int(sys.argv[1]))
from autogaze import AutoGaze
from autogaze.model import AutoGazeConfig
model, video = AutoGaze(AutoGazeConfig.base()).eval(), torch.randn(1, 12, 3, 224, 224)
stream = model.stream(0.1)
stream.step(video[:, 0])
start = time.process_time()
for t in range(1, 12):
    stream.step(video[:, t])
print(json.dumps(time.process_time() - start))
"""


@pytest.mark.skipif(isinstance(library(), str), reason=f"no C++ library: {library()}")
@pytest.mark.skipif(sys.platform != "linux", reason="of GNU's OpenMP")
def test_two_threads_do_not_burn_processors_that_others_want() -> None:
    free = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        seconds = [
            json.loads(subprocess.check_output([sys.executable, "-c", GAZE, str(threads)], cwd=ROOT, env=free))
            for threads in (1, 2)
        ]
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert seconds[1] < MOST * seconds[0], seconds
