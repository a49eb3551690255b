"""What the tools share: which notebooks there are, in which order, and what code they hold."""
import ast
import hashlib
import json
import linecache
import re
import sys
import types
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
SPINE = "spine"  # the shelf that lies in nbs/ itself


def read_order(root: Path = ROOT) -> dict[str, dict[str, dict[str, str]]]:
    """nbs/order.yaml: shelf -> notebook -> language -> what the notebook is about."""
    return yaml.safe_load((root / "nbs" / "order.yaml").read_text(encoding="utf-8"))


def shelves(root: Path = ROOT) -> dict[str, list[Path]]:
    """The notebooks of the spine and of every shelf, in the order of nbs/order.yaml."""
    return {shelf: [root / "nbs" / ("" if shelf == SPINE else shelf) / f"{stem}.ipynb" for stem in stems]
            for shelf, stems in read_order(root).items()}


def descriptions(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """What each notebook is about, in one line: notebook -> language -> text."""
    return {stem: about for stems in read_order(root).values() for stem, about in stems.items()}


def paths(root: Path = ROOT, names: list[str] | tuple[str, ...] = ()) -> list[Path]:
    """The notebooks in reading order, index.ipynb last; `names` selects notebooks and shelves."""
    order = shelves(root)
    index = root / "nbs" / "index.ipynb"
    every = sum(order.values(), []) + ([index] if index.exists() else [])
    if not names:
        return every
    wanted = {path.stem: [path] for path in every} | order
    names = [Path(name).stem for name in names]
    if unknown := sorted(set(names) - set(wanted)):
        raise SystemExit(f"no notebook or shelf {', '.join(unknown)} in nbs/order.yaml; there are {', '.join(wanted)}")
    selected = {path for name in names for path in wanted[name]}
    return [path for path in every if path in selected]


def runnable(root: Path = ROOT, names: list[str] | tuple[str, ...] = ()) -> list[Path]:
    """Those that have code."""
    return [path for path in paths(root, names) if code_cells(read(path))]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: dict) -> None:
    """Write a notebook as nbdev writes it."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and source(cell).strip()]


def code_hash(notebook: dict) -> str:
    """One hash for all the code of a notebook: outputs belong to the code that has the same hash."""
    return hashlib.sha256(json.dumps([source(cell) for cell in code_cells(notebook)]).encode()).hexdigest()


def is_export(cell: dict) -> bool:
    return bool(re.match(r"(#\|.*\n)*#\|\s*exports?\b", source(cell)))


def module_of(notebook: dict) -> str | None:
    """The module that a notebook exports, "engine.decoder" for tinyr2/engine/decoder.py; None if it exports nothing."""
    found = (re.search(r"(?m)^#\|\s*default_exp\s+([\w.]+)", source(cell)) for cell in code_cells(notebook))
    return next((match[1] for match in found if match), None)


def is_definition(node: ast.stmt, calls: tuple[str, ...]) -> bool:
    """Whether a statement of a notebook defines something: see `definitions`."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) in calls
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        stored = [name for target in targets for name in ast.walk(target)]
        names = [name.id for name in stored if isinstance(name, ast.Name)]
        return bool(names) and all(name.isupper() or name.startswith("_") for name in names)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def definitions(stem: str, calls: tuple[str, ...] = ()) -> types.ModuleType:
    """What a notebook defines, as a module: imports, functions, classes, CONSTANTS and _private values.

    Nothing else of it runs, but for calls of the functions in `calls`.
    """
    (path,) = paths(names=[stem])
    parts = []
    for cell in code_cells(read(path)):
        text = source(cell)
        for node in ast.parse(text).body:
            if is_definition(node, calls):
                first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                parts.append("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
    module, file, text = types.ModuleType(stem), f"<{path.name}>", "\n\n".join(parts) + "\n"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # inspect.getsource reads it there
    sys.modules[stem] = module
    exec(compile(text, file, "exec"), vars(module))
    return module


def bad_outputs(notebook: dict) -> list[str]:
    """Error outputs and text on stderr, one line each; a notebook that readers see has none."""
    found = []
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell["outputs"]:
            where = f"code cell {number} ({cell['id']})"
            if output["output_type"] == "error":
                found.append(f"{where} failed: {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                found.append(f"{where} wrote to stderr: {''.join(output['text'])[:200]!r}")
    return found
