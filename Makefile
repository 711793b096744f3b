# Two commands do everything on a fresh machine with Python 3.11, pip and make:
#   make demo   trains CLIP and then a denoiser on procedural pictures, and draws what they learnt
#   make test   checks types and style, and runs the tests
# and make docs builds the site into build/docs.

PYTHON ?= python3
BIN := .venv/bin

demo: .venv/demo
	rm -rf runs/demo
	$(BIN)/sfumato --registry registry.yaml train demo --out runs/demo

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy core plugins
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: .venv/dev
	$(BIN)/python -m pytest -n 2 -m slow

docs: .venv/dev
	$(BIN)/python docs/build_site.py build/docs

.venv/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[plots]"
	touch $@

.venv/dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# Only its samplers are wanted, beside ours; what it depends on brings torchvision.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps "k-diffusion>=0.1.1"
	# It caps pillow below the version that all else is tested with, and works with it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps "trackio>=0.43"
	touch $@ .venv/demo

.PHONY: demo docs test test-slow
