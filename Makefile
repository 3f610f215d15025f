# make demo    poison, pre-train, clean, report: minutes on two CPU cores
# make test    every check and test, as CI runs them; SHUFFLE=7 draws their order
# make check   the same: ruff, mypy, import contracts, tests
# make nightly the slow tests too, half an hour for each Python of the two that is here; other examples each time
# make nightly-tools  what its real parts need, on Debian, as root or with sudo: Slurm, munge, sshd, pdsh, moto
# make mini    the paper's experiments in miniature, hours on two CPU cores; goes on where it was stopped
# make mini-report  their note, its figures and docs/matrix again, from the packed journals in docs/mini-results, without a run
# make bench   side by side with peers, about 40 minutes on an otherwise idle machine
# make gpu     on a machine with a GPU and no network: its tests and figures in nine minutes; docs/clusters.md
# make wheels  what such a machine may lack, into wheels/ (also WHEELS=folder), on a machine with a network
# make clean   removes what the above made, but not runs/
# Each makes or reuses one virtual environment, .venv, with the versions of constraints.txt.

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# two processes, each a file at a time, the longest files first (tests/conftest.py); all product code is measured, children too
TESTS := -q -n 2 --dist loadfile --no-loadscope-reorder --durations=25 --cov --cov-report=term --cov-fail-under=92 $(if $(SHUFFLE),--shuffle $(SHUFFLE))
# these need npm's registry: run them by themselves, as their headers say
ICONS := icons icons-test-time
MINI := main $(filter-out main $(ICONS),$(sort $(basename $(notdir $(wildcard specs/mini/*.yaml)))))

.PHONY: demo test check nightly nightly-one nightly-tools lint clean schema mini mini-report bench gpu wheels
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Antidote needs Python 3.11 or 3.12 on the PATH; set PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/python -m data.synthetic shards/demo-lab --world lab --pairs 20000 --workers 2
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python engine/run.py --spec specs/demo.yaml

test: check

# the static checks beside the tests: mypy has one core; what they refuse is shown when they have ended, and fails it all
check: $(READY)
	@log=$$(mktemp); { $(MAKE) --no-print-directory lint > $$log 2>&1; code=$$?; cat $$log; rm $$log; exit $$code; } & lint=$$!; \
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest $(TESTS); tests=$$?; \
	wait $$lint || { echo "FAILED: the static checks; make lint shows them alone"; exit 1; }; exit $$tests

nightly-one: lint
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest $(TESTS) -m "slow or not slow"

# both Pythons that Antidote promises: this one, then the other, in an environment of its own
nightly: nightly-one
	@other=$$($(BIN)/python -c 'import sys; print("python3.11" if sys.version_info >= (3, 12) else "python3.12")'); \
	if $$other -c "" 2> /dev/null; then $(MAKE) nightly-one VENV=.venv-$$other PYTHON=$$other; \
	else echo "SKIPPED: the suite under $$other, which is not on the PATH"; fi

# their services need not run: tests start their own
nightly-tools: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[nightly]'
	$(if $(filter 0,$(shell id -u)),,sudo) apt-get update
	$(if $(filter 0,$(shell id -u)),,sudo) apt-get install --yes --no-install-recommends slurm-wlm munge openssh-server pdsh iproute2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

schema: $(READY)
	$(BIN)/python engine/run.py --schema > configs/spec.schema.json

mini: $(READY)
	$(BIN)/python -m data.synthetic shards/lab --world lab --workers 2
	$(BIN)/python -m data.synthetic shards/lab-probe --world lab --pairs 500 --tests 1920 --seed 1 --workers 2
	$(BIN)/python -m data.synthetic shards/lab-known --world lab --seed 77 --pairs 8 --tests 1280 --captioned 0
	for study in $(MINI); do \
		PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python engine/run.py --spec specs/mini/$$study.yaml || exit 1; \
		if [ $$study = audit ]; then for run in runs/mini-audit/pretrain-* runs/mini-audit/twin-*; do $(BIN)/python -m engine.audit $$run || exit 1; done; fi; \
		$(BIN)/python -m report --pack runs/mini-$$study docs/mini-results/mini-$$study.tar.xz || exit 1; \
	done
	$(MAKE) mini-report

# the main question first: of the study that comes first all figures are shown
PACKED = $(strip $(foreach study,main $(filter-out main,$(sort $(MINI) $(ICONS))),$(wildcard docs/mini-results/mini-$(study).tar.xz)))
mini-report: $(READY)
	@test -n "$(PACKED)" || { echo "docs/mini-results holds no packed study of specs/mini; make mini runs and packs them"; exit 2; }
	$(BIN)/python -m report $(PACKED) --markdown docs/mini-results.md
	$(BIN)/python -m report --matrix $(PACKED) --out docs/matrix

bench: $(READY)
	for part in loss step waiting ranks start data evaluation checkpoint sweep detectors report table; do $(BIN)/python benchmarks/$$part.py || exit 1; done

# the Python that has torch for this GPU: PYTHON=python3, or .venv where it is made
GPU_PYTHON = $(if $(filter command%,$(origin PYTHON)),$(PYTHON),$(if $(wildcard $(READY)),$(BIN)/python,python3))

gpu:
	$(GPU_PYTHON) benchmarks/gpu/run.py $(if $(SIZES),--sizes $(SIZES)) $(if $(OUT),--out $(OUT)) $(if $(WHEELS),--wheels $(WHEELS)) $(if $(MINUTES),--minutes $(MINUTES))

WHEELS_FOR ?= 3.12
wheels:
	mkdir -p $(or $(WHEELS),wheels)
	grep -ixE '($(subst $() ,|,$(strip $(shell grep -v '^#' benchmarks/gpu/wheels.txt))))==.*' constraints.txt > $(or $(WHEELS),wheels)/versions.txt
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version $(WHEELS_FOR) --implementation cp \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
		--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
		--dest $(or $(WHEELS),wheels) --requirement $(or $(WHEELS),wheels)/versions.txt
	DS_BUILD_OPS=0 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation \
		--wheel-dir $(or $(WHEELS),wheels) $$(grep '^deepspeed==' constraints.txt)

clean:
	rm -rf $(VENV) .venv-python3.* shards/demo shards/demo-lab shards/lab shards/lab-probe shards/lab-known .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage *.egg-info
