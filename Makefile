# make digits     trains on the embedded digits, draws samples, measures them: runs/digits/
# make digits-labels  trains on them with their labels, draws each digit, measures: runs/digits-labels/
# make signals    trains on the embedded motions, draws, compares them: runs/signals/
# make volumes    trains on the embedded blocks of a brain, draws, compares them: runs/volumes/
# make test       lint and the whole suite but the slow tests
# make test-slow  the slow tests
# make test-newest  the suite on the newest Python that is there, in .venv-newest
# make lint       ruff, and the types of the public interface
#
# Each sets up what it needs in .venv first. PYTHON chooses the interpreter to make it with.

PYTHON ?= python3
NEWEST = $(shell scripts/newest_python)
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: digits digits-labels signals volumes test test-slow test-newest suite lint clean

DIGITS := main.py --config=configs/digits.py --workdir=runs/digits

digits: $(VENV)/run
	$(RUN) $(DIGITS)
	$(RUN) $(DIGITS) --mode=sample
	$(RUN) $(DIGITS) --mode=eval
	$(RUN) $(DIGITS) --mode=reproduce --config.reproduce.what=compression

DIGITS_LABELS := main.py --config=configs/digits.py:labels --workdir=runs/digits-labels

digits-labels: $(VENV)/run
	$(RUN) $(DIGITS_LABELS)
	$(RUN) $(DIGITS_LABELS) --mode=sample --config.sample.guidance=1.5
	$(RUN) $(DIGITS_LABELS) --mode=eval

SIGNALS := main.py --config=configs/watch.py:labels --workdir=runs/signals

signals: $(VENV)/run
	$(RUN) -m pip install 'soundfile>=0.12'  # for FLAC's figure, as the extra `signals` has it
	$(RUN) $(SIGNALS)
	$(RUN) $(SIGNALS) --mode=sample
	$(RUN) $(SIGNALS) --mode=reproduce --config.reproduce.what=comparison

VOLUMES := main.py --config=configs/brain_blocks.py --workdir=runs/volumes

volumes: $(VENV)/run
	$(RUN) $(VOLUMES)
	$(RUN) $(VOLUMES) --mode=sample
	$(RUN) $(VOLUMES) --mode=reproduce --config.reproduce.what=comparison

test: lint suite

test-slow: $(VENV)/dev
	OPTIMISED=1 $(RUN) -m pytest -q -m slow -n 2

test-newest:
	$(MAKE) VENV=.venv-newest PYTHON=$(NEWEST) suite

suite: $(VENV)/dev
	$(RUN) -m pytest -q -n 2 --dist=worksteal

lint: $(VENV)/dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf .venv .venv-newest runs

$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --upgrade pip
	touch $@

$(VENV)/run: requirements.txt | $(VENV)/pip
	$(RUN) -m pip install -r requirements.txt
	touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/run
	$(RUN) -m pip install -r requirements-dev.txt
	touch $@
