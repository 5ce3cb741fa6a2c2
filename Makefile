# Every target sets up what it needs: a Python of 3.11 or newer with venv, and make, are enough.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/runtime.stamp
DEVELOPMENT := $(VENV)/development.stamp
PROTOS := proto/pointillist_destination/v1/*.proto
BY_HAND := --exclude=__init__.py --exclude=py.typed --exclude=README.md --exclude=pyproject.toml --exclude=__pycache__
UV ?= uv
PYTEST := $(BIN)/python -m pytest -q -n auto --dist worksteal

# The tests start some hundred processes, each of which would compile the service again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test test-all soak bench check generate sbom lock clean

help:  ## show this help
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1: \2/p' Makefile

run: $(RUNTIME)  ## serve; without POINTILLIST_API_TOKEN, run a demonstration on this machine
	@exec $(BIN)/python -m service.cli.demo

test: check  ## check, then run the tests that are not marked long
	$(PYTEST) -m "not long"

test-all: check  ## check, then run every test at its full size
	TEST_SIZE=full $(PYTEST)

soak: $(DEVELOPMENT)  ## kill servers under load, with a disk that fails and on a NATS cluster too, attack one, and count lost events
	$(BIN)/python -m tests.acceptance.soak --kills $(or $(KILLS),200) --workers $(or $(WORKERS),0)
	$(BIN)/python -m tests.acceptance.soak --disk-faults $(or $(DISK_FAULTS),100)
	$(BIN)/python -m tests.acceptance.soak --attacks $(or $(ATTACKS),10)
	$(BIN)/python -m tests.acceptance.soak --outbox nats --kills $(or $(NATS_KILLS),100)

bench: $(DEVELOPMENT)  ## measure the service against its ceilings
	$(BIN)/python -m benchmarks $(ROWS)

check: $(DEVELOPMENT)  ## check format, lint, types, import rules, contract, stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	@tag="$$(git describe --tags --abbrev=0 2>/dev/null || true)"; \
	if [ -n "$$tag" ]; then set -x; $(BIN)/buf breaking --against ".git#tag=$$tag"; fi
	@echo "the stubs in generated/ are fresh:"; \
	folder="$$(mktemp -d)"; trap 'rm -rf "$$folder"' EXIT; \
	$(MAKE) stubs-into FOLDER="$$folder"; \
	diff -r $(BY_HAND) "$$folder" generated \
	|| { echo 'generated/ differs from proto/; run make generate' >&2; exit 1; }
	$(BIN)/hadolint Dockerfile
	@if command -v promtool >/dev/null; then set -x; promtool check config deploy/prometheus/prometheus.yaml; \
	promtool test rules deploy/prometheus/alerts_test.yaml; else echo 'promtool is not here: alerts unchecked'; fi
	@if command -v kubectl >/dev/null; then set -x; kubectl kustomize deploy/kubernetes >/dev/null; \
	kubectl kustomize deploy/kubernetes/nats >/dev/null; kubectl kustomize deploy/kubernetes-tls >/dev/null; \
	else echo 'kubectl is not here: the kustomization is unchecked'; fi

generate: $(DEVELOPMENT)  ## generate the stubs in generated/ from proto/
	@$(MAKE) stubs-into FOLDER=generated

.PHONY: stubs-into
stubs-into:
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto \
	  --python_out="$(FOLDER)" --grpc_python_out="$(FOLDER)" \
	  --mypy_out=quiet:"$(FOLDER)" --mypy_grpc_out=quiet:"$(FOLDER)" $(PROTOS)

sbom: $(DEVELOPMENT)  ## write build/sbom.cdx.json, the software bill of materials of requirements.lock
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --spec-version 1.6 \
	  --output-reproducible --output-format JSON --output-file build/sbom.cdx.json

lock:  ## resolve the dependencies again (needs uv); the locks name no registry
	printf 'hatchling>=1.27\n' | $(UV) pip compile pyproject.toml - --extra nats --extra tracing $(LOCK_OPTIONS) -o requirements.lock
	printf 'hatchling>=1.27\n' | $(UV) pip compile pyproject.toml - --all-extras --group dev -c requirements.lock $(LOCK_OPTIONS) -o .ci/requirements.lock
	printf 'hatchling>=1.27\n' | $(UV) pip compile pyproject.toml - --extra sandbox -c .ci/requirements.lock $(LOCK_OPTIONS) -o requirements-run.lock

LOCK_OPTIONS := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-package pointillist-destination-stubs --no-annotate --no-header

clean:  ## remove the files that the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The project itself is installed so that it runs from this tree. The locks have its build backend, as the install must
# fetch nothing that is not locked.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(RUNTIME): requirements-run.lock pyproject.toml generated/pyproject.toml $(BIN)/python
	$(INSTALL) --require-hashes -r requirements-run.lock
	$(INSTALL) --no-deps --no-build-isolation -e ./generated -e .
	@touch $@

$(DEVELOPMENT): .ci/requirements.lock $(RUNTIME)
	$(INSTALL) --require-hashes -r .ci/requirements.lock
	@touch $@

$(BIN)/python:
	@for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "$$python -m venv $(VENV)"; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo 'No Python of 3.11 or newer with venv was found: tried python3, python3.14 to python3.11 and python.' >&2; \
	echo 'Install one (on Debian and Ubuntu: apt install python3 python3-venv) and run make again.' >&2; \
	exit 1
