# Every target does its own set-up: on a fresh machine `make demo` or `make test` needs only Python >= 3.11 and make.
#   make demo    train on real digits and the swiss roll, sample, compare; results in runs/demo/
#   make test    the tests, on WORKERS processes of one thread each
#   make test-plain   the tests of what computes, as on a processor without wide vector units
#   make wheel   build wheel and archive twice to the same bytes, check them, use the wheel by itself, without any extra
#   make lint    ruff (rules and format) and mypy --strict on the package
#   make mutants planted errors, each of which its tests must find; ARGS=--day for the ten of the day
#   make fuzz    the public surface and the file readers under whatever comes, for a minute; ARGS="--minutes 10"
#   make bench   the benchmarks
#   make explorer   the page of `scoresde explore` from its sources, checked, and driven in a headless browser; needs npm
#   make docs    the site, from docs/ and the docstrings, into build/site; a warning or a link to nowhere fails
#   make shots   pictures of the site's pages in a headless browser, in build/shots; what overflows or fails is named; needs npm
#   make race    every sampler of the other libraries beside ours; the report in runs/race/
#   make clean   remove the environment, the caches and the builds; runs/ stays
# ARGS is passed on: make demo ARGS=--quick, make test ARGS="-k schedules -x".

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := test
.PHONY: demo test test-plain wheel lint mutants fuzz bench race explorer docs shots clean

demo: $(READY)
	$(BIN)/python examples/demo.py $(ARGS)

# Stealing keeps neighbouring tests, and so their shared fixtures, on one worker.
test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# Matrix kernels and vectorised exponentials round differently with the processor's vector units. What starts processes
# or exports graphs sees none.
NO_SUMS := cli data package plots reference
COMPUTING = $(filter-out $(NO_SUMS:%=tests/%/),$(wildcard tests/*/ tests/test_*.py))
NOT_PLAIN := travel or export or wrapped

test-plain: $(READY)
	MKL_ENABLE_INSTRUCTIONS=SSE4_2 ATEN_CPU_CAPABILITY=default \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -k "not ($(NOT_PLAIN))" $(COMPUTING) $(ARGS)

wheel: $(READY)
	$(BIN)/python tools/try_wheel.py

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

mutants: $(READY)
	$(BIN)/python tools/mutants.py --workers $(WORKERS) $(ARGS)

fuzz: $(READY)
	$(BIN)/python tools/fuzz.py $(ARGS)

bench: $(READY)
	$(BIN)/python benchmarks/run.py $(ARGS)

race: $(READY)
	$(BIN)/python benchmarks/race $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -E -b html -d build/doctrees docs build/site $(ARGS)
	$(BIN)/python tools/check_site.py
	$(BIN)/python tools/check_notebooks.py build/site
	@echo "the site is in build/site, $$(du -sm build/site | cut -f1) MB; open build/site/index.html"

# Of a site that is built: ten pages and one with formulas, wide and narrow, light and dark.
shots: explorer/node_modules/.ready
	node explorer/shots.mjs $(ARGS)

$(VENV)/.docs: $(READY)
	$(PIP) install -c constraints.txt -e '.[docs]' --no-build-isolation
	@touch $@

# The page is kept in the repository, so that nobody needs node to use it: what changes it runs `npm run build` there.
explorer: $(READY) explorer/node_modules/.ready
	cd explorer && npm run --silent check
	$(BIN)/python -m pytest tests/explorer $(ARGS)

explorer/node_modules/.ready: explorer/package.json explorer/package-lock.json
	cd explorer && npm ci --no-fund --no-audit
	@touch $@

# The build backends are pinned and installed first: the editable install, and nflows, which has no wheel, build without
# isolation, from the pins.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scoresde needs Python >= 3.11, got %d.%d; choose another with make PYTHON=/path/to/python" % sys.version_info[:2])'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt hatchling editables setuptools
	$(PIP) install --no-build-isolation -c constraints.txt -e '.[all,dev]'
	@touch $@

clean:
	rm -rf $(VENV) explorer/node_modules build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
