# Everything a person needs to type. PYTHON is any Python from 3.10 on; TORCH pins torch, for instance to a CPU build.
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
BIN := $(VENV)/bin

.PHONY: help demo test lint types clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   install into $(VENV), then train, attack and tabulate all methods on the embedded digits"
	@echo "make test   install into $(VENV), then run the whole test suite"
	@echo "make lint   ruff;  make types   mypy --strict"

# The stamp is older than setup.cfg when dependencies may have changed.
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(TORCH),$(BIN)/python -m pip install --quiet $(TORCH))
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

demo: $(VENV)/installed
	$(BIN)/bench run --autoattack-limit 200
	@echo "Outcomes, weights and logs are under results/. Figures: $(BIN)/bench report --figures results/figures"

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) build *.egg-info
