# make: everything, from a bare machine to the report · make test · make ui: the runs in MLflow · make serve · make dashboard
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true
# Two processes of two threads on two cores: those that wait for each other must not keep the others from working.
export GOMP_SPINCOUNT ?= 3000

# What numba compiles of UMAP takes 18 s, once, and is kept in the environment: not in the first stage that draws a map.
COMPILE := import numpy; from strata.families import knobs, maps; maps.layout(numpy.eye(40, dtype="f4"), None, \
	knobs.Map(of="families", method="umap", neighbours=5, spread=0.1), 0)

LAYER ?= 9
PORT ?= 8000

.PHONY: all setup test check lint types tests ui serve dashboard clean

# In a fresh clone dvc.lock says that track is up to date, but its MLflow is empty; tracking again adds nothing.
all: setup
	dvc repro
	dvc repro --quiet --force --single-item track
	@echo "The report is reports/report.html; 'make ui' shows the runs."

setup: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), "Strata needs Python 3.11; say make PYTHON=python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -c '$(COMPILE)'
	touch $@

# Two processes of tests, a file each at a time, in the order of tests/conftest.py; types are checked meanwhile.
test: lint
	$(MAKE) --jobs 2 types tests

check: lint types

lint: setup
	ruff check .
	ruff format --check .

types: setup
	pyright

tests: setup
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

ui: setup
	python -m src.ui

# Which latents a text activates, over HTTP: http://127.0.0.1:8000
serve: setup
	python -m src.serve data/sae/$(LAYER) "" "" "" $(PORT)

# What is on disk, to look into: http://127.0.0.1:8501
dashboard: setup
	python -m src.dashboard

clean:
	rm -rf .scratch dvc_plots .pytest_cache .ruff_cache
