"""Papermill, and the kernel that it asks for, in processes forked from one that has loaded the large libraries.

Starting Python twice and importing torch and transformers takes ten seconds, more than many a notebook does. Here a
server imports them once and runs none of them; every notebook then has a papermill and a kernel of its own, forked
from it, with seeds, threads, folder and environment as a fresh kernel would have them.
"""
import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LIBRARIES = ["torch", "transformers", "transformers.trainer", "transformers.models.llama.modeling_llama", "peft", "trl",
             "trl.trainer.utils", "datasets", "matplotlib.figure", "pandas", "fastcore.test", "papermill", "nbclient",
             "ipykernel.ipkernel", "ipykernel.kernelapp"]  # not pyplot: it would choose how figures are shown
os.environ.setdefault("TRITON_INTERPRET", "1")  # never beside a GPU; Triton comes with transformers
_mine = threading.local()  # a server for every thread that asks for notebooks


class _Launched:
    """A forked kernel, as jupyter_client wants to see it: the part of `Popen` that it uses."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process, self.pid, self.terminate, self.kill = process, process.pid, process.terminate, process.kill

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _kernel(orders) -> None:
    """Become a kernel when its command line, folder and environment arrive."""
    import datasets.fingerprint
    import ipykernel.kernelapp
    import numpy
    import torch
    import transformers.trainer
    from transformers.utils.notebook import NotebookProgressCallback

    os.setsid()  # signals to the kernel's group must not reach ours
    orders.send("ready")
    command, cwd, env = orders.recv()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(cwd)
    os.environ.clear()
    os.environ |= env
    for seed in (random.seed, numpy.random.seed, torch.seed, datasets.fingerprint.fingerprint_rng.seed):
        seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    transformers.trainer.is_in_notebook.cache_clear()  # at import it was not
    transformers.trainer.DEFAULT_PROGRESS_CALLBACK = NotebookProgressCallback
    sys.argv = command[command.index("ipykernel_launcher"):]
    sys.path[:] = [path for path in sys.path if path and not Path(path).is_relative_to(Path(__file__).parents[1])]
    parent = f"--IPKernelApp.parent_handle={os.getppid()}"  # it ends with papermill; unset, it read that at import
    ipykernel.kernelapp.launch_new_instance(argv=[*sys.argv[1:], parent])
    atexit._run_exitfuncs()  # a forked process leaves without them


def _papermill(path: str, copy: str, parameters: dict, env: dict[str, str], log: str, answers: int) -> None:
    """Execute one notebook; the kernel is forked first, before papermill has threads."""
    import papermill
    from jupyter_client.provisioning import local_provisioner

    os.close(answers)  # the server's alone, so that its end is seen
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ |= env
    theirs, ours = multiprocessing.Pipe()
    kernel = multiprocessing.get_context("fork").Process(target=_kernel, args=(theirs,))
    kernel.start()
    theirs.close()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def launch(command: list[str], env: dict, cwd: str | None = None, **_):
        ours.send((command, cwd or os.getcwd(), env))
        return _Launched(kernel)

    local_provisioner.launch_kernel = launch
    try:
        ours.recv()
        papermill.execute_notebook(path, copy, parameters, cwd=Path(path).parent, kernel_name="python3",
                                   progress_bar=False)
    finally:
        kernel.join(5 if sys.exc_info()[0] is None else 0)  # it is on its way out, unless something went wrong
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(kernel.pid, signal.SIGKILL)
        kernel.kill()


def _wait(process, timeout: float) -> bool:
    """Whether the process ended in time, and before whoever asked for it was gone."""
    deadline = time.monotonic() + timeout
    while process.exitcode is None and time.monotonic() < deadline and not select.select([0], [], [], 0)[0]:
        process.join(0.05)
    return process.exitcode is not None


def serve() -> None:
    """Load the libraries; then one request a line, one answer a line, until there are no more requests."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collections in forked processes need not look through, and so copy, what the libraries made
    while line := sys.stdin.readline():
        request, timeout = json.loads(line)
        process = multiprocessing.get_context("fork").Process(
            target=_papermill, kwargs=request | {"answers": answers.fileno()})
        process.start()
        if late := not _wait(process, timeout):
            process.terminate()
            if not _wait(process, 15):
                process.kill()
                process.join()
        print(json.dumps(None if late else process.exitcode), file=answers, flush=True)
    os._exit(0)  # it has run nothing that would have to be wound up


def execute(path: Path, copy: Path, parameters: dict, env: dict[str, str], timeout: float) -> tuple[int | None, str]:
    """Papermill's exit code and messages; None where it was stopped after `timeout` seconds."""
    if not hasattr(_mine, "server") or _mine.server.poll() is not None:
        first = {"MPLBACKEND": "module://matplotlib_inline.backend_inline",  # read when matplotlib is imported
                 "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # a library that looks for a GPU must not start CUDA here
        _mine.server = subprocess.Popen([sys.executable, __file__], env=env | first, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        request = {"path": str(path), "copy": str(copy), "parameters": parameters, "env": env, "log": log.name}
        try:
            print(json.dumps((request, timeout)), file=_mine.server.stdin, flush=True)
            answer = _mine.server.stdout.readline()
        except BaseException:  # an answer must not be taken for that of the next notebook
            _mine.server.kill()
            raise
        return (json.loads(answer), log.read()) if answer else (1, f"{log.read()}\nthe server of forked.py died")


if __name__ == "__main__":
    serve()
