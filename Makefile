# Everything runs in .venv, made on first use. PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint install

demo: .venv/train.stamp  ## ResNet-110 with stochastic depth on the embedded digits
	$(BIN)/python -m experiments.run --config=configs/resnet110_sd.py:digits

test: lint  ## What CI runs
	$(BIN)/python -m pytest -m "not slow"

test-all: lint  ## With everything long
	$(BIN)/python -m pytest

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: .venv/test.stamp

.venv/train.stamp: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train]"
	touch $@

.venv/test.stamp: .venv/train.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
