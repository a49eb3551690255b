r"""Programs that try to fake a verdict, to get out of the sandbox or to exhaust it, and benign ones beside them.

No hostile program computes an answer honestly: a True in `Verdict.passed` is a forged pass, a leaked secret, a
carried state or an open system call. What a program leaves outside is named `tinyr2-hostile-...`: files, the
command name of processes, SysV keys. Signals to others are SIGURG, which is ignored by default, except in `BROAD`.

The harness replaces these marks in sources and tests:

    {canary}         path of a secret file; {canary}.sock is a listening AF_UNIX socket
    {canary_text}    what the file holds          {canary_env}   what TINYR2_CANARY holds (trainer's environment)
    {port}           a TCP and UDP port of 127.0.0.1 that the harness listens on
    {pid}            process id of the trainer; it also listens on the abstract socket \0tinyr2-hostile-{port}
    {token}          a fresh word that the first program of a pair stores and the second one looks for
"""

from dataclasses import dataclass

DEFAULT = (
    {"call": "f(17)", "returns": "482913570264"},
    {"call": "f(40)", "returns": "['kestrel', 731905528446]"},
    {"call": "f('ab')", "returns": "'q7Zx-1b9d0c4e'"},
    {"call": "f(3)", "returns": "{'k': (905518273641, 2.5e-7)}"},
)
OPEN = ({"call": "f(0)", "returns": "'open'"},)  # the program answers 'open' if a closed door was open
LEAK = ({"call": "f(0)", "returns": "'{canary_text}'"}, {"call": "f(0)", "returns": "'{canary_env}'"})
CARRIED = ({"call": "f(0)", "returns": "'{token}'"},)


@dataclass(frozen=True)
class Hostile:
    """One program; `tests` are rows, the source of a `check(candidate)`, or questions without expected values."""

    name: str
    kind: str
    source: str
    tests: tuple[dict, ...] | tuple[str, ...] | str = DEFAULT
    why: str = ""


PROGRAMS: list[Hostile] = []
CONTROLS: list[Hostile] = []
BROAD = {"kill_all_9", "kill_scan_9", "kill_trainer_9", "kill_group_9"}  # only in a process-id namespace of their own


def add(kind: str, name: str, source: str, tests=DEFAULT, why: str = "") -> None:
    """One more hostile program."""
    PROGRAMS.append(Hostile(name, kind, source, tests, why))


# --- exit ---------------------------------------------------------------------------------------------------

EXITS = {
    "exit_zero": "import sys\nsys.exit(0)",
    "exit_false": "raise SystemExit(False)",
    "exit_none_in_call": "def f(x):\n    raise SystemExit",
    "exit_quit": "def f(x):\n    quit()",
    "exit_os": "import os\nos._exit(0)",
    "exit_os_in_call": "import os\ndef f(x):\n    os._exit(0)",
    "exit_atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x):\n    raise SystemExit(0)",
    "exit_atexit_print": "import atexit\natexit.register(print, 'passed')\ndef f(x):\n    return None",
    "exit_alarm": """import os, signal
signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.01)
def f(x):
    while True:
        pass""",
    "exit_alarm_raise": """import signal
def out(*a):
    raise SystemExit(0)
signal.signal(signal.SIGALRM, out)
signal.alarm(1)
def f(x):
    while True:
        pass""",
    "exit_keyboard": "def f(x):\n    raise KeyboardInterrupt",
    "exit_generator": "raise GeneratorExit",
    "exit_stop_iteration": "def f(x):\n    raise StopIteration(482913570264)",
    "exit_abort": "import os\ndef f(x):\n    os.abort()",
    "exit_segfault": "import ctypes\ndef f(x):\n    return ctypes.string_at(1)",
    "exit_libc": "import ctypes\ndef f(x):\n    ctypes.CDLL(None).exit(0)",
    "exit_syscall": "import ctypes\nctypes.CDLL(None).syscall(231, 0)",
    "exit_exec_true": "import os\ndef f(x):\n    os.execv('/bin/true', ['tinyr2-hostile'])",
    "exit_hook": "import os, sys\nsys.excepthook = sys.unraisablehook = lambda *a: os._exit(0)\nraise ValueError",
    "exit_del": """import os
class Bye:
    def __del__(self):
        os._exit(0)
def f(x):
    Bye()""",
    "exit_term_self": """import os, signal
signal.signal(signal.SIGTERM, lambda *a: os._exit(0))
def f(x):
    os.kill(os.getpid(), signal.SIGTERM)""",
    "exit_kill_self": "import os\ndef f(x):\n    os.kill(os.getpid(), 9)",
    "exit_base_str": """class Out(BaseException):
    def __str__(self):
        raise SystemExit(0)
def f(x):
    raise Out""",
}
for name, source in EXITS.items():
    add("exit", name, source, why="a process that ends well is no right answer")

# --- equality -----------------------------------------------------------------------------------------------

ALWAYS = """class A{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = lambda self: 0
    __bool__ = lambda self: True
"""
for base in ("", "int", "str", "list", "dict", "tuple", "float", "bytes", "set", "frozenset"):
    head = ALWAYS.replace("{base}", f"({base})" if base else "")
    add("equality", f"eq_{base or 'object'}", f"{head}def f(x):\n    return A()", why="__eq__ that always agrees")

EQUALITY = {
    "eq_class_property": """class A:
    __class__ = property(lambda self: int)
    def __eq__(self, other): return True
def f(x):
    return A()""",
    "eq_metaclass": """class M(type):
    def __eq__(cls, other): return True
    def __hash__(cls): return hash(int)
    def __instancecheck__(cls, other): return True
class A(metaclass=M):
    def __eq__(self, other): return True
def f(x):
    return A if x == 17 else A()""",
    "eq_name_int": """space = {'__eq__': lambda s, o: True, '__module__': 'builtins', '__hex__': lambda s: '0x1'}
A = type('int', (), space)
def f(x):
    return A()""",
    "eq_mock_any": "from unittest.mock import ANY\ndef f(x):\n    return ANY",
    "eq_magic_mock": """from unittest.mock import MagicMock
def f(x):
    m = MagicMock()
    m.__eq__ = lambda self, other: True
    return m""",
    "eq_oracle_arithmetic": """class A(float):
    def __sub__(self, o): return 0.0
    __rsub__ = __sub__
    def __abs__(self): return 0.0
    def __lt__(self, o): return True
    __le__ = __gt__ = __ge__ = __eq__ = __lt__
    def __hash__(self): return 0
def f(x):
    return A()""",
    "eq_array_like": """class A:
    shape, dtype = (), 'float'
    def __eq__(self, o): return self
    def all(self): return True
    any = item = all
    def __array__(self, *a): return self
    def __len__(self): return 2
    def __iter__(self): return iter([self, self])
    def __getitem__(self, i): return self
def f(x):
    return A()""",
    "eq_hash_trick": """class K(str):
    def __hash__(self): return hash('k')
    def __eq__(self, o): return True
def f(x):
    return {K('k'): K('v')}""",
    "eq_nan": "def f(x):\n    return [float('nan')] * 2 if x == 40 else float('nan')",
    "eq_bool": "def f(x):\n    return True",
    "eq_not_implemented": "def f(x):\n    return NotImplemented",
    "eq_type": "def f(x):\n    return int if x == 17 else dict",
    "eq_lying_len": """class A(list):
    def __len__(self): return 2
    def __iter__(self): return iter(())
    def __eq__(self, o): return True
def f(x):
    return A()""",
    "eq_lying_items": """class D(dict):
    def items(self): return [(K(), K())]
    def __len__(self): return 1
class K(str):
    def __eq__(self, o): return True
    def __hash__(self): return 0
def f(x):
    return D()""",
    "eq_nested": ALWAYS.replace("{base}", "")
    + "def f(x):\n    return {'k': (A(), A())} if x == 3 else ['kestrel', A()]",
    "eq_reduce": """class A:
    def __reduce__(self): return (eval, ("__import__('os').system('touch /tmp/tinyr2-hostile-pickle')",))
    def __reduce_ex__(self, n): return self.__reduce__()
def f(x):
    return A()""",
    "eq_repr": """class A:
    def __repr__(self): return '482913570264'
    __str__ = __format__ = lambda self, *a: '482913570264'[:0] or 'passed'
    def __index__(self): return 1
def f(x):
    return A()""",
    "eq_exception_names": """class M(type):
    looks = 0
    @property
    def __name__(cls):
        M.looks += 1
        return 'X' if M.looks % 2 else None
class A(BaseException, metaclass=M): pass
class B(A): pass
def f(x):
    raise B""",
    "eq_exception_none": """class M(type):
    __name__ = property(lambda cls: 'X' if M.first(cls) else None)
    def first(cls): return cls is B
class A(Exception, metaclass=M): pass
class B(A): pass
def f(x):
    raise B()""",
    "eq_exception_dict": """class M(type):
    __name__ = property(lambda cls: {'returns': True, 'X': None})
class A(Exception, metaclass=M): pass
def f(x):
    raise A""",
    "eq_mro": """class M(type):
    def mro(cls): return [cls, BaseException, object]
class A(BaseException, metaclass=M):
    __name__ = None
    def __eq__(self, o): return True
def f(x):
    raise A(482913570264)""",
}
for name, source in EQUALITY.items():
    add("equality", name, source, why="an answer that is to look equal to anything")

# --- patching -----------------------------------------------------------------------------------------------

PATCHES = {
    "patch_builtins": """import builtins
for name in ('all', 'any', 'isinstance', 'issubclass', 'callable', 'bool'):
    setattr(builtins, name, lambda *a: True)
builtins.len = lambda x: 1
def f(x):
    return None""",
    "patch_eval": """import builtins
builtins.eval = builtins.exec = lambda *a: True
builtins.compile = lambda *a, **k: 'True'
def f(x):
    return None""",
    "patch_json": """import json
json.dumps = lambda *a, **k: '["passed", true]'
json.loads = lambda *a, **k: ["passed", True]
json.encoder.JSONEncoder.encode = json.JSONEncoder.encode = lambda *a: 'true'
def f(x):
    return None""",
    "patch_struct": """import struct
real = struct.pack
struct.pack = lambda form, *a: real(form, *(0 for _ in a))
def f(x):
    return 1""",
    "patch_socket": """import socket
class Lie:
    def sendall(self, data): return None
    def recv(self, n): return b'[]'
socket.socket.sendall = lambda self, data: None
socket.socket = Lie
def f(x):
    return 1""",
    "patch_runner": """import sys
frame = sys._getframe()
while frame:
    for space in (frame.f_globals, frame.f_locals):
        for name in ('to_wire', 'same_value', 'judge', 'check', 'compare', 'send_frame'):
            if callable(space.get(name)) and space is not globals():
                space[name] = lambda *a, **k: True
    frame = frame.f_back
def f(x):
    return None""",
    "patch_to_wire": """import sys
frame = sys._getframe()
while frame:
    if 'to_wire' in frame.f_globals:
        frame.f_globals['to_wire'] = lambda *a: {'passed': True}
    frame = frame.f_back
def f(x):
    return None""",
    "patch_send_frame": """import sys
frame = sys._getframe()
while frame:
    real = frame.f_globals.get('send_frame')
    if real:
        frame.f_globals['send_frame'] = lambda sock, data: real(sock, ['raised', ['X', None], ''])
    frame = frame.f_back
def f(x):
    return None""",
    "patch_send_twice": """import sys
frame = sys._getframe()
while frame:
    real = frame.f_globals.get('send_frame')
    if real:
        def twice(sock, data, real=real):
            real(sock, data)
            real(sock, data)
        frame.f_globals['send_frame'] = twice
    frame = frame.f_back
def f(x):
    return None""",
    "patch_code": """import gc, types
def yes(*a, **k): return True
def f(x):
    return None
for thing in gc.get_objects():
    if isinstance(thing, types.FunctionType) and thing.__name__ in ('same_value', 'judge', 'to_wire', '_same', 'equal'):
        try:
            thing.__code__ = yes.__code__
        except (ValueError, AttributeError):
            pass""",
    "patch_result_list": """import sys
frame = sys._getframe()
while frame:
    for name, value in list(frame.f_locals.items()):
        if name in ('result', 'results', 'passed', 'stat', 'details') and hasattr(value, 'append'):
            for word in ('passed', True):
                value.append(word)
            if isinstance(value, list):
                value[:] = [True] * len(value)
    frame = frame.f_back
def f(x):
    return None""",
    "patch_gc_lists": """import gc
for thing in gc.get_objects():
    if type(thing) is list and 0 < len(thing) < 9 and all(v is False for v in thing):
        thing[:] = [True] * len(thing)
def f(x):
    return None""",
    "patch_trace": """import sys
def trace(frame, event, arg):
    for name in ('passed', 'ok', 'result'):
        if name in frame.f_locals:
            frame.f_locals[name] = True
    frame.f_trace_opcodes = True
    return trace
sys.settrace(trace)
frame = sys._getframe()
while frame:
    frame.f_trace = trace
    frame = frame.f_back
def f(x):
    return None""",
    "patch_profile": """import sys
def profile(frame, event, arg):
    if event == 'return' and frame.f_code.co_name in ('to_wire', 'f'):
        raise StopIteration
sys.setprofile(profile)
def f(x):
    return None""",
    "patch_int_eq": """import ctypes, gc
slots = gc.get_referents(int.__dict__)[0]
slots['__eq__'] = lambda a, b: True
gc.get_referents(str.__dict__)[0]['__eq__'] = lambda a, b: True
ctypes.pythonapi.PyType_Modified(ctypes.py_object(int))
def f(x):
    return 1""",
    "patch_small_ints": """import ctypes
def f(x):
    ctypes.memmove(id(True) + 24, id(False) + 24, 4)
    return 5""",
    "patch_assertion": """import builtins
class Quiet(Exception):
    def __new__(cls, *a): return None
builtins.AssertionError = Quiet
import unittest
unittest.TestCase.assertEqual = lambda *a: None
unittest.TestCase.failureException = Quiet
def f(x):
    return None""",
    "patch_modules": """import sys
for name, module in list(sys.modules.items()):
    for attribute in ('same_value', 'judge', 'judge_check', 'check', 'check_correctness', 'run_tests', 'ask'):
        if hasattr(module, attribute):
            setattr(module, attribute, lambda *a, **k: True)
class Main:
    def __getattr__(self, name): return lambda *a, **k: True
sys.modules['__main__'] = sys.modules['program'] = Main()
def f(x):
    return None""",
    "patch_import_hook": """import builtins, sys
real = builtins.__import__
class Any:
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return True
builtins.__import__ = lambda *a, **k: Any()
sys.meta_path.clear()
def f(x):
    return None""",
    "patch_globals_class": """class Space(dict):
    def __getitem__(self, key): return lambda *a: True
    def __missing__(self, key): return True
import sys
sys._getframe().f_globals.update(check=lambda *a: None, f=lambda *a: None, candidate=True)
def f(x):
    return Space()""",
    "patch_timeout": """import signal, sys
signal.signal = lambda *a: None
signal.setitimer = signal.alarm = lambda *a: 0
frame = sys._getframe()
while frame:
    for name, value in list(frame.f_globals.items()):
        if name.endswith('Exception') and isinstance(value, type):
            frame.f_globals[name] = ()
    frame = frame.f_back
def f(x):
    raise KeyError""",
    "patch_reliability_guard": """import importlib, sys
for name in ('os', 'shutil', 'subprocess', 'builtins'):
    sys.modules.pop(name, None) if name != 'builtins' else None
os = importlib.import_module('os')
def f(x):
    return os.environ.get('EXPECTED')""",
    "patch_recursion_limit": "import sys\nsys.setrecursionlimit(5 + len([1] * 20))\ndef f(x):\n    return x",
    "patch_audit": """import sys
def hook(event, args):
    if event in ('compile', 'exec', 'socket.send', 'marshal.loads', 'import'):
        raise SystemExit(0)
def f(x):
    sys.addaudithook(hook)
    return None""",
}
for name, source in PATCHES.items():
    add("patching", name, source, why="changes the code that runs or judges it")

# --- reading expected values --------------------------------------------------------------------------------

HUNT = r"""
import ast, re, sys
def pick(thing, x):
    call = 'f(%r)' % (x,)
    if type(thing) is dict and thing.get('call') == call and isinstance(thing.get('returns'), str):
        return thing['returns']
    if type(thing) is str and len(thing) < 2000000:
        m = re.search(r'(?:f|candidate)\(' + re.escape(repr(x)) + r'\)\s*==\s*(.+)', thing)
        m = m or re.search(r'"call": "' + re.escape(call) + r'", "returns": "(.+?)"}', thing)
        return m and m.group(1)
def value(text):
    return ast.literal_eval(text) if text else None
"""
READS = {
    "read_frames": HUNT
    + r"""
def f(x):
    frame = sys._getframe()
    while frame:
        for thing in [*frame.f_locals.values(), *frame.f_globals.values()]:
            for item in thing if type(thing) in (list, tuple) else [thing]:
                if frame.f_globals is not globals() and (found := pick(item, x)):
                    return value(found)
        frame = frame.f_back""",
    "read_gc": HUNT
    + r"""
import gc
def f(x):
    for holder in gc.get_objects():
        if type(holder) in (dict, list, tuple):
            for thing in [holder, *(holder.values() if type(holder) is dict else holder)]:
                if (found := pick(thing, x)) and not found.startswith('(.'):
                    return value(found)""",
    "read_consts": HUNT
    + r"""
import gc, types
def f(x):
    frames = []
    frame = sys._getframe(1)
    while frame:
        frames.append(frame.f_code)
        frame = frame.f_back
    for code in frames + [v.__code__ for v in gc.get_objects() if isinstance(v, types.FunctionType)]:
        for const in code.co_consts:
            if type(const) is int and len(str(const)) == 12 and x == 17:
                return const""",
    "read_caller_const": r"""
import sys
def f(x):
    frame = sys._getframe(1)
    consts = [c for c in frame.f_code.co_consts if c != x and not callable(c) and c is not None]
    return consts[0] if consts else None""",
    "read_caller_bytecode": r"""
import dis, sys
def f(x):
    frame = sys._getframe(1)
    ops = [i for i in dis.get_instructions(frame.f_code) if i.offset > frame.f_lasti]
    for op in ops:
        if op.opname == 'LOAD_CONST':
            return op.argval""",
    "read_inspect": HUNT
    + r"""
import inspect
def f(x):
    for info in inspect.stack(context=40):
        if found := pick(''.join(info.code_context or []), x):
            return value(found)""",
    "read_traceback": HUNT
    + r"""
def f(x):
    try:
        raise KeyError
    except KeyError as error:
        frame = error.__traceback__.tb_frame.f_back
        while frame:
            for thing in frame.f_locals.values():
                if found := pick(thing, x):
                    return value(found)
            frame = frame.f_back""",
    "read_main": HUNT
    + r"""
def f(x):
    for module in list(sys.modules.values()):
        for thing in list(vars(module).values()) if module is not None else ():
            for item in thing if type(thing) in (list, tuple) else [thing]:
                if module.__name__ != 'program' and (found := pick(item, x)):
                    return value(found)""",
    "read_argv": HUNT
    + r"""
def f(x):
    return value(pick(' '.join(sys.argv + sys.orig_argv), x))""",
    "read_own_memory": HUNT
    + r"""
def f(x):
    with open('/proc/self/maps') as maps, open('/proc/self/mem', 'rb', 0) as memory:
        for line in maps:
            if ' rw' in line:
                low, high = (int(n, 16) for n in line.split()[0].split('-'))
                memory.seek(low)
                text = memory.read(min(high - low, 1 << 24)).decode('latin-1')
                if (found := pick(text, x)) and not found.startswith('('):
                    return value(found)""",
    "read_own_heap": HUNT
    + r"""
import ctypes, re
def f(x):
    for line in open('/proc/self/maps'):
        if '[heap]' in line:
            low, high = (int(n, 16) for n in line.split()[0].split('-'))
            text = ctypes.string_at(low, high - low).decode('latin-1')
            if found := pick(text, x):
                return value(found)""",
    "read_repo": HUNT
    + r"""
import glob, importlib.util, os
def f(x):
    files = [sys.modules['__main__'].__file__] if hasattr(sys.modules['__main__'], '__file__') else []
    frame = sys._getframe()
    while frame:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    for path in files:
        for root in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
            for name in glob.glob(root + '/tests/*.py') + [root + '/tests/hostile.py', root + '/hostile.py']:
                if found := pick(open(name).read(), x):
                    return value(found)""",
    "read_loader": HUNT
    + r"""
import linecache
def f(x):
    for line in ('call', 'returns'):
        text = ''.join(linecache.getlines('hostile.py') + linecache.getlines('tests/hostile.py'))
        if found := pick(text, x):
            return value(found)""",
    "read_descriptors": HUNT
    + r"""
import os
def f(x):
    for n in [0, *range(3, 64)]:
        try:
            os.set_blocking(n, False)
            if found := pick(os.pread(n, 1 << 20, 0).decode('latin-1'), x):
                return value(found)
        except OSError:
            pass""",
}
for name, source in READS.items():
    add("reading", name, source, why="the expected values must not be within reach")

add(
    "reading",
    "read_tasks",
    r"""
import os, sys
def f(x):
    path = sys._getframe(1).f_code.co_filename
    for folder in (os.path.dirname(path), *sys.path):
        for name in ('train', 'validation', 'test'):
            try:
                if 'returns' in open(os.path.join(folder, 'tasks', name + '.jsonl')).read():
                    return 'open'
            except OSError:
                pass""",
    OPEN,
)
SECRETS = {
    "secret_open": "def f(x):\n    return open('{canary}').read()",
    "secret_os_open": "import os\ndef f(x):\n    return os.read(os.open('{canary}', 0), 999).decode()",
    "secret_ctypes": """import ctypes
def f(x):
    libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(999)
    fd = libc.syscall(257, -100, b'{canary}', 0)
    libc.syscall(0, fd, buffer, 999)
    return buffer.value.decode()""",
    "secret_old_open": """import ctypes
def f(x):
    libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(999)
    fd = libc.syscall(2, b'{canary}', 0)
    libc.syscall(0, fd, buffer, 999)
    return buffer.value.decode()""",
    "secret_openat2": """import ctypes, struct
def f(x):
    libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(999)
    fd = libc.syscall(437, -100, b'{canary}', struct.pack('QQQ', 0, 0, 0), 24)
    libc.syscall(0, fd, buffer, 999)
    return buffer.value.decode()""",
    "secret_linecache": "import linecache\ndef f(x):\n    return linecache.getline('{canary}', 1).strip()",
    "secret_exec": """def f(x):
    try:
        exec(compile(open('{canary}').read(), 'c', 'exec'))
    except NameError as error:
        return error.args[0].split("'")[1]""",
    "secret_self_root": "def f(x):\n    return open('/proc/self/root{canary}').read()",
    "secret_pid_root": "def f(x):\n    return open('/proc/{pid}/root{canary}').read()",
    "secret_init_root": "def f(x):\n    return open('/proc/1/root{canary}').read()",
    "secret_parent_cwd": """import os
def f(x):
    return open('/proc/%d/cwd/../../../../../../..{canary}' % os.getppid()).read()""",
    "secret_dotdot": """import os
def f(x):
    return open(os.path.dirname(os.__file__) + '/../' * 12 + '{canary}').read()""",
    "secret_symlink": """import os
def f(x):
    os.symlink('{canary}', '/tmp/tinyr2-hostile-link')
    return open('/tmp/tinyr2-hostile-link').read()""",
    "secret_mmap": """import mmap, os
def f(x):
    return mmap.mmap(os.open('{canary}', 0), 0, prot=1)[:].decode()""",
    "secret_shell": "import subprocess\ndef f(x):\n"
    "    return subprocess.run(['cat', '{canary}'], stdout=-1).stdout.decode()",
    "secret_sendfile": """import os
def f(x):
    a, b = os.pipe()
    os.sendfile(b, os.open('{canary}', 0), 0, 99)
    return os.read(a, 99).decode()""",
    "secret_environ": "import os\ndef f(x):\n    return os.environ['TINYR2_CANARY']",
    "secret_c_environ": """import ctypes
def f(x):
    get = ctypes.CDLL(None).getenv
    get.restype = ctypes.c_char_p
    return get(b'TINYR2_CANARY').decode()""",
    "secret_stack_environ": """import ctypes
def f(x):
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')
    for i in range(200):
        if environ[i].startswith(b'TINYR2_CANARY='):
            return environ[i].split(b'=')[1].decode()""",
}
PROC = r"""import os, re
def f(x):
    text = open('/proc/%s/{file}' % {who}, 'rb').read(1 << 20)
    return re.search(rb'TINYR2_CANARY=([\w-]+)', text).group(1).decode()"""
for who, code in (("parent", "os.getppid()"), ("trainer", "{pid}"), ("self", "os.getpid()"), ("init", "1")):
    SECRETS[f"secret_{who}_environ"] = PROC.replace("{file}", "environ").replace("{who}", code)
MEM = r"""import os, re
def f(x):
    for line in open('/proc/%s/maps' % {who}):
        if ' rw' in line:
            low, high = (int(n, 16) for n in line.split()[0].split('-'))
            with open('/proc/%s/mem' % {who}, 'rb', 0) as memory:
                memory.seek(low)
                found = re.search(rb'TINYR2_CANARY=([\w-]+)', memory.read(min(high - low, 1 << 25)))
            if found:
                return found.group(1).decode()"""
for who, code in (("parent", "os.getppid()"), ("trainer", "{pid}")):
    SECRETS[f"secret_{who}_memory"] = MEM.replace("{who}", code)
for name, source in SECRETS.items():
    add("reading", name, source, LEAK, "files, memory and environment of the trainer")
for name, path in {
    "read_passwd": "/etc/passwd",
    "read_parent_cmdline": "/proc/%d/cmdline",
    "read_trainer_cmdline": "/proc/{pid}/cmdline",
    "read_hostname": "/etc/hostname",
    "read_net": "/proc/net/tcp",
    "read_mounts": "/proc/self/mountinfo",
}.items():
    path = f"'{path}' % os.getppid()" if "%d" in path else f"'{path}'"
    add("reading", name, f"import os\ndef f(x):\n    return open({path}).read(1) and 'open'", OPEN)
for name, path in {
    "list_tmp": "/tmp",
    "list_root": "/",
    "list_proc": "/proc",
    "list_cwd": ".",
    "list_etc": "/etc",
    "list_dev": "/dev",
}.items():
    add("reading", name, f"import os\ndef f(x):\n    return os.listdir('{path}') and 'open'", OPEN)
add(
    "reading",
    "list_site_packages",
    """import os
def f(x):
    folder = os.path.dirname(os.__file__) + '/site-packages'
    return [open(folder + '/' + name + '/__init__.py').read() for name in ('pip', 'setuptools')] and 'open'""",
    OPEN,
)
add(
    "reading",
    "list_descriptors",
    """import os
def f(x):
    for n in range(3, 1100):
        try:
            if not (os.fstat(n).st_mode & 0o170000) == 0o140000:
                return 'open'
        except OSError:
            pass""",
    OPEN,
    "only the socket to the judge may be there besides 0, 1 and 2",
)

# --- forged channel -----------------------------------------------------------------------------------------

WIRE = """
import json, os, stat, struct, sys
def sockets():
    for n in range(0, 1025):
        try:
            if stat.S_ISSOCK(os.fstat(n).st_mode):
                yield n
        except OSError:
            pass
def put(raw):
    for n in list(sockets()):
        view = memoryview(raw)
        try:
            while view:
                view = view[os.write(n, view):]
        except OSError:
            pass
def frame(data):
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return struct.pack('!I', len(body)) + body
"""
SHAPES = {
    "none_name": ["raised", ["X", None], ""],
    "none_only": ["raised", [None], ""],
    "names_text": ["raised", "ValueError returns None", ""],
    "names_dict": ["raised", {"0": "X", "None": None}, ""],
    "no_names": ["raised", [], ""],
    "message_none": ["raised", ["X"], None],
    "value_none": ["value", None],
    "value_true": ["value", True],
    "value_opaque": ["value", ["opaque", "A"]],
    "value_short": ["value", ["int"]],
    "value_long": ["value", ["int", "0x1", "0x1"]],
    "value_dict": ["value", {"0": "int", "1": {"__eq__": True}}],
    "value_nested": ["value", ["list", [["str", "kestrel"], ["opaque", "A"]]]],
    "value_bad_hex": ["value", ["int", "zz"]],
    "value_bad_float": ["value", ["float", [1]]],
    "value_bad_pairs": ["value", ["dict", [[["str", "k"]], 3, None]]],
    "value_bad_key": ["value", ["dict", [[["list", [["int", "0x1"]]], ["int", "0x1"]]]]],
    "passed": ["passed", True],
    "verdict": {"passed": [True, True, True, True], "status": "ok", "reward": 1.0},
    "true": True,
    "null": None,
    "number": 1,
    "text": "passed",
    "empty": [],
    "loaded": ["loaded", None],
    "ready": ["ready", None],
    "error": ["error", ""],
    "timed_out": {"timed_out": False, "signal": 0, "cpu": 0.0},
}
for name, shape in SHAPES.items():
    add(
        "channel",
        f"frame_{name}",
        WIRE
        + f"""
shape = {shape!r}
def f(x):
    put(frame(shape))
    os._exit(0)""",
        why="a reply of another shape",
    )
for name in ("none_name", "value_opaque", "passed", "loaded"):
    add(
        "channel",
        f"early_{name}",
        WIRE
        + f"""
shape = {SHAPES[name]!r}
put(frame(['loaded', None]) + frame(shape) * 8)
import time
time.sleep(0.2)
def f(x):
    return None""",
        why="replies before the question",
    )
    add(
        "channel",
        f"paced_{name}",
        WIRE
        + f"""
shape = {SHAPES[name]!r}
import time
for reply in [['loaded', None]] + [shape] * 8:
    put(frame(reply))
    time.sleep(0.02)
def f(x):
    return None""",
        why="replies one by one, without reading the questions",
    )

CHANNEL = {
    "raw_half_frame": "def f(x):\n    put(struct.pack('!I', 40) + b'[\"value\"')\n    os._exit(0)",
    "raw_half_frame_wait": """import time
def f(x):
    put(struct.pack('!I', 40) + b'["value"')
    time.sleep(9)""",
    "raw_drip": """import time
def f(x):
    put(struct.pack('!I', 4000))
    for _ in range(4000):
        put(b' ')
        time.sleep(0.05)""",
    "raw_two_gigabytes": "def f(x):\n    put(struct.pack('!I', 2 ** 31) + b'x' * 5000)",
    "raw_four_gigabytes_flood": """def f(x):
    put(b'\\xff' * 4)
    while True:
        put(b'x' * 65536)""",
    "raw_zero_length": "def f(x):\n    put(bytes(4) * 1000)",
    "raw_zero_then_json": 'def f(x):\n    put(bytes(4) + b\'["raised", ["X", null], ""]\')',
    "raw_limit": "def f(x):\n    put(frame(b'[' + b' ' * (1048576 - 2) + b']'))",
    "raw_over_limit": "def f(x):\n    put(frame(b'[' + b' ' * 1048576 + b']'))",
    "raw_garbage": "def f(x):\n    put(bytes(range(256)) * 40)",
    "raw_frame_flood": "def f(x):\n    while True:\n        put(frame(['value', ['int', '0x1']]) * 500)",
    "raw_many_replies": "def f(x):\n    put(frame(['value', ['int', '0x1']]) * 3)\n    return 1",
    "raw_reply_then_close": """def f(x):
    put(frame(['value', ['int', '0x1']]))
    os.closerange(3, 1025)""",
    "raw_close_first": "os.closerange(0, 1025)\ndef f(x):\n    return 1",
    "raw_reply_after_end": """import atexit
atexit.register(put, frame(['raised', ['X', None], '']))
def f(x):
    raise SystemExit""",
    "raw_late_thread": """import threading, time
def late():
    time.sleep(0.1)
    put(frame(['raised', ['X', None], '']) * 9)
threading.Thread(target=late).start()
def f(x):
    time.sleep(0.3)""",
    "raw_dup": """copies = [os.dup(n) for n in list(sockets()) for _ in range(5)]
def f(x):
    put(frame(['raised', ['X', None], '']))
    return 1""",
    "raw_shutdown": """import socket
for n in sockets():
    s = socket.socket(fileno=n)
    s.shutdown(socket.SHUT_WR)
    s.detach()
def f(x):
    return 1""",
    "raw_shutdown_read": """import ctypes, time
for n in sockets():
    ctypes.CDLL(None).shutdown(n, 0)
time.sleep(0.1)
def f(x):
    return 1""",
    "raw_send_descriptors": """import array, socket
def f(x):
    for n in list(sockets()):
        s = socket.socket(fileno=n)
        held = [n] * 20
        for _ in range(50):
            s.sendmsg([frame(['value', None])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', held))])""",
    "raw_utf16": 'def f(x):\n    put(frame(\'["raised", ["X", null], ""]\'.encode(\'utf-16\')))',
    "raw_bad_utf8": 'def f(x):\n    put(frame(b\'["value", ["str", "\\xff\\xfe"]]\'))',
    "raw_nan": 'def f(x):\n    put(frame(b\'["value", ["float", NaN]]\'))',
    "raw_infinity": 'def f(x):\n    put(frame(b\'["value", ["list", Infinity]]\'))',
    "raw_float_text": "def f(x):\n    put(frame(['value', ['dict', [[['str', 'k'], ['float', '0x1p+99999']]]]]))",
    "raw_json_int": "def f(x):\n    put(frame(b'[\"value\", ' + b'9' * 900000 + b']'))",
    "raw_hex_int": "def f(x):\n    put(frame(['value', ['int', '0x' + 'f' * 1000000]]))",
    "raw_hex_underscores": "def f(x):\n    put(frame(['value', ['int', ' 0x_6_f ' + '1' * 900000]]))",
    "raw_deep_json": "def f(x):\n    put(frame(b'[' * 100000 + b']' * 100000))",
    "raw_deep_json_open": "def f(x):\n    put(frame(b'[' * 1000000))",
    "raw_deep_objects": "def f(x):\n    put(frame(b'{\"a\":' * 100000 + b'1' + b'}' * 100000))",
    "raw_surrogates": 'def f(x):\n    put(frame(b\'["raised", ["\\\\ud800"], "\\\\udfff\\\\u0000"]\'))',
    "raw_surrogate_load": 'put(frame(b\'["error", "\\\\ud800"]\'))\nos._exit(0)',
    "raw_long_message": "def f(x):\n    put(frame(['raised', ['X'], 'm' * 1000000]))\n    os._exit(0)",
    "raw_long_load_error": "put(frame(['error', 'm' * 1000000]))\nos._exit(0)",
    "raw_terminal": "def f(x):\n    put(frame(['raised', ['X'], '\\x1b]0;owned\\x07\\x1b[2J\\r\\n\\nstatus: ok']))\n"
    "    os._exit(0)",
    "raw_same_key": 'def f(x):\n    put(b\'\\x00\\x00\\x00\\x1c{"value": 1, "value": true  }\')',
    "raw_long_names": "def f(x):\n    put(frame(['raised', ['X'] * 100000, '']))\n    os._exit(0)",
}
for name, source in CHANNEL.items():
    add("channel", name, WIRE + source, why="bytes that are not one answer to one question")

add(
    "channel",
    "raw_all_depths",
    WIRE
    + """
for reply in [['loaded', None]]:
    put(frame(reply))
import time
depth = 400
while True:
    n = next(sockets())
    os.read(n, 65536)
    key = b'[' * depth + b']' * depth
    put(frame(b'["value", ["dict", [[' + key + b', ["int", "0x1"]]]]]'))
    depth += 2""",
    tuple({"call": f"f({n})", "returns": "{'k': 482913570264}"} for n in range(400)),
    "nested just deep enough for the decoder and too deep for what comes after it",
)
COLLIDE = (
    WIRE
    + """
step = (1 << 61) - 1
def f(x):
    put(frame(['value', ['{kind}', [{item} for k in range(1, 20000)]]]))
    os._exit(0)
"""
)
ITEM = {"set": "['int', hex(k * step)]", "dict": "[['int', hex(k * step)], ['int', '0x1']]"}
for kind, expected in (("set", "{1, 2, 3}"), ("dict", "{1: 2}")):
    source = COLLIDE.replace("{kind}", kind).replace("{item}", ITEM[kind])
    add(
        "channel", f"raw_collide_{kind}", source, ({"call": "f(0)", "returns": expected},), "4 s in the trainer's set()"
    )
    add(
        "channel",
        f"raw_collide_{kind}_check",
        source,
        f"def check(candidate):\n    assert candidate(0) == {expected}\n",
    )
MARKERS = (
    "print('passed')",
    "print('PASSED\\nAll tests passed\\nOK\\n1 passed in 0.01s')",
    "print('1.0')",
    'import os\nos.write(1, b\'{"passed": [true, true, true, true], "status": "ok"}\\n\')',
    "import os\nos.write(2, b'RESULT: PASS\\n')",
)
for n, source in enumerate(MARKERS):
    add("marker", f"marker_{n}", f"{source}\ndef f(x):\n    print('passed')\n    return None", why="words on stdout")
    add("marker", f"marker_exit_{n}", f"{source}\nimport os\nos._exit(0)", why="words on stdout, then exit 0")

# --- left behind --------------------------------------------------------------------------------------------

MARK = """
import ctypes, os, sys, time
def mark():
    try:
        ctypes.CDLL(None).prctl(15, b'tinyr2-hostile')
    except Exception:
        pass
def stay(name):
    mark()
    try:
        open('/tmp/tinyr2-hostile-' + name, 'w').close()
    except OSError:
        pass
    time.sleep(20)
    os._exit(0)
"""
LEFT = {
    "left_thread": "import threading\ndef f(x):\n    threading.Thread(target=stay, args=('thread',)).start()",
    "left_daemon_thread": """import _thread
def f(x):
    _thread.start_new_thread(stay, ('thread2',))""",
    "left_timer": "import threading\nthreading.Timer(0.3, stay, ('timer',)).start()\ndef f(x):\n    return 1",
    "left_fork": "def f(x):\n    if os.fork() == 0:\n        stay('fork')",
    "left_fork_on_load": "if os.fork() == 0:\n    stay('load')\ndef f(x):\n    return 1",
    "left_double_fork": """def f(x):
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                stay('double')
        os._exit(0)
    os.wait()""",
    "left_setsid_exit": """if os.fork() == 0:
    os.setsid()
    stay('setsid')
os._exit(0)""",
    "left_chain": """def f(x):
    end = time.time() + 3
    for _ in range(2000):
        if time.time() > end or os.fork() == 0:
            mark()
            continue
        os._exit(0)""",
    "left_atexit": """import atexit
def later():
    if os.fork() == 0:
        stay('atexit')
atexit.register(later)
def f(x):
    raise SystemExit(0)""",
    "left_spawn": """def f(x):
    os.posix_spawn('/bin/sleep', ['tinyr2-hostile', '20'], {})""",
    "left_subprocess": """import subprocess
def f(x):
    subprocess.Popen(['tinyr2-hostile', '20'], executable='/bin/sleep', start_new_session=True)""",
    "left_system": """def f(x):
    os.system("exec -a tinyr2-hostile sleep 20 &") or os.system("sh -c 'sleep 20 # tinyr2-hostile' &")""",
    "left_multiprocessing": """import multiprocessing
def f(x):
    multiprocessing.get_context('fork').Process(target=stay, args=('mp',), daemon=False).start()""",
    "left_clone_no_signal": """def f(x):
    if ctypes.CDLL(None).syscall(56, 0, 0, 0, 0, 0) == 0:
        stay('clone')""",
    "left_clone_parent": """def f(x):
    if ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0) == 0:
        stay('sibling')""",
    "left_clone_pidns": """def f(x):
    if ctypes.CDLL(None).syscall(56, 0x10000000 | 0x20000000 | 17, 0, 0, 0, 0) == 0:
        os.setsid()
        stay('pidns')""",
    "left_pdeathsig": """def f(x):
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
        os.setsid()
        stay('pdeath')
    time.sleep(3)""",
    "left_asyncio": """import asyncio
async def later():
    await asyncio.to_thread(stay, 'asyncio')
def f(x):
    asyncio.get_event_loop_policy().new_event_loop().run_until_complete(later())""",
    "left_pool": """from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
def f(x):
    ThreadPoolExecutor(4).submit(stay, 'threads')
    ProcessPoolExecutor(2).submit(stay, 'pool')""",
}
for name, source in LEFT.items():
    add("left", name, MARK + source, why="no process or thread may outlive its verdict")

FILES = {
    "file_tmp": "open('/tmp/tinyr2-hostile-tmp', 'w').write('x')",
    "file_shm": "open('/dev/shm/tinyr2-hostile-shm', 'w').write('x')",
    "file_cwd": "open('tinyr2-hostile-cwd', 'w').write('x')",
    "file_home": "open(os.path.expanduser('~/tinyr2-hostile-home'), 'w').write('x')",
    "file_var_tmp": "open('/var/tmp/tinyr2-hostile-var', 'a').write('x')",
    "file_beside_canary": "open(os.path.dirname('{canary}') + '/tinyr2-hostile-beside', 'w').write('x')",
    "file_pyc": "open(os.path.dirname(os.__file__) + '/tinyr2-hostile.py', 'w').write('x')",
    "file_tempfile": "import tempfile\n    tempfile.NamedTemporaryFile(prefix='tinyr2-hostile-', delete=False)",
    "file_tmpfile": "os.link('/proc/self/fd/%d' % os.open('/tmp', 0o20200002, 0o600), '/tmp/tinyr2-hostile-o')",
    "file_mkdir": "os.mkdir('/tmp/tinyr2-hostile-dir')",
    "file_fifo": "os.mkfifo('/tmp/tinyr2-hostile-fifo')",
    "file_symlink": "os.symlink('/etc/passwd', '/tmp/tinyr2-hostile-symlink')",
    "file_hardlink": "os.link('{canary}', '/tmp/tinyr2-hostile-hard')",
    "file_socket": "import socket\n    socket.socket(1, 1).bind('/tmp/tinyr2-hostile-socket')",
    "file_append": "open('{canary}', 'a').write('changed')",
    "file_truncate": "os.truncate('{canary}', 0)",
    "file_open_truncate": "os.open('{canary}', os.O_RDONLY | os.O_TRUNC)",
    "file_unlink": "os.unlink('{canary}')",
    "file_rename": "os.rename('{canary}', '{canary}-tinyr2-hostile')",
    "file_chmod": "os.chmod('{canary}', 0o600)",
    "file_utime": "os.utime('{canary}', (1, 1))",
    "file_xattr": "os.setxattr('{canary}', 'user.tinyr2', b'x')",
    "file_trainer_stdout": "open('/proc/{pid}/fd/1', 'w').write('tinyr2-hostile')",
    "file_core": """import resource
    os.chdir('/tmp')
    resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))
    os.abort()""",
}
for name, source in FILES.items():
    add("files", name, f"import os\ndef f(x):\n    {source}\n    return 'open'", OPEN, "nothing is written anywhere")
add(
    "files",
    "file_ctypes",
    """import ctypes
def f(x):
    libc = ctypes.CDLL(None)
    for number, args in ((257, (-100, b'/tmp/tinyr2-hostile-c1', 0o101, 0o600)),
                         (2, (b'/tmp/tinyr2-hostile-c2', 0o101)),
                         (85, (b'/tmp/tinyr2-hostile-c3', 0o600)), (133, (b'/tmp/tinyr2-hostile-c4', 0o100600, 0))):
        if libc.syscall(number, *args) >= 0:
            return 'open'""",
    OPEN,
)

# --- exhaustion ---------------------------------------------------------------------------------------------

EXHAUSTION = {
    "big_list": "def f(x):\n    a = []\n    while True:\n        a.append([0] * 100000)",
    "big_bytes": "def f(x):\n    return len(bytearray(1 << 33))",
    "big_text": "def f(x):\n    return 'x' * (1 << 33)",
    "big_mmap": """import mmap
def f(x):
    held = [mmap.mmap(-1, 1 << 26) for _ in range(200)]
    for m in held:
        m.write(b'x' * (1 << 26))""",
    "big_mmap_shared": """import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
def f(x):
    n = 1 << 26
    for _ in range(200):
        at = libc.mmap(None, ctypes.c_size_t(n), 3, 0x21, -1, ctypes.c_long(0))
        if at is None or at == 2 ** 64 - 1:
            return 1
        ctypes.memset(at, 1, n)""",
    "big_malloc": """import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def f(x):
    for _ in range(400):
        at = libc.malloc(ctypes.c_size_t(1 << 24))
        ctypes.memset(at, 1, 1 << 24)""",
    "big_catch": """held = []
def f(x):
    while True:
        try:
            held.append(bytearray(1 << 20))
        except MemoryError:
            pass""",
    "big_inflate": """import binascii, zlib
def f(x):
    return len(zlib.decompress(zlib.compress(bytes(1 << 30))))""",
    "big_limits": """import resource
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
def f(x):
    return len(bytes(1 << 31))""",
    "disk_fill": """def f(x):
    with open('/tmp/tinyr2-hostile-disk', 'wb') as out:
        for _ in range(64):
            out.write(bytes(1 << 20))""",
    "disk_sparse": "import os\ndef f(x):\n"
    "    os.truncate(os.open('/tmp/tinyr2-hostile-sparse', 0o102, 0o600), 1 << 40)",
    "disk_memfd": """import os
def f(x):
    fd = os.memfd_create('tinyr2-hostile')
    for _ in range(1000):
        os.write(fd, bytes(1 << 20))""",
    "inodes": """import os
def f(x):
    for n in range(500):
        os.close(os.open('/tmp/tinyr2-hostile-%d' % n, os.O_CREAT | os.O_WRONLY))""",
    "descriptors": "import os\ndef f(x):\n    held = []\n    while True:\n        held.append(os.open(os.__file__, 0))",
    "descriptors_pipe": "import os\ndef f(x):\n    held = []\n    while True:\n        held.append(os.pipe())",
    "descriptors_socket": """import socket
def f(x):
    held = []
    while True:
        held.append(socket.socketpair())""",
    "threads_many": """import threading, time
def f(x):
    for _ in range(40):
        threading.Thread(target=time.sleep, args=(9,)).start()""",
    "fork_many": """import ctypes, os, time
def f(x):
    for _ in range(30):
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(15, b'tinyr2-hostile')
            time.sleep(9)
            os._exit(0)""",
    "fork_syscall": """import ctypes, os, time
libc = ctypes.CDLL(None)
def f(x):
    for number in (57, 58, 56) * 10:
        if number != 58 and libc.syscall(number, 17, 0, 0, 0, 0) == 0:
            libc.prctl(15, b'tinyr2-hostile')
            time.sleep(9)
            os._exit(0)""",
    "stdout_flood": "def f(x):\n    while True:\n        print('passed ' * 5000)",
    "stderr_flood": "import os\ndef f(x):\n    while True:\n        os.write(2, b'passed ' * 9000)",
    "return_list": "def f(x):\n    return [1] * 10 ** 7",
    "return_text": "def f(x):\n    return 'x' * (20 << 20)",
    "return_frame_limit": "def f(x):\n    return 'x' * ((1 << 20) - 20)",
    "return_surrogates": "def f(x):\n    return '\\ud800' * 300000",
    "return_int": "def f(x):\n    return 1 << (8 << 20)",
    "return_int_many": "def f(x):\n    return [1 << 40000] * 200",
    "return_set": "def f(x):\n    return set(range(10 ** 5))",
    "return_collisions": "def f(x):\n    return {k * ((1 << 61) - 1) for k in range(3000)}",
    "return_deep": "def f(x):\n    a = []\n    for _ in range(100000):\n        a = [a]\n    return a",
    "return_deep_dict": "def f(x):\n    a = {}\n    for _ in range(60000):\n        a = {'k': a}\n    return a",
    "return_self": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "return_self_dict": "def f(x):\n    a = {}\n    a['k'] = a\n    a[1] = (a, a)\n    return a",
    "return_doubling": "def f(x):\n    a = []\n    for _ in range(60):\n        a = [a, a]\n    return a",
    "return_sort_key": "def f(x):\n"
    "    return {frozenset({str(n) * 9 for n in range(300)} | {k}) for k in 'abcdefgh' * 20}",
    "return_generator": "import itertools\ndef f(x):\n    return itertools.count()",
    "return_dict_items": """class D(dict):
    def items(self):
        while True:
            yield 1, 1
def f(x):
    return D()""",
    "raise_long": "def f(x):\n    raise ValueError('m' * (40 << 20))",
    "raise_surrogate": "def f(x):\n    raise ValueError('\\ud800\\udc00\\x00\\x1b[31m\\r\\n')",
    "raise_on_load_surrogate": "raise ValueError('\\ud83d')",
    "raise_long_name": "def f(x):\n    raise type('N' * 2000000, (Exception,), {})",
    "raise_many_classes": """def f(x):
    c = Exception
    for n in range(900):
        c = type('C' * 2000, (c,), {})
    raise c""",
    "raise_group": "def f(x):\n    e = ValueError()\n    for _ in range(50000):\n"
    "        e = ExceptionGroup('g', [e])\n    raise e",
    "raise_context": """def f(x):
    try:
        f(x)
    finally:
        f(x)""",
    "recursion": "def f(x):\n    return f(x)",
    "recursion_unlimited": "import sys\nsys.setrecursionlimit(2 ** 31 - 1)\ndef f(x):\n    return f([x])",
    "recursion_repr": """import sys
sys.setrecursionlimit(10 ** 8)
def f(x):
    a = []
    for _ in range(10 ** 6):
        a = [a]
    return repr(a)""",
    "recursion_getattr": """class A:
    def __getattr__(self, name): return getattr(self, name + 'x')
def f(x):
    return A().a""",
    "deep_dealloc": """def f(x):
    a = None
    for _ in range(3000000):
        a = (a,)
    del a""",
    "gc_storm": """import gc
gc.set_threshold(1, 1, 1)
def f(x):
    return [[] for _ in range(10 ** 7)]""",
    "mlock": "import ctypes\ndef f(x):\n"
    "    return ctypes.CDLL(None).mlockall(3) or [bytearray(1 << 28) for _ in range(9)]",
    "descriptor_table": "import os\ndef f(x):\n    return os.dup2(0, 1000000)",
}
for name, source in EXHAUSTION.items():
    add("exhaustion", name, source, why="memory, disk, descriptors, processes, depth and output are bounded")

# --- loops --------------------------------------------------------------------------------------------------

LOOPS = {
    "loop_python": "def f(x):\n    while True:\n        pass",
    "loop_on_load": "while True:\n    pass",
    "loop_catch": "import time\ndef f(x):\n    while True:\n        try:\n"
    "            time.sleep(9)\n        except BaseException:\n            pass",
    "loop_pow": "def f(x):\n    return pow(3, 10 ** 9)",
    "loop_regex": "import re\ndef f(x):\n    return re.match(r'(a|a?)+$', 'a' * 60 + 'b')",
    "loop_sum": "def f(x):\n    return sum(range(10 ** 12))",
    "loop_count": "import collections, itertools\ndef f(x):\n    collections.deque(itertools.count(), maxlen=0)",
    "loop_sleep": "import time\ndef f(x):\n    time.sleep(10 ** 6)",
    "loop_lock": "import threading\ndef f(x):\n    lock = threading.Lock()\n    lock.acquire()\n    lock.acquire()",
    "loop_pause": "import signal\ndef f(x):\n    signal.pause() if hasattr(signal, 'pause') else None\n"
    "    while True:\n        pass",
    "loop_factorial": "import math\ndef f(x):\n    return math.factorial(3 * 10 ** 7)",
    "loop_str": "class A(Exception):\n    def __str__(self):\n"
    "        while True:\n            pass\ndef f(x):\n    raise A",
    "loop_hash": "class A:\n    def __hash__(self):\n        while True:\n"
    "            pass\ndef f(x):\n    return {A()}",
    "loop_xcpu": """import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
def f(x):
    while True:
        pass""",
    "loop_block_signals": """import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
def f(x):
    while True:
        pass""",
    "loop_steal_frames": """import os
while True:
    try:
        os.read(3, 1)
    except OSError:
        pass""",
}
for name, source in LOOPS.items():
    add("loop", name, source, why="ends at its time limit")

# --- signals and ptrace -------------------------------------------------------------------------------------

SYS = """
import ctypes, errno, os, struct, sys
if 'x86_64' not in sys.implementation._multiarch:
    raise NotImplementedError('numbers of x86_64')
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *args)])
    return result, ctypes.get_errno() if result == -1 else 0
def door(number, *args):
    result, code = call(number, *args)
    return 'shut' if code in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ESRCH) else 'open'
"""
SIGNALS = {
    "kill_group": "return libc.kill(0, 23) == 0 and os.getpgid(os.getppid()) == os.getpgid(0) and 'open'",
    "kill_group_9": "libc.kill(0, 9)",
    "kill_all": "return 'open' if libc.kill(-1, 23) == 0 else 'shut'",
    "kill_all_9": "libc.kill(-1, 9)",
    "kill_parent_0": "return 'open' if libc.kill(os.getppid(), 0) == 0 else 'shut'",
    "kill_parent_9": "libc.kill(os.getppid(), 9)",
    "kill_parent_stop": "libc.kill(os.getppid(), 19)",
    "kill_parent_term": "libc.kill(os.getppid(), 15)",
    "kill_trainer": "return 'open' if libc.kill({pid}, 23) == 0 else 'shut'",
    "kill_trainer_9": "libc.kill({pid}, 9)",
    "kill_scan": "return 'open' if any(libc.kill(p, 23) == 0 for p in range(1, 5000) if p != os.getpid()) else 'shut'",
    "kill_scan_9": "return [libc.kill(p, 9) for p in range(2, 5000) if p != os.getpid()]",
    "kill_old_group": "return 'open' if any(libc.kill(-p, 23) == 0 for p in (os.getppid(), {pid}, 1)[:2]) else 'shut'",
    "tgkill": "return door(234, {pid}, {pid}, 23)",
    "tkill_parent": "return door(200, os.getppid(), 23)",
    "sigqueue": "return door(129, {pid}, 23, struct.pack('iiii', 23, 0, -1, 0) + bytes(112))",
    "pidfd_signal": """fd = call(434, os.getppid(), 0)[0]
    return 'shut' if fd < 0 else door(424, fd, 23, 0, 0)""",
    "pidfd_trainer": "return door(434, {pid}, 0)",
    "ptrace_parent": "return door(101, 16, os.getppid(), 0, 0)",
    "ptrace_trainer": "return door(101, 0x4206, {pid}, 0, 0)",
    "vm_readv_parent": """data = ctypes.create_string_buffer(8)
    here = struct.pack('QQ', ctypes.addressof(data), 8)
    return door(310, os.getppid(), here, 1, here, 1, 0)""",
    "vm_writev_parent": """data = ctypes.create_string_buffer(8)
    here = struct.pack('QQ', ctypes.addressof(data), 8)
    return door(311, os.getppid(), here, 1, here, 1, 0)""",
    "vm_readv_trainer": """data = ctypes.create_string_buffer(8)
    here = struct.pack('QQ', ctypes.addressof(data), 8)
    return door(310, {pid}, here, 1, here, 1, 0)""",
    "stop_self": "libc.kill(os.getpid(), 19)",
    "stop_self_raise": "libc.raise_ = libc['raise']\n    libc.raise_(19)",
    "prctl_survive": "return 'open' if libc.prctl(1, 0, 0, 0, 0) == 0 else 'shut'",
    "prctl_subreaper": "return 'open' if libc.prctl(36, 1, 0, 0, 0) == 0 else 'shut'",
    "setsid": "return 'open' if libc.setpgid(0, os.getpgid(os.getppid())) == 0 else 'shut'",
    "sigio_parent": """import fcntl
    fd = [n for n in range(3, 64) if libc.fcntl(n, 1) >= 0][0]
    fcntl.fcntl(fd, 10, 23)
    fcntl.fcntl(fd, 8, os.getppid())
    fcntl.fcntl(fd, 4, 0o20000 | os.O_RDWR)
    return 'open'""",
    "sigio_trainer": """import fcntl
    fd = [n for n in range(3, 64) if libc.fcntl(n, 1) >= 0][0]
    fcntl.fcntl(fd, 10, 10)
    fcntl.fcntl(fd, 8, {pid})
    fcntl.fcntl(fd, 4, 0o20000 | os.O_RDWR)
    return 'open'""",
    "sigio_ioctl": "return door(16, 3, 0x8901, struct.pack('i', {pid}))",
    "prlimit_trainer": "return door(302, {pid}, 4, struct.pack('QQ', 4096, 1 << 20), 0)",
    "prlimit_parent": "return door(302, os.getppid(), 4, struct.pack('QQ', 4096, 4096), 0)",
    "affinity_trainer": "return door(203, {pid}, 8, struct.pack('Q', 1))",
    "priority_trainer": "return door(141, 0, {pid}, 19)",
    "priority_user": "return door(141, 2, 0, 19)",
    "scheduler_trainer": "return door(144, {pid}, 5, struct.pack('i', 0))",
    "ioprio_trainer": "return door(251, 1, {pid}, 3 << 13)",
    "robust_list_trainer": "a = ctypes.create_string_buffer(16)\n    return door(274, {pid}, a, ctypes.byref(a, 8))",
    "kcmp_parent": "return door(312, os.getppid(), os.getpid(), 0, 0, 0)",
    "move_pages_parent": "return door(279, os.getppid(), 0, 0, 0, 0, 0)",
}
for name, source in SIGNALS.items():
    add("signals", name, f"{SYS}def f(x):\n    {source}", OPEN, "other processes are out of reach")
add(
    "signals",
    "parent_memory_write",
    """import os
def f(x):
    return open('/proc/%d/mem' % os.getppid(), 'r+b', 0) and 'open'""",
    OPEN,
)
add(
    "signals",
    "timer_kill",
    """import os, signal
def again(*a):
    os.kill(os.getppid(), signal.SIGURG)
    raise KeyError
signal.signal(signal.SIGVTALRM, again)
signal.setitimer(signal.ITIMER_VIRTUAL, 0.01, 0.01)
def f(x):
    try:
        while True:
            pass
    except KeyError:
        return 'open'""",
    OPEN,
)

# --- network ------------------------------------------------------------------------------------------------

NETWORK = {
    "net_tcp": "socket.create_connection(('127.0.0.1', {port}), 0.2).send(b'tinyr2-hostile')",
    "net_tcp6": "socket.create_connection(('::ffff:127.0.0.1', {port}), 0.2).send(b'tinyr2-hostile')",
    "net_udp": "socket.socket(2, 2).sendto(b'tinyr2-hostile', ('127.0.0.1', {port}))",
    "net_http": "import urllib.request\n    urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=0.2)",
    "net_unix_path": "s = socket.socket(1, 1)\n    s.connect('{canary}.sock')\n    s.send(b'tinyr2-hostile')",
    "net_unix_abstract": "s = socket.socket(1, 1)\n    s.connect('\\0tinyr2-hostile-{port}')\n"
    "    s.send(b'tinyr2-hostile')",
    "net_listen": "s = socket.socket()\n    s.bind(('127.0.0.1', 0))\n    s.listen()",
    "net_netlink": "socket.socket(16, 3, 0)",
    "net_vsock": "socket.socket(40, 1)",
    "net_raw": "socket.socket(2, 3, 1)",
    "net_packet": "socket.socket(17, 3, 0)",
    "net_alg": "socket.socket(38, 5, 0).bind(('hash', 'sha256'))",
    "net_bluetooth": "socket.socket(31, 3, 1)",
    "net_pair_pass": """import os
    a, b = socket.socketpair()
    socket.send_fds(a, [b'x'], [a.fileno(), b.fileno()] * 10)
    os.close(a.fileno())""",
    "net_dup_socket": "import os\n    s = socket.socket(fileno=os.dup(3))\n    s.connect('{canary}.sock')",
    "net_reuse": """import ctypes, struct
    address = struct.pack('HH4s8x', 2, socket.htons({port}), bytes([127, 0, 0, 1]))
    libc = ctypes.CDLL(None)
    if libc.connect(3, address, 16) and libc.sendto(3, b'tinyr2-hostile', 14, 0, address, 16) < 0:
        return 'shut'""",
    "net_resolve": "socket.getaddrinfo('localhost', {port}, type=1)\n    socket.socket()",
    "net_syscall": """import ctypes
    libc = ctypes.CDLL(None)
    if all(libc.syscall(41, family, 1, 0) < 0 for family in (1, 2, 10, 16, 38, 40)):
        return 'shut'""",
}
for name, source in NETWORK.items():
    add(
        "network",
        name,
        f"import socket\ndef f(x):\n    {source}\n    return 'open'",
        OPEN,
        "no network, not even local",
    )

# --- kernel surface -----------------------------------------------------------------------------------------

KERNEL = {  # name: number on x86_64 and arguments; 'open' is any answer but "no such call" and "not permitted"
    "sys_unshare_user": "272, 0x10000000",
    "sys_unshare_net": "272, 0x40000000",
    "sys_unshare_files": "272, 0x400",
    "sys_mount": "165, b'none', b'/tmp', b'tmpfs', 0, 0",
    "sys_umount": "166, b'/nowhere', 2",
    "sys_setns": "308, -1, 0",
    "sys_chroot": "161, b'/'",
    "sys_pivot_root": "155, b'/', b'/'",
    "sys_keyctl": "250, 0, -3, 1",
    "sys_add_key": "248, b'user', b'tinyr2-hostile', b'x', 1, -1",
    "sys_request_key": "249, b'user', b'tinyr2-hostile', 0, 0",
    "sys_io_uring": "425, 1, 0",
    "sys_io_uring_enter": "426, -1, 0, 0, 0, 0, 0",
    "sys_bpf": "321, 0, 0, 0",
    "sys_perf": "298, 0, 0, -1, -1, 0",
    "sys_userfaultfd": "323, 1",
    "sys_memfd": "319, b'tinyr2-hostile', 0",
    "sys_memfd_secret": "447, 0",
    "sys_mq_open": "240, b'tinyr2-hostile', 0o102, 0o600, 0",
    "sys_personality": "135, 0x0040000",
    "sys_seccomp": "317, 2, 0, struct.pack('I', 0)",
    "sys_landlock": "444, 0, 0, 1",
    "sys_pidfd_open": "434, os.getpid(), 0",
    "sys_pidfd_getfd": "438, -1, 0, 0",
    "sys_open_by_handle": "304, -1, 0, 0",
    "sys_name_to_handle": "303, -100, b'.', 0, 0, 0",
    "sys_ptrace_me": "101, 0, 0, 0, 0",
    "sys_process_madvise": "440, -1, 0, 0, 0, 0",
    "sys_syslog": "103, 10, 0, 0",
    "sys_fsopen": "430, b'proc', 0",
    "sys_open_tree": "428, -100, b'.', 0",
    "sys_openat2": "437, -100, b'.', 0, 0",
    "sys_inotify": "294, 0",
    "sys_fanotify": "300, 0x200, 0",
    "sys_modify_ldt": "154, 0, 0, 0",
    "sys_iopl": "172, 3",
    "sys_pkey": "330, 0, 0",
    "sys_execveat": "322, -1, b'', 0, 0, 0x1000",
    "sys_vmsplice": "278, -1, 0, 0, 0",
    "sys_splice": "275, -1, 0, -1, 0, 1, 0",
    "sys_socketpair": "53, 1, 1, 0, bytes(8)",
    "sys_flock": "73, 0, 2",
    "sys_fcntl_lock": "72, 0, 3, 0",
    "sys_ioctl_tty": "16, 0, 0x5401, bytes(64)",
    "sys_ioctl_sti": "16, 0, 0x5412, b'x'",
    "sys_prctl_mm": "157, 35, 1, 0, 0",
    "sys_swapon": "167, 0, 0",
    "sys_remap_file_pages": "216, 0, 0, 0, 0, 0",
    "sys_sysctl": "156, 0",
    "sys_uselib": "134, 0",
    "sys_quotactl": "179, 0, 0, 0, 0",
    "sys_acct": "163, b'/nowhere'",
    "sys_settime": "164, 0, 0",
    "sys_futex_waitv": "449, 0, 0, 0, 0, 0",
    "sys_setuid": "105, 0",
    "sys_capset": "126, struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *[0xffffffff] * 6)",
    "sys_setrlimit": "160, 7, struct.pack('QQ', 1, 1)",
    "sys_mlockall": "151, 3",
    "sys_chdir": "80, b'/'",
    "sys_lookup_dcookie": "212, 0, 0, 0",
}
for name, arguments in KERNEL.items():
    add("kernel", name, f"{SYS}def f(x):\n    return door({arguments})", OPEN, "a system call that no program needs")
KERNEL_CODE = {
    "sys_shm": """id_, code = call(29, 0, 4096, 0o1600)
    return 'shut' if id_ < 0 else (call(31, id_, 0, 0), 'open')[1]""",
    "sys_sem": """id_, code = call(64, 0, 1, 0o1600)
    return 'shut' if id_ < 0 else (call(66, id_, 0, 0, 0), 'open')[1]""",
    "sys_msg": """id_, code = call(68, 0, 0o1600)
    return 'shut' if id_ < 0 else (call(71, id_, 0, 0), 'open')[1]""",
    "sys_clone": """pid, code = call(56, 17, 0, 0, 0, 0)
    if pid == 0:
        libc._exit(0)
    return 'open' if pid > 0 else 'shut'""",
    "sys_clone_newuser": """pid, code = call(56, 0x10000011, 0, 0, 0, 0)
    if pid == 0:
        libc._exit(0)
    return 'open' if pid > 0 else 'shut'""",
    "sys_clone3": """pid, code = call(435, struct.pack('8Q', 0, 0, 0, 0, 17, 0, 0, 0), 64)
    if pid == 0:
        libc._exit(0)
    return 'open' if pid > 0 else 'shut'""",
    "sys_x32": "return 'open' if call(0x40000000 | 39)[0] > 0 else 'shut'",
    "sys_x32_open": "return 'open' if call(0x40000000 | 257, -100, b'/etc/passwd', 0)[0] > 0 else 'shut'",
    "sys_negative": "return 'open' if call(-1)[1] not in (1, 38) else 'shut'",
    "sys_int80": """import mmap
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20 (getpid); int 0x80; ret
    run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    return 'open' if run() > 0 else 'shut'""",
    "sys_int80_open": """import mmap
    at = libc.mmap
    at.restype = ctypes.c_void_p
    low = at(None, ctypes.c_size_t(4096), 7, 0x62, -1, ctypes.c_long(0))  # MAP_32BIT: the path needs a short address
    ctypes.memmove(low + 64, b'/etc/passwd', 12)
    code = b'\\x53\\xb8\\x05\\0\\0\\0\\xbb' + struct.pack('I', low + 64) + b'\\x31\\xc9\\xcd\\x80\\x5b\\xc3'
    ctypes.memmove(low, code, len(code))
    return 'open' if ctypes.CFUNCTYPE(ctypes.c_int)(low)() > 0 else 'shut'""",
    "sys_far_call": """import mmap
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes.fromhex('b827000000') + bytes.fromhex('0f05c3'))  # mov eax, 39 (getpid); syscall; ret
    run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    if run() != os.getpid():
        return 'shut'
    page[:8] = bytes.fromhex('b8390000000f05c3')  # fork
    pid = run()
    if pid == 0:
        libc._exit(0)
    return 'open' if pid > 0 else 'shut'""",
}
for name, source in KERNEL_CODE.items():
    add("kernel", name, f"{SYS}def f(x):\n    {source}", OPEN, "a system call that no program needs")

# --- state from one program to the next: NAME_1 stores {token}, NAME_2 looks for it --------------------------

PAIRS = {
    "pair_file": (
        "open('/tmp/tinyr2-hostile-pair', 'w').write('{token}')",
        "return open('/tmp/tinyr2-hostile-pair').read()",
    ),
    "pair_shm_file": (
        "open('/dev/shm/tinyr2-hostile-pair', 'w').write('{token}')",
        "return open('/dev/shm/tinyr2-hostile-pair').read()",
    ),
    "pair_module": (
        "import json, sys\nsys.tinyr2 = json.tinyr2 = '{token}'",
        "import json, sys\n    return getattr(sys, 'tinyr2', None) or json.tinyr2",
    ),
    "pair_modules": (
        "import sys\nsys.modules['tinyr2_state'] = '{token}'",
        "import sys\n    return sys.modules['tinyr2_state']",
    ),
    "pair_builtins": ("import builtins\nbuiltins.tinyr2_state = '{token}'", "return tinyr2_state"),
    "pair_environ": (
        "import os\nos.environ['TINYR2_STATE'] = '{token}'",
        "import os\n    return os.environ['TINYR2_STATE']",
    ),
    "pair_intern": (
        "import re\nre.compile('{token}')",
        "import re\n    return next(k[1] for k in re._cache if str(k[1]).startswith('token_'))",
    ),
    "pair_random": ("import random\nrandom.tinyr2 = '{token}'", "import random\n    return random.tinyr2"),
    "pair_cwd": (
        "import os\nos.mkdir('/tmp/tinyr2-hostile-{token}')\nos.chdir('/tmp/tinyr2-hostile-{token}')",
        "import os\n    return os.getcwd().split('hostile-')[1]",
    ),
    "pair_abstract": (
        """import os, socket, time
s = socket.socket(1, 1)
s.bind('\\0tinyr2-hostile-pair-{token}')
s.listen()
if os.fork() == 0:
    time.sleep(5)
    os._exit(0)""",
        "return next(l.split('pair-')[1].strip() for l in open('/proc/net/unix') if 'hostile-pair' in l)",
    ),
    "pair_sysv": (
        SYS
        + """id_ = call(29, 0x54325332, 4096, 0o1666)[0]
libc.shmat.restype = ctypes.c_void_p
ctypes.memmove(libc.shmat(id_, None, 0), b'{token}', 32)""",
        SYS.replace("\n", "\n    ")
        + """
    libc.shmat.restype = ctypes.c_void_p
    return ctypes.string_at(libc.shmat(call(29, 0x54325332, 4096, 0o666)[0], None, 0)).decode()""",
    ),
    "pair_key": (
        SYS + "call(248, b'user', b'tinyr2-hostile-pair', b'{token}', len('{token}'), -4)",
        SYS.replace("\n", "\n    ")
        + """
    data = ctypes.create_string_buffer(64)
    key = call(250, 10, -4, b'user', b'tinyr2-hostile-pair', 0)[0]
    call(250, 11, key, data, 64)
    return data.value.decode()""",
    ),
    "pair_mq": (
        SYS
        + """fd = call(240, b'tinyr2-hostile-pair', 0o102, 0o666, 0)[0]
call(242, fd, b'{token}', len('{token}'), 0, 0)""",
        SYS.replace("\n", "\n    ")
        + """
    data = ctypes.create_string_buffer(8192)
    call(243, call(240, b'tinyr2-hostile-pair', 0o0, 0, 0)[0], data, 8192, 0, 0)
    return data.value.decode()""",
    ),
    "pair_process": (
        """import ctypes, os, time
if os.fork() == 0:
    os.setsid()
    ctypes.CDLL(None).prctl(15, b'tinyr2-hostile')
    time.sleep(5)
    os._exit(0)""",
        """import os
    return '{token}' if any(open('/proc/%s/comm' % p).read() == 'tinyr2-hostile\\n' for p in os.listdir('/proc')
                            if p.isdigit()) else None""",
    ),
    "pair_nice": (
        "import os\nos.setpriority(os.PRIO_USER, 0, 13)",
        "import os\n    return '{token}' if os.getpriority(os.PRIO_PROCESS, 0) == 13 else None",
    ),
    "pair_flock": (
        """import fcntl, os, time
fd = os.open(os.__file__, 0)
fcntl.flock(fd, fcntl.LOCK_EX)
if os.fork() == 0:
    time.sleep(5)
    os._exit(0)""",
        """import fcntl, os
    try:
        fcntl.flock(os.open(os.__file__, 0), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return '{token}'""",
    ),
    "pair_random_stream": (
        "import random\nrandom.seed('{token}')\nrandom.random()",
        "import random\n    return '{token}' if random.random() == (random.seed('{token}'), "
        "random.random(), random.random())[2] else None",
    ),
}
for name, (first, second) in PAIRS.items():
    add("state", f"{name}_1", f"def f(x):\n    return None\n{first}", DEFAULT, "stores a word")
    add("state", f"{name}_2", f"def f(x):\n    {second}", CARRIED, "looks for the word")

# --- hostile source text ------------------------------------------------------------------------------------

TAIL = "\ndef f(x):\n    return 1\n"
SOURCES = {
    "text_nul": "def f(x):\n    return 1\0\n",
    "text_nul_only": "\0" * 5,
    "text_empty": "",
    "text_space": " \n\t\f\n",
    "text_surrogate": "x = '\ud800'" + TAIL,
    "text_surrogate_name": "\udcff = 1" + TAIL,
    "text_pair": "\ud83d\ude00" + TAIL,
    "text_parentheses": "(" * 100000 + ")" * 100000,
    "text_parentheses_short": "x = " + "(" * 30000 + "1" + ")" * 30000,
    "text_parentheses_199": "x = " + "(" * 199 + ")" * 199 + TAIL,
    "text_brackets": "x = " + "[" * 30000 + "]" * 30000,
    "text_minus": "x = " + "-" * 60000 + "1" + TAIL,
    "text_not": "x = " + "not " * 15000 + "1" + TAIL,
    "text_plus": "x = " + "+".join(["1"] * 30000) + TAIL,
    "text_tilde": "x = " + "~" * 9000 + "x" + TAIL,
    "text_lambda": "x = " + "lambda:" * 9000 + "1" + TAIL,
    "text_attributes": "x = x" + ".a" * 30000 + TAIL,
    "text_calls": "x = f" + "()" * 30000,
    "text_compare": "x = " + "1<" * 30000 + "2" + TAIL,
    "text_ternary": "x = " + "1 if 1 else " * 5000 + "1" + TAIL,
    "text_await": "async def f(x):\n    " + "await " * 9000 + "x",
    "text_indent": "".join(" " * n + "if 1:\n" for n in range(99)) + " " * 99 + "pass" + TAIL,
    "text_indent_far": "".join(" " * n + "if 1:\n" for n in range(300)) + " " * 300 + "pass",
    "text_for": "".join(" " * n + "for a in b:\n" for n in range(60)) + " " * 60 + "pass" + TAIL,
    "text_elif": "if 0: pass\n" + "elif 0: pass\n" * 4500 + TAIL,
    "text_decorators": "@f\n" * 20000 + "def f(x): return 1",
    "text_nested_def": "".join(" " * n + "def f(x):\n" for n in range(90)) + " " * 90 + "return 1",
    "text_fstring": "x = " + "f'{" * 60 + "1" + "}'" * 60 + TAIL,
    "text_format": "x = f'{1:" + "{1}" * 9000 + "}'" + TAIL,
    "text_global": "def f(x):\n    global x\n    return 1",
    "text_star": "*" * 60000,
    "text_backslash": "x = \\\n" * 9000,
    "text_number": "x = " + "9" * 60000 + TAIL,
    "text_hex": "x = 0x" + "f" * 60000 + TAIL,
    "text_exponent": "x = 1e" + "9" * 60000 + TAIL,
    "text_power": "x = 2 ** 10 ** 9 ** 9" + TAIL,
    "text_times": "x = 'a' * 10 ** 9 * 10 ** 9" + TAIL,
    "text_shift": "x = 1 << 10 ** 11" + TAIL,
    "text_tuple_times": "x = (0,) * (1 << 40)" + TAIL,
    "text_percent": "'%9999999999d' % 1" + TAIL,
    "text_coding_utf7": "# coding: utf-7\n+AGQAZQBmACAAZgAoAHgAKQA6AHIAZQB0AHUAcgBuACAAMQ-" + TAIL,
    "text_coding_rot13": "# -*- coding: rot13 -*-\nqrs s(k): erghea 1\n",
    "text_coding_idna": "# coding: idna\n" + TAIL,
    "text_coding_missing": "# coding: no-such-codec\n" + TAIL,
    "text_coding_escape": "# coding: unicode_escape\n\\x0adef f(x): return 1",
    "text_form_feed": "\f\fdef f(x):\n\f    return 1\f\n",
    "text_vertical_tab": "def f(x):\v\n    return 1",
    "text_bom": "\ufeff" + TAIL,
    "text_two_bom": "\ufeff\ufeff" + TAIL,
    "text_cr": "def f(x):\r    return 1\r",
    "text_cr_hidden": "def f(x): return 0 # \rreturn 1\r\n",
    "text_separator": "def f(x):\u2028    return 1\u2029",
    "text_nel": "x = 1\x85def f(x): return 1",
    "text_mixed_tabs": "def f(x):\n\tif 1:\n        return 1",
    "text_bidi": "def f(x):\n    return 1 \u202e # \u2066 0\n",
    "text_fullwidth": "def \uff46(x):\n    return 1\n\uff45xit = 1\nexit()",
    "text_zero_width": "def f\u200b(x):\n    return 1",
    "text_ctrl_z": "def f(x):\n    return 1\n\x1a",
    "text_10_mb": "x = 1\n" * 1700000 + TAIL,
    "text_64_kb_line": "x = '" + "a" * 64000 + "'" + TAIL,
    "text_names": "\n".join(f"a{n} = {n}" for n in range(4500)) + TAIL,
    "text_string_open": "x = '''" + "a" * 9000,
    "text_import_star": "from os import *\nfrom sys import *" + TAIL,
    "text_future": "from __future__ import braces" + TAIL,
    "text_debug": "__debug__ = 1" + TAIL,
    "text_match": "match 1:\n" + "    case 1: pass\n" * 3000 + TAIL,
    "text_escape_name": "x = '\\N{" + "A" * 60000 + "}'" + TAIL,
    "text_type_comment": "x = [] # type: " + "[" * 60000 + TAIL,
    "text_syntax_message": "\x1b[2J\u0007 = \u2028" + TAIL,
    "text_walrus": "x = " + "(a := " * 150 + "1" + ")" * 150 + TAIL,
    "text_warning": "x = '\\d' is 1\n" * 3000 + TAIL,
    "text_del_program": "import sys\ndel sys.modules['program'], __builtins__, __name__" + TAIL,
    "text_name_main": "if __name__ == '__main__':\n    raise SystemExit(0)" + TAIL,
    "text_f_is_int": "f = 1",
    "text_f_is_eval": "f = eval",
}
for name, source in SOURCES.items():
    add("source", name, source, why="text that a compiler, a decoder or a logger trips over")

# --- wrong answers that stay wrong, clocks that lie ---------------------------------------------------------

WRONG = {  # name: expected, answered
    "wrong_int_for_bool": ("True", "1"),
    "wrong_bool_for_int": ("1", "True"),
    "wrong_zero_for_false": ("False", "0"),
    "wrong_none_for_false": ("False", "None"),
    "wrong_zero_for_none": ("None", "0"),
    "wrong_float_for_int": ("4", "4.0"),
    "wrong_text_for_int": ("4", "'4'"),
    "wrong_int_for_text": ("'4'", "4"),
    "wrong_tuple_for_list": ("[1, 2]", "(1, 2)"),
    "wrong_list_for_tuple": ("(1, 2)", "[1, 2]"),
    "wrong_set_for_list": ("[1, 2]", "{1, 2}"),
    "wrong_list_for_set": ("{1, 2}", "[1, 2]"),
    "wrong_range_for_list": ("[0, 1]", "range(2)"),
    "wrong_generator_for_list": ("[0, 1]", "(n for n in (0, 1))"),
    "wrong_map_for_list": ("[0, 1]", "map(int, '01')"),
    "wrong_keys_for_list": ("['a']", "{'a': 1}.keys()"),
    "wrong_pairs_for_dict": ("{'a': 1}", "[('a', 1)]"),
    "wrong_bytes_for_text": ("'ab'", "b'ab'"),
    "wrong_text_for_bytes": ("b'ab'", "'ab'"),
    "wrong_empty_text": ("None", "''"),
    "wrong_empty_list": ("None", "[]"),
    "wrong_empty_tuple": ("[]", "()"),
    "wrong_empty_dict": ("set()", "{}"),
    "wrong_empty_set": ("{}", "set()"),
    "wrong_order": ("[1, 2]", "[2, 1]"),
    "wrong_short": ("[1, 2]", "[1]"),
    "wrong_long": ("[1, 2]", "[1, 2, 3]"),
    "wrong_nested_bool": ("[1, [0]]", "[True, [False]]"),
    "wrong_set_bool": ("{1, 5}", "{True, 5}"),
    "wrong_key_bool": ("{1: 'a'}", "{True: 'a'}"),
    "wrong_key_float": ("{1: 'a'}", "{1.0: 'a'}"),
    "wrong_extra_key": ("{'a': 1}", "{'a': 1, 'b': 2}"),
    "wrong_missing_key": ("{'a': 1, 'b': 2}", "{'a': 1}"),
    "wrong_complex": ("4", "4 + 0j"),
    "wrong_fraction": ("4", "__import__('fractions').Fraction(4)"),
    "wrong_decimal": ("4", "__import__('decimal').Decimal(4)"),
    "wrong_nan": ("0.0", "float('nan')"),
    "wrong_inf": ("1e308", "float('inf')"),
    "wrong_near": ("1.0", "1.000001"),
    "wrong_sign": ("2.5", "-2.5"),
    "wrong_case": ("'Ab'", "'ab'"),
    "wrong_space": ("'ab'", "'ab '"),
    "wrong_unicode_form": ("'\\u00e9'", "'e\\u0301'"),
    "wrong_type_text": ("'4'", "str"),
    "wrong_self": ("4", "f"),
    "wrong_ellipsis": ("None", "..."),
    "wrong_exception_returned": ("'ValueError'", "ValueError()"),
    "wrong_coroutine": ("4", "g()"),
}
for name, (expected, answered) in WRONG.items():
    add(
        "wrong",
        name,
        f"async def g():\n    return 4\ndef f(x):\n    return {answered}",
        ({"call": "f(0)", "returns": expected},),
    )
RAISES = {
    "wrong_returned_instead": ("ValueError", "return ValueError()"),
    "wrong_other_exception": ("ValueError", "raise KeyError"),
    "wrong_base_raised": ("ValueError", "raise Exception"),
    "wrong_none_returned": ("ValueError", "return None"),
    "wrong_name_in_message": ("ValueError", "raise KeyError('ValueError')"),
    "wrong_exit_raised": ("ValueError", "raise SystemExit"),
    "wrong_exit_for_raise": ("ValueError", "__import__('os')._exit(0)"),
    "wrong_not_defined": ("ValueError", "return undefined"),
    "wrong_warning": ("ValueError", "__import__('warnings').warn('ValueError')"),
    "wrong_raise_text": ("ValueError", "raise 'ValueError'"),
}
for name, (expected, body) in RAISES.items():
    add("wrong", name, f"def f(x):\n    {body}", ({"call": "f(0)", "raises": expected},))
add(
    "wrong",
    "wrong_load_raises",
    "raise ValueError",
    ({"call": "f(0)", "raises": "ValueError"},),
    "raised by loading, not by the call",
)
add(
    "wrong",
    "wrong_no_function",
    "g = 1",
    ({"call": "f(0)", "raises": "ValueError"}, {"call": "f(0)", "returns": "None"}),
)
LATE = ({"call": "f(0)", "returns": "'late'"},)
CLOCKS = {
    "time_patched": "import time\nreal = time.sleep\ntime.time = time.monotonic = time.perf_counter = lambda: 0.0\n"
    "def f(x):\n    real(2)\n    return 'late'",
    "time_busy": "def f(x):\n    n = 0\n    for _ in range(10 ** 9):\n        n += 1\n    return 'late'",
    "time_on_load": "import time\ntime.sleep(2)\ndef f(x):\n    return 'late'",
    "time_nanosleep": "import ctypes, struct\ndef f(x):\n    ctypes.CDLL(None).usleep(900000)\n"
    "    ctypes.CDLL(None).usleep(900000)\n    return 'late'",
    "time_in_wire": "import time\nclass D(dict):\n    def items(self):\n        time.sleep(2)\n"
    "        return {}.items()\ndef f(x):\n    return D()",
    "time_in_exception": "import time\nclass E(ValueError):\n    def __str__(self):\n"
    "        time.sleep(2)\n        return ''\ndef f(x):\n    raise E",
    "time_set_clock": "import time\ntime.clock_settime(0, 0)\ndef f(x):\n    time.sleep(2)\n    return 'late'",
}
for name, source in CLOCKS.items():
    tests = ({"call": "f(0)", "raises": "ValueError"},) if "exception" in name else LATE
    tests = ({"call": "f(0)", "returns": "{}"},) if "wire" in name else tests
    add("timing", name, source, tests, "a right answer after the time limit is none")

# --- Check tests: the trusted source runs beside the trainer ------------------------------------------------

EQUAL = """def check(candidate):
    assert candidate(17) == 482913570264
    assert candidate(40) == ['kestrel', 731905528446]
"""
for name in ("eq_object", "eq_int", "eq_float", "eq_dict", "eq_hash_trick", "eq_mock_any", "eq_nan", "eq_bool"):
    add("check", f"check_{name}", next(p.source for p in PROGRAMS if p.name == name), EQUAL, "the same behind a proxy")
CHECKS = {
    "check_exit": "def f(x):\n    raise SystemExit(0)",
    "check_os_exit": "import os\ndef f(x):\n    os._exit(0)",
    "check_assertion": "def f(x):\n    raise AssertionError",
    "check_none": "def f(x):\n    return None",
    "check_passed_list": WIRE + "def f(x):\n    put(frame(['passed', [True]]))\n    os._exit(0)",
    "check_bad_value": WIRE + "def f(x):\n    put(frame(['value', ['set', [['list', []]]]]))\n    os._exit(0)",
    "check_deep_value": WIRE
    + "def f(x):\n    put(frame(b'[\"value\", ' + b'[\"list\", [' * 300 + b']]' * 300 + b']'))\n    os._exit(0)",
    "check_deeper_value": WIRE
    + "def f(x):\n    put(frame(b'[\"value\", ' + b'[\"list\", [' * 420 + b']]' * 420 + b']'))\n    os._exit(0)",
    "check_bad_int": WIRE + "def f(x):\n    put(frame(['value', ['int', 'x' * 900000]]))\n    os._exit(0)",
    "check_bad_float": WIRE + "def f(x):\n    put(frame(['value', ['float', '1e' + '9' * 99999]]))\n    os._exit(0)",
    "check_bad_bytes": WIRE + "def f(x):\n    put(frame(['value', ['bytes', 'zz']]))\n    os._exit(0)",
    "check_bad_text": WIRE + "def f(x):\n    put(frame(['value', ['str', {'a': 1}]]))\n    os._exit(0)",
    "check_huge_int": WIRE + "def f(x):\n    put(frame(['value', ['int', '0x' + 'f' * 999999]]))\n    os._exit(0)",
}
for name, source in CHECKS.items():
    add("check", name, source, EQUAL, "the same behind a proxy")
TEXT = "def check(candidate):\n    assert str(candidate(0)) == '482913570264' and f'{candidate(1):>9}' == ''\n"
add("check", "check_print", "def f(x):\n    return 1 << 3000000", TEXT, "an answer that is slow to print")

# --- questions without expected values: the answers are decoded beside the trainer ---------------------------

DECODED = {  # an answer of each of these shapes must neither stop the trainer nor keep it busy
    "list_in_set": ["set", [["list", []]]],
    "dict_in_set": ["frozenset", [["dict", []]]],
    "list_as_key": ["dict", [[["list", []], ["int", "0x1"]]]],
    "bare_pair": ["dict", [["a", "b"]]],
    "short_pair": ["dict", [[["str", "a"]]]],
    "long_pair": ["dict", [[["str", "a"], ["str", "a"], ["str", "a"]]]],
    "number_pair": ["dict", [1, 2]],
    "overflow": ["float", "0x1p+99999"],
    "bad_float": ["float", "one"],
    "bad_int": ["int", "one"],
    "bad_bytes": ["bytes", "one"],
    "json_in_set": ["set", [["str", {"a": 1}], ["bool", [1]]]],
    "json_in_key": ["dict", [[["str", [1]], ["int", "0x1"]]]],
    "numbers": ["list", [1, 2, None]],
    "unknown": ["__class__", "x"],
    "none": ["NoneType", {"a": [1]}],
    "text": ["tuple", "abc"],
}
for name, shape in DECODED.items():
    body = f"{WIRE}def f(x):\n    put(frame(['value', {shape!r}]))\n    os._exit(0)\n"
    add("decoded", f"decoded_{name}", body, ("f(0)",), "a value that cannot be built")
    add("decoded", f"decoded_{name}_row", body, tuple({"call": "f(0)", "returns": e} for e in ("{1: 2}", "{3}", "1.5")))
SIX = (
    WIRE
    + """
def f(x):
    items = [['int', hex(k * ((1 << 61) - 1))] for k in range(1, 4999)]
    put(frame(['value', ['list', [['set', items]] * 5]]))
    os._exit(0)
"""
)
add("decoded", "decoded_colliding_sets", SIX, tuple(f"f({n})" for n in range(6)), "half a second a set")
add("decoded", "decoded_deep", CHECKS["check_deep_value"], ("f(0)",))
add("decoded", "decoded_deeper", CHECKS["check_deeper_value"], ("f(0)",))
add("decoded", "decoded_unhashable_class", "def f(x):\n    return {(1, frozenset([2])): {3}}, [object()]", ("f(0)",))

# --- controls: these must pass ------------------------------------------------------------------------------


def control(name: str, source: str, *rows: tuple[str, str]) -> None:
    """One benign program and its `(call, returns)` rows; `!Name` asks for an exception."""
    tests = tuple({"call": c, "raises": r[1:]} if r[0] == "!" else {"call": c, "returns": r} for c, r in rows)
    CONTROLS.append(Hostile(name, "control", source, tests))


control(
    "dataclass",
    """from __future__ import annotations
from dataclasses import dataclass, field
@dataclass(order=True)
class Point:
    x: "int"
    y: "list[Point]" = field(default_factory=list)
def f(n):
    return max(Point(i) for i in range(n)).x""",
    ("f(5)", "4"),
)
control("recursion", "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)", ("f(800)", "800"))
control(
    "generator",
    "def g(n):\n    yield from (i * i for i in range(n))\ndef f(n):\n    return list(g(n))",
    ("f(4)", "[0, 1, 4, 9]"),
)
control(
    "fractions", "from fractions import Fraction\ndef f(a, b):\n    return str(Fraction(a, b))", ("f(6, 4)", "'3/2'")
)
control("statistics", "def f(a):\n    import statistics\n    return statistics.median(a)", ("f([3, 1, 2])", "2"))
control(
    "difflib",
    "def f(a, b):\n    import difflib\n    return difflib.get_close_matches(a, b)",
    ("f('appel', ['ape', 'apple'])", "['apple', 'ape']"),
)
control(
    "zoneinfo",
    """def f(n):
    import datetime, zoneinfo
    return zoneinfo.ZoneInfo('Europe/Paris').utcoffset(datetime.datetime(2024, 7, 1)).seconds""",
    ("f(0)", "7200"),
)
control(
    "unusual_modules",
    """def f(n):
    import argparse, ast, asyncio, bisect, cmath, colorsys, csv, decimal, doctest, email.message, graphlib, heapq
    import html, ipaddress, keyword, locale, logging, pathlib, pickle, secrets, shlex, string, tempfile, threading
    import timeit, tomllib, tokenize, unittest, urllib.parse, uuid, xml.etree.ElementTree, zipfile, zlib
    order = list(graphlib.TopologicalSorter({2: {1}}).static_order())
    return order, zlib.crc32(b'ab'), string.capwords('a b'), str(ipaddress.ip_address(1))""",
    ("f(0)", "([1, 2], 2659403885, 'A B', '0.0.0.1')"),
)
control("big_int", "def f(n):\n    return 3 ** n", ("f(400)", str(3**400)))
control(
    "sets",
    "def f(a):\n    return {frozenset(x) for x in a}, set(a[0])",
    ("len(f([[1], [2, 1], [1]])[0])", "2"),
    ("f([[4, 5]])[1]", "{4, 5}"),
)
control(
    "regex",
    "import re\ndef f(s):\n    return re.findall(r'(?<!\\d)\\d{2}(?!\\d)', s)",
    ("f('1 22 333 44')", "['22', '44']"),
)
control(
    "decimal",
    "from decimal import Decimal, getcontext\ndef f(a):\n    getcontext().prec = 30\n    return str(Decimal(a) / 3)",
    ("f('1')", "'0.333333333333333333333333333333'"),
)
control("sort", "def f(n):\n    return sorted((i * 7919) % n for i in range(n))[-1]", ("f(100003)", "100002"))
control(
    "clock",
    "import time\ndef f(n):\n    start = time.time()\n    sum(range(n))\n    return 0 <= time.time() - start < 60",
    ("f(9)", "True"),
)
control("sleep", "import time\ndef f(n):\n    time.sleep(0.01)\n    return n", ("f(3)", "3"))
control(
    "memory_50_mb",
    "def f(n):\n    return sum(len(b) for b in [bytes(1 << 20) for _ in range(n)])",
    ("f(50)", "52428800"),
)
control("print", "def f(n):\n    for i in range(n):\n        print('line', i)\n    return n", ("f(20000)", "20000"))
control(
    "warnings", "import warnings\ndef f(n):\n    warnings.warn('old')\n    return n + ('\\d' == '\\\\d')", ("f(1)", "2")
)
control(
    "input_caught",
    "def f(n):\n    try:\n        return input('? ')\n    except (EOFError, OSError):\n        return n",
    ("f(7)", "7"),
)
control(
    "raises",
    "def f(n):\n    if n < 0:\n        raise ValueError('negative')\n    return n",
    ("f(-1)", "!ValueError"),
    ("f(2)", "2"),
)
control("own_exception", "class Bad(ValueError):\n    pass\ndef f(n):\n    raise Bad(n)", ("f(0)", "!ValueError"))
control(
    "floats",
    "def f(a):\n    return sum(a) / len(a), float('nan'), -0.0",
    ("f([0.1] * 3)[0]", "0.1"),
    ("f([1])[1] != 1", "True"),
)
control("bytes", "def f(s):\n    return s.encode()[::-1], bytes(3)", ("f('ab')", "(b'ba', b'\\x00\\x00\\x00')"))
control(
    "nested", "def f(n):\n    return {'a': [(n, None)], 2: {'b': {n}}}", ("f(1)", "{2: {'b': {1}}, 'a': [(1, None)]}")
)
control(
    "unicode",
    "def f(s):\n    return s.casefold() + '\\N{SNOWMAN}\\u00e9\\x00\\U0001f600'",
    ("f('\u00c4')", repr("\u00e4\u2603\u00e9\x00\U0001f600")),
)
control(
    "closures",
    "from functools import cache, reduce\n@cache\ndef f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)",
    ("f(90)", str(2880067194370816120)),
)
control(
    "dates",
    """import datetime
def f(text):
    moment = datetime.datetime.strptime(text, '%Y-%m-%d')
    day = moment.date() + datetime.timedelta(days=30)
    kinds = isinstance(day, datetime.date), isinstance(moment, datetime.date), isinstance(moment, datetime.datetime)
    return day.isoformat(), kinds""",
    ("f('2024-02-01')", "('2024-03-02', (True, True, True))"),
)
control(
    "today",
    "import datetime\ndef f(n):\n    return datetime.date.today() <= datetime.datetime.now().date()",
    ("f(0)", "True"),
)
control(
    "random",
    "import random\ndef f(n):\n    random.seed(n)\n"
    "    return random.sample(range(9), 9) != [], 0 <= random.Random(1).random() < 1",
    ("f(1)", "(True, True)"),
)
control(
    "enum_abc",
    """import abc, enum, typing
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self) -> float: ...
class Kind(enum.Enum):
    A = enum.auto()
class P(typing.NamedTuple):
    x: int = 1
def f(n):
    return Kind.A.name, P().x, issubclass(Shape, abc.ABC)""",
    ("f(0)", "('A', 1, True)"),
)
control("lone_surrogate_value", "def f(n):\n    return '\\ud800'", ("f(0)", "'\\ud800'"))
control("crlf", "def f(n):\r\n    return n\r\n", ("f(2)", "2"))
control(
    "eval_exec",
    "def f(s):\n    space = {}\n    exec('y = ' + s, space)\n    return space['y'] + eval(s)",
    ("f('2')", "4"),
)
control("many_calls", "def f(n):\n    return n * 2", *[(f"f({n})", str(2 * n)) for n in range(40)])
control(
    "stringio",
    "import contextlib, io\ndef f(n):\n    out = io.StringIO()\n"
    "    with contextlib.redirect_stdout(out):\n        print(n)\n    return out.getvalue()",
    ("f(3)", "'3\\n'"),
)
