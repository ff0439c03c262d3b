# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Files whose change means that the environment must be brought up to date.
SPEC := setup.cfg pyproject.toml

.PHONY: demo test lint bench clean help

help:
	@echo "make demo    train a small network on built-in data, evaluate it, write pictures and a TFLite file (minutes)"
	@echo "make test    run the tests"
	@echo "make lint    check format, style and docstrings"
	@echo "make bench   measure what may not be slow, as ratios"

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/.demo: $(BIN)/python $(SPEC)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu,lite]"
	@touch $@

.venv/.dev: $(BIN)/python $(SPEC)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[cpu,dev]"
	@touch $@

demo: .venv/.demo
	@test ! -e demo || { echo "demo/ is there already; to start anew: rm -r demo"; exit 2; }
	$(BIN)/python train.py --arch fcn8s --run-dir demo/run
	$(BIN)/python evaluate.py demo/run --full-report --report demo/report
	$(BIN)/python tools/export.py demo/run --out demo/fcn8s.tflite
	@echo
	@echo "report, for a browser:               demo/report/report.html"
	@echo "scores:                              demo/report/scores.txt and demo/report/scores.json"
	@echo "network for devices:                 demo/fcn8s.tflite and demo/fcn8s.json"
	@echo "network for Keras:                   demo/run/model.keras"

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 -q -m "not slow"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: .venv/.dev
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/metric_overhead.py
	$(BIN)/python benchmarks/large_images.py
	$(BIN)/python benchmarks/export_latency.py
	$(BIN)/python benchmarks/input_pipeline.py
	$(BIN)/python benchmarks/pipeline_speed.py
	$(BIN)/python benchmarks/dilated_stack.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/deeplab_v3_step.py
	$(BIN)/python benchmarks/accumulation_memory.py

clean:
	rm -rf .venv build dist *.egg-info
