# All targets need Python 3.11 or newer and make. They install what they use into
# virtual environments in this folder.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# Tests that need the library, its dependencies and the small extras only.
LIBRARY_TESTS := tca_jax $(patsubst %,tests/test_%.py,attention bucketing checkpoint checks covariance embedders \
  growth heads layers library_battery masking memory node_kriging objectives read_outs relative retreever retrieval \
  serving sharding statistics storage tree)
# Options of pytest-xdist, the plugin that runs tests in parallel.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=worksteal

.PHONY: install demo test test-slow test-oldest lint types docs clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-dev.txt setup.py tca_jax/__init__.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tca_jax needs Python 3.11 or newer, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -r requirements.txt -r requirements-dev.txt
	$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

# Huge pages reduce the number of page faults on Linux. Other systems ignore the
# variable.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: install
	$(BIN)/python -m experiments.demo

test: install
	$(BIN)/python -m pytest -m "not slow" --durations=15 $(PARALLEL)

test-slow: install
	$(BIN)/python -m pytest -m slow --durations=15

# On Python 3.13 the oldest NumPy has no wheel: make test-oldest PYTHON=python3.11
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -m "not slow" $(PARALLEL) $(LIBRARY_TESTS)

# The package's metadata has the bounds of setup.py.
$(OLDEST)/installed: requirements-dev.txt setup.py
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP_INSTALL) -c requirements-dev.txt setuptools wheel
	$(OLDEST)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	$(OLDEST)/bin/python -c 'from importlib import metadata; \
	  print(*(r.replace(">=", "==") for r in metadata.requires("tca-jax") if "extra ==" not in r), sep="\n")' \
	  > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python $(PIP_INSTALL) -c requirements-dev.txt -r $(OLDEST)/oldest.txt \
	  flatbuffers hypothesis orbax-checkpoint==0.12.0 pytest pytest-xdist
	$(OLDEST)/bin/python -m pip check
	cp $(OLDEST)/oldest.txt $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: install
	$(BIN)/pyrefly check

# Executes the tutorials. Warnings are errors.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --fresh-env --quiet -b html docs docs/_build/html

$(VENV)/installed-docs: $(VENV)/installed requirements-docs.txt
	$(BIN)/python $(PIP_INSTALL) -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) .compilations runs build dist docs/_build *.egg-info
