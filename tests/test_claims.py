"""The ledger: complete, settled, and every settled row can fail: a changed number or a changed verdict is noticed."""
import ast
import inspect
import textwrap
from collections import Counter

import pytest
from notebooks import definitions

claims = definitions("claims")
THEMES = [definitions(f"claims_{name}", calls=("_load", "enter", "leave_open")) for name in claims.THEMES]
HOME = {number: theme for theme in THEMES for number in theme.LEDGER}
claims.LEDGER.update(sorted(row for theme in THEMES for row in theme.LEDGER.items()))
LEDGER, VERDICTS, settle, swapped, verdict_of = (
    claims.LEDGER, claims.VERDICTS, claims.settle, claims.swapped, claims.verdict_of)  # fmt: skip

OPEN = {"C002", "C007", "C011", "C012", "C020", "C033", "C037", "C038", "C049", "C115", "C124", "C142"}
ARITHMETIC = ("C022", "C023", "C024", "C027", "C029", "C031", "C034", "C042", "C043", "C059", "C060", "C067", "C068",
              "C107", "C112", "C127", "C133", "C141", "C148", "C149", "C150")


def test_every_claim_has_one_row_and_a_reason():
    assert list(LEDGER) == [f"C{number:03}" for number in range(1, 152)]
    assert sum(len(theme.LEDGER) for theme in THEMES) == len(LEDGER)
    assert all(row.how and row.says and row.verdict in VERDICTS for row in LEDGER.values())
    assert {row.id for row in LEDGER.values() if not row.check} == OPEN
    assert {row.id for row in LEDGER.values() if row.open} == OPEN
    assert Counter(row.verdict for row in LEDGER.values()) == dict(zip(VERDICTS, (12, 26, 70, 26, 17)))


@pytest.mark.parametrize("number", sorted(set(LEDGER) - OPEN))
def test_settled_and_no_other_verdict_passes(number, monkeypatch):
    row = LEDGER[number]
    with claims.quiet():
        found = row.check()
    monkeypatch.setattr(row, "check", lambda: found)
    for verdict in VERDICTS:
        monkeypatch.setattr(row, "verdict", verdict)
        if verdict == verdict_of(found):
            settle(number)
        else:
            with pytest.raises(AssertionError, match=f"{number}: the ledger says {verdict}, the check finds"):
                settle(number)
    monkeypatch.undo()
    assert verdict_of(found) == row.verdict


@pytest.mark.parametrize("number", claims.with_two_numbers())
def test_the_articles_number_is_not_the_exact_one(number):
    assert swapped(number)[0] == "assertion" and "nothing" not in swapped(number)


def mutants(check, names: dict) -> list:
    """The function, among these names, with one of the numbers of its body or its defaults changed, each in turn."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(check)))
    tree.body[0].decorator_list = []
    numbers = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) in (int, float)]
    made = []
    for node in numbers:
        before, node.value = node.value, node.value * 3 + 1
        space = dict(names)
        exec(compile(ast.fix_missing_locations(tree), "mutant", "exec"), space)
        made.append(space[check.__name__])
        node.value = before
    return made


@pytest.mark.parametrize("number", ARITHMETIC)
def test_a_changed_number_is_noticed(number, monkeypatch):
    made, noticed = mutants(LEDGER[number].check, vars(HOME[number])), 0
    for mutant in made:
        monkeypatch.setattr(LEDGER[number], "check", mutant)
        try:
            settle(number)
        except Exception:  # a wrong verdict, a failed assertion, or shapes that no longer fit
            noticed += 1
    assert noticed >= max(1, len(made) // 4), f"{noticed} of {len(made)} changed numbers noticed"


def test_nothing_else_counts_as_true():
    for found in (1, [1], [], None, "yes", {1.5}):
        with pytest.raises(TypeError):
            verdict_of(found)
