# make run     set up, run every page, leave the executed pages in build/
# make check   set up, lint, run the fast tests: before every commit
# make test    set up, lint, run every test and every page: before every push
# make test-code   the half of it that runs no page
# make test-pages  the other half: every page, with other parameters, and compared with its stored outputs
# make lint    set up, check format, style, layers and types
# make lab     open the pages in JupyterLab
# make html    write the stored pages as HTML to build/html
# make site    build the web site from the stored pages: build/site/index.html
# make slides  write the stored pages as slides: build/slides
# make pages   run the pages and store their outputs (after a change)
# make student write the pages for a class, without answers, to student/
# make matrix  the fast tests and the pages on several Pythons and sets of packages -> docs/matrix.md
# make soak    run every page ten times on several kinds of processor, for hours; it resumes
# make backends  training and the habits of Keras' users on JAX and on PyTorch, in environments without TensorFlow
# make bench   compare with transformers and timm, which it installs in .venv-bench
# make clean   remove .venv, .venv-bench and build

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run check test test-code test-pages lint lab html site slides pages student matrix soak backends bench clean

run: .venv/installed
	$(BIN)/python scripts/run_pages.py build

check: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test: lint test-code test-pages

test-code: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/test_pages.py

test-pages: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/test_pages.py
	$(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout=600 notebooks

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

lab: .venv/installed
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_big_transfer.ipynb

html: .venv/installed
	$(BIN)/jupyter nbconvert --to html --template closed --TemplateExporter.extra_template_basedirs=scripts/html \
		--TemplateExporter.extra_template_paths=scripts/html --output-dir build/html notebooks/*.ipynb

site: .venv/installed
	$(BIN)/python scripts/site.py build/site

slides: .venv/installed
	$(BIN)/python scripts/slides.py build/slides

pages: .venv/installed
	$(BIN)/python scripts/run_pages.py notebooks

student: .venv/installed
	$(BIN)/python scripts/student.py student

matrix: .venv/installed
	$(BIN)/python scripts/matrix.py

soak: .venv/installed
	$(BIN)/python scripts/soak.py

backends: .venv-jax/installed .venv-torch/installed
	KERAS_BACKEND=jax .venv-jax/bin/python -m pytest tests/test_habits.py tests/test_backends.py
	KERAS_BACKEND=torch .venv-torch/bin/python -m pytest tests/test_habits.py tests/test_backends.py

# On a machine without a GPU, name a build without CUDA: make backends TORCH=torch==2.13.0, where pip finds one.
TORCH ?= torch
.venv-%/installed: pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$*,onnx]" \
		$(if $(filter torch,$*),"$(TORCH)") pytest onnxruntime pandas
	@touch $@

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is $$($(PYTHON) --version); try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test,teach]"
	@touch $@

bench: .venv/installed .venv-bench/installed
	$(BIN)/python benchmarks/run.py

# timm wants torchvision, of which there is no CPU build everywhere; its Python part is enough here.
.venv-bench/installed: benchmarks/peers.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps timm==1.0.31 torchvision==0.28.0
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --editable ".[jax]"
	@touch $@

clean:
	rm -rf .venv .venv-* build
