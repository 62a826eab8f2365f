# Two commands do everything: `make run` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
UV := .uv/bin/uv
BIN := .venv/bin
SYNCED := .venv/.synced
SUPERSET_SYNCED := superset/.venv/.synced
REFERENCES_SYNCED := tests/references/.venv/.synced

.PHONY: help setup run dev dashboard dashboard-setup test lint format status doctor sites-check check-demo-server clean-data lock \
	compose-env

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

setup: $(SYNCED) ## Install uv and the locked packages into this folder

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet "uv>=0.9,<1"

$(SYNCED): $(UV) pyproject.toml uv.lock
	@$(UV) sync --frozen --quiet --compile-bytecode --python "$$(.uv/bin/python -c 'import sys; print(sys.executable)')"
	@$(BIN)/python -m compileall -q dagster/src
	@touch $(SYNCED)

run: $(SYNCED) ## Run the whole pipeline once and print what it made
	@$(BIN)/lakehouse run

dev: $(SYNCED) ## Open the Dagster UI, with schedule and sensors, on 127.0.0.1
	@$(BIN)/lakehouse dev

dashboard: $(SYNCED) $(SUPERSET_SYNCED) ## Open the dashboards in Superset on 127.0.0.1, after `make run`
	@$(BIN)/lakehouse dashboard serve

dashboard-setup: $(SUPERSET_SYNCED) ## Only install Superset, into an environment of its own
	@:

$(SUPERSET_SYNCED): $(UV) superset/pyproject.toml superset/uv.lock
	@$(UV) sync --frozen --quiet --compile-bytecode --project superset
	@touch $(SUPERSET_SYNCED)

status: $(SYNCED) ## Show each site's last reading, rows and cursor
	@$(BIN)/lakehouse status

doctor: $(SYNCED) ## Check what is missing and how to mend it
	@$(BIN)/lakehouse doctor

sites-check: $(SYNCED) ## Reach every Nightscout server
	@$(BIN)/lakehouse sites check

$(REFERENCES_SYNCED): $(SYNCED) tests/references/pyproject.toml tests/references/uv.lock
	@$(UV) sync --frozen --quiet --compile-bytecode --project tests/references --python $(BIN)/python
	@touch $(REFERENCES_SYNCED)

test: $(SYNCED) $(SUPERSET_SYNCED) $(REFERENCES_SYNCED) ## Run all tests
	@$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(SYNCED) ## Check style, types, SQL and security
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/sqlfluff lint --disable-progress-bar dbt/models dbt/tests
	@$(BIN)/bandit --quiet --configfile pyproject.toml --severity-level medium --recursive dagster/src scripts
	@$(BIN)/python scripts/audit_dependencies.py

format: $(SYNCED) ## Mend what can be mended by a program
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

check-demo-server: $(SYNCED) ## Compare the demo server with recordings of a real one, where there are any
	@$(BIN)/python scripts/check_demo_server.py

compose-env: ## Write the passwords that docker-compose.yml needs into .env, where they are missing
	@$(PYTHON) scripts/compose_env.py

lock: $(UV) ## Resolve the dependencies anew
	@$(UV) lock --upgrade
	@$(UV) lock --upgrade --project tests/references
	@$(UV) lock --upgrade --project superset

clean-data: $(SYNCED) ## Remove the lakehouse folder with all its data, after asking
	@$(BIN)/lakehouse clean
