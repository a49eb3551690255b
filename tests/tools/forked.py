"""Papermill, and the kernel that it asks for, in processes forked from one that has loaded the large libraries.

Starting Python twice and importing torch and transformers takes ten seconds, more than many a notebook does. Here a
server imports them once and runs none of them; every notebook then has a papermill and a kernel of its own, forked
from it, with seeds, threads, folder and environment as a fresh kernel would have them.
"""
import atexit
import importlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

LIBRARIES = ["torch", "transformers", "transformers.trainer", "transformers.models.llama.modeling_llama", "peft", "trl",
             "trl.trainer.utils", "datasets", "matplotlib.figure", "pandas", "fastcore.test", "papermill", "nbclient",
             "ipykernel.ipkernel", "ipykernel.kernelapp"]  # not pyplot: it would choose how figures are shown
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
    import ipykernel.kernelapp
    import numpy
    import torch

    os.setsid()  # signals to the kernel's group must not reach ours
    orders.send("ready")
    command, cwd, env = orders.recv()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ |= env
    random.seed()
    numpy.random.seed()
    torch.seed()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    sys.argv = command[command.index("ipykernel_launcher"):]
    sys.path[:] = [path for path in sys.path if path and not Path(path).is_relative_to(Path(__file__).parents[1])]
    parent = f"--IPKernelApp.parent_handle={os.getppid()}"  # it ends with papermill; unset, it read that at import
    ipykernel.kernelapp.launch_new_instance(argv=[*sys.argv[1:], parent])
    atexit._run_exitfuncs()  # a forked process leaves without them


def _papermill(path: str, copy: str, parameters: dict, env: dict[str, str], log: str) -> None:
    """Execute one notebook; the kernel is forked first, before papermill has threads."""
    import papermill
    from jupyter_client.provisioning import local_provisioner

    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ |= env
    theirs, ours = multiprocessing.Pipe()
    kernel = multiprocessing.get_context("fork").Process(target=_kernel, args=(theirs,))
    kernel.start()
    ours.recv()

    def launch(command: list[str], env: dict, cwd: str | None = None, **_):
        ours.send((command, cwd or os.getcwd(), env))
        return _Launched(kernel)

    local_provisioner.launch_kernel = launch
    papermill.execute_notebook(path, copy, parameters, cwd=Path(path).parent, kernel_name="python3",
                               progress_bar=False)


def serve() -> None:
    """Load the libraries; then one request a line, one answer a line, until there are no more requests."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        request, timeout = json.loads(line)
        process = multiprocessing.get_context("fork").Process(target=_papermill, kwargs=request)
        process.start()
        process.join(timeout)
        if late := process.exitcode is None:
            process.terminate()  # papermill then stops its kernel
            process.join()
        print(json.dumps(None if late else process.exitcode), file=answers, flush=True)
    os._exit(0)  # it has run nothing that would have to be wound up


def execute(path: Path, copy: Path, parameters: dict, env: dict[str, str], timeout: float) -> tuple[int | None, str]:
    """Papermill's exit code and messages; None where it was stopped after `timeout` seconds."""
    if not hasattr(_mine, "server") or _mine.server.poll() is not None:
        inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # read when matplotlib is imported
        _mine.server = subprocess.Popen([sys.executable, __file__], env=env | inline, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with tempfile.NamedTemporaryFile("r") as log:
        request = {"path": str(path), "copy": str(copy), "parameters": parameters, "env": env, "log": log.name}
        print(json.dumps((request, timeout)), file=_mine.server.stdin, flush=True)
        answer = _mine.server.stdout.readline()
        return (json.loads(answer), log.read()) if answer else (1, "the server of forked.py died")


if __name__ == "__main__":
    serve()
