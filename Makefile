# `make run` does everything, `make help` lists the rest.
# Variables: PYTHON=python3.12, UV=no (for setup), YES=1 (for hooks: do not ask), ONLY="01_environment 04_collator" or
# a shelf, ONLY=spine (run, outputs), SKIP=tree_clean (check), JOBS=1 (run: notebooks side by side), TINYR2_CPU=avx2 or
# plain (run, test: as a smaller processor).
.PHONY: help setup hooks run test check export outputs figures book readme

PYTHON ?= python3
PY := .venv/bin/python

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*##/ #/' | awk -F' #  ?' '{ printf "%-9s %s\n", $$1, $$2 }'

setup: .venv/.ready  ## build .venv with everything in it: about 5 minutes, mostly downloads; writes nothing elsewhere

.venv/.ready: constraints.txt settings.ini setup.py
	@PYTHON="$(PYTHON)" bash tests/tools/setup.sh
	@touch $@

hooks: setup  ## for who changes notebooks: clean them when they are saved or merged; asks before it edits ~/.jupyter
	@YES="$(YES)" bash tests/tools/hooks.sh

run: setup  ## execute every notebook in order into _runs/, redraw figures/, print the table of results
	@.venv/bin/tinyr2-env
	@$(PY) tests/tools/run_notebooks.py $(ONLY) $(if $(JOBS),--jobs $(JOBS))

test: setup  ## every notebook with nbs/params/test.yaml, and the tests: about 12 minutes
	@$(PY) -m pytest -q -n 2 tests

check: setup  ## the gates: tree clean, notebooks in step with tinyr2/, hygiene, ruff: under a minute
	@$(PY) tests/tools/gates.py --all $(addprefix --skip=,$(SKIP))
	@$(PY) tests/tools/style.py

export: setup  ## write tinyr2/*.py from the notebooks
	@.venv/bin/nbdev_export

outputs: setup  ## run the notebooks and store their outputs in nbs/, for readers on the web
	@$(PY) tests/tools/outputs.py $(ONLY)

figures: run  ## the same as run: the notebooks draw the figures

book: setup  ## the notebooks as a web site in site/
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=tests/tools $(PY) -m mkdocs build --strict --quiet
	@echo "open site/index.html"

readme: setup  ## write README.md from nbs/index.ipynb, with the stored results; and the tables of README.zh.md
	@$(PY) tests/tools/readme.py
