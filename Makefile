# Every command of the project; `make` alone lists them. Python 3.11 to 3.13 and make are enough.

PYTHON ?= python3
BIN    := .venv/bin
# Where TensorFlow and JAX compute most differently: `make test` runs them on both.
NEUTRAL := tests/models/test_forward.py $(patsubst %,tests/training/test_%.py,losses metrics augmentation optimizers)
# These choose their backends themselves.
OF_BOTH := $(patsubst %,--ignore=tests/training/test_%.py,backends distribution gpu_training)
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

.DEFAULT_GOAL := help
.PHONY: help env report real recipe better test test-jax check lab explore bench lint notebooks figures slides site lock clean torture audit lowest

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1  /p' Makefile | awk '{ printf "  make %-10s", $$1; $$1 = ""; print }'

# -- environment -------------------------------------------------------------------------------

env: .venv/installed ## create .venv with the exact versions of requirements.lock

# Done again only when the lock or pyproject.toml changed. uv installs in a fifth of the time of pip,
# which goes on where uv cannot be had or fails; --system-certs, as a company's network may have a
# certificate of its own. --require-hashes also checks what was downloaded, and --no-deps takes the
# lock as it is: pip 23 looks for the newest version of `coverage[toml]`, which pytest-cov asks for,
# though `coverage` is pinned, and then refuses it. The editable package itself is installed in a
# second step, without fetching a build tool (setuptools is one of the packages).
.venv/installed: requirements.lock pyproject.toml | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || \
	  echo "uv could not be installed: pip goes on without it, which takes some minutes." >&2
	@echo "Installing the exact versions of requirements.lock into .venv ..."
	@pip="$(BIN)/python -m pip install --disable-pip-version-check --quiet"; uv=false; \
	  [ ! -x $(BIN)/uv ] || uv="$(BIN)/uv pip install --system-certs --python $(BIN)/python --quiet"; \
	  for what in "--require-hashes --no-deps -r requirements.lock" "--no-deps --no-build-isolation -e ."; do \
	    $$uv $$what || $$pip $$what || exit 1; \
	  done
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "pneumo needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Install one and name it: make $(or $(MAKECMDGOALS),env) PYTHON=python3.12" >&2; exit 1; }
	@echo "Creating .venv with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv .venv

# -- the study ---------------------------------------------------------------------------------

report: env ## the whole study; real data: DATA=folder PARAMS=params/siim.yaml [WEIGHTS=file] [BACKBONES="vgg16 small"]
	@$(BIN)/pneumo report $(if $(DATA),--data "$(DATA)") $(if $(PARAMS),--params "$(PARAMS)") \
	  $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(BACKBONES),--backbones $(BACKBONES))

real: env ## the report's table on real X-rays, an hour on two CPU cores: DATA=folder WEIGHTS=folder
	@$(BIN)/pneumo report --params params/real.yaml --data "$(DATA)" --weights "$(WEIGHTS)"

recipe: env ## the best network of few real cases, hours on two CPU cores: DATA=folder WEIGHTS=folder
	@$(BIN)/python -c 'import sys, pneumo_lib as pl; values = dict(zip(("data", "weights"), sys.argv[1:])); \
	  runs = pl.study.run_experiments("params/recipe.yaml", overrides={k: v for k, v in values.items() if v}); \
	  pl.average_runs(runs, run="recipe")' \
	  "$(DATA)" "$(WEIGHTS)"

better: env ## the experiments of notebook 08, hours on two CPU cores; [PARAMS=params/better.yaml] [DATA=folder] [WEIGHTS=file]
	@$(BIN)/python -c 'import sys, pneumo_lib as pl; names = ("data", "weights"); \
	  pl.study.run_experiments(sys.argv[1], overrides={k: v for k, v in zip(names, sys.argv[2:]) if v})' \
	  "$(or $(PARAMS),params/better.yaml)" "$(if $(DATA),$(abspath $(DATA)))" "$(if $(WEIGHTS),$(abspath $(WEIGHTS)))"

# For the inner loop: no folder that trains, and no test that starts processes.
CHECKED := data evaluation plots study/test_parameters.py study/test_slides.py test_files.py \
  test_house.py test_names.py test_notebooks.py test_packaging.py

check: lint ## style, import rule and the tests that train nothing, in a minute
	@$(BIN)/python -m pytest -n 2 -q -k "not (process or killed or worker or jupyter)" \
	  $(addprefix tests/,$(CHECKED))

# Two processes: one runs the notebooks while the other tests; more would need more memory.
test: env ## all tests; nbval runs every notebook at its embedded defaults
	@KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 $(NEUTRAL)
	@$(BIN)/python -m pytest -n 2 --nbval-lax --nbval-current-env tests notebooks

test-jax: env ## the tests of networks, training, prediction and scores on Keras' JAX backend
	@KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 $(OF_BOTH) $(addprefix tests/,models training inference evaluation study/test_ensemble.py)

# atheris has wheels for Linux and Python 3.11 to 3.13; without it the fuzzing alone fails.
torture: env ## kills, interrupts, fuzzing, mutants, the same report twice: hours on two cores; [SECTIONS="'fuzz rle'"]
	@for package in atheris cosmic-ray; do $(BIN)/python -m pip show --quiet $$package 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check $$package || true; done
	@$(BIN)/python -W ignore tests/torture/run.py $(SECTIONS)

lab: env ## open the notebooks in JupyterLab, at their index
	@$(BIN)/jupyter lab notebooks --ip=127.0.0.1 \
	  --LabApp.default_url='/lab/tree/README.md?factory=Markdown%20Preview' $(OPTIONS)

# With a token, as JupyterLab has it by itself: a page starts a kernel and shows X-rays.
explore: env ## look at the cases of finished runs, as a web page on this machine
	@JUPYTER_PATH="$(CURDIR)/pneumo_lib/apps/explorer" $(BIN)/voila notebooks/09_case_explorer.ipynb --Voila.ip=127.0.0.1 --token \
	  --template=pneumo --theme=dark --show_tracebacks=True $(OPTIONS)

# The peer in two of the tables is PyTorch; without it they are printed all the same.
bench: env ## all benchmarks, more than an hour on two cores (installs PyTorch where it is missing)
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "Installing PyTorch for the comparison ..." && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[bench]'; } \
	  || echo "PyTorch could not be installed: the tables go without it." >&2
	@for script in transposed_conv train_step prepare predict scaling scale_out; do \
	  echo "== $$script" && $(BIN)/python benchmarks/$$script.py || exit 1; done

# -- upkeep ------------------------------------------------------------------------------------

# `--strict`: pip-audit skips what pypi.org does not answer for, and would call that clean.
audit: env ## licences and known vulnerabilities of the locked packages (needs pypi.org); [OPTIONS="-s osv"]
	@$(BIN)/python tests/licences.py
	@$(BIN)/uvx --quiet pip-audit --strict --disable-pip --require-hashes --progress-spinner=off $(OPTIONS) -r requirements.lock

lowest: env ## the tests, without notebooks, on the lowest versions that pyproject.toml allows
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/lowest
	@$(BIN)/uv pip install --quiet --python .venv/lowest/bin/python --resolution lowest-direct \
	  -e '.[notebooks,dicom,export,talk,kaggle,cluster,test]'
	@.venv/lowest/bin/python -m pytest tests

lint: env ## check style, format, and that imports go one way only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

# After the report, so that notebook 06 finds every network trained.
notebooks: report ## run the notebooks in place, to refresh the outputs that are committed
	@for notebook in $(NOTEBOOKS); do TQDM_DISABLE=1 $(BIN)/jupyter execute --inplace $$notebook || exit 1; done
	@$(BIN)/nbstripout --keep-output --keep-count --keep-id \
	  --extra-keys "metadata.language_info cell.metadata.execution" $(NOTEBOOKS)

figures: env ## export all figures of all notebooks, on white and on black (hundreds of MB); [DPI=300]
	@cd "$${PNEUMO_HOME:-.}" && rm -rf runs/report figures/dark figures/*.png figures/*.svg figures/*.pdf
	@PNEUMO_FIGURES=$(or $(DPI),300) $(BIN)/pneumo report $(or $(OPTIONS),--all)
	@$(BIN)/python figures/thumbnails.py "$${PNEUMO_HOME:-.}/figures"

slides: report ## the talk: runs/report/slides.pptx and slides.html
	@$(BIN)/pneumo slides $(if $(DATA),--data "$(DATA)")

# The stored outputs of the notebooks, without running them; dead links are refused.
site: env ## course, how-tos, API reference, and a page that segments: runs/site/index.html; [RUN=siim-small-128]
	@$(BIN)/python site/build.py $(if $(RUN),--run "$(RUN)")

lock: env ## choose exact versions for pyproject.toml again; UPGRADE=--upgrade takes the newest
	@$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 $(UPGRADE) \
	  --extra notebooks --extra dicom --extra export --extra talk --extra kaggle --extra cluster --extra test --generate-hashes \
	  --custom-compile-command "make lock" --no-emit-index-url --no-emit-find-links -o requirements.lock

clean: ## remove what was made: .venv, runs, phantoms, prepared arrays, caches (downloaded data stay)
	rm -rf .venv runs data/phantoms* data/prepared .pytest_cache .ruff_cache .hypothesis .coverage htmlcov \
	  *.egg-info */__pycache__ */.ipynb_checkpoints
