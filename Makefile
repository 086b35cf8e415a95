# make demo   the four steps end to end, nothing to download     make test   everything that proves them
# make env    the environment alone                              make lint   ruff, as in CI
# Settings: VENV=.venv  STACK=onedl|openmmlab  PYTHON=python3  WHEELS=folder of wheels to prefer  DATA=COCO-style folder
VENV ?= .venv
STACK ?= onedl
PYTHON ?= python3
WHEELS ?=
DATA ?=
OUT ?= work_dirs/demo

# Threads that spin for long while they wait make two processes on few cores several times slower, and threads that never
# do make small steps slow (docs/performance.md).
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 2000

.PHONY: env demo test lint format clean

env:
	@requirements/install.sh "$(VENV)" "$(STACK)" "$(PYTHON)" "$(WHEELS)"

demo: env
	@"$(VENV)/bin/python" tools/demo.py --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

test: env
	@"$(VENV)/bin/python" -m pytest tests

lint: env
	@"$(VENV)/bin/ruff" check .
	@"$(VENV)/bin/ruff" format --check .

format: env
	@"$(VENV)/bin/ruff" check --fix .
	@"$(VENV)/bin/ruff" format .

clean:
	rm -rf work_dirs build *.egg-info ccop_mm/.mim
