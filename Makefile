# make digits     trains on the embedded digits, draws samples, measures them: runs/digits/
# make test       lint and the whole suite but the slow tests
# make test-slow  the slow tests
# make lint       ruff
#
# Each sets up what it needs in .venv first. PYTHON chooses the interpreter to make it with.

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: digits test test-slow lint clean

DIGITS := main.py --config=configs/digits.py --workdir=runs/digits

digits: .venv/run
	$(RUN) $(DIGITS)
	$(RUN) $(DIGITS) --mode=sample
	$(RUN) $(DIGITS) --mode=eval
	$(RUN) $(DIGITS) --mode=reproduce --config.reproduce.what=compression

test: lint
	$(RUN) -m pytest -q -n 2

test-slow: .venv/dev
	$(RUN) -m pytest -q -m slow -n 2

lint: .venv/dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf .venv runs

.venv/pip:
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -q --upgrade pip
	touch $@

.venv/run: requirements.txt | .venv/pip
	$(RUN) -m pip install -q -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/run
	$(RUN) -m pip install -q -r requirements-dev.txt
	touch $@
