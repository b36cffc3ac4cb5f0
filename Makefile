# make demo   venv, pinned install, export, TensorRT build, parity, an answer about a clip
# make test   the tests that fit a quarter of an hour;  make test-slow  the rest;  both in WORKERS processes;  make test-gpu  those that need an NVIDIA GPU
# make cpp    the C++ runtime (runtime/cpp), into build/cpp
# make docs   the documentation, into build/site;  make lint   ruff and mypy;  make bench  the tables of benchmarks/results
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
BUNDLE := bundles/llava-ov
CLIP   := export/demo/clips/shapes.mp4
QUESTION := which shape appears last ?
WORKERS := 2

.PHONY: demo test test-slow test-gpu lint docs bench cpp cpp-packages clean

demo: $(VENV)/.installed
	$(PY) -m export --model llava-ov --out $(BUNDLE) --force
	$(PY) -m runtime build $(BUNDLE) --backend tensorrt-rtx
	$(PY) -m runtime parity $(BUNDLE) --backend onnx
	$(PY) -m runtime run $(BUNDLE) $(CLIP) "$(QUESTION)"

test: $(VENV)/.installed
	$(PY) -m pytest -m "not slow and not gpu" -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.installed
	$(PY) -m pytest -m "slow and not gpu" -n $(WORKERS) --dist loadfile

test-gpu: $(VENV)/.installed
	$(PY) -m pytest -m gpu

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

cpp: cpp-packages
	cmake -S runtime/cpp -B build/cpp -G Ninja
	cmake --build build/cpp

cpp-packages:
	runtime/cpp/install-packages.sh

bench: $(VENV)/.installed
	$(PY) benchmarks/run_all.py

clean:
	rm -rf $(VENV) bundles build *.egg-info

# Installed again when what it depends on changes; torch comes first because every other package accepts it then.
$(VENV)/.installed: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[export,runtime,rtx,openvino,serve,batch,ray,plot,docs,test]"
	touch $@
