# make train    set up, then train on the miniature world: minutes on a laptop
# make test     set up, then run the whole suite

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test slow lint clean

train: $(VENV)/ready
	$(RUN) train.py

test: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest

slow: $(VENV)/ready
	$(RUN) -m pytest -m slow

lint: $(VENV)/ready
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Installed again when what is installed changes; a set-up that was interrupted leaves no `ready` and starts afresh.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) outputs
