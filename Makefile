# The tasks of a developer; CI runs the same ones. `make` alone lists them.

PYTHON ?= python3
BIN = .venv/bin
SEED ?= 0

.PHONY: help setup fmt lint types imports spelling rules test test-slow coverage package bench pictures
.PHONY: histories crashes networks killed-migrations

help:  ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

setup:  ## make .venv and install the package into it, editable, with all that the tests need
	$(PYTHON) -m venv .venv && $(BIN)/pip install -q -e '.[test]'

fmt:  ## let ruff sort imports and format
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

lint:  ## lint and check the format of Python; lint the migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/squawk sql/*.sql

types:  ## check the types
	$(BIN)/mypy

imports:  ## check that packages import each other in one direction only
	$(BIN)/lint-imports

spelling:  ## look for misspelt words
	$(BIN)/codespell

rules:  ## check the rules and the metrics for Prometheus, where promtool is installed
	@command -v promtool > /dev/null || { echo 'promtool is not installed: skipped'; exit 0; }; \
	  promtool check rules deploy/prometheus/*.rules.yml && promtool test rules deploy/prometheus/*.test.yml

test:  ## run the tests, as README says
	$(BIN)/pytest -n 5

test-slow:  ## run the slow tests as well: real waits, kills by the dozen, the wheel
	$(BIN)/pytest -n 5 -m slow

coverage:  ## run the tests and say which lines none of them runs, also in processes they start
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 5
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

package:  ## build sdist and wheel, inspect both, and run the wheel's demo in an environment of its own
	rm -rf dist build/package
	$(PYTHON) -m venv build/package && build/package/bin/pip install -q build twine
	build/package/bin/python -m build --outdir dist .
	build/package/bin/twine check --strict dist/*
	$(PYTHON) -m venv --clear build/package && build/package/bin/pip install -q "$$(echo dist/*.whl)[embedded]"
	cd build/package && bin/reconcile --version && bin/reconcile demo

bench:  ## measure speed (half an hour; nothing else should run)
	$(BIN)/python -m tests.bench

pictures:  ## make README's pictures again; needs Chromium
	$(BIN)/python -m tests.programs.terminal_picture
	$(BIN)/python -m tests.programs.page_picture

histories:  ## replay 10,000 random histories of an account against all jobs and a simulated Viewer, 5,000 in a fleet (two hours)
	$(BIN)/python -m tests.faults.history --histories 10000 --seed $(SEED)
	$(BIN)/python -m tests.faults.history --histories 5000 --seed $(SEED) --engine procrastinate

crashes:  ## kill each command at every boundary, and 200 times at any moment, also in a fleet (two hours)
	$(BIN)/python -m tests.faults.crash --every 1
	$(BIN)/python -m tests.faults.crash --random 200 --seed $(SEED)
	$(BIN)/python -m tests.faults.crash --every 1 --random 200 --seed $(SEED) --engine procrastinate

networks:  ## backfill over 200 bad networks, alone and by a fleet (an hour)
	$(BIN)/python -m tests.faults.network --runs 200 --first $(SEED)
	$(BIN)/python -m tests.faults.network --runs 200 --first $(SEED) --engine procrastinate

killed-migrations:  ## kill the migrations at every statement (minutes)
	$(BIN)/python -m tests.faults.migrations --every 1
