"""The sandbox against every program of hostile.py: nothing forged, nothing left behind, everything answered.

The programs run in a process of their own (`--harness`), in a process-id namespace where the kernel allows one, so
that whatever a leak lets out stays inside. When pytest runs as root they run twice: as root, and as an ordinary user.
"""

import contextlib
import glob
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from hostile import BROAD, CONTROLS, PROGRAMS  # noqa: E402

from tinyr2.sandbox import _STATUSES, Check, Sandbox  # noqa: E402

try:
    from tinyr2.sandbox import Calls
except ImportError:
    Calls = None
USER = 64999  # the ordinary user, when pytest runs as root
NAME = "tinyr2-hostile"
TIMEOUT, SHORT, SLACK = 0.5, 0.25, 8.0  # seconds; short for `ENDLESS`; slack for a machine that does other work
BUSY = 1.5  # seconds of CPU that the trainer may spend on one group of programs
ENDLESS = {"loop", "exhaustion", "timing"}
STEADY = {"exit", "equality", "patching", "wrong", "source", "check", "marker"}  # same verdict in every run
GROUP = 40


# --- inside the process of its own ---------------------------------------------------------------------------


class World:
    """Everything a program may try to reach: a secret file, listeners, signals; `faults` says what was reached."""

    def __init__(self, folder: str):
        self.canary, self.signals = Path(folder, "canary"), []
        self.facts = {name: f"{name}_{secrets.token_hex(12)}" for name in ("canary_text", "token")}
        self.canary.write_text(self.facts["canary_text"])
        os.chmod(folder, 0o755)
        self.tcp, self.udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
        self.facts |= {"canary": str(self.canary), "pid": str(os.getpid()), "port": str(self.tcp.getsockname()[1])}
        self.facts["canary_env"] = os.environ["TINYR2_CANARY"]
        self.udp.bind(self.tcp.getsockname())
        self.path, self.abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.path.bind(f"{self.canary}.sock")
        os.chmod(f"{self.canary}.sock", 0o777)
        self.abstract.bind(f"\0{NAME}-{self.facts['port']}")
        for listener in (self.path, self.abstract):
            listener.listen()
        for listener in (self.tcp, self.udp, self.path, self.abstract):
            listener.setblocking(False)
        for number in (signal.SIGURG, signal.SIGTERM, signal.SIGUSR1, signal.SIGIO, signal.SIGHUP):
            signal.signal(number, lambda number, frame: self.signals.append(number))
        self.before = self.own_state()

    def own_state(self) -> tuple:
        """What a program could change in this process or in the secret file."""
        limits = [resource.getrlimit(n) for n in range(16)]
        status = self.canary.stat() if self.canary.exists() else None
        file = status and (self.canary.read_text(), status.st_mode, status.st_mtime_ns, status.st_nlink)
        return limits, os.sched_getaffinity(0), os.nice(0), os.sched_getscheduler(0), file

    def fill(self, text: str) -> str:
        """Replace the marks of hostile.py."""
        for name, value in self.facts.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    def job(self, program) -> tuple:
        """A hostile program as `Sandbox.run` takes it."""
        source, tests = self.fill(program.source), program.tests
        if isinstance(tests, str):
            return source, Check("f", tests)
        if tests and isinstance(tests[0], str):
            return source, Calls(tests)
        return source, [{key: self.fill(value) for key, value in row.items()} for row in tests]

    def faults(self) -> list[str]:
        """What was reached or left since the last call."""
        found = [f"signal {number} arrived" for number in self.signals]
        self.signals.clear()
        for name, listener in vars(self).items():
            if isinstance(listener, socket.socket):
                with contextlib.suppress(BlockingIOError):
                    listener.recv(99) if name == "udp" else listener.accept()
                    found.append(f"a connection over {name}")
        now = self.own_state()
        if now != self.before:
            found.append(f"changed: {[(a, b) for a, b in zip(self.before, now) if a != b]}")
            self.before = now
        folders = {"/tmp", "/var/tmp", "/dev/shm", "/", "/run", ".", os.path.expanduser("~"), self.canary.parent}
        for path in (path for folder in folders for path in glob.glob(f"{glob.escape(str(folder))}/*{NAME}*")):
            found.append(f"left {path}")
            with contextlib.suppress(OSError):
                os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
        return found + [f"left process {pid}: {what}" for pid, what in processes().items() if NAME in what]


def processes(parent: int | None = None) -> dict[int, str]:
    """Process id -> state, name and command line; of one parent, or all."""
    found = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            state, owner = rest.split()[:2]
            if parent in (None, int(owner)):
                found[pid] = f"{state} {name} {Path(f'/proc/{pid}/cmdline').read_text().replace(chr(0), ' ')}"
    return found


def descendants(pid: int) -> dict[int, str]:
    """Children, their children and so on."""
    children = processes(pid)
    return children | {key: text for child in children for key, text in descendants(child).items()}


def odd(verdict, job, secret: list[str]) -> list[str]:
    """What is wrong with a verdict, whatever the program did."""
    tests = job[1]
    count = 1 if isinstance(tests, Check) else len(tests.calls) if Calls and isinstance(tests, Calls) else len(tests)
    found = [f"unknown status {verdict.status}"] if verdict.status not in _STATUSES else []
    found += [f"{len(verdict.passed)} results of {count}"] if len(verdict.passed) != count else []
    found += ["infra"] if verdict.status == "infra" else []
    if not (Calls and isinstance(tests, Calls)):
        found += [f"forged {verdict.passed}"] if any(verdict.passed) else []
    found += [f"{word} in the detail" for word in secret if word in verdict.detail]
    if (
        len(verdict.detail) > 2000
        or not verdict.detail.isprintable()
        or "\ud800" <= max(verdict.detail, default="") < "\ue000"
    ):
        found.append(f"detail not fit for a log: {len(verdict.detail)} characters, {ascii(verdict.detail[:60])}")
    return found + ([f"took {verdict.seconds:.1f} s"] if verdict.seconds > TIMEOUT + SLACK else [])


class Harness:
    """Runs groups of programs in one sandbox and notes every fault."""

    def __init__(self, world: World, workers: int, timeout: float = TIMEOUT):
        self.world, self.box, self.count, self.busiest = world, None, 0, 0.0
        self.settings = {"workers": workers, "timeout": timeout, "memory_mb": 256}
        self.faults: dict[str, list[str]] = {}
        self.verdicts: dict[str, tuple] = {}

    def note(self, name: str, *faults: str) -> None:
        if faults:
            self.faults.setdefault(name, []).extend(faults)

    def start(self) -> Sandbox:
        if self.box is None:
            self.box = Sandbox(**self.settings)
        return self.box

    def run(self, programs: list, look: bool = True) -> None:
        """Run a group, look around, and have two benign programs judged."""
        jobs, names = [self.world.job(p) for p in programs], ", ".join(p.name for p in programs)
        signal.signal(signal.SIGALRM, lambda *a: (_ for _ in ()).throw(TimeoutError("hangs")))
        signal.alarm(60)
        try:
            box, before = self.start(), time.process_time()
            box.report()
            verdicts, busy = box.run(jobs), time.process_time() - before
            self.busiest = max(self.busiest, busy)
            self.note(names, *([f"the trainer itself computed for {busy:.1f} s"] if busy > BUSY else []))
            for program, job, verdict in zip(programs, jobs, verdicts):
                secret = [self.world.facts[name] for name in ("canary_text", "canary_env")]
                self.note(program.name, *odd(verdict, job, secret))
                row = (list(verdict.passed), verdict.status, ascii(verdict.detail[:300]), round(verdict.seconds, 3))
                self.verdicts[program.name] = row
        except TimeoutError:
            self.note(names, "run() hangs")
            raise
        except Exception as error:
            self.close()
            if len(programs) > 1:  # find out which one
                for program in programs:
                    self.run([program], look)
            else:
                self.note(names, f"run() raised {type(error).__name__}: {ascii(str(error))[:300]}")
        signal.alarm(0)
        self.note(names, *(self.world.faults() if look else []))
        self.note(names, *self.benign())

    def benign(self) -> list[str]:
        """Two simple programs, one right and one wrong; a machine under load gets three tries."""
        for _ in range(3):
            self.count += 1
            right, wrong = (f"def f(n):\n    return n + {add}  # {self.count}" for add in (1, 2))
            try:
                verdicts = self.start().run([(text, [{"call": "f(1)", "returns": "2"}]) for text in (right, wrong)])
            except Exception as error:
                self.close()
                return [f"a benign program afterwards: {type(error).__name__}: {ascii(str(error))[:300]}"]
            if [v.passed for v in verdicts] == [(True,), (False,)]:
                return []
        return [f"benign programs afterwards judged {verdicts}"]

    def close(self) -> None:
        if self.box:
            self.box.close()
        self.box = None


def harness(out: str, namespaced: bool) -> None:
    """Run everything; write a JSON of what was seen."""
    start, seen = time.perf_counter(), {"skipped": []}
    programs = [p for p in PROGRAMS if p.kind != "state" and (p.kind != "decoded" or Calls or p.tests[0] != "f(0)")]
    if not namespaced:
        seen["skipped"] = sorted(BROAD)
        programs = [p for p in programs if p.name not in BROAD]
    with tempfile.TemporaryDirectory() as folder:
        world = World(folder)
        with Sandbox(workers=2, timeout=5.0, memory_mb=256) as box:
            seen["layers"] = box.report()
            verdicts = box.run([world.job(p) for p in CONTROLS])
            again = box.run([world.job(p) for p in reversed(CONTROLS)])
        seen["controls"] = {
            p.name: [list(v.passed), v.status, ascii(v.detail[:300])] for p, v in zip(CONTROLS, verdicts)
        }
        two, one, short = Harness(world, 2), Harness(world, 1), Harness(world, 2, SHORT)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        two.note("controls", *([] if verdicts == again[::-1] else ["asked again, other verdicts"]))
        clock = [time.perf_counter() - start]
        try:
            for runner in (short, two):
                part = [p for p in programs if (p.kind in ENDLESS) == (runner is short)]
                for i in range(0, len(part), GROUP):
                    runner.run(part[i : i + GROUP])
                runner.note("all", *stop_server(runner))
                clock.append(time.perf_counter() - start)
            short.close()
            steady = [p for p in programs if p.kind in STEADY and os.geteuid() != USER]
            steady = steady[:: 1 if os.getloadavg()[0] < 2 else 3]
            one.run(steady)
            for p in steady:
                a, b = (runner.verdicts.get(p.name, [None, "timeout"])[:2] for runner in (one, two))
                if a != b and "timeout" not in (a[1], b[1]):
                    one.note(p.name, f"with one worker {a}, with two {b}")
            clock.append(time.perf_counter() - start)
            for step in ("_1", "_2"):  # what the first of a pair leaves stays there for the second
                one.run([p for p in PROGRAMS if p.kind == "state" and p.name.endswith(step)], look=step == "_2")
            two.close()
            one.close()
            clock.append(time.perf_counter() - start)
            two.note("trainer killed", *kill_trainer())
            clock.append(time.perf_counter() - start)
            if namespaced:
                left = {pid: text for pid, text in processes().items() if pid not in (1, os.getpid())}
                two.note("the end", *(f"left process {pid}: {text}" for pid, text in left.items()))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
            two.note("the end", *([f"the trainer grew by {grown >> 10} MB"] if grown > 200 << 10 else []))
        except TimeoutError as error:
            two.note("harness", str(error))
        seen |= {"faults": {**one.faults, **two.faults, **short.faults}, "rows": len(programs)}
        seen |= {"verdicts": two.verdicts | one.verdicts | short.verdicts, "clock": [round(c, 1) for c in clock]}
        seen["busiest"] = round(max(runner.busiest for runner in (two, one, short)), 2)
        seen["seconds"] = round(time.perf_counter() - start, 1)
        Path(out).write_text(json.dumps(seen))
    os._exit(0)  # a hanging worker thread would keep the interpreter


def stop_server(harness: Harness) -> list[str]:
    """Kill a fork server from outside: the next programs are judged all the same."""
    servers = [pid for pid, text in processes(os.getpid()).items() if "--serve" in text]
    for pid in servers[:1]:
        os.kill(pid, signal.SIGKILL)
    return [f"after a killed server: {fault}" for fault in harness.benign()]


def victim() -> None:
    """A trainer in the middle of a run."""
    with Sandbox(workers=2, timeout=60, memory_mb=256) as box:
        box.run([(f"while True:\n    pass  # {n}", [{"call": "f(1)", "returns": "2"}]) for n in range(4)])


def kill_trainer() -> list[str]:
    """SIGKILL a trainer in the middle of a run: its servers and their children end by themselves."""
    trainer = subprocess.Popen([sys.executable, __file__, "--victim"])

    def busy() -> int:
        stats = [Path(f"/proc/{pid}/stat") for pid in descendants(trainer.pid)]
        return sum(int(stat.read_text().rpartition(")")[2].split()[11]) > 10 for stat in stats if stat.exists())

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and busy() < 2:
        time.sleep(0.1)
    family = descendants(trainer.pid)
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and (left := {pid: processes().get(pid) for pid in family if pid in processes()}):
        time.sleep(0.1)
    found = [] if len(family) >= 4 else [f"only {family} were running"]
    return found + [f"outlived its trainer: {left}"] if left else found


# --- into that process ---------------------------------------------------------------------------------------


def unlock(paths: list[str]) -> None:
    """Make folders readable for everybody, in a private mount namespace, where a parent folder is closed."""

    def mount(*arguments):
        subprocess.run(["mount", *arguments], check=True)

    for path in paths:
        parents = [*reversed(Path(path).resolve().parents), Path(path).resolve()]
        closed = next((folder for folder in parents if not folder.stat().st_mode & 1), None)
        if closed is not None:
            stage = tempfile.mkdtemp()
            mount("--bind", str(parents[-1]), stage)
            mount("-t", "tmpfs", "-o", "mode=755,size=1m", "none", str(closed))
            os.makedirs(parents[-1])
            mount("--move", stage, str(parents[-1]))


def become(user: int) -> None:
    """An ordinary user with few processes."""
    os.setgroups([])
    os.setresgid(user, user, user)
    resource.setrlimit(resource.RLIMIT_NPROC, (200, 200))
    os.setresuid(user, user, user)
    os.environ["HOME"] = os.environ["TMPDIR"] = "/tmp"


def main(mode: str, out: str = "", user: str = "", namespaced: str = "") -> None:
    """Entry of the processes that pytest starts."""
    if mode == "--victim":
        return victim()
    if os.getpid() == 1:  # the first process of a namespace has to reap the others
        child = os.fork()
        while child:
            pid, status = os.wait()
            if pid == child:
                os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    if not user:
        return harness(out, bool(namespaced))
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        unlock([sys.base_prefix, sys.prefix, str(ROOT)])
    become(int(user))
    trial = subprocess.run([sys.executable, "-c", "import tinyr2.sandbox"], cwd=ROOT, stderr=subprocess.PIPE)
    if trial.returncode:
        reason = trial.stderr.decode(errors="replace")[-300:]
        return Path(out).write_text(json.dumps({"skip": f"an ordinary user cannot read Python or tinyr2: {reason}"}))
    os.execv(sys.executable, [sys.executable, __file__, "--harness", out, "", namespaced])


# --- what pytest sees ----------------------------------------------------------------------------------------


WAYS = {"as we are": "", "as an ordinary user": str(USER)}


@pytest.fixture(scope="module")
def started():
    """Both harnesses, side by side; under a root that may make namespaces, in one of their own."""
    options = ["--pid", "--fork", "--kill-child", "--mount-proc"]
    options += [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
    try:
        trial = subprocess.run(["unshare", *options, "true"], capture_output=True)
        unshare = ["unshare", *options] if trial.returncode == 0 else []
    except FileNotFoundError:
        unshare = []
    env = {**os.environ, "TINYR2_CANARY": f"env_{secrets.token_hex(12)}", "PYTHONDONTWRITEBYTECODE": "1"}
    running = {}
    with contextlib.ExitStack() as stack:
        for way, user in WAYS.items() if os.geteuid() == 0 else [("as we are", "")]:
            folder = stack.enter_context(tempfile.TemporaryDirectory())  # tmp_path is closed to other users
            os.chmod(folder, 0o777)
            out, log = Path(folder, "seen.json"), stack.enter_context(open(f"{folder}/log", "w+"))
            command = [*unshare, sys.executable, __file__, "--harness", str(out), user, "yes" if unshare else ""]
            to_log = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
            process = subprocess.Popen(command, env=env, cwd=folder, start_new_session=True, **to_log)
            running[way] = stack.enter_context(process), out, log
            stack.callback(process.kill)
        yield running


@pytest.fixture(scope="module", params=WAYS)
def seen(request, started) -> dict:
    """The outcome of one harness."""
    if request.param not in started:
        pytest.skip("already an ordinary user")
    process, out, log = started[request.param]
    process.wait(timeout=300)
    log.seek(0)
    said = log.read()
    assert out.exists(), f"the harness died ({process.returncode}): {said[-3000:]}"
    outcome = json.loads(out.read_text())
    if "skip" in outcome:
        pytest.skip(outcome["skip"])
    assert NAME not in said, "a program reached the trainer's output"
    return outcome


def test_controls_pass(seen):
    failed = {name: verdict for name, verdict in seen["controls"].items() if not all(verdict[0]) or not verdict[0]}
    assert not failed


def test_nothing_forged_left_or_broken(seen):
    assert seen["rows"] >= 600 and len(seen["verdicts"]) >= seen["rows"]
    assert not seen["faults"], json.dumps(seen["faults"], indent=1)


BENIGN = "def f(n):\n    return n + 1\n"
ROW = {"call": "f(1)", "returns": "2"}


@pytest.fixture(scope="module")
def box():
    with Sandbox(workers=1, timeout=1.0, memory_mb=256) as box:
        yield box


def right(box, mark: object) -> bool:
    """A new benign program is judged rightly."""
    return box.run([(f"{BENIGN}# {mark!r}", [ROW])])[0].passed == (True,)


@pytest.mark.parametrize(
    "program",
    [None, b"def f(n): return 2", 5, 2.0, ["x"], {"a": 1}, object(), True, print],
    ids=lambda program: type(program).__name__,
)
def test_program_that_is_no_text(box, program):
    verdict = box.run([(program, [ROW, ROW])])[0]
    assert verdict.status == "rejected" and verdict.passed == (False, False) and verdict.reward == 0
    assert right(box, program)


LITERALS = ["print(1)", "x + 1", "", "(", 2, b"2", "[" * 9000 + "]" * 9000, "-" * 9000 + "1", "1\0", "'\ud800"]
LITERALS += ["[" + "9" * 6000 + "]"]
UNUSABLE = [[{"call": "f(1)", "returns": literal}] for literal in LITERALS]
UNUSABLE += [[{"call": call, "returns": "2"}] for call in (None, 5, b"f(1)")]
UNUSABLE += [[{"call": "f(1)"}], [{"returns": "2"}], [{}], [{"call": "f(1)", "returns": None, "raises": None}]]
UNUSABLE += [[ROW, {"call": "f(1)"}], [{"call": "f(1)", "raises": 5}], [5], [None], ["f(1) == 2"], None, 5]


@pytest.mark.parametrize("tests", UNUSABLE, ids=lambda tests: ascii(tests)[:50])
def test_tests_that_cannot_be_used(box, tests):
    with pytest.raises(ValueError, match="test"):
        box.run([(BENIGN, tests)])
    assert right(box, repr(tests)[:99])


CALLS = ["f(", "", "f(1)\0", "\ud800", "x = 1", "(" * 9000, "-" * 9000 + "1", "f(1)" + " " * 70000, "g(1)"]


@pytest.mark.parametrize("tests", [[], *([{"call": c, "returns": "3"}, ROW] for c in CALLS)],
                         ids=lambda tests: ascii(tests)[:50])  # fmt: skip
def test_calls_that_do_not_compile(box, tests):
    try:
        verdict = box.run([(BENIGN, tests)])[0]
        assert not any(verdict.passed[:1]) and len(verdict.passed) == len(tests) and verdict.status != "infra"
    except ValueError:
        pass
    assert right(box, repr(tests)[:99])


def test_servers_are_no_part_of_our_process_group(box):
    """Ctrl-C goes to a whole group, and Jupyter kills a kernel whose group has not ended after two seconds."""
    box.run([("def f(x):\n    return x", [{"call": "f(1)", "returns": "1"}])])
    servers = [worker.server.pid for worker in box.workers if worker.server]
    assert servers and all(os.getpgid(pid) == pid for pid in servers)


def test_same_program_twice_in_a_batch_and_again(box):
    job = (BENIGN, [ROW, {"call": "f(2)", "returns": "2"}])
    first = box.run([job, job])
    assert first[0] == first[1] == box.run([job])[0] and first[0].passed == (True, False)


if __name__ == "__main__":
    main(*sys.argv[1:])
