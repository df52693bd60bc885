# make demo      runs the airfoil campaign            make test   checks and tests everything
# make compare-smoke   runs every method on every problem for a few queries
# make mutants   breaks the sampler line by line and shows which test notices (about ten minutes)
# All set up .venv first, if needed, with the versions that were tested together.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
export OMP_NUM_THREADS = 1
BIN := .venv/bin

.PHONY: demo test check compare-smoke mutants install clean

demo: install
	@$(BIN)/python -m experiments.demo

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile

compare-smoke: install
	$(BIN)/bbo compare run experiments/suites/smoke.yaml
	$(BIN)/bbo compare report experiments/suites/smoke.yaml

mutants: install
	$(BIN)/python tests/mutants.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv; a minute or two the first time."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[airfoil,images,figures,compare,dev]'
	@touch $@

clean:
	rm -rf .venv runs
