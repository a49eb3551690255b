# The notebooks in JupyterLab, for macOS, Windows, or a server:
#   docker build -t tinyr2 . && docker run --rm -p 8888:8888 tinyr2     # prints the address to open
#
# The sandbox needs the system calls of seccomp and Landlock. Docker's own seccomp profile allows both (version 23 or
# newer), and the kernel must have Landlock (5.13 or newer; Docker Desktop and WSL2 run such a one). No option of
# `docker run` is needed; do not add --security-opt or --privileged. Under gVisor (--runtime=runsc) there is no
# Landlock. The health check below is the sandbox's own test: `docker ps` says "unhealthy" where a layer is missing.
FROM python:3.12-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home reader && install -d -o reader -g reader /home/reader/tinyr2
USER reader
WORKDIR /home/reader/tinyr2

FROM base
ENV PIP_NO_CACHE_DIR=1
COPY --chown=reader:reader . .
RUN make setup
EXPOSE 8888
HEALTHCHECK --interval=10m --timeout=2m --start-period=1m \
    CMD .venv/bin/python -c "from tinyr2.sandbox import Sandbox; print(Sandbox(workers=1).report())"
CMD [".venv/bin/jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser"]
