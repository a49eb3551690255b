#!/usr/bin/env bash
# `make hooks`: notebooks are cleaned when Jupyter saves them and when git merges them. YES=1 does not ask.
set -euo pipefail
cd "$(dirname "$0")/../.."
cat <<EOF
nbdev_install_hooks will write
  in this repository: .git/hooks/post-merge (in place of one that is there), .gitconfig and .gitattributes,
                      and a line in .git/config that names .gitconfig
  outside of it:      ~/.jupyter/jupyter_notebook_config.py and ~/.jupyter/jupyter_server_config.py
The two outside get a function that runs whenever Jupyter saves a notebook. It acts only in nbdev projects that ask
for it. To undo it, delete nbdev_clean_jupyter from both files.
EOF
if [ "${YES:-}" != 1 ]; then
    read -r -p "Go on? [y/N] " answer || answer=
    case $answer in [yY]*) ;; *) echo "nothing was written"; exit 0 ;; esac
fi
PATH="$PWD/.venv/bin:$PATH" nbdev_install_hooks
