"""The gates of `make check`: each takes the root of the repository and returns its faults, one line each.

    gates.py --all            every gate; the exit status is 1 if one finds a fault
    gates.py NAME ...         these gates only
    gates.py --skip NAME      all but this one (tree_clean, while you work)
"""
import ast
import functools
import graphlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import readme as readme_tool
import yaml
from notebooks import (ROOT, SPINE, bad_outputs, code_cells, code_hash, is_export, module_of, paths, read, runnable,
                       shelves, source)  # fmt: skip

FUNCTION_LINES, CLASS_LINES, DEMO_LINES, LINE_WIDTH, NOTEBOOK_KB = 30, 120, 40, 120, 400
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
    """README.md is what index.ipynb and the stored results make it; so are README.zh.md's tables and all footers."""
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
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
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
    there = {str(path.relative_to(root)): path.read_bytes() for path in (root / "tinyr2").rglob("*.py")}
    both = sorted(built.keys() & there.keys())
    return ([f"{name}: no notebook exports it; delete it" for name in sorted(there.keys() - built.keys())]
            + [f"{name}: missing; run make export" for name in sorted(built.keys() - there.keys())]
            + [f"{name}: differs from its notebook; edit the notebook, then make export"
               for name in both if built[name] != there[name]])


# --- notebooks: order ---------------------------------------------------------------------------------------

def order(root: Path) -> list[str]:
    """nbs/order.yaml lists every notebook once, and no name is used twice, for a notebook or a shelf."""
    listed = paths(root)
    there = {path for path in (root / "nbs").rglob("*.ipynb")
             if not any(part.startswith((".", "_")) for part in path.relative_to(root / "nbs").parts)}
    names = Counter([path.stem for path in listed] + list(shelves(root)))
    return ([f"nbs/order.yaml: {name} stands there {count} times" for name, count in names.items() if count > 1]
            + [f"{path.relative_to(root)}: not in nbs/order.yaml" for path in sorted(there - set(listed))]
            + [f"{path.relative_to(root)}: in nbs/order.yaml, but not there" for path in sorted(set(listed) - there)])


# --- notebooks: form ----------------------------------------------------------------------------------------

def each_cell(root: Path) -> Iterator[tuple[str, dict]]:
    """Every code cell, with a name to report it by."""
    for path in paths(root):
        for number, cell in enumerate(code_cells(read(path)), 1):
            yield f"{path.name}, code cell {number} ({cell['id']})", cell


def code_lines(node: ast.AST, text: str) -> int:
    """Lines of code of a function or class: without empty ones, comments and docstrings."""
    documented = ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef
    texts = [n.body[0] for n in ast.walk(node) if isinstance(n, documented) and ast.get_docstring(n, clean=False)]
    silent = {line for doc in texts for line in range(doc.lineno, doc.end_lineno + 1)}
    lines = enumerate(text.splitlines()[node.lineno - 1 : node.end_lineno], node.lineno)
    lines = (line.strip() for number, line in lines if number not in silent)
    return sum(bool(line) and not line.startswith("#") for line in lines)


def cell_size(root: Path) -> list[str]:
    """A function can be taken in at one look, a class is written whole: 30 and 120 lines of code, other cells 40."""
    faults = []
    for where, cell in each_cell(root):
        text, tree = source(cell), parse(cell)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        sizes = [(node.name, code_lines(node, text), FUNCTION_LINES) for node in functions if is_export(cell)]
        sizes += [(node.name, code_lines(node, text), CLASS_LINES) for node in classes]
        if not classes:
            lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#|")]
            sizes.append(("the cell", len(lines), DEMO_LINES))
        faults += [f"{where}: {name} has {size} lines, at most {most}; split it" for name, size, most in sizes
                   if size > most]
        faults += [f"{where}: {len(line)} characters in a line, at most {LINE_WIDTH}: {line.strip()[:40]}"
                   for line in text.splitlines() if len(line) > LINE_WIDTH]
    return faults


def classes_whole(root: Path) -> list[str]:
    """No method is given to a class after its body."""
    faults = []
    for path in paths(root):
        cells = [cell for cell in code_cells(read(path)) if is_export(cell)]
        classes = {node.name for cell in cells for node in parse(cell).body if isinstance(node, ast.ClassDef)}
        for cell in cells:
            targets = [target for node in parse(cell).body if isinstance(node, ast.Assign)
                       for whole in node.targets for target in ast.walk(whole)]  # fmt: skip
            faults += [f"{path.name}, {cell['id']}: {target.value.id}.{target.attr} is set after the class"
                       for target in targets if isinstance(target, ast.Attribute)
                       and isinstance(target.value, ast.Name) and target.value.id in classes]
    return faults


def private_names(root: Path) -> list[str]:
    """No module reads what another calls private."""
    faults = []
    for where, cell in each_cell(root):
        if is_export(cell):
            faults += [f"{where}: imports {alias.name} from {node.module}, which is private there"
                       for node in ast.walk(parse(cell)) if isinstance(node, ast.ImportFrom)
                       and (node.module or "").startswith("tinyr2") for alias in node.names
                       if alias.name.startswith("_")]  # fmt: skip
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


def imported_names(cell: dict) -> set[str]:
    """What a cell imports by name."""
    return {alias.name for node in ast.walk(parse(cell)) if isinstance(node, ast.ImportFrom) for alias in node.names}


def exports_used(root: Path) -> list[str]:
    """Every exported name is used by another notebook, by another exported cell, by the face or by a command."""
    cells = [(path.stem, number, cell) for path in paths(root) for number, cell in enumerate(code_cells(read(path)))]
    users = defaultdict(set)  # name -> where it is used: notebook, cell, exported?
    for stem, number, cell in cells:
        for name in used_names(cell) | imported_names(cell):
            users[name].add((stem, number, is_export(cell)))
    index = root / "nbs" / "index.ipynb"
    text = "".join(source(cell) for cell in code_cells(read(index))) if index.exists() else ""
    other = re.findall(r'"import [^"]*from tinyr2[^"]*"', "".join(source(cell) for _, _, cell in cells))  # processes
    public = set(re.findall(r"\w+", " ".join([text, *other]) + (root / "settings.ini").read_text(encoding="utf-8")))
    return [f"{stem}.ipynb: {name} is exported, but nothing else uses it; leave it in the notebook, without export"
            for stem, number, cell in cells for name in exported_names(cell)
            if name not in public and not any(user != stem or exported and place != number or place == number
                                              and name in loaded_names(cell)
                                              for user, place, exported in users[name])]


def loaded_names(cell: dict) -> set[str]:
    """What a cell's own code refers to."""
    return {node.id for node in ast.walk(parse(cell)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def tinyr2_imports(cell: dict) -> Iterator[tuple[str, ...]]:
    """What a cell imports from the package: for each, the names by which it may be known, the likeliest first."""
    for node in ast.walk(parse(cell)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.removeprefix("tinyr2."),) for alias in node.names
                        if alias.name.startswith("tinyr2."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tinyr2":
            module = node.module.removeprefix("tinyr2").removeprefix(".")
            yield from ((f"{module}.{alias.name}".removeprefix("."), module) for alias in node.names)


def imports(root: Path) -> list[str]:
    """The spine imports what earlier notebooks of the spine or a shelf make, and no modules import in a circle.

    A notebook that makes no module, like the tour, may use everything.
    """
    notebooks = {path.stem: read(path) for path in paths(root)}
    homes = {name: stem for stem, nb in notebooks.items() for cell in code_cells(nb) for name in exported_names(cell)}
    homes |= {module_of(nb): stem for stem, nb in notebooks.items()}
    spine = [path.stem for path in shelves(root)[SPINE]]
    faults, needs = [], {stem: set() for stem in notebooks}
    for stem, notebook in notebooks.items():
        for number, cell in enumerate(code_cells(notebook), 1):
            for names in tinyr2_imports(cell):
                home = next((homes[name] for name in names if name in homes), None)
                where = f"{stem}.ipynb, code cell {number} ({cell['id']}): imports {names[0]}, which"
                if home is None:
                    faults.append(f"{where} no notebook makes")
                elif home == stem:
                    faults.append(f"{where} it makes itself")
                elif stem in spine and module_of(notebook) and home in spine[spine.index(stem):]:
                    faults.append(f"{where} {home} makes; the spine imports what comes earlier")
                elif is_export(cell):
                    needs[stem].add(home)
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        faults.append(f"modules import in a circle: {' -> '.join(error.args[1])}")
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
    tree_clean, order, notebooks_clean, package_in_step, cell_size, classes_whole, private_names, notebook_size,
    metadata, machine_paths,
    outputs_sound, outputs_fresh, exports_used, imports, parameters, readme, ruff)}


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
