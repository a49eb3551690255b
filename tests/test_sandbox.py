"""The sandbox against every program of hostile.py: nothing forged, nothing left behind, everything answered.

The programs run in a process of their own (`--harness`), in a process-id namespace where the kernel allows one, so
that whatever a leak lets out stays inside. When pytest runs as root they run twice: as root, and as an ordinary user.
"""

import contextlib
import glob
import inspect
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
from hostile import BROAD, CONTROLS, PROGRAMS  # noqa: E402

from tinyr2 import confine, reward  # noqa: E402
from tinyr2.judge import _STATUSES, Check, Verdict  # noqa: E402
from tinyr2.sandbox import Sandbox, SandboxError  # noqa: E402

try:
    from tinyr2.judge import Calls
except ImportError:
    Calls = None
USER = 64999  # the ordinary user, when pytest runs as root
NAME = "tinyr2-hostile"
TIMEOUT, SHORT, SLACK = 0.5, 0.25, 60.0  # seconds; short for `ENDLESS`; slack for a machine that does other work
HANGS = 600  # seconds after which something that should have happened long ago has failed; nothing waits for them
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
        signal.alarm(HANGS)
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
        """Two simple programs, one right and one wrong; where a machine under load runs out of time, again."""
        for _ in range(100):
            self.count += 1
            right, wrong = (f"def f(n):\n    return n + {add}  # {self.count}" for add in (1, 2))
            try:
                verdicts = self.start().run([(text, [{"call": "f(1)", "returns": "2"}]) for text in (right, wrong)])
            except Exception as error:
                self.close()
                return [f"a benign program afterwards: {type(error).__name__}: {ascii(str(error))[:300]}"]
            if [v.passed for v in verdicts] == [(True,), (False,)]:
                return []
            if not any(v.status == "timeout" for v in verdicts):
                break
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
        with Sandbox(workers=2, timeout=60.0, memory_mb=256) as box:
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
    with Sandbox(workers=2, timeout=3 * HANGS, memory_mb=256) as box:
        box.run([(f"while True:\n    pass  # {n}", [{"call": "f(1)", "returns": "2"}]) for n in range(4)])


def wait_until(event, what: str):
    """The first true value of `event()`."""
    end = time.monotonic() + HANGS
    while not (value := event()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)
    return value


def judging(pid: int, servers: int = 2) -> dict[int, str]:
    """The servers under a process and their children, if so many servers each have a child that runs a program.

    A server forks one child ahead, so a second child means that the first has been given to the judge.
    """
    found = [server for server, text in processes(pid).items() if "--serve" in text]
    families = [processes(server) for server in found]
    return descendants(pid) if sum(len(family) >= 2 for family in families) >= servers else {}


def kill_trainer() -> list[str]:
    """SIGKILL a trainer in the middle of a run: its servers and their children end by themselves."""
    trainer = subprocess.Popen([sys.executable, __file__, "--victim"])
    try:
        family = wait_until(lambda: judging(trainer.pid), "no program runs")
    finally:
        trainer.kill()
        trainer.wait()

    def left() -> dict[int, str]:
        return {pid: text for pid, text in processes().items() if pid in family and text[0] != "Z"}

    try:
        wait_until(lambda: not left(), "")
    except TimeoutError:
        return [f"outlived its trainer: {left()}"]
    return []


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
    process.wait(timeout=4 * HANGS)
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
    with Sandbox(workers=1, timeout=60.0, memory_mb=256) as box:
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


# --- interrupted calls ---------------------------------------------------------------------------------------

PROGRAMS_OF_A_USER = '''
import json, os, signal, sys, threading, time
from tinyr2 import reward
from tinyr2.sandbox import Sandbox

signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
ROW = {"call": "f(1)", "returns": "2"}
ENDLESS = [f"def f(n):\\n    while True:\\n        pass  # {k}" for k in range(16)]
SUMS = [f"def f(n):\\n    return n + {1 + k % 2}  # {k}" for k in range(32)]
MIXED = [program for pair in zip(ENDLESS, SUMS) for program in pair]


def judge(programs):
    if sys.argv[1] == "shared":
        return reward.tests_reward(None, programs, [[ROW]] * len(programs))
    return [verdict.reward for verdict in box.run([(program, [ROW]) for program in programs])]


def left():
    """Children and threads; the last of them may need a moment to go."""
    for _ in range(3000):
        time.sleep(0.01)
        if (found := count()) == [0, []]:
            break
    return found


def count():
    children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    return [len(children), [thread.name for thread in threading.enumerate() if thread.name.startswith("Thread-")]]


box = Sandbox(workers=2, timeout=1800.0, modules=("pycodestyle",))
reward._shared.append(box)
'''


@contextlib.contextmanager
def user(code: str, *arguments: str):
    """A user's script that has programs judged."""
    command = [sys.executable, "-u", "-c", PROGRAMS_OF_A_USER + textwrap.dedent(code), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as script:
        try:
            yield script
        finally:
            script.kill()


@pytest.mark.parametrize("way", ["own", "shared"])
def test_interrupted_call_leaves_nothing_and_the_next_judges_rightly(way):
    code = """
    for attempt in range(3):
        try:
            judge(MIXED)
        except KeyboardInterrupt:
            print(json.dumps(left()))
        print(json.dumps(judge([f"{program}{attempt}" for program in SUMS])))
    """
    with user(code, way) as script:
        for _ in range(3):
            wait_until(lambda: judging(script.pid) or script.poll() is not None, "no program runs")
            script.send_signal(signal.SIGINT)
            assert script.stdout.readline() == "[0, []]\n"
            assert json.loads(script.stdout.readline() or "null") == [1.0, 0.0] * 16
        assert script.wait(HANGS) == 0


def test_interrupted_script_ends_although_its_programs_would_run_on():
    with user("judge(MIXED)", "own") as script:
        family = wait_until(lambda: judging(script.pid), "no program runs")
        script.send_signal(signal.SIGINT)
        _, said = script.communicate(timeout=HANGS)
        assert "KeyboardInterrupt" in said and "SandboxError" not in said
        wait_until(lambda: not family.keys() & processes().keys(), "processes are left")


def test_interrupted_check_of_endless_code_ends():
    """A `Check` runs in the trainer's own thread; the interruption reaches it as well."""
    endless = Check("f", "def check(candidate):\n    print('running', flush=True)\n    while True:\n        pass\n")
    code = f"""
    from tinyr2 import judge
    judge._CHECK_SECONDS = 1800.0
    try:
        box.run([("def f(n):\\n    return n", judge.{endless!r})])
    except KeyboardInterrupt:
        print(json.dumps(left()))
    """
    with user(code, "own") as script:
        assert script.stdout.readline() == "running\n"
        script.send_signal(signal.SIGINT)
        assert script.stdout.readline() == "[0, []]\n"


def test_no_verdict_of_an_interrupted_call_is_kept(monkeypatch):
    programs = [(f"{BENIGN}# {k}", [ROW]) for k in range(3)]
    join, calls = threading.Thread.join, []

    def interrupted(thread, timeout=None):
        join(thread, timeout)
        calls.append(thread)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with Sandbox(workers=1, timeout=60.0) as box:
        box.report()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(threading.Thread, "join", interrupted)
            box.run(programs)
        assert calls and not box.cache and not box.recent
        assert [verdict.passed for verdict in box.run(programs)] == [(True,)] * 3


# --- faults of the machine -----------------------------------------------------------------------------------


def verdicts(good: int, bad: int, mark: str) -> dict[str, Verdict]:
    """What a call may have brought: so many programs judged, so many not, the bad ones last."""
    states = ["ok"] * good + ["infra"] * bad
    return {f"{mark} {k}": Verdict((True,), state, f"{state} {mark} {k}") for k, state in enumerate(states)}


def test_faults_count_while_they_are_recent():
    box = Sandbox(workers=1)
    for call in range(5):
        box.remember(verdicts(999, 1, f"rare {call}"))  # one in a thousand, for ever
    with pytest.raises(SandboxError, match="of the last 1000 programs .* because of infra burst 7"):
        box.remember(verdicts(0, 8, "burst one") | verdicts(0, 8, "burst"))
    box.remember(verdicts(20, 0, "well again"))
    box.remember(verdicts(1, 0, "well again, alone"))
    with pytest.raises(SandboxError, match="2 of the last 23 programs .* because of infra second 1"):
        box.remember(verdicts(0, 2, "second"))


def test_sandbox_recovers_once_the_machine_is_well_again():
    with Sandbox(workers=2, timeout=60.0) as box:
        box.report()
        for worker in box.workers:
            worker.settings["modules"].append("no_such_module")
        with pytest.raises(SandboxError, match="ModuleNotFoundError: No module named 'no_such_module'"):
            box.run([(f"{BENIGN}# {k}", [ROW]) for k in range(5)])
        for worker in box.workers:
            worker.settings["modules"].clear()
        assert right(box, "after the fault")


def test_any_exception_of_a_worker_is_a_fault_with_its_name(monkeypatch):
    with Sandbox(workers=1, timeout=60.0) as box:
        box.report()
        monkeypatch.setattr(type(box.workers[0]), "run_one", lambda *a: {}["missing"])
        with pytest.raises(SandboxError, match="KeyError: 'missing'"):
            box.run([(f"{BENIGN}# {k}", [ROW]) for k in range(3)])


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Change the code of the fork server: `machine((old, new), ...)` takes something away from this machine."""

    def change(*changes: tuple[str, str]) -> None:
        source = inspect.getsource(confine)
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        script = tmp_path / "confine.py"
        script.write_text(source)
        monkeypatch.setattr(confine, "__file__", str(script))

    return change


WAY_ON = ["Sandbox(allow_weak=True)", 'OPDConfig(sandbox={"allow_weak": True})', "--sandbox.allow_weak true"]
NO_LANDLOCK = ("LIBC.syscall(444, None, 0, 1)", "LIBC.syscall(-1, None, 0, 1)")
NO_SECCOMP = ("LIBC.prctl(22, 2, program, 0, 0)", "LIBC.prctl(22, 99, 0, 0, 0)")
MISSING = {
    "seccomp": ([NO_SECCOMP], "missing layers: system calls (no seccomp, Invalid argument); a program could: "),
    "both": ([NO_LANDLOCK, NO_SECCOMP], "missing layers: files (no Landlock, Function not implemented), system calls"),
}


@pytest.mark.parametrize("changes,said", MISSING.values(), ids=MISSING)
def test_missing_layer_is_named_and_one_setting_goes_on(machine, changes, said):
    machine(*changes)
    with pytest.raises(SandboxError) as refused:
        Sandbox(workers=1).report()
    assert str(refused.value).startswith(said) and all(way in str(refused.value) for way in WAY_ON)
    with pytest.warns(UserWarning, match="weak sandbox"), Sandbox(workers=1, timeout=60.0, allow_weak=True) as box:
        (verdict,) = box.run([(BENIGN, [ROW])])
    assert verdict.passed == (True,) and verdict.detail.startswith("[weak sandbox]")


def test_without_landlock_no_file_can_be_opened_at_all(machine):
    machine(NO_LANDLOCK)
    expected = pytest.warns(UserWarning, match="no Landlock.*preloaded modules only")
    with expected, Sandbox(workers=1, timeout=60.0) as box:
        assert box.report()["self-test"] == "passed" and right(box, "no Landlock")


def test_without_namespaces_and_pidfd_the_self_test_still_passes(machine):
    """As in an unprivileged container, and on a kernel that is old or not Linux's own."""
    machine(("os.pidfd_open(pid)", "os.close(-1)"))
    with Sandbox(workers=1, timeout=60.0) as box:
        assert box.report()["self-test"] == "passed" and right(box, "no pidfd")
    machine(("LIBC.unshare(flags) == 0", "LIBC.unshare(-1) == 0"))
    with Sandbox(workers=1, timeout=60.0) as box:
        assert box.report()["network"] == "off: no namespace, Invalid argument" and right(box, "no namespace")


FORK = "pid = os.fork()\n    if pid == 0:\n        try:"
NO_MORE = 'raise BlockingIOError(11, "Resource temporarily unavailable")'


@pytest.mark.parametrize("first", [1, 3], ids=["at the start", "later"])
def test_limit_of_processes_is_named(machine, first):
    counted = f"fork_child.calls += 1\n    if fork_child.calls >= {first}:\n        {NO_MORE}\n    {FORK}"
    machine((FORK, counted), ("def end_child(", "fork_child.calls = 0\n\n\ndef end_child("))
    with pytest.raises(SandboxError, match=r"raise the limit of processes \(ulimit -u, or pids.max"):
        Sandbox(workers=1).report()


def test_limit_of_processes_is_named_when_the_trainer_meets_it(monkeypatch):
    def refused(*arguments, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("tinyr2.sandbox.subprocess.Popen", refused)
    with pytest.raises(SandboxError, match=r"raise the limit of processes"):
        Sandbox(workers=1).report()


def test_limit_of_threads_is_named(monkeypatch):
    with Sandbox(workers=2, timeout=60.0) as box:
        box.report()

        def refused(self):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr("tinyr2.sandbox.threading.Thread.start", refused)
        with pytest.raises(SandboxError, match=r"raise the limit of processes"):
            box.run([(BENIGN, [ROW])])
        monkeypatch.undo()
        assert right(box, "threads again")


def test_hard_limits_below_ours_are_kept(machine):
    machine(("    limits = {", "    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\n    limits = {"))
    with Sandbox(workers=1, timeout=60.0) as box:
        assert box.report()["self-test"] == "passed" and right(box, "few files")


def test_child_that_cannot_shed_its_rights_says_why(machine):
    machine(("    os.setsid()\n", '    raise PermissionError("setgroups")\n'))
    with pytest.raises(SandboxError, match="could not shed its rights: PermissionError: setgroups"):
        Sandbox(workers=1).report()


def test_slow_machine_gets_more_time_in_the_self_test(machine):
    """Every program starts half a second late: too late for the first round of the self-test, not for the next."""
    late = "program = recv_frame(sock)\n        time.sleep(0.5)\n        exec(compile(program"
    machine(("exec(compile(recv_frame(sock)", late))
    assert Sandbox(workers=1).report()["self-test"] == "passed"


OTHER_SYSTEM = """
import sys
import asyncio, multiprocessing, socket, subprocess, tempfile, tqdm.auto  # these look at the system
sys.platform = {system!r}
sys.modules["resource"] = None
import ctypes
ctypes.CDLL = None
from tinyr2.sandbox import Sandbox
Sandbox()
"""


@pytest.mark.parametrize("system,way", [("win32", "WSL2"), ("darwin", "container")])
def test_other_systems_get_one_clear_line(system, way):
    code = OTHER_SYSTEM.format(system=system)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.startswith("OSError: Sandbox needs Linux") and way in last


# --- settings of the shared sandbox --------------------------------------------------------------------------


@pytest.fixture
def shared():
    yield
    reward.use_sandbox()


def test_use_sandbox_replaces_the_shared_one_and_only_when_something_changes(shared):
    reward.use_sandbox(timeout=60.0)
    box = reward.shared_sandbox()
    assert reward.tests_reward(None, [BENIGN], [[ROW]]) == [1.0] and box.workers[0].server
    reward.use_sandbox(timeout=60, modules=["pycodestyle"])
    assert reward.shared_sandbox() is box
    reward.use_sandbox(timeout=60.0, memory_mb=512, modules=["json"], workers=1)
    assert reward.shared_sandbox() is not box and not any(worker.server for worker in box.workers)
    limits = reward.shared_sandbox().limits
    assert (limits["memory_mb"], limits["modules"]) == (512, ["pycodestyle", "json"])
    assert reward.tests_reward(None, [BENIGN], [[ROW]]) == [1.0] and reward.count_pep8(["x=1\n" + BENIGN]) != [None]


BAD = {
    "timout": (1, "unknown; did you mean timeout"), "journal": ("x", "unknown"), "timeout": ("2", "seconds"),
    "memory_mb": (10, "at least 64"), "modules": ("numpy", "a list"), "workers": (0, "at least 1"),
    "allow_weak": ("true", "True or False"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named_and_change_nothing(shared, name):
    box, (value, said) = reward.shared_sandbox(), BAD[name]
    with pytest.raises(ValueError, match=f"sandbox setting {name}: .*{said}"):
        reward.use_sandbox(**{name: value})
    with pytest.raises(ValueError, match="sandbox setting modules: .*no_such_module"):
        reward.use_sandbox(modules=["no_such_module"])
    assert reward.shared_sandbox() is box


if __name__ == "__main__":
    main(*sys.argv[1:])
