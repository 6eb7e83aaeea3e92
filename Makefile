# Two commands for a newcomer: `make demo` and `make test`. Everything lives in .venv and ./workspace.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PROFILE ?= smoke
# The demo's tokenizer, where it was run.
TRAINED = $(wildcard workspace/checkpoints/tokenizer/*)

.PHONY: demo test lint type bench clean

demo: $(INSTALLED)  ## run the whole pipeline on the embedded corpus and print the report's path
	$(BIN)/flextok run --profile $(PROFILE)

test: lint type  ## lint, types, then every test
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(INSTALLED)
	$(BIN)/pyright

bench: $(INSTALLED)  ## measure on this machine; PICTURES=folder adds sharding and tokenization
	echo '# Benchmarks' > docs/benchmarks.new; echo >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.model $(addprefix --tokenizer ,$(firstword $(TRAINED))) >> docs/benchmarks.new
ifdef PICTURES
	$(BIN)/python -m flextok.bench.data $(PICTURES) >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.tokenize --source $(PICTURES) --model none --decoders 1 --images 60000 >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.tokenize --source $(PICTURES) --model none --images 60000 >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.tokenize --source $(PICTURES) --model smoke --decoders 1 --images 60000 >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.tokenize --source $(PICTURES) --model smoke --images 60000 --scaling --store >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.tokenize --source $(PICTURES) --model d12 --dtype bfloat16 --images 160 >> docs/benchmarks.new
endif
	mv docs/benchmarks.new docs/benchmarks.md

$(INSTALLED): pyproject.toml constraints.txt
	@echo 'installing the pinned packages into $(VENV): a few minutes, about 3 GB'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --prefer-binary --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:  ## remove the environment; workspaces stay
	rm -rf $(VENV) build *.egg-info
