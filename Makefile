# `make` takes a bare machine to the report; `make help` lists what else there is.
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

# What one reads first of an experiment, of the hundreds of columns that `dvc exp show` has.
COLUMNS := Experiment|^(seed|layers)$$|^train\.(rule|k|latents)$$|targets\.(passed|failed)
OF_LAYER := ^train\.$(LAYER)\.(fvu_inlier|delta_ce|l0|dead)$$|stability\.$(LAYER)\.again$$

# What is said for any other Python, or for none: one sentence, not a traceback.
SUPPORTED := (3, 11), (3, 12), (3, 13)
define WRONG_PYTHON
Strata needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is not one of them: get one by \
'uv python install 3.11', 'pyenv install 3.11' or 'conda create -n strata python=3.11', \
then say which, for example 'make PYTHON=python3.11' (docs/install.md).
endef

# Shows that a long command goes on: `$(call showing,what it does,command)`. It ends with the shell of the command.
showing = n=0; { while sleep 15 > /dev/null 2>&1 && kill -0 $$$$ 2> /dev/null; do \
	n=$$((n + 15)); echo "  $(1), $$n s so far"; done; } & beat=$$!; $(2); code=$$?; kill $$beat; exit $$code

# The verdict of the scorecard, in green or red where stdout is a terminal and NO_COLOR is not set.
VERDICT := import json, os, sys; \
	card = json.load(open("reports/scorecard.json")); \
	line, bad = card["verdict"], card["failed"] or "not better" in card["verdict"]; \
	coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR"); \
	print("\nVerdict:", f"\33[{31 if bad else 32}m{line}\33[0m" if coloured else line)

define NEXT

Done. Open these files in a browser:
  reports/report.html           scores beside their controls, families, steering
  reports/latents/index.html    the latents of each layer, to search and to read

Or start one of these, and end it with Ctrl-C:
  make serve        which latents a text of yours activates
  make dashboard    tables, maps and curves to explore
  make ui           the runs, in MLflow

Try next:
  source .venv/bin/activate
  git commit -am "My first run"       # so that there is something to go back to
  dvc exp run -n k64 -S train.k=64    # another sparsity: tune and all after it run again; then: make experiments
  git checkout HEAD params.yaml dvc.lock reports/summary.json && dvc checkout    # and back

For texts or vectors of your own, see README.md, "Recipes".
endef
define NO_NAME

git has no name for you yet, and dvc exp run needs one:
  git config --global user.name "Your Name" && git config --global user.email you@example.org
endef
export WRONG_PYTHON NEXT NO_NAME

.PHONY: all help setup run test check lint types tests ui experiments serve dashboard figures clean

# In a fresh clone dvc.lock says that track is up to date, but its MLflow is empty; tracking again adds nothing.
all: setup ## everything: environment, model, text, SAEs, report (18 to 20 minutes on 2 cores); plain `make` does this
	dvc repro
	dvc repro --quiet --force --single-item track
	@python -c '$(VERDICT)'
	@echo "$$NEXT"
	@git config user.email > /dev/null && git config user.name > /dev/null || echo "$$NO_NAME"

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "  PYTHON=python3.12 chooses a Python for setup; LAYER=9 goes with serve, experiments and figures, PORT=8000 with serve."

setup: .venv/installed ## the environment .venv, with what requirements.txt pins (some minutes)

# pip would compile the packages with one process; compileall takes all cores. Some of their files are for other Pythons.
.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ($(SUPPORTED)))' 2> /dev/null \
		|| { echo "$$WRONG_PYTHON" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing the packages of requirements.txt into .venv. This takes some minutes."
	@$(call showing,installing,$(BIN)/pip install --quiet --disable-pip-version-check --no-compile \
		--requirement requirements.txt)
	@echo "Compiling the packages, on all cores, so that the first run need not."
	@$(call showing,compiling,$(BIN)/python -m compileall -qq -j 0 .venv/lib; $(BIN)/python -c '$(COMPILE)')
	touch $@

# RECIPE=recipes/sentences.yaml, and WORDS='-S train.k=64' for what goes over it
run: setup ## a recipe, that is a YAML file of changes to params.yaml, e.g. RECIPE=recipes/sentences.yaml
	@python -m src.run $(RECIPE) $(WORDS)

# Two processes of tests, a file each at a time, in the order of tests/conftest.py; types are checked meanwhile.
test: lint ## lint, types and all tests (15 to 20 minutes on 2 cores)
	$(MAKE) --jobs 2 types tests

check: lint types ## lint and types alone

lint: setup ## ruff and its formatter
	ruff check .
	ruff format --check .

types: setup ## pyright
	pyright

tests: setup ## all tests, without lint and types
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

ui: setup ## the runs, in MLflow; it prints the address
	python -m src.ui

experiments: setup ## all experiments beside each other, with the columns that matter
	@dvc exp show --drop '.*' --keep '$(COLUMNS)|$(OF_LAYER)'

serve: setup ## which latents a text activates, on http://127.0.0.1:8000
	python -m src.serve data/sae/$(LAYER) "" "" "" $(PORT)

dashboard: setup ## explore what is on disk, on http://127.0.0.1:8501
	python -m src.dashboard

figures: setup ## the pictures of the docs, taken anew from this run; needs Chromium
	python -m benchmarks.figures $(LAYER)

clean: ## remove unfinished work and the caches of tools; results stay
	rm -rf .scratch dvc_plots .pytest_cache .ruff_cache
