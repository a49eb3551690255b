"""The gates of `make check`: each takes the root of the repository and returns its faults, one line each.

    gates.py --all            every gate; the exit status is 1 if one finds a fault
    gates.py NAME ...         these gates only
    gates.py --skip NAME      all but this one (tree_clean, while you work)
"""
import ast
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path

import readme as readme_tool
import yaml
from notebooks import ROOT, bad_outputs, code_cells, code_hash, is_export, paths, read, runnable, source

EXPORT_LINES, DEMO_LINES, LINE_WIDTH, NOTEBOOK_KB = 30, 40, 120, 400
MACHINE_PATH = re.compile(r"""(?<![\w.:/~+=-])/(home|Users|root|work|tmp)(?![\w.-])|/site-packages""")


# --- the repository -----------------------------------------------------------------------------------------

def tree_clean(root: Path) -> list[str]:
    """Everything is committed, so that what is checked here is what others get."""
    command = ["git", "-c", f"safe.directory={root}", "status", "--porcelain"]
    git = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return git.stderr.splitlines() + [f"not committed: {line}" for line in git.stdout.splitlines()]


def ruff(root: Path) -> list[str]:
    """The package and the tests pass the linter, with the rules of pyproject.toml."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "tinyr2"]
    command += ["tests"] if (root / "tests").exists() else []
    lint = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return (lint.stdout + lint.stderr).splitlines() if lint.returncode else []


def readme(root: Path) -> list[str]:
    """README.md is what index.ipynb and the stored results make it; so are the tables of README.zh.md."""
    return readme_tool.faults(root) if (root / "nbs" / "index.ipynb").exists() else []


# --- nbdev: run it on a copy and look at what it leaves -----------------------------------------------------

Files = tuple[tuple[str, bytes], ...]


def nbdev_input(root: Path) -> Files:
    """What nbdev reads: settings.ini and the notebooks."""
    files = [root / "settings.ini", *paths(root)]
    return tuple((str(path.relative_to(root)), path.read_bytes()) for path in files)


@functools.cache
def nbdev(command: str, files: Files) -> dict[str, bytes]:
    """Run an nbdev command in a new folder that holds only `files`; return all files that are there then."""
    env = {key: value for key, value in os.environ.items() if key != "IN_TEST"}  # it stops export
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files:
            Path(folder, name).parent.mkdir(exist_ok=True)
            Path(folder, name).write_bytes(content)
        script = Path(sys.executable).with_name(command)
        subprocess.run([script], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
        return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*")
                if path.is_file() and path.suffix != ".pyc"}


def notebooks_clean(root: Path) -> list[str]:
    """nbdev_clean would change no notebook."""
    before = nbdev_input(root)
    after = nbdev("nbdev_clean", before)
    return [f"{name}: not clean; run nbdev_clean" for name, content in before if after[name] != content]


def package_in_step(root: Path) -> list[str]:
    """tinyr2/ is what the notebooks export, file by file and byte by byte; its data files are left out."""
    built = {name: content for name, content in nbdev("nbdev_export", nbdev_input(root)).items()
             if name.startswith("tinyr2/")}
    there = {str(path.relative_to(root)): path.read_bytes() for path in (root / "tinyr2").rglob("*")
             if path.is_file() and path.suffix not in (".pyc", ".mplstyle") and path.parent.name != "tasks"}
    both = sorted(built.keys() & there.keys())
    return ([f"{name}: no notebook exports it; delete it" for name in sorted(there.keys() - built.keys())]
            + [f"{name}: missing; run make export" for name in sorted(built.keys() - there.keys())]
            + [f"{name}: differs from its notebook; edit the notebook, then make export"
               for name in both if built[name] != there[name]])


# --- notebooks: form ----------------------------------------------------------------------------------------

def each_cell(root: Path) -> Iterator[tuple[str, dict]]:
    """Every code cell, with a name to report it by."""
    for path in paths(root):
        for number, cell in enumerate(code_cells(read(path)), 1):
            yield f"{path.name}, code cell {number} ({cell['id']})", cell


def cell_size(root: Path) -> list[str]:
    """A cell can be taken in at one look: 30 lines if it is exported, 40 if not, none wider than 120."""
    faults = []
    for where, cell in each_cell(root):
        lines = [line for line in source(cell).splitlines() if line.strip() and not line.startswith("#|")]
        most = EXPORT_LINES if is_export(cell) else DEMO_LINES
        if len(lines) > most:
            faults.append(f"{where}: {len(lines)} lines, at most {most}; split it")
        faults += [f"{where}: {len(line)} characters in a line, at most {LINE_WIDTH}: {line.strip()[:40]}"
                   for line in lines if len(line) > LINE_WIDTH]
    return faults


def notebook_size(root: Path) -> list[str]:
    """A notebook opens quickly on the web."""
    return [f"{path.name}: {path.stat().st_size // 1000} KB, at most {NOTEBOOK_KB}; show less output"
            for path in paths(root) if path.stat().st_size > NOTEBOOK_KB * 1000]


def metadata(root: Path) -> list[str]:
    """One kernel everywhere (papermill needs its language), and no execution counts: they only make diffs."""
    faults = []
    for path in paths(root):
        kernel = read(path)["metadata"].get("kernelspec", {})
        if (kernel.get("name"), kernel.get("language")) != ("python3", "python"):
            faults.append(f"{path.name}: kernelspec needs name python3 and language python, it is {kernel}")
    return faults + [f"{where}: has an execution count; run nbdev_clean"
                     for where, cell in each_cell(root) if cell["execution_count"] is not None]


def texts(cell: dict) -> Iterator[str]:
    """What a reader sees of a cell: its source and its outputs, pixel images aside."""
    yield source(cell)
    for output in cell.get("outputs", []):
        yield "".join(output.get("text", []))
        for kind, data in output.get("data", {}).items():
            if kind.startswith("text/") or "svg" in kind:
                yield "".join(data)


def machine_paths(root: Path) -> list[str]:
    """No path of somebody's machine, neither in text and code nor in outputs."""
    return [f"{path.name}, cell {cell['id']}: machine path, {text[max(0, hit.start() - 20):hit.end() + 20]!r}"
            for path in paths(root) for cell in read(path)["cells"] for text in texts(cell)
            if (hit := MACHINE_PATH.search(text))]


# --- notebooks: outputs -------------------------------------------------------------------------------------

def outputs_sound(root: Path) -> list[str]:
    """No stored output is an error or comes from stderr."""
    return [f"{path.name}: {fault}" for path in paths(root) for fault in bad_outputs(read(path))]


def outputs_fresh(root: Path) -> list[str]:
    """The stored outputs come from the code that stands above them."""
    file = root / "nbs" / ".outputs.json"
    stored = json.loads(file.read_text()) if file.exists() else {}
    hashes = {path.stem: code_hash(read(path)) for path in runnable(root)}
    gone = sorted(stored.keys() - hashes)
    return ([f"{stem}.ipynb: its code is not the code of its stored outputs; run make outputs ONLY={stem}"
             for stem, code in hashes.items() if stored.get(stem, {}).get("code") != code]
            + [f"nbs/.outputs.json: {stem} is no notebook; run make outputs" for stem in gone])


# --- notebooks: code ----------------------------------------------------------------------------------------

def parse(cell: dict) -> ast.Module:
    """The cell's Python, without IPython's own lines (%magic, !command)."""
    text = source(cell)
    return ast.parse("" if text.startswith("%%") else re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", text))


def exported_names(cell: dict) -> list[str]:
    """The public names that an export cell defines."""
    names = []
    for node in parse(cell).body if is_export(cell) else []:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names += [name.id for name in ast.walk(node)
                      if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]
    return [name for name in names if not name.startswith("_")]


def used_names(cell: dict) -> set[str]:
    nodes = list(ast.walk(parse(cell)))
    return ({node.id for node in nodes if isinstance(node, ast.Name)}
            | {node.attr for node in nodes if isinstance(node, ast.Attribute)})


def names_used(root: Path) -> list[str]:
    """Every exported name is used in its own notebook, outside the cell that defines it."""
    faults = []
    for path in paths(root):
        cells = code_cells(read(path))
        used = [used_names(cell) for cell in cells]
        for number, cell in enumerate(cells):
            elsewhere = set().union(*used[:number], *used[number + 1:])
            faults += [f"{path.name}: {name} is exported but not used; show it at work, or call it _{name}"
                       for name in exported_names(cell) if name not in elsewhere]
    return faults


def tinyr2_imports(cell: dict) -> Iterator[str]:
    """`sandbox` for an import of or from tinyr2.sandbox, `Sandbox` for `from tinyr2 import Sandbox`."""
    for node in ast.walk(parse(cell)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "tinyr2":
            modules = [f"tinyr2.{alias.name}" for alias in node.names]
        else:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (module.split(".")[1] for module in modules if module.startswith("tinyr2."))


def imports_backwards(root: Path) -> list[str]:
    """A notebook imports only what earlier notebooks make."""
    names, modules = {}, {}  # -> the notebook that makes it
    for path in paths(root):
        for cell in code_cells(read(path)):
            names |= dict.fromkeys(exported_names(cell), path.name)
            modules |= dict.fromkeys(re.findall(r"(?m)^#\|\s*default_exp\s+(\w+)", source(cell)), path.name)
    home, faults = names | modules, []
    for where, cell in each_cell(root):
        here = where.split(",")[0]
        faults += [f"{where}: imports {name}, which {home.get(name, 'no notebook')} makes; earlier ones only"
                   for name in tinyr2_imports(cell) if name not in home or home[name] >= here]
    return faults


# --- notebooks: parameters ----------------------------------------------------------------------------------

def constants(cell: dict) -> dict[str, object] | None:
    """Name -> value if the cell only assigns plain constants, else None."""
    values = {}
    for node in parse(cell).body:
        target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
        if not isinstance(target, ast.Name) or not isinstance(node, ast.Assign | ast.AnnAssign):
            return None
        try:
            values[target.id] = ast.literal_eval(node.value)
        except (ValueError, TypeError):
            return None
    return values


def parameters(root: Path) -> list[str]:
    """Parameter cells are tagged and plain; the files in nbs/params/ set only what exists, with its type."""
    faults, defaults = [], {}
    for path in paths(root):
        defaults[path.stem] = {}
        tagged = 0
        for cell in code_cells(read(path)):
            values, typed = constants(cell), all(isinstance(node, ast.AnnAssign) for node in parse(cell).body)
            if "parameters" in cell["metadata"].get("tags", []):
                tagged += 1
                defaults[path.stem] = values or {}
                if values is None or tagged > 1:
                    faults.append(f"{path.name}, {cell['id']}: want one parameters cell, of plain constants")
            elif values and typed and not is_export(cell):
                faults.append(f"{path.name}, {cell['id']}: sets {', '.join(values)} without a parameters tag")
    for file in sorted((root / "nbs" / "params").glob("*.yaml")):
        for stem, values in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).items():
            if stem not in defaults:
                faults.append(f"{file.name}: {stem} is no notebook")
            for name, value in (values or {}).items() if stem in defaults else ():
                default = defaults[stem].get(name)
                if name not in defaults[stem]:
                    faults.append(f"{file.name}: {stem} has no parameter {name}, only {list(defaults[stem])}")
                elif default is not None and type(value) is not type(default):
                    faults.append(f"{file.name}: {stem}.{name} is {value!r}, not like its default {default!r}"
                                  " (YAML reads 1e-5 as text; write 1.0e-5)")
    return faults


GATES = {gate.__name__: gate for gate in (
    tree_clean, notebooks_clean, package_in_step, cell_size, notebook_size, metadata, machine_paths,
    outputs_sound, outputs_fresh, names_used, imports_backwards, parameters, readme, ruff)}


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(GATES)}")
    parser.add_argument("--all", action="store_true", help="every gate, which is also the default")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="a gate to leave out")
    args = parser.parse_args()
    if unknown := {*args.names, *args.skip} - {*GATES}:
        parser.error(f"no gate {', '.join(unknown)}; there are {', '.join(GATES)}")
    red = []
    for name in (GATES if args.all or not args.names else args.names):
        if name == "tree_clean" and not (ROOT / ".git").exists():
            print(f"skip {name:<18}no git here: a downloaded archive?", flush=True)
        elif name not in args.skip:
            start = time.monotonic()
            faults = GATES[name](ROOT)
            print(f"{'FAIL' if faults else 'ok':<5}{name:<18}{time.monotonic() - start:5.1f} s", flush=True)
            print(*(f"     {fault}\n" for fault in faults), sep="", end="")
            red += [name] if faults else []
    print(f"gates with faults: {', '.join(red)}" if red else "every gate is green")
    return bool(red)


if __name__ == "__main__":
    sys.exit(main())
