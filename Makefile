# One command for each thing a person does; see README.md.

# The first of these that is here; PYTHON=... takes another.
PYTHON ?= $(firstword $(foreach python,python3.11 python3.12 python3.13 python3.14 python3,$(shell command -v $(python))))
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Tests of whole jobs wait for processes most of the time, the others compute: three parts run side by side, the fourth
# when one of them has ended, and grep passes on whole lines, so that none breaks into another's.
TESTS_OF_SUITES := tests/suite
TESTS_OF_JOBS := tests/services/train tests/services/preprocess
TESTS_OF_TRAINER := tests/trainer tests/pocket

SHELL := bash
.SHELLFLAGS := -o pipefail -c

.PHONY: install up demo pocket test lint check check-suites check-jobs check-trainer check-rest soak bench release-contract clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt $(wildcard protos/*/*/*.proto)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

up: install
	$(BIN)/ltxtrain up

demo: install
	$(BIN)/ltxtrain demo --out demo-out

# The pocket model's weights from nothing: some seven hours of a core, most of them for the transformer; stopped and
# resumed at any time.
pocket: install
	$(BIN)/python -m ltxtrain_pocket.make

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check-suites: install
	$(BIN)/pytest $(TESTS_OF_SUITES) | grep --line-buffered ''

check-jobs: install
	$(BIN)/pytest $(TESTS_OF_JOBS) | grep --line-buffered ''

check-trainer: install
	$(BIN)/pytest $(TESTS_OF_TRAINER) | grep --line-buffered ''

check-rest: install
	$(BIN)/pytest $(patsubst %,--ignore=%,$(TESTS_OF_SUITES) $(TESTS_OF_JOBS) $(TESTS_OF_TRAINER)) | grep --line-buffered ''

check: check-suites check-jobs check-trainer check-rest

test: install
	$(MAKE) --no-print-directory --jobs=3 --keep-going check-suites check-jobs check-trainer lint check-rest

soak: install
	$(BIN)/pytest -m soak --timeout 7200

bench: install
	for script in bench/*.py; do $(BIN)/python $$script $(BENCH) || exit 1; done

# What `buf breaking` compares with: run when a release is made, and commit the result.
release-contract: install
	$(BIN)/python -m grpc_tools.protoc -I protos -I third_party --include_imports \
		--descriptor_set_out=protos/released.binpb protos/ltxtrain/v1/*.proto

clean:
	rm -rf .ltxtrain demo-out
