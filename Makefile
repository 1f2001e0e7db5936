# Everything that must hold before a change lands; CI runs the same.
.PHONY: check format lint types test docs
PYTHON ?= python
# test files at once, each on one thread: more would wait for each other
JOBS ?= 2

check: lint types test docs

format:
	$(PYTHON) -m ruff format . && $(PYTHON) -m ruff check --fix .

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

test:
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 $(PYTHON) -m pytest --numprocesses $(JOBS) --dist loadfile

docs:
	$(PYTHON) -m mkdocs build --strict --quiet --site-dir site
