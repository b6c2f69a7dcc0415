#!/bin/sh
# Everything the tests need, and the tests: Debian packages (as root), a virtual environment, lint, types, tests.
# Arguments go to pytest: `tests/run.sh -m slow`, `tests/run.sh tests/filesystem`.
set -eu
cd "$(dirname "$0")/.."
tests/install-debian-packages.sh
VENV=${VENV:-.venv}
[ -x "$VENV/bin/python" ] || python3 -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --editable '.[test]'
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check --quiet .
"$VENV/bin/mypy"
# Programs start thousands of times here: what they import is compiled once, and none of them multiplies matrices.
unset PYTHONDONTWRITEBYTECODE
export OPENBLAS_NUM_THREADS=1
exec "$VENV/bin/python" -m pytest "$@"
