# make demo   sees the main job done, in about two minutes
# make serve  keeps the demo's server up for curl
# make test   installs what the tests need and passes them
# make check  lint, types, layers
# make real   tests against a real model server, which needs torch
# make recipes  the recipes of llama-cpp-python, which compiles for ten minutes, and of vLLM
# make simulate  the whole stack by 420 seeds; SECONDS=600 for others, FROM=N to begin with one
# make soak   two workers on Redis and PostgreSQL, broken on a timer; MINUTES=60, SEED=1
# make fuzz   the readers by any bytes, guided by coverage; SECONDS=600 for longer
# make coverage  what of the package the tests reach; fails below 92 % of the branches
# make docs   the documentation as a site, in build/site
# make audit  known vulnerabilities and licences of what is installed with the library
# make lock   renews requirements-dev.lock, by hashes, for any platform
# make mutants  puts deliberate faults into copies of the package: each must be caught by its test
# make bench  what all of it costs, side by side with others, against the targets
# make bench-peers  LiteLLM's proxy on the same work, in an environment of its own
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PORT ?= 8000

.PHONY: demo serve test check docs real recipes audit lock mutants simulate soak fuzz coverage bench bench-peers clean

demo: $(VENV)/.demo-installed
	$(BIN)/python examples/demo.py

serve: $(VENV)/.demo-installed
	$(BIN)/python examples/quickstart.py --port $(PORT)

test: $(VENV)/.test-installed
	@sh tests/install_servers.sh
	$(BIN)/python -m pytest

check: $(VENV)/.check-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean --quiet
	@! grep -rnoE '(src="|<link[^>]*rel="(stylesheet|preconnect)"[^>]*href=")(https?:)?//[^"]*' build/site --include=*.html || { echo "the site asks another host for these"; exit 1; }

real: $(VENV)-real/.installed
	$(VENV)-real/bin/python -m pytest tests/real

recipes: $(VENV)-llama/.installed $(VENV)-vllm/.installed
	$(VENV)-llama/bin/python -m pytest tests/apart/test_llama_cpp_recipe.py -W ignore
	VLLM_TARGET_DEVICE=cpu $(VENV)-vllm/bin/python -m pytest tests/apart/test_vllm_registration.py -W ignore

audit: $(VENV)/.audit-installed
	$(BIN)/python -m tests.supply_chain

# The lock says what, never where from: an index of one's own is told by the environment.
lock: $(VENV)/.audit-installed
	$(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --all-extras --group test --group check --group docs --output-file requirements-dev.lock

mutants: $(VENV)/.test-installed
	@sh tests/install_servers.sh
	$(BIN)/python -m tests.mutants

# Other seeds than those of every day, where it is told for how long.
FROM ?= 420

simulate: $(VENV)/.test-installed
	$(BIN)/python -m tests.simulate $(if $(SECONDS),--seeds $(FROM):$(FROM) --seconds $(SECONDS),--pairs)

MINUTES ?= 60
SEED ?= 1

soak: $(VENV)/.test-installed
	@sh tests/install_servers.sh
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --seed $(SEED)
fuzz: $(VENV)/.fuzz-installed
	$(BIN)/python -m tests.fuzz $(or $(SECONDS),60)

# Without the tests that take longest: servers under load, faults, the simulator, examples, documents.
coverage: $(VENV)/.test-installed
	@sh tests/install_servers.sh
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/python -m coverage run -m pytest -q tests/accounts tests/call tests/cli tests/domain tests/fuzz tests/ledgers tests/observers tests/proxy tests/routes tests/settings tests/sinks tests/stores tests/tokens tests/wire tests/test_options.py
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered
	$(BIN)/python -m coverage json --quiet -o build/coverage/report.json
	$(BIN)/python -c 'import json; t = json.load(open("build/coverage/report.json"))["totals"]; print("{covered_branches:,} of {num_branches:,} branches, {percent_branches_covered:.1f} %".format(**t)); assert t["percent_branches_covered"] >= 92'

bench: $(VENV)/.bench-installed
	@sh tests/install_servers.sh
	$(BIN)/python -m benchmarks --out benchmarks/results

bench-peers: $(VENV)/.bench-installed $(VENV)-peers/.installed
	$(BIN)/python -m benchmarks.litellm $(VENV)-peers/bin/litellm

$(VENV)/.audit-installed: pyproject.toml | $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group audit
	@touch $@

$(VENV)/.fuzz-installed: pyproject.toml | $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group fuzz
	@touch $@

$(VENV)/.docs-installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . --group docs
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-real $(VENV)-llama $(VENV)-vllm $(VENV)-peers .demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or later is needed, and this is {v.major}.{v.minor}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"

$(VENV)/.demo-installed: pyproject.toml | $(BIN)/python
	@echo "installing the library and what the demo needs ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[examples]"
	@touch $@

$(VENV)/.test-installed: pyproject.toml | $(BIN)/python
	@echo "installing the library and what its tests need ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[examples]" --group test
	@touch $@ $(VENV)/.demo-installed

# torch for the CPU alone where pip can find it: the other kind is some gigabytes more.
TORCH ?= torch==2.13.0+cpu

$(VENV)-real/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-real
	$(VENV)-real/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(VENV)-real/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" || $(VENV)-real/bin/python -m pip install --quiet --disable-pip-version-check torch
	$(VENV)-real/bin/python -m pip install --quiet --disable-pip-version-check -e ".[examples]" --group test "transformers[serving]>=5.20,<6"
	@touch $@

# What takes no time of the model's own: nothing is tuned, for a model of some thousand weights.
LLAMA_CMAKE = -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF -DLLAVA_BUILD=OFF \
	-DLLAMA_BUILD_TOOLS=OFF -DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O0

$(VENV)-llama/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-llama
	$(VENV)-llama/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	CMAKE_ARGS="$(LLAMA_CMAKE)" $(VENV)-llama/bin/python -m pip install --quiet --disable-pip-version-check "llama-cpp-python[server]==0.3.36" gguf httpx
	$(VENV)-llama/bin/python -m pip install --quiet --disable-pip-version-check -e . hypothesis pytest
	@touch $@

# Its wheel is for GPUs, and beside a torch for the CPU all of it but the kernels works: without its
# own dependencies, then, but for those that its HTTP server imports.
$(VENV)-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" || $(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check torch
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "vllm==0.33.0"
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check -e . -r tests/apart/vllm-needs.txt hypothesis pytest
	@touch $@

$(VENV)/.bench-installed: $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@

$(VENV)-peers/.installed:
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --disable-pip-version-check "litellm[proxy]>=1.80"
	@touch $@

$(VENV)/.check-installed: $(VENV)/.test-installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group check
	@touch $@
