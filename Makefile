# make env         create the environment
# make demo        run the four steps end to end on synthetic images
# make test        run all tests            make test-fast   run the tests that are not marked slow
# make test-gpu    run the tests that need a GPU; the others never use one
# make lint        ruff, codespell, import-linter and mypy, as in CI
# make clean       remove build files (work_dirs/ is kept)
# Settings: VENV=.venv  STACK=onedl|openmmlab  PYTHON=python3  WHEELS=folder of wheels to prefer  DATA=COCO-style folder
#           JOBS=number of test processes (default: cores + 1)
VENV ?= .venv
STACK ?= onedl
PYTHON ?= python3
WHEELS ?=
DATA ?=
OUT ?= work_dirs/demo
# One more than there are cores, because many tests wait for processes that they start.
JOBS ?= $(shell expr $$(nproc) + 1)

# With several processes on few cores, threads that busy-wait for long slow training down several times, and threads that
# never do slow down small training steps (docs/performance.md).
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 2000

.PHONY: env demo test test-fast test-gpu lint format clean

env:
	@requirements/install.sh "$(VENV)" "$(STACK)" "$(PYTHON)" "$(WHEELS)"

demo: env
	@"$(VENV)/bin/python" demo/run_demo.py --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

test: env
	@"$(VENV)/bin/python" -m pytest tests -n "$(JOBS)" --dist loadfile

test-fast: env
	@"$(VENV)/bin/python" -m pytest tests -n "$(JOBS)" --dist loadfile -m "not slow"

test-gpu: env
	@CCOP_MM_TEST_GPU=1 "$(VENV)/bin/python" -m pytest tests -m gpu

lint: env
	@"$(VENV)/bin/ruff" check .
	@"$(VENV)/bin/ruff" format --check .
	@"$(VENV)/bin/codespell"
	@"$(VENV)/bin/codespell" --toml .ci/glossary.toml
	@"$(VENV)/bin/lint-imports" --cache-dir "$(VENV)/.import_linter_cache"
	@"$(VENV)/bin/mypy" --cache-dir "$(VENV)/.mypy_cache"

format: env
	@"$(VENV)/bin/ruff" check --fix .
	@"$(VENV)/bin/ruff" format .

clean:
	rm -rf build *.egg-info ccop_mm/.mim
