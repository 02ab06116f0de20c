PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NAME ?=
FULL ?=
# Processes that share the tests, a file each at a time; 1 GB of memory each.
WORKERS ?= 2

.PHONY: demo demo-wav2vec2 demo-slurp demo-probes test bench pictures docs style

# The one set-up step: everything comes from setup.cfg.
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[demo,dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python recipes/LibriSpeech/ASR/transformer/demo.py results/demo

demo-wav2vec2: $(VENV)/installed
	$(BIN)/python recipes/LibriSpeech/ASR/CTC/demo.py results/demo-wav2vec2

demo-slurp: $(VENV)/installed
	$(BIN)/python recipes/SLURP/direct/demo.py results/demo-slurp

# Of the encoder that demo-wav2vec2 trains first.
demo-probes: $(VENV)/installed
	$(BIN)/python recipes/LibriSpeech/probing/run_probes.py --demo \
		results/demo-wav2vec2/encoder/encoder \
		--output_folder=results/demo-probes --device=cpu

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

bench: $(VENV)/installed
	for script in $(if $(NAME),tests/benchmarks/$(NAME).py,\
	$(shell grep -l __main__ tests/benchmarks/*.py)); do \
		$(BIN)/python $$script $(if $(FULL),--full) || exit 1; \
	done

# Of the pages in docs/results, once the tables of benchmarks have changed.
pictures: $(VENV)/installed
	$(BIN)/python docs/pictures.py

# HTML of all Markdown and docstrings, into docs/build/docs/index.html.
docs: $(VENV)/installed
	rm -rf docs/api docs/build
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . docs/build

style: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
