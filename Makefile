# Everything a person needs to type. PYTHON is any Python from 3.10 on; TORCH pins torch, for instance to a CPU build.
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
BIN := $(VENV)/bin
# CIFAR is a folder with CIFAR-10, for the benchmarks that need it; BENCHMARK is passed on to them, for instance --toy.
CIFAR ?= data
DEMO ?= natural,pgd_at,trades,frl,frl_remargin,ard,rslad,absld,ham
BENCHMARK ?=
BENCHMARK_VENV ?= .venv-benchmark
BENCHMARK_BIN := $(BENCHMARK_VENV)/bin

.PHONY: help demo test lint types benchmark clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   install into $(VENV), then train, attack and tabulate nine methods on the embedded digits"
	@echo "make test   install into $(VENV), then run the whole test suite"
	@echo "make lint   ruff;  make types   mypy --strict"
	@echo "make benchmark   into $(BENCHMARK_VENV): parity and speed against other implementations; CIFAR=DIR for ResNet-18"

# The stamp is older than setup.cfg when dependencies may have changed.
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(TORCH),$(BIN)/python -m pip install --quiet $(TORCH))
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

demo: $(VENV)/installed
	$(BIN)/bench run --methods $(DEMO)
	@echo "Outcomes, weights and logs are under results/. Figures: $(BIN)/bench report --figures results/figures"

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses auto

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/python -m mypy

# torchattacks lies in a folder of its own, which a .pth file puts last on the path: see its requirements file.
$(BENCHMARK_VENV)/installed: setup.cfg pyproject.toml benchmarks/requirements.txt benchmarks/requirements-apart.txt
	$(PYTHON) -m venv $(BENCHMARK_VENV)
	$(BENCHMARK_BIN)/python -m pip install --quiet --upgrade pip
	$(if $(TORCH),$(BENCHMARK_BIN)/python -m pip install --quiet $(TORCH))
	$(BENCHMARK_BIN)/python -m pip install --quiet --editable . --requirement benchmarks/requirements.txt
	rm -rf $(BENCHMARK_VENV)/apart
	$(BENCHMARK_BIN)/python -m pip install --quiet --no-deps --target $(BENCHMARK_VENV)/apart \
		--requirement benchmarks/requirements-apart.txt
	echo "$(abspath $(BENCHMARK_VENV)/apart)" \
		> "$$($(BENCHMARK_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/apart.pth"
	@touch $@

benchmark: $(BENCHMARK_VENV)/installed
	$(BENCHMARK_BIN)/python -m benchmarks --data-dir $(CIFAR) $(BENCHMARK)

clean:
	rm -rf $(VENV) $(BENCHMARK_VENV) build *.egg-info
