# `make check` holds before a change lands; `make check-all` adds what is slow, before a release.
.PHONY: check check-all format lint types test test-all coverage docs dist
PYTHON ?= python
# tests at once, each on one thread: more would wait for each other
JOBS ?= 2
THREADS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1
PYTEST := $(THREADS) $(PYTHON) -m pytest --numprocesses $(JOBS) --dist worksteal

check: lint types test docs

check-all: lint types test-all docs

format:
	$(PYTHON) -m ruff format . && $(PYTHON) -m ruff check --fix .

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTEST) -m "not slow"

test-all:
	$(PYTEST)

coverage: # needs pytest-cov
	$(PYTEST) -m "not slow" --cov --cov-report term:skip-covered --cov-fail-under 95

docs:
	$(PYTHON) -m mkdocs build --strict --quiet --site-dir site

dist:
	rm -rf dist && $(PYTHON) -m build && $(PYTHON) -m twine check --strict dist/*
