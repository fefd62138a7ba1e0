# make env   the environment in .venv, with pinned versions (other targets use it)
# make demo  render scenes, train a tiny model, gaze at a video, export; under 20 minutes, most of it installing
# make test  ruff, mypy, pytest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-out
TRAIN ?=  # settings of the demo's training, such as TRAIN=max_minutes=0.2 for a quick try
STAMP := $(VENV)/.installed

export OMP_NUM_THREADS ?= 2

.PHONY: env demo test lint docs clean

env: $(STAMP)

# constraints.txt pins the ordinary builds of torch and torchvision, which belong together
$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

lint: env
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q -n 2

demo: env
	$(BIN)/python -m autogaze.scenes $(DEMO)/scenes --clips 28
	$(BIN)/autogaze train --preset tiny --data $(DEMO)/scenes --out $(DEMO)/run $(TRAIN)
	$(BIN)/autogaze gaze $(DEMO)/scenes/val/*.mp4 --checkpoint $(DEMO)/run --gazing-ratio 0.1 --out $(DEMO)/gaze
	$(BIN)/autogaze export $(DEMO)/run --onnx $(DEMO)/gaze.onnx
	@echo
	@echo "scenes       $(DEMO)/scenes"
	@echo "trained run  $(DEMO)/run          (tensorboard --logdir $(DEMO)/run)"
	@echo "overlays     $(DEMO)/gaze/*/overlay.mp4"
	@echo "reports      $(DEMO)/gaze/*/report.html"
	@echo "ONNX         $(DEMO)/gaze.onnx"

docs: env
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(DEMO) site build dist
