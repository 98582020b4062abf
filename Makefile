# make demo    train a small diffusion model on handwritten digits and look at what it draws
# make test    everything a change must pass
# make docs    render the notebooks to docs/, and README.md
# make lab     open the notebooks in JupyterLab
# make bench   measure speed and memory
# make mutants put faults into the package, one at a time, and see that a test notices each (minutes)
# make export  write ddpm_nb/ from the notebooks;  make notebooks  run them all and keep their outputs
#
# Paths are relative throughout, so a checkout may lie anywhere, in a folder with a space in its name too.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
SHELL  := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYTHONUNBUFFERED = 1
export TQDM_MININTERVAL ?= 1

py   := .venv/bin/python
GPU  := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
# PyTorch's own index has builds without CUDA, a tenth of the size; where it cannot be reached, pip's usual one must do.
CPU  := https://download.pytorch.org/whl/cpu
# One thread for each of the two workers: more would only get in each other's way.
ONE  := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test docs lab bench mutants export notebooks check clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

# --- the environment -------------------------------------------------------------------------------------------------
# A stamp stands for a step that was completed. `installing` stays behind when pip is interrupted: the next run then
# installs afresh over what may be half there.

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ddpm_nb needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv .venv || $(PYTHON) -m venv --clear .venv || { echo "Python could not make .venv (on Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	@$(py) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@touch $@

# $(1): what to install of this project
define install
	@echo "installing ddpm_nb and $(TORCH) into .venv (the first time takes some minutes)"
	@again=; index=; \
	if [ -e .venv/.installing ]; then again=--ignore-installed; fi; \
	if [ -z "$(GPU)" ] && $(py) -c 'import urllib.request as u; u.urlopen("$(CPU)/torch/", timeout=10)' 2>/dev/null; \
	then index="--extra-index-url $(CPU)"; fi; \
	touch .venv/.installing && $(py) -m pip install -qq $$again $$index "$(TORCH)" -e "$(1)" && rm .venv/.installing
	@touch $@
endef

.venv/.run: settings.ini setup.py | .venv/.made
	$(call install,.)

.venv/.dev: settings.ini setup.py | .venv/.made
	$(call install,.[dev])
	@touch .venv/.run

# --- the verbs -------------------------------------------------------------------------------------------------------

demo: .venv/.run
	@.venv/bin/ddpm-nb train digits --size demo --out runs/demo

test: .venv/.dev
	@$(py) tools/check.py $(if $(GPU),--gpu)

check: .venv/.dev
	@$(py) tools/check.py --quick

docs: .venv/.dev
	@$(py) tools/site.py

lab: .venv/.dev
	@$(py) -m jupyterlab nbs --config=tools/jupyter_server_config.py $(if $(filter 0,$(shell id -u)),--allow-root)

bench: .venv/.dev
	@$(py) bench/import_time.py
	@$(py) bench/unet.py $(ARGS)

mutants: .venv/.dev
	@$(ONE) $(py) tools/mutants.py $(ARGS)

export: .venv/.dev
	@.venv/bin/nbdev_export

notebooks: .venv/.dev
	@$(ONE) $(py) tools/run_notebooks.py $(NB)

clean:
	@rm -rf _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
