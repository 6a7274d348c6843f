# Everything is built and installed into .venv by the first target that needs it.
#
#   make run                     write some Python with the model in the package
#   make run MODEL=m.gguf PROMPT="def f("   ... or with yours
#   make test                    all tests, offline, in about two minutes
#   make test-cpus               the core on other CPUs, emulated: x86-64 without AVX, ARM
#   make test-bounds             all tests with the oldest dependencies that are allowed
#   make campaign-crash          a hundred kills and a disk that fills: no file is ever lost
#   make campaign-writers        a hundred thousand files by four runs at once: none is lost
#   make campaign-engine         ten thousand requests, schedules and interrupts, in some minutes
#   make fuzz                    2,000 damaged models per format through everything that reads them
#   make sanitize                the core under ASan, UBSan and TSan, in ten minutes
#   make lint                    ruff, mypy and clang-format; `make format` mends what it can
#   make bench MODEL=m.gguf      speed of a model, as a share of what this machine can do
#   make clean                   remove what was built

VENV   := .venv
BIN    := $(VENV)/bin
MODEL  ?=
PROMPT ?= def fibonacci(
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*.h csrc/*/*)
CXX_FILES := $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cpp tests/*.h tests/*.cpp)

.PHONY: run test test-cpus test-cpus-full test-bounds campaign-crash campaign-writers \
        campaign-engine fuzz sanitize lint format bench clean

run: $(VENV)/installed
	$(BIN)/starcoder $(if $(MODEL),-m "$(MODEL)") -p "$(PROMPT)" -n 64 --temp 0

test: $(VENV)/installed
	$(BIN)/python -m pytest

test-cpus: $(VENV)/installed
	scripts/test-cpus $(VENV)

test-cpus-full: $(VENV)/installed
	STARCODER_CPUS_FULL=1 scripts/test-cpus $(VENV)

test-bounds: $(VENV)/installed
	scripts/test-bounds $(VENV)

campaign-crash: $(VENV)/installed
	STARCODER_CRASHES=100 $(BIN)/python -m pytest tests/test_crash.py

campaign-writers: $(VENV)/installed
	STARCODER_WRITES=100000 $(BIN)/python -m pytest tests/test_two_writers.py

campaign-engine: $(VENV)/installed
	STARCODER_REQUESTS=10000 STARCODER_PROMPTS=2000 STARCODER_SCHEDULES=10000 \
	STARCODER_INTERRUPTS=2000 $(BIN)/python -m pytest -v --timeout 1200 --durations 0 \
	tests/test_many_requests.py tests/test_one_answer.py tests/test_schedules.py tests/test_loop.py

fuzz: $(VENV)/installed
	$(BIN)/python -m tests.fuzz --n 2000

sanitize: $(VENV)/installed
	scripts/sanitize $(VENV)

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/installed
	$(BIN)/starcoder bench $(if $(MODEL),-m "$(MODEL)")

$(VENV)/installed: $(SOURCES) scripts/setup
	scripts/setup $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
