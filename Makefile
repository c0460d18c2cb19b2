# Every task of this project. `make demo` and `make test` set up what they need; CI calls nothing but this file.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := preprocessor/v1/preprocessor
CODE := preprocessor engine_client deploy tests
FUZZ_COUNT ?= 20000
FUZZ_SECONDS ?= inf
FUZZ_FIRST ?= 0
CHANNEL_SECONDS ?= 60
GUIDED_SECONDS ?= 140
# Of the demo: triton or vllm; the clip's number, a random one if none is given.
ENGINE ?= triton
SEED ?=
# Tools that look at this environment and are no part of it.
SUPPLY := build/supply
# An environment of the lowest versions that pyproject.toml allows.
LOWEST := build/lowest
# Known vulnerabilities that do not matter here, each with the reason why not. None.
AUDIT_IGNORED :=

# The native kernel, which `pip install` compiles where there is a C compiler.
NATIVE := $(wildcard preprocessor/vision/native/*.[ch])

.DEFAULT_GOAL := help
.PHONY: help setup triton vllm peers prometheus examples demo demo-model test test-examples test-fronts test-vllm test-browser test-all test-lowest soak fuzz fuzz-guided audit lock sbom parity bench bench-full golden proto image image-test wheels release render reference format lint type verify clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/stamp ## install the project and its tools into .venv

$(VENV)/stamp: pyproject.toml deploy/constraints.txt deploy/venv.sh $(NATIVE)
	sh deploy/venv.sh $(PYTHON) $(VENV)
	$(BIN)/pip install --quiet --constraint deploy/constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint deploy/constraints.txt --no-deps mistral-common # for tests; with its bound on numpy nothing fits
	@$(BIN)/python -c "from preprocessor.vision.native import VARIANTS as v; \
		print('native kernel:', v[0] if v else 'not built, no C compiler; torch resizes instead, and pixels are the same')"
	touch $@

wheels: setup ## build the wheel of this platform, for every Python from 3.11, into build/wheels; needs a C compiler
	rm -rf build/wheels build/lib* build/bdist* build/temp*
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheels .
	@sh deploy/check_wheel.sh $(BIN)/python build/wheels/*.whl

triton: setup ## unpack a real Triton server and the environment of its models into .triton
	PYTHON=$(PYTHON) sh deploy/triton/setup.sh

prometheus: ## unpack a real Prometheus into .prometheus
	sh deploy/prometheus/setup.sh

vllm: setup ## unpack a real vLLM for CPUs, with its gRPC server, into .vllm
	PYTHON=$(PYTHON) sh deploy/vllm/setup.sh

peers: setup ## install SMG into .peers, for python -m tests.bench.peers; `make vllm` installs the other peer
	PYTHON=$(PYTHON) sh tests/bench/peers/setup.sh

examples: setup ## install Ray and Jupyter, which some of deploy/examples need, into build/examples
	PYTHON=$(PYTHON) sh deploy/examples/setup.sh

demo: $(ENGINE) ## the main job: a clip and questions in, Triton's answers out, and whether they are right; or vLLM's: make demo ENGINE=vllm
	$(BIN)/python -m deploy.demo $(ENGINE) $(if $(SEED),--seed $(SEED))

demo-model: setup ## train the demo's model anew, into deploy/demo_model; half an hour on an idle core
	$(BIN)/python -m deploy.demo_model.train

# Four processes, since tests wait for other processes and for timers half of the time. Which tests each runs is always the same:
# PARTS of tests/conftest.py.
in_parts = --dist each $(foreach part,$(1),--tx popen//env:TEST_PART=$(part))
test: triton ## run the tests; a few minutes
	@$(MAKE) --no-print-directory prometheus || echo 'no Prometheus: its tests will be skipped'
	$(BIN)/python -m pytest $(call in_parts,triton pipeline replicas service)

test-examples: examples triton ## run what else people start with: the demo, the notebook, and the example for Ray; some minutes
	$(BIN)/python -m pytest -m slow tests/engine/test_demo.py tests/service/test_examples.py

test-fronts: setup ## run the tests of the service once more, with two fronts between it and its callers; some minutes
	PREPROCESSOR_FRONTS=2 $(BIN)/python -m pytest $(call in_parts,replicas service) tests/service

# One process: all tests share one server, since a start takes minutes. Then another: the vLLM in Triton is a server of its own.
VLLM_IN_TRITON := tests/engine/vllm_triton
test-vllm: vllm triton ## run the tests with a real vLLM on the CPU; some fifteen minutes
	$(BIN)/python -m pytest -m vllm tests/engine --ignore $(VLLM_IN_TRITON)
	$(BIN)/python -m pytest -m vllm $(VLLM_IN_TRITON)

test-browser: setup ## look at the page of `preprocessor inspect` in Chromium, where there is one
	$(BIN)/python -m pytest -m browser tests/browser

test-all: triton ## run every test but the soak, the long ones too
	@$(MAKE) --no-print-directory prometheus || echo 'no Prometheus: its tests will be skipped'
	$(BIN)/python -m pytest -m 'not soak and not vllm'

$(LOWEST)/stamp: pyproject.toml deploy/bounds.py deploy/venv.sh $(VENV)/stamp
	rm -rf $(LOWEST)
	sh deploy/venv.sh $(PYTHON) $(LOWEST)
	$(BIN)/python -m deploy.bounds > $(LOWEST)/bounds.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/bounds.txt --editable '.[dev,s3]'
	touch $@

# Without the two tests that compare what is installed with deploy/constraints.txt.
test-lowest: $(LOWEST)/stamp ## run the unit tests with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest tests/unit \
		--deselect tests/unit/doctor/test_machine.py::test_the_libraries_here_are_those_that_were_tested \
		--deselect tests/unit/doctor/test_output.py::test_what_is_wrong_is_listed_with_what_to_do_and_counted

soak: setup ## half an hour of mixed work and refusals on one server, or SOAK_SECONDS: memory and descriptors stay flat
	$(BIN)/python -m pytest -m soak -s

fuzz: setup ## 20,000 mutated files and requests, or FUZZ_COUNT, against real services; or for FUZZ_SECONDS. FUZZ_SEED, FUZZ_FIRST: again
	$(BIN)/python -m tests.fuzz --count $(FUZZ_COUNT) --seconds $(FUZZ_SECONDS) --first $(FUZZ_FIRST) \
		$(if $(FUZZ_SEED),--seed $(FUZZ_SEED)) $(if $(FUZZ_ONLY),--only '$(FUZZ_ONLY)')
	$(BIN)/python -m tests.fuzz.channel --count $(FUZZ_COUNT) --seconds $(CHANNEL_SECONDS) $(if $(FUZZ_SEED),--seed $(FUZZ_SEED))

fuzz-guided: setup ## coverage-guided fuzzing of the parsers written in Python, for GUIDED_SECONDS
	$(BIN)/python -m tests.fuzz.guided --seconds $(GUIDED_SECONDS)

$(SUPPLY)/stamp: deploy/supply-tools.txt deploy/venv.sh
	sh deploy/venv.sh $(PYTHON) $(SUPPLY)
	$(SUPPLY)/bin/pip install --quiet --requirement $<
	touch $@

# AUDIT=--if-possible, as in CI: fails only for a known vulnerability that has a fix, not for an index that cannot be asked.
audit: setup $(SUPPLY)/stamp ## look up every installed package among known vulnerabilities; needs the network, fails without
	$(BIN)/pip list --format freeze --exclude-editable | sed 's/+cpu$$//' > $(SUPPLY)/installed.txt
	$(BIN)/python -m deploy.audit $(SUPPLY)/bin/pip-audit $(SUPPLY)/installed.txt $(AUDIT) $(AUDIT_IGNORED)

lock: setup $(SUPPLY)/stamp ## write what the image installs, with hashes, anew from the index: deploy/requirements.txt, deploy/installer.txt
	$(BIN)/python -m deploy.pins $(SUPPLY)/bin/uv deploy

sbom: setup $(SUPPLY)/stamp ## write build/sbom.cdx.json: every installed package and the libraries inside it, as CycloneDX
	$(SUPPLY)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file build/sbom.cdx.json
	$(BIN)/python -m deploy.sbom build/sbom.cdx.json

# TRANSFORMERS=latest, or a version, for a weekly run: that release in an environment of its own, and what changed in it.
parity: setup ## compare with Hugging Face live, hundreds of cases; minutes. TRANSFORMERS=latest: with its newest release
	$(if $(TRANSFORMERS),PYTHON=$(PYTHON) $(BIN)/python -m tests.parity.release $(TRANSFORMERS),$(BIN)/python -m tests.parity && $(BIN)/python -m tests.parity.tiles)

bench: setup ## time everything beside other ways to do the same; some ten minutes
	$(BIN)/python -m tests.bench

bench-full: triton ## the same with more rounds, loads and clips, into tests/bench/RESULTS.md; an hour
	$(BIN)/python -m tests.bench --full --results

golden: setup ## make the golden results anew from Hugging Face's processor
	$(BIN)/python -m tests.golden.make_goldens
	$(BIN)/python -m tests.golden.make_tile_goldens

proto: setup ## generate preprocessor/v1 from protos
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --grpc_python_out=. \
		--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=quiet:. \
		--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:. \
		protos/preprocessor/v1/preprocessor.proto
	# For Envoy's JSON: the service with everything it imports, and what errors carry.
	$(BIN)/python -m grpc_tools.protoc -Iprotos -I$(shell $(BIN)/python -c "import google.rpc; print(google.rpc.__path__[0])" 2>/dev/null)/../.. \
		--include_imports --descriptor_set_out=deploy/envoy/preprocessor.binpb \
		protos/preprocessor/v1/preprocessor.proto google/rpc/error_details.proto

# `twine` and `build`, in an environment of their own.
release: triton $(SUPPLY)/stamp ## build wheel and sdist into dist, check and install them, run the demo with what is installed
	sh deploy/release.sh $(PYTHON) $(SUPPLY) $(CURDIR)/dist

image: ## build the container image
	docker build --file deploy/Dockerfile --tag preprocessor .

image-test: triton ## build the image without Docker, run it as a pod would, and ask it a question; as root, some ten minutes
	$(BIN)/python -m tests.deploy.image

OVERLAY ?= prod
render: setup ## print the manifests of an overlay: make render OVERLAY=dev
	@$(BIN)/kubectl kustomize deploy/kustomize/overlays/$(OVERLAY)

# The Prometheus Operator's form of the alerts, on standard output.
RULES := deploy/kustomize/components/monitoring/rules.yaml
PRINT_RULES := sed -e '1i \# Written by `make reference` from deploy/prometheus/alerts.yaml, which says what labels and addresses it expects.' \
	-e '1i apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: preprocessor\nspec:' \
	-e '/^\#/d' -e 's/^./  &/' deploy/prometheus/alerts.yaml

# Envoy's configuration with TLS for callers: the first filter chain, which is theirs, gets a transport socket.
TLS := deploy/kustomize/components/tls
PRINT_TLS := awk -v piece=$(TLS)/transport-socket.yaml \
	'NR == 1 { print "\# Written by `make reference`: ../../../envoy/envoy.yaml with transport-socket.yaml in it." } \
	/^        - filters:/ && !done { while ((getline line < piece) > 0) print line; sub("- ", "  "); done = 1 } { print }' \
	deploy/envoy/envoy.yaml

reference: setup ## write what is made of other files: the table of settings, tested versions, the operator's alerts, Envoy with TLS
	$(BIN)/python -m preprocessor.cli.reference preprocessor/config/README.md
	cp deploy/constraints.txt preprocessor/cli/constraints.txt
	$(PRINT_RULES) > $(RULES)
	$(PRINT_TLS) > $(TLS)/envoy.yaml

format: setup ## format the code
	$(BIN)/ruff format --quiet $(CODE)
	$(BIN)/ruff check --quiet --fix $(CODE)

lint: setup ## check style, layers and the proto
	$(BIN)/ruff format --quiet --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos

type: setup ## check types, strictly
	$(BIN)/mypy
	sh deploy/triton/types.sh $(BIN)/mypy

verify: proto lint type ## all checks that run nothing; fails where generated code is not current
	git diff --exit-code -- preprocessor/v1 deploy/envoy/preprocessor.binpb
	$(BIN)/python -m preprocessor.cli.reference --check preprocessor/config/README.md
	$(BIN)/python -m deploy.bounds --check
	cmp deploy/constraints.txt preprocessor/cli/constraints.txt
	$(PRINT_RULES) | cmp - $(RULES)
	$(PRINT_TLS) | cmp - $(TLS)/envoy.yaml

clean: ## remove everything that was set up
	rm -rf $(VENV) .triton .prometheus .vllm .peers build dist *.egg-info preprocessor/vision/native/*.so
