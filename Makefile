# `make quickstart`, `make test` and `make docs` each do all set-up themselves: a virtual environment in .make-venv, with
# the package built as a wheel from a clean copy of this folder (building in place would leave stale modules for later
# wheels).
# A contributor's own environment, with an editable install, is .venv: the two never share one.
PYTHON ?= python3
VENV := .make-venv
BIN := $(abspath $(VENV))/bin
COMMITTED := recipes/quickstart/results
SOURCES := pyproject.toml README.md LICENSE src merge_methods train eval

.PHONY: quickstart methods test docs results evidence lint format clean

quickstart: $(VENV)/.installed
	$(BIN)/ordermerge run recipes/quickstart/experiment.yml

# The table in docs/methods_of_the_field.md: the quickstart's orders by all methods, against the uniform soup.
methods: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/ordermerge run recipes/quickstart/methods.yml
	mkdir -p $(COMMITTED)/methods
	cd runs/quickstart_methods/eval && $(BIN)/ordermerge compare */ --reference uniform_soup \
	  --json ../../../$(COMMITTED)/methods/comparison.json

# Two workers of one thread each: threads that share cores wait for each other.
test: $(VENV)/.installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The documentation as a site, in site/; a link that leads nowhere is an error.
docs: $(VENV)/.environment
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The committed results: what README.md and docs/ quote. The study takes hours; what is finished of it is kept.
results: quickstart
	rm -rf $(COMMITTED)/quickstart && mkdir -p $(COMMITTED)/quickstart/eval
	cp -r runs/quickstart/report.md runs/quickstart/experiment.yml runs/quickstart/figures $(COMMITTED)/quickstart
	cp runs/quickstart/eval/comparison.json $(COMMITTED)/quickstart/eval
	sed -i 's#$(CURDIR)/##g' $(COMMITTED)/quickstart/report.md $(COMMITTED)/quickstart/experiment.yml
	$(BIN)/ordermerge curve runs/quickstart
	mkdir -p $(COMMITTED)/statistics
	cp runs/quickstart/curve/weighted_average/curve.json $(COMMITTED)/statistics/
	$(BIN)/ordermerge noise runs/quickstart --difference 0.01 --difference 0.02 --difference 0.05 \
	  --json $(COMMITTED)/statistics/noise.json
	cd runs/quickstart/eval && $(BIN)/ordermerge compare parameter_selection tail --reference weighted_average \
	  --json ../../../$(COMMITTED)/statistics/comparison.json
	$(BIN)/python recipes/quickstart/make_data.py
	$(BIN)/python studies/families.py studies/price
	$(BIN)/python studies/answers.py studies/price

# Every table and figure of docs/evidence.md, from the committed results alone.
evidence: $(VENV)/.installed
	for study in studies/*/questions.yml; do $(BIN)/python studies/answers.py $$(dirname $$study); done
	for study in studies/*/answer.py; do $(BIN)/python $$study; done
	$(BIN)/python studies/decision.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && $(BIN)/mypy --config-file ../pyproject.toml -p ordermerge

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site *.egg-info

$(VENV)/.installed: $(VENV)/.environment $(shell find $(SOURCES) -type f -not -name '*.pyc')
	rm -rf $(VENV)/source && mkdir $(VENV)/source && cp -R $(SOURCES) $(VENV)/source
	$(BIN)/python -m build --wheel --outdir $(VENV)/source/dist $(VENV)/source
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall $(VENV)/source/dist/*.whl
	touch $@

# The dependencies change rarely and take minutes: they are installed apart from the package.
$(VENV)/.environment: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ordermerge needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/requirements.py pyproject.toml dev docs > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement $(VENV)/requirements.txt
	touch $@
