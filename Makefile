# Everything that a fresh machine with Python 3.11 and make needs: `make demo`, `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed.stamp
OUT    ?= runs/demo

.PHONY: demo test check bench docs clean

demo: $(STAMP)
	$(BIN)/stillfit demo --out $(OUT)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST)

check: $(STAMP)
	$(BIN)/ruff format --check src tests benchmarks docs/*.py examples/*.py
	$(BIN)/ruff check src tests benchmarks docs/*.py examples/*.py
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_tiers.py

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py $(BENCH)

docs: $(STAMP)
	$(BIN)/python -m stillfit.apps.cli_docs
	$(BIN)/python docs/make_validation.py

# Installed once; again only when what is asked for changed. torch first, so that nothing else
# can ask for another build of it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "stillfit needs Python 3.11 or newer, this is %d.%d; set PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
