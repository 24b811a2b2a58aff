# `make quickstart` and `make test` each do all set-up themselves: a virtual environment in .make-venv, with the package
# built as a wheel from a clean copy of this folder (building in place would leave stale modules for later wheels).
# A contributor's own environment, with an editable install, is .venv: the two never share one.
PYTHON ?= python3
VENV := .make-venv
BIN := $(abspath $(VENV))/bin
SOURCES := pyproject.toml README.md LICENSE src merge_methods train eval

.PHONY: quickstart test results lint format clean

quickstart: $(VENV)/.installed
	$(BIN)/ordermerge run recipes/quickstart/experiment.yml

# Two workers of one thread each: threads that share cores wait for each other.
test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The committed results: what README.md quotes.
results: quickstart
	$(BIN)/ordermerge run recipes/quickstart/longer.yml
	for run in quickstart quickstart_longer; do \
	  rm -rf recipes/quickstart/results/$$run && mkdir -p recipes/quickstart/results/$$run && \
	  cp -r runs/$$run/report.md runs/$$run/figures recipes/quickstart/results/$$run && rm recipes/quickstart/results/$$run/figures/*.svg || exit 1; done
	cp runs/quickstart/eval/comparison.json recipes/quickstart/results/quickstart/
	$(BIN)/ordermerge curve runs/quickstart
	mkdir -p recipes/quickstart/results/statistics
	cp runs/quickstart/curve/weighted_average/curve.json recipes/quickstart/results/statistics/
	$(BIN)/ordermerge noise runs/quickstart --difference 0.01 --difference 0.02 --difference 0.05 \
	  --json recipes/quickstart/results/statistics/noise.json
	cd runs/quickstart/eval && $(BIN)/ordermerge compare parameter_selection dare_ties --reference weighted_average \
	  --json ../../../recipes/quickstart/results/statistics/comparison.json

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && $(BIN)/mypy --config-file ../pyproject.toml -p ordermerge

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.installed: $(VENV)/.environment $(shell find $(SOURCES) -type f -not -name '*.pyc')
	rm -rf $(VENV)/source && mkdir $(VENV)/source && cp -R $(SOURCES) $(VENV)/source
	$(BIN)/python -m build --quiet --wheel --outdir $(VENV)/source/dist $(VENV)/source
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall $(VENV)/source/dist/*.whl
	touch $@

# The dependencies change rarely and take minutes: they are installed apart from the package.
$(VENV)/.environment: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ordermerge needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/requirements.py pyproject.toml dev > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement $(VENV)/requirements.txt
	touch $@
