# make env   the environment in .venv, with pinned versions (other targets use it)
# make demo  render scenes, train a tiny model, gaze at a video, export; under 20 minutes, most of it installing
# make test  ruff, mypy, pytest
# make test-fast  what a change needs first: under 90 seconds on two cores
# make dist  wheel and sdist in dist/, checked

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-out
# of the demo: a folder of videos (by default it renders its own), and settings of its training, such as
# make demo TRAIN=max_minutes=0.2 for a quick try
DATA ?= $(DEMO)/scenes
TRAIN ?=
STAMP := $(VENV)/.installed
PYTEST ?= $(BIN)/python -m pytest
# of the fast set: what nearly every change may break, and nothing that compiles, trains or exports
FAST := tests/core tests/network tests/selectors tests/training/test_recipes.py tests/vit/test_packing.py \
	$(addprefix tests/decoding/test_,$(addsuffix .py,backends choice defaults reference request scoring stream)) \
	$(addprefix tests/test_,$(addsuffix .py,checkpoint contract extras files imports model packaging tiling))

export OMP_NUM_THREADS ?= 2

.PHONY: env demo test test-fast lint docs dist clean

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

test-fast:
	$(PYTEST) -q -n 2 -m "not slow and not gpu" $(FAST)

demo: env
	$(if $(filter $(DEMO)/scenes,$(DATA)),$(BIN)/python -m autogaze.media.scenes $(DATA) --clips 40 --kinds harbour)
	$(BIN)/autogaze train --preset tiny --data $(DATA) --out $(DEMO)/run $(TRAIN)
	video=$$(find $(DATA) -type f -name '*.mp4' | sort | tail -n 1) && \
	$(BIN)/autogaze gaze "$$video" --checkpoint $(DEMO)/run --gazing-ratio 0.1 --out $(DEMO)/gaze
	$(BIN)/autogaze export $(DEMO)/run --onnx $(DEMO)/gaze.onnx
	@echo
	@echo "videos       $(DATA)"
	@echo "trained run  $(DEMO)/run               $(BIN)/tensorboard --logdir $(DEMO)/run"
	@echo "overlay      $(DEMO)/gaze/overlay.mp4"
	@echo "report       $(DEMO)/gaze/report.html  open it in a browser"
	@echo "ONNX         $(DEMO)/gaze.onnx"

docs: env
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

dist: env
	$(BIN)/python -m pip install --quiet build twine
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf $(DEMO) site build dist
