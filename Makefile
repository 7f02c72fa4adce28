# Two commands for users: `make sudoku` and `make test`. ARGS are passed on.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help sudoku maze test test-slow test-long test-matrix test-browser lint bench docs audit mutants clean

help:
	@echo "make sudoku   train an Attractor Model on 9x9 Sudoku and evaluate it"
	@echo "make maze     the same on 15x15 mazes"
	@echo "make test     run the tests, but for the slow ones"
	@echo "make test-slow    slow tests, in a quarter of an hour; test-long: those that take longer"
	@echo "make test-matrix  the tests with other kernels"
	@echo "make test-browser the page of the service, in the Chromium of the system"
	@echo "make lint     formatting, lint, types and import rules"
	@echo "make bench    time and memory, side by side"
	@echo "make docs     build the documentation site, and run its gallery in a few minutes"
	@echo "make audit    known vulnerabilities of the pinned packages; asks PyPI"
	@echo "make mutants  changes to the code that no test notices, in a sample; takes half an hour"
	@echo "make clean    remove .venv"
	@echo "ARGS=... is passed on, as in: make sudoku ARGS='--preset tiny'"

sudoku: .venv/user
	$(BIN)/python -m tasks.sudoku $(ARGS)

maze: .venv/user
	$(BIN)/python -m tasks.maze $(ARGS)

# One thread per worker: more threads than cores slow each other down. Each worker takes tests that
# follow one another, so that a fixture of a module is made once, and ends with those of the other.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(ARGS)

test-slow: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow and not long and not gpu and not benchmark" $(ARGS)

test-long: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "long and not gpu and not benchmark" $(ARGS)

test-matrix: .venv/dev
	$(BIN)/python tests/support/matrix.py -n 2 $(ARGS)

# Fast and slow tests alike; without a Chromium they are skipped.
test-browser: .venv/browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m "" tests/tasks/serving/test_page.py \
		tests/tasks/serving/test_command.py::test_the_page_in_a_browser $(ARGS)

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: .venv/dev
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -m pytest -q -s -m benchmark -p no:cacheprovider \
		--ignore benchmarks/jax_peers.py benchmarks $(ARGS)

# Warnings are errors; the pages land in site/.
docs: .venv/torch pyproject.toml
	$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# In an environment of its own. Strict, since a package that could not be looked up is not safe.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt

# In an environment of its own as well, which finds the packages of .venv besides.
mutants: .venv/dev
	$(PYTHON) -m venv build/mutmut
	build/mutmut/bin/python -m pip install --quiet --disable-pip-version-check \
		mutmut==3.8.1 libcst==1.9.0 coverage==7.17.5
	OMP_NUM_THREADS=1 PYTHONPATH=.:$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		build/mutmut/bin/python tests/support/mutants.py $(ARGS)

clean:
	rm -rf .venv

# The exact torch first: the others then find it in place.
.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

.venv/user: .venv/torch pyproject.toml
	$(PIP) -e '.[tasks]'
	@touch $@

.venv/dev: .venv/torch pyproject.toml
	$(PIP) -e '.[dev]'
	@touch $@ .venv/user

.venv/browser: .venv/dev
	$(PIP) -e '.[browser]'
	@touch $@
