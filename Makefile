# Two commands on a fresh machine with Python 3.11 and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := demo-out

PIP := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
INSTALL := $(PIP) --editable

# tests/conftest.py sets the number of workers, and which files come first: those that take longest
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

# uv installs no byte code: without a cache of it, each of some thousand processes would compile dask or torch anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow check docs bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(INSTALL) '.'
	touch $@

# with torch, for exporting: about 8 GB. nnU-Net's networks come without what they ask for, an older timm, whose warnings
# about the newest torch fail tests; its U-Nets need neither
$(VENV)/developed: $(VENV)/installed
	$(INSTALL) '.[dev,export]'
	$(PIP) --no-deps dynamic-network-architectures
	touch $@

demo: $(VENV)/installed
	$(BIN)/segpipe run --config configs/crops.toml --input examples/scenes --model examples/crops.onnx --output $(OUT)
	$(BIN)/python examples/compare.py $(OUT)
	@echo "masks, records and areas.csv are in $(OUT)/: open $(OUT)/morava.tif in QGIS"

test: $(VENV)/developed
	$(BIN)/pytest -m "not slow" $(PARALLEL)

test-slow: $(VENV)/developed
	$(BIN)/pytest -m slow $(PARALLEL)

check: $(VENV)/developed docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports --no-cache

# the site, in site/: open site/index.html
docs: $(VENV)/developed
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/developed
	$(BIN)/python benchmarks/limit.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/many.py
	$(BIN)/python benchmarks/seams.py
	$(BIN)/python benchmarks/precision.py

clean:
	rm -rf $(VENV) $(OUT) site segpipe-out .hypothesis .mypy_cache .pytest_cache .ruff_cache benchmarks/scratch *.egg-info
