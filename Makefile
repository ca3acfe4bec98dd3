# Everything runs in .venv, made on first use. PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all test-faults test-min test-max test-colab test-devices test-onnx \
	device-programs docs lint install peers

# What tests need besides the package, without linters and site.
RUNNERS := pytest pytest-xdist hypothesis nbclient ipykernel

demo: .venv/train.stamp  ## ResNet-110 with stochastic depth on the embedded digits
	$(BIN)/python -m experiments.run --config=configs/resnet110_sd.py:digits \
		--workdir=runs/demo

test: lint $(if $(PEERS),peers)  ## What CI runs, with PEERS=1
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# Faults first, so that the longest files do not come last.
test-all: lint $(if $(PEERS),peers)  ## With everything long
	RN_JAX_FAULTS_JSON=results/faults.json $(BIN)/python -m pytest -n 2 --dist loadfile \
		--no-loadscope-reorder tests/faults tests
	$(MAKE) test-onnx

test-faults: .venv/peers.stamp  ## Faults of every kind, counted in results/faults.json
	RN_JAX_FAULTS_JSON=results/faults.json $(BIN)/python -m pytest -n 2 --dist loadfile tests/faults

# `make test` and the notebooks with the minimum supported versions, or with Colab's JAX
# and Flax, where PYTHON=python3.13 chooses Colab's Python. Warnings are not errors here:
# old releases run with newer dependencies. The test left out counts bytes in JAX's
# program, which has another form in older versions of JAX.
test-min test-colab: test-%: .venv-%/test.stamp
	.venv-$*/bin/python -m pytest -n 2 --dist loadfile -W default -m "not slow" \
		--deselect tests/test_scaling.py::test_closed_forms
	.venv-$*/bin/python -m pytest -n 2 -W default -m slow -k runs tests/test_notebooks.py

# The environment is made anew each time: the newest versions change.
test-max:  ## `make test` with the newest versions; PYTHON=python3.13 chooses
	$(PYTHON) -m venv --clear .venv-max
	.venv-max/bin/python -m pip install --quiet --editable ".[imagenet]" $(RUNNERS)
	.venv-max/bin/python -m pytest -n 2 --dist loadfile -m "not slow"
	.venv-max/bin/python -m pytest -n 2 -m slow -k runs tests/test_notebooks.py

# The converter needs an older Orbax than the other tests have.
test-onnx: .venv-onnx/stamp  ## Every network in ONNX Runtime
	.venv-onnx/bin/python -m pytest -W default tests/interop/test_onnx.py \
		tests/experiments/test_export.py

# The training steps that XLA compiles for absent devices. Each compiler has an
# environment of its own, and none of CUDA's libraries is needed.
device-programs: .venv-h200/stamp .venv-v5e/stamp .venv/test.stamp  ## Tables of compiled steps
	.venv-h200/bin/python -m benchmarks.device_program --device=h200
	.venv-h200/bin/python -m benchmarks.device_program --device=h200 --model=resnet110 --scan_unroll=1
	.venv-h200/bin/python -m benchmarks.device_program --device=h200 --model=resnet110 --scan_unroll=1 \
		--conv_gradient=xla --last_survival=0.5
	.venv-v5e/bin/python -m benchmarks.device_program --device=v5e
	.venv-v5e/bin/python -m benchmarks.device_program --device=v5e --model=resnet20 --scan_unroll=9 \
		--dtype=float32
	.venv-v5e/bin/python -m benchmarks.device_program --device=v5e --model=resnet20 \
		--conv_gradient=xla --dtype=float32 --last_survival=0.5
	$(BIN)/python -m docs.generate

test-devices: .venv-h200/stamp .venv-v5e/stamp  ## Compile every network for a GPU and a TPU
	.venv-h200/bin/python -m pytest -W default tests/devices --device=h200
	.venv-v5e/bin/python -m pytest -W default tests/devices --device=v5e

docs: .venv/test.stamp  ## The documentation as a site, in site/, with notebooks that were run
	RUN_NOTEBOOKS=1 $(BIN)/python -m mkdocs build --strict

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/test.stamp

peers: .venv/peers.stamp  ## PyTorch and other libraries that tests and benchmarks compare with

.venv/train.stamp: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train]"
	touch $@

.venv/test.stamp: .venv/train.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

.venv-min/test.stamp .venv-colab/test.stamp: .venv-%/test.stamp: setup.cfg \
		pyproject.toml constraints-%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --constraint constraints-$*.txt \
		--editable ".[imagenet]" $(RUNNERS)
	touch $@

.venv-h200/stamp .venv-v5e/stamp: %/stamp: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[train]" \
		pytest
	$*/bin/python -m pip install --quiet --no-deps $(COMPILER$*)
	touch $@

.venv-onnx/stamp: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-onnx
	.venv-onnx/bin/python -m pip install --quiet --editable ".[train,onnx]" $(RUNNERS)
	touch $@

COMPILER.venv-h200 := jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2
COMPILER.venv-v5e := libtpu==0.0.42.1

.venv/peers.stamp: .venv/test.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		torch==2.13.0 torchvision==0.28.0 timm==1.0.31 simplejpeg
	touch $@
