# The course's commands: `make` lists them. Each sets up .venv first, which costs nothing when it is ready.
# ARGS="..." is handed on, as in: make demo ARGS="--temperature 0.8". PYTHON=... sets up with another Python.

PY := .venv/bin/python
LESSONS := @bash scripts/setup.sh &&
TESTS := @bash scripts/setup.sh tests &&
ARGS ?=

# A prompt reaches the program as it was typed: the shell sees it only as an environment variable, and
# `value` keeps make from reading a $ in it.
ifneq ($(origin PROMPT),undefined)
override PROMPT := $(value PROMPT)
export PROMPT
prompt := --prompt "$$PROMPT"
endif

.PHONY: help lab demo test grade bench format notebooks train

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

lab: ## Open the course in JupyterLab, at lesson 00
	$(LESSONS) $(PY) -m jupyterlab --config=scripts/jupyter/jupyter_lab_config.py $(ARGS)

demo: ## Let the bundled model answer PROMPT="..." and time its two phases
	$(LESSONS) $(PY) -m minitransformer.course.demo $(prompt) $(ARGS)

test: ## Run every test
	$(TESTS) $(PY) -m pytest -n 2 --dist loadfile $(ARGS)

grade: ## Grade all exercises, or one: make grade ARGS=exercises/02_kv_cache.ipynb
	$(LESSONS) $(PY) -m minitransformer.course grade $(or $(ARGS),exercises/*.ipynb)

bench: ## Measure this machine, and this package against the transformers library
	$(TESTS) $(PY) -m benchmarks.cpu $(ARGS)

notebooks: ## Execute the committed notebooks anew and save them
	$(TESTS) $(PY) -m minitransformer.course notebooks $(ARGS)

train: ## Train the bundled models from nothing
	$(LESSONS) $(PY) -m minitransformer.bundled.train $(ARGS)

format: ## Format and lint package, tests and notebooks
	$(TESTS) $(PY) -m ruff format . && $(PY) -m ruff check --fix .
