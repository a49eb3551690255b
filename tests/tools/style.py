"""Measure the style of the notebooks and print it: information, not a gate.

    style.py            one line for the spine, for each shelf, and for all

Exported cells: their lines in the median, and the share of them that the next code cell uses. Of exported code:
comments for 100 lines, and functions of more than 30 lines. Of the notebooks: words of prose for a line of code.
"""
import ast
import statistics

from gates import FUNCTION_LINES, code_lines, exported_names, parse, used_names
from notebooks import ROOT, code_cells, is_export, read, shelves, source

HEADINGS = ("lines of export", "cells", "median", "used next", "comments/100", "prose/code", "long functions")


def next_uses(cells: list[dict], number: int) -> bool:
    """Whether the next code cell that is not exported, with no other between, uses a name of this exported cell."""
    following = cells[number + 1 : number + 2]
    defined = set(exported_names(cells[number])) | private_names(cells[number])
    return any(not is_export(cell) and used_names(cell) & defined for cell in following)


def private_names(cell: dict) -> set[str]:
    """Functions and classes of a cell that are named with an underscore."""
    return {node.name for node in parse(cell).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def measure(notebooks: list[dict]) -> dict[str, float]:
    """The measures of some notebooks together."""
    sizes, shown, lines, comments, words, coded, long = [], [], [], 0, 0, 0, 0
    for notebook in notebooks:
        cells = code_cells(notebook)
        words += sum(len(source(cell).split()) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        coded += sum(bool(line.strip()) for cell in cells for line in source(cell).splitlines())
        for number, cell in enumerate(cells):
            if not is_export(cell):
                continue
            text = [line for line in source(cell).splitlines() if line.strip() and not line.startswith("#|")]
            defines = any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in parse(cell).body)
            comments += sum("# " in line and "# fmt" not in line for line in text)
            lines += text
            long += sum(code_lines(node, source(cell)) > FUNCTION_LINES for node in ast.walk(parse(cell))
                        if isinstance(node, ast.FunctionDef))
            if defines:
                sizes.append(len(text))
                shown.append(next_uses(cells, number))
    if not sizes:
        return {}
    return {"lines of export": len(lines), "cells": len(sizes), "median": statistics.median(sizes),
            "used next": sum(shown) / len(shown), "comments/100": 100 * comments / len(lines),
            "prose/code": words / coded, "long functions": long}  # fmt: skip


def table() -> str:
    """One line for each shelf that exports something, and one for all of them."""
    parts = {shelf: [read(path) for path in notebooks] for shelf, notebooks in shelves(ROOT).items()}
    parts["all"] = sum(parts.values(), [])
    rows = [f"{'':10}" + "".join(f"{heading:>16}" for heading in HEADINGS)]
    for shelf, notebooks in parts.items():
        if found := measure(notebooks):
            numbers = (f"{found[name]:.0%}" if name == "used next" else f"{found[name]:.4g}" for name in HEADINGS)
            rows.append(f"{shelf:10}" + "".join(f"{number:>16}" for number in numbers))
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
