# SPDX-License-Identifier: Apache-2.0
# Every target makes .venv on first use, builds in place, and runs. Second calls skip straight to
# the run: stamp files in .venv remember what is installed, and source dates say when to rebuild.
#
#   make train                     both streets recipes, side by side, with the report
#   make test lint                 what CI runs (.ci/run)
#   make setup PYTHON=python3.12   another interpreter;  UV= keeps to pip where uv is installed
#   make setup TORCH=torch==2.12.0 another torch, say one built for your GPU

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
UV ?= $(shell command -v uv)
CONSTRAINTS ?= constraints.txt
TORCH ?= $(shell grep -E '^torch[=<>~]' $(CONSTRAINTS))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
    $$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    && { echo $$p; break; }; done)

NATIVE := $(shell find csrc -type f 2>/dev/null)
DRIVER := tests/csrc/sanitize_driver.cpp
CPP := $(filter %.cpp %.h %.cu %.cuh,$(NATIVE)) $(wildcard tests/csrc/*.cpp tests/csrc/*.h tests/pretend/*.cpp)
PINS := $(VENV)/constraints.txt
RUN := $(BIN)/python -m
TEST := OMP_NUM_THREADS=1 $(RUN) pytest -n 2

# torch goes in by pip alone: pip reads pip.conf (a local CPU wheel, a company index), uv does not.
# Everything else may come by uv, and by pip again should uv fail.
PIP := $(RUN) pip install --quiet --disable-pip-version-check
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python $(1) ||) $(PIP) $(1)

# `$(call REQUIRE,expression)`: prints the requirements that pyproject.toml lists there, one a line
REQUIRE = $(BIN)/python -c 'import pathlib, tomllib; \
    p = tomllib.loads(pathlib.Path("pyproject.toml").read_text()); print(*$(1), sep="\n")'

.PHONY: help setup train ablation bench test test-oldest test-all test-tiles faults format clean \
    sanitize sanitize-build lint lint-format lint-ruff lint-types lint-clang lint-spelling \
    fuzz soak audit browser dist docs docs-serve

help:
	@sed -n 's/^# \{0,1\}//; 2,8p' Makefile
	@echo "targets: setup train ablation bench test test-oldest test-all test-tiles faults sanitize lint" \
	    "format clean fuzz soak audit browser dist docs docs-serve"

# ---- environment and build ----

$(VENV)/.created:
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    echo "making $(VENV)"; \
	    if [ -n "$(PYTHON)" ]; then $(PYTHON) -m venv --clear $(VENV); \
	    elif [ -n "$(UV)" ]; then $(UV) venv --quiet --seed --python '>=3.11' $(VENV); \
	    else echo "Python 3.11 or newer with venv is needed (Debian: apt install python3-venv);" \
	        "name one with PYTHON=..." >&2; exit 1; fi; }
	@touch $@

# The installed torch is written into the pins, so that nothing can bring another one in.
$(VENV)/.dependencies: $(VENV)/.created pyproject.toml $(CONSTRAINTS)
	@echo "installing $(TORCH) and what training needs into $(VENV) (a minute or two)"
	@$(PIP) '$(TORCH)'
	@$(RUN) bench.pins $(CONSTRAINTS) >$(PINS)
	@$(call REQUIRE,p["build-system"]["requires"] + p["project"]["dependencies"]) \
	    >$(VENV)/requirements.txt
	@$(call INSTALL,-c $(PINS) -r $(VENV)/requirements.txt)
	@touch $@

$(VENV)/.dev: $(VENV)/.dependencies
	@echo "installing the test and lint tools"
	@$(call REQUIRE,p["project"]["optional-dependencies"]["dev"]) >$(VENV)/requirements-dev.txt
	@$(call INSTALL,-c $(PINS) -r $(VENV)/requirements-dev.txt)
	@touch $@

$(VENV)/.docs: $(VENV)/.dependencies
	@echo "installing MkDocs"
	@$(call REQUIRE,p["project"]["optional-dependencies"]["docs"]) >$(VENV)/requirements-docs.txt
	@$(call INSTALL,-c $(PINS) -r $(VENV)/requirements-docs.txt)
	@touch $@

# An edit in csrc/ is rebuilt in place, only what changed; packaging changes install afresh.
$(VENV)/.built: $(VENV)/.dependencies setup.py $(NATIVE)
	@echo "building pipa_fast in place"
	@if [ -z "$(filter-out $(NATIVE),$?)" ] && ls pipa_fast/_C*.so >/dev/null 2>&1; then \
	    $(BIN)/python setup.py --quiet build_ext --inplace; \
	else $(PIP) --no-build-isolation --no-deps -e .; fi
	@touch $@

setup: $(VENV)/.built

# ---- what a person runs ----

train: setup
	$(RUN) pipa_fast.train --config streets_source $(ARGS)
	$(RUN) pipa_fast.train --config streets_pipa --run.baseline runs/streets_source $(ARGS)
	$(RUN) pipa_fast.compare runs/streets_source runs/streets_pipa

ablation: setup
	$(RUN) bench.streets_ablation $(ARGS)

bench: setup
	$(RUN) bench $(ARGS)

# ---- documentation ----

# The variable keeps an advertisement for MkDocs' successors out of the output.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs

docs: $(VENV)/.docs
	$(MKDOCS) build --quiet
	@echo "build/site/index.html; with search: make docs-serve"

docs-serve: $(VENV)/.docs
	$(MKDOCS) serve

# ---- tests ----

test: setup $(VENV)/.dev
	$(TEST) -m "not slow" $(ARGS)

# With the oldest versions that pyproject.toml allows.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

test-all: setup $(VENV)/.dev
	$(TEST) -m "not tiles" $(ARGS)

test-tiles: setup $(VENV)/.dev
	$(TEST) -m tiles $(ARGS)

# Other cases each time; `make test` runs 2,000 that stay the same.
FUZZ ?= 100000
fuzz: setup $(VENV)/.dev
	$(TEST) tests/fuzz --fuzz $(FUZZ) --fuzz-anew $(ARGS)

# Processes killed at random moments, and the runs' ends compared: minutes.
faults: setup $(VENV)/.dev
	OMP_NUM_THREADS=1 $(RUN) tests.faults.kills $(ARGS)
	OMP_NUM_THREADS=1 $(RUN) tests.faults.restarts

# Reports in a real browser: one without a window, from npm, into build/browser. Elsewhere these tests
# are skipped, unless there is a Chromium already.
BROWSER := build/browser
UNPACK := const fs = require("fs"), zlib = require("zlib"), [from, to] = process.argv.slice(1); \
    fs.writeFileSync(to, zlib.brotliDecompressSync(fs.readFileSync(from)))

$(BROWSER)/chromium: | $(VENV)/.dev
	@echo "fetching a browser into $(BROWSER) (a minute)"
	@mkdir -p $(BROWSER)
	@$(call REQUIRE,p["project"]["optional-dependencies"]["browser"]) >$(BROWSER)/requirements.txt
	@$(call INSTALL,-c $(PINS) -r $(BROWSER)/requirements.txt)
	@npm install --no-save --prefix $(BROWSER) @sparticuz/chromium@147 >$(BROWSER)/npm.log 2>&1 \
	    || { cat $(BROWSER)/npm.log; exit 1; }
	@for name in al2023.tar chromium; do node -e '$(UNPACK)' \
	    $(BROWSER)/node_modules/@sparticuz/chromium/bin/$$name.br $(BROWSER)/$$name.new; done
	@tar -xf $(BROWSER)/al2023.tar.new -C $(BROWSER) && rm $(BROWSER)/al2023.tar.new
	@chmod +x $(BROWSER)/chromium.new && mv $(BROWSER)/chromium.new $@

browser: setup $(BROWSER)/chromium
	$(TEST) tests/evaluation/test_browser.py $(ARGS)

soak: setup
	OMP_NUM_THREADS=1 $(RUN) bench.soak --save $(ARGS)

# ---- sanitizers ----

# GCC's, whose runtimes Python is started with.
SANITIZE := build/sanitize
THREAD := -O1 -g -fsanitize=thread
MEMORY := -O1 -g -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all

$(SANITIZE)/driver-thread: FLAGS = $(THREAD)
$(SANITIZE)/driver-memory: FLAGS = $(MEMORY)
$(SANITIZE)/driver-static: FLAGS = -O2 -static
$(SANITIZE)/driver-%: $(DRIVER) $(NATIVE) Makefile
	@echo "building $@ (half a minute)"
	@mkdir -p $(@D)
	@$(CXX) -std=c++17 -Wall $(FLAGS) -pthread -Icsrc $(DRIVER) csrc/cpu/*.cpp -o $@

# In a folder of its own, with the package's Python files beside it.
sanitize-build: $(VENV)/.dev
	@echo "building $(SANITIZE)/lib (a minute or two)"
	@mkdir -p $(SANITIZE)
	@CFLAGS="$(MEMORY)" CXXFLAGS="$(MEMORY)" LDFLAGS="$(MEMORY)" $(BIN)/python setup.py --quiet \
	    build --build-lib $(SANITIZE)/lib --build-temp $(SANITIZE)/temp \
	    >$(SANITIZE)/build.log 2>&1 || { cat $(SANITIZE)/build.log; exit 1; }

# libstdc++ is loaded with the runtimes, which look for its functions before Python needs it.
# Leaks: CPython leaves objects to the end of the process, so only the driver is checked for them.
# capture=sys: a report goes straight to the terminal, as pytest ends with the process.
# Left out are tests of how much memory is in use, the driver's own, and nvcc, which is not ours.
sanitize: sanitize-build $(SANITIZE)/driver-thread $(SANITIZE)/driver-memory
	TSAN_OPTIONS=halt_on_error=1 $(SANITIZE)/driver-thread
	$(SANITIZE)/driver-memory
	LD_PRELOAD="$$(for name in asan ubsan stdc++; do \
	    $(CXX) -print-file-name=lib$$name.so; done | paste -sd:)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(SANITIZE)/lib:$(CURDIR) \
	$(TEST) -o pythonpath= --capture=sys --max-worker-restart=0 -m "not slow" \
	    tests/csrc tests/ops tests/fuzz \
	    --ignore tests/csrc/test_memory.py --ignore tests/csrc/test_sanitize_driver.py \
	    --ignore tests/csrc/test_cuda_table.py $(ARGS)

# ---- lint: .pre-commit-config.yaml calls these same targets ----

lint: lint-format lint-ruff lint-types lint-clang lint-spelling

lint-format: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint-ruff: $(VENV)/.dev
	$(BIN)/ruff check .

lint-types: $(VENV)/.dev
	$(BIN)/pyright

lint-clang: $(VENV)/.dev
	$(if $(CPP),$(BIN)/clang-format --dry-run --Werror $(CPP))

lint-spelling: $(VENV)/.dev
	$(BIN)/codespell

# Known vulnerabilities of what is installed, where the advisories can be reached; and, anywhere,
# whether that is what constraints.txt pins.
audit: $(VENV)/.dev
	@[ -x build/audit/bin/pip-audit ] || { $(BIN)/python -m venv build/audit && \
	    build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; } || \
	    echo "pip-audit cannot be installed here" >&2
	$(RUN) bench.audit $(PINS) --pip-audit build/audit/bin/pip-audit $(ARGS)

# ---- release: sdist and wheel in dist/, checked, and installed where nothing else is ----

ALONE := $(CURDIR)/build/alone

dist: setup $(VENV)/.dev
	rm -rf dist $(ALONE)
	$(RUN) build --no-isolation >build/dist.log 2>&1 || { tail -40 build/dist.log; exit 1; }
	$(RUN) twine check --strict dist/*
	$(BIN)/python -m venv $(ALONE)
	@echo "installing the wheel and what it needs into $(ALONE) (a minute or two)"
	@$(ALONE)/bin/python -m pip install --quiet --disable-pip-version-check -c $(PINS) dist/*.whl
	cd $(ALONE) && bin/pipa-fast info >info.txt && grep -E "^(pipa_fast|pixel_contrast)" info.txt
	cd $(ALONE) && bin/pipa-fast train --config streets_source --iterations 4 --run.log_every 2
	cd $(ALONE) && bin/pipa-fast export --run runs/streets_source --out mine && ls mine

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(if $(CPP),$(BIN)/clang-format -i $(CPP))

# Leaves runs/, which may hold hours of work.
clean:
	rm -rf $(VENV) .venv-oldest build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -f pipa_fast/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
