# make demo   install what it needs into .venv, then score the example video
# make test   everything CI runs; also installs the development tools and audiocraft
# make check  the quick part of it: format, lint, types, unit tests
# make format put the code in shape

PYTHON ?= python3
BIN := .venv/bin
# compiled while it installs: a first start is then as quick as the next, also where Python may not write
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
EXAMPLE := gvmgen/pocket/example.mp4

.PHONY: demo test check format lint unit clean

demo: .venv/base
	@mkdir -p out
	GVM_PRESET=pocket $(BIN)/gvm-gen $(EXAMPLE) -o out/demo.wav --seed 1
	GVM_PRESET=pocket $(BIN)/gvm-gen $(EXAMPLE) -o out/demo.mp4 --seed 1
	@echo "Music: out/demo.wav   The film with it: out/demo.mp4"

test: lint
	$(BIN)/pytest -n 2 tests

check: lint unit

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: .venv/dev
	$(BIN)/pytest -n 2 -m "not slow" tests

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# An environment once made is left alone until the pins change.
.venv/base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gvmgen needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(INSTALL) --constraint constraints.txt --editable .
	@touch $@

.venv/dev: .venv/base tools/audiocraft-requirements.txt
	$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	$(INSTALL) --no-deps --requirement tools/audiocraft-requirements.txt
	@touch $@

clean:
	rm -rf .venv out
