"""What the tools share: which notebooks there are, in which order, and what code they hold."""
import hashlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def paths(root: Path = ROOT, names: list[str] | tuple[str, ...] = ()) -> list[Path]:
    """The notebooks in reading order (numbers first, index.ipynb last); `names` selects some of them."""
    found = {p.stem: p for p in sorted((root / "nbs").glob("*.ipynb")) if not p.stem.startswith("_")}
    wanted = {Path(name).stem for name in names} or set(found)
    if unknown := wanted - set(found):
        raise SystemExit(f"no notebook {', '.join(sorted(unknown))} in nbs/; there are {', '.join(found)}")
    return [path for stem, path in found.items() if stem in wanted]


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
