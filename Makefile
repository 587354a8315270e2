# Two commands do all the set-up: `make demo` rewrites a model, `make test` passes the tests.
# Each makes .venv when it is missing, or when pyproject.toml has changed. The tests of training need torch, which `make
# test` installs; `make test EXTRAS=dev` goes without, and skips them.
PYTHON ?= python3
VENV   ?= .venv
LOWEST ?= .venv-lowest
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS ?= dev,finetune
ALL    := $(VENV)/.installed-$(EXTRAS)
OUT    ?= demo-out
DIST   ?= dist
FUZZ   ?= 600
# pip need not compile all of torch: what is imported is compiled then, and kept for the processes that follow.
PIP    := -m pip install --quiet --no-compile
export PYTHONDONTWRITEBYTECODE :=
# Tests of documents, scripts, options, files, recipes and algebra, which do not depend on versions of the libraries.
NOT_ENGINE := test_readme.py test_docs.py test_repository.py test_models.py test_cifar_model.py test_architecture.py \
	test_packaging.py test_compression.py \
	test_joint_ranks.py test_paths.py test_work_folders.py test_old_data_files.py test_option_values.py \
	test_options_before_work.py test_labels.py test_labels_of_tables.py test_labels_of_spreadsheets.py test_signals.py \
	test_early_signals.py test_plugins.py test_als.py test_als_rows.py test_fitting.py test_quick_fits.py \
	test_calibration_errors.py test_preprocessing_found.py test_fitting_terminals.py test_progress_line.py \
	test_verified_on_data.py test_evaluation_limits.py test_what_got_worse.py test_lean.py test_onnx_backend.py \
	test_imports.py test_hostile_text.py test_inputs_without_samples.py test_time_limit.py test_options_that_do_nothing.py \
	test_rerun.py test_rerun_other_models.py test_plan_files.py test_plan_refusals.py test_sobolewski_baselines.py \
	checking/test_check.py test_workers.py test_going_on.py test_cluster.py test_compress_goals.py test_sobolewski_recipes.py \
	test_until.py test_plan_step.py test_full_size_fits.py test_search_goes_on.py test_plan_blocks.py test_plan_cut_alike.py \
	test_shapes_model.py test_exported_baselines.py test_sizing.py test_curves.py test_low_ranks.py test_fit_costs.py

.PHONY: demo test deep lint types bench golden lowest fuzz docs docs-check sdist clean

demo: $(STAMP)
	mkdir -p $(OUT)
	$(BIN)/onnxsep rewrite models/digits/digits_cnn.onnx $(OUT)/digits_spatial.onnx --mode spatial \
		--report $(OUT)/digits_spatial.html

# Types are checked, by one process for half a minute, while the tests run; what is found is printed after them.
# Worksteal: each process begins with a half of the files in order, so that most fixtures of modules are made once.
test: $(ALL)
	$(MAKE) lint
	$(MAKE) types > $(VENV)/types.txt 2>&1 & types=$$!; \
	$(BIN)/pytest -n auto --dist worksteal; tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/types.txt; exit $$((tests || types))

# The tests with all of their random examples and all trained models.
deep: $(ALL)
	ONNXSEP_TESTS=deep $(BIN)/pytest -n auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A regular (not editable) install beside the sources, because mypy sees onnxsep.passes only there.
types: $(STAMP)
	rm -rf $(VENV)/typed build
	$(BIN)/python $(PIP) --no-deps --no-build-isolation --target $(VENV)/typed .
	MYPYPATH=$(VENV)/typed:tests:models:models/digits:models/cifar:models/shapes:benchmarks $(BIN)/mypy --explicit-package-bases \
		$(VENV)/typed/onnxsep tests models benchmarks docs
	rm -rf build

bench: $(STAMP)
	$(BIN)/python $(PIP) --constraint constraints.txt --editable ".[dev,finetune,bench]"
	$(BIN)/python benchmarks/run_all.py

# Rewrites the reference graphs after a change that is meant; review the difference.
golden: $(STAMP)
	$(BIN)/python tests/update_golden.py

$(BIN)/python $(LOWEST)/bin/python:
	$(PYTHON) -m venv $(@:/bin/python=)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@

# In one go, and then nothing is left to do for the targets that need less.
$(ALL): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(PIP) --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $(STAMP) $@

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt | $(LOWEST)/bin/python
	$(LOWEST)/bin/python $(PIP) --constraint constraints-lowest.txt --editable ".[dev]"
	touch $@

# The engine's tests with the oldest versions that pyproject.toml allows, in an environment of their own.
lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/pytest -n auto --dist worksteal $(addprefix --ignore=tests/,$(NOT_ENGINE))

# The site, into site/; a warning is an error.
docs: $(STAMP)
	$(BIN)/python $(PIP) --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Every example of the documents, on data of the repository.
docs-check: $(ALL)
	$(BIN)/pytest -n auto docs/check_examples.py

# New random examples for FUZZ seconds; what is found becomes a test.
fuzz: $(ALL)
	$(BIN)/python tests/fuzzing/run.py --seconds $(FUZZ)

# The source distribution, which its own tests can be run from.
sdist: $(STAMP)
	rm -rf $(DIST)
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('$(DIST)')"

clean:
	rm -rf .venv .venv-lowest demo-out build dist site *.egg-info
