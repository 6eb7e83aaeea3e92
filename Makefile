# Two commands for a newcomer: `make demo` and `make test`. Everything lives in .venv and ./workspace.
# The newest supported Python that runs here and can make environments; `make PYTHON=/path/to/python` takes another.
CANDIDATES := python3.14 python3.13 python3.12 python3.11 python3 python
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(firstword $(foreach name,$(CANDIDATES),$(shell $(name) -c '$(USABLE)' > /dev/null 2>&1 && echo $(name))))
NO_PYTHON = expected Python 3.11 to 3.14 with its venv module, found none of $(CANDIDATES); install one \
	(Debian, Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python
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
	@# Else, where it is set, each of some hundred processes compiles all modules again.
	@# Two at a time, files whole and in order: one after another they wait for processes for half of the time.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -m 'not alone' -n 2 --dist loadfile --no-loadscope-reorder
	@# By their files: to read all others takes seconds.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -m alone $(shell grep -rl --include='*.py' 'mark\.alone' tests)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(INSTALLED)
	$(BIN)/pyright

bench: $(INSTALLED)  ## measure on this machine; PICTURES=folder adds sharding and tokenization
	echo '# Benchmarks' > docs/benchmarks.new; echo >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.model $(addprefix --tokenizer ,$(firstword $(TRAINED))) >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.evaluate --threads 1 >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.evaluate >> docs/benchmarks.new
	$(BIN)/python -m pip install --quiet --prefer-binary --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m flextok.bench.prior --threads 1 >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.prior >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.serve >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.cluster >> docs/benchmarks.new
ifdef PICTURES
	$(BIN)/python -m flextok.bench.data $(PICTURES) >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.tokenize --source $(PICTURES) --model none --decoders 1 --images 60000 >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.tokenize --source $(PICTURES) --model none --images 60000 >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.tokenize --source $(PICTURES) --model smoke --decoders 1 --images 60000 >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.tokenize --source $(PICTURES) --model smoke --images 60000 --scaling --store >> docs/benchmarks.new
	$(BIN)/python -m flextok.bench.tokenize --source $(PICTURES) --model d12 --dtype bfloat16 --images 160 >> docs/benchmarks.new
endif
	mv docs/benchmarks.new docs/benchmarks.md

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@echo 'installing the pinned packages into $(VENV): a few minutes, about 3 GB'
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(or $(PYTHON),$(error $(NO_PYTHON))) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --prefer-binary --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:  ## remove the environment; workspaces stay
	rm -rf $(VENV) build *.egg-info
