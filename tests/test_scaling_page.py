"""The tables of docs/scaling.md are those of the planner."""

import importlib
import re

import pytest

# A step of each published size, on tensors without numbers.
pytestmark = [pytest.mark.slow, pytest.mark.long]
page = importlib.import_module("docs.scaling_tables")


@pytest.fixture(scope="module")
def tables() -> dict[str, str]:
    return page.tables()


def test_the_page_shows_what_is_computed(tables: dict[str, str]) -> None:
    text = page.PAGE.read_text()
    assert [match[2] for match in page.MARK.finditer(text)] == list(tables)
    assert page.filled(text, tables) == text, "run `python -m docs.scaling_tables`"


def test_operations_of_a_transformer_are_those_of_the_formula(tables: dict[str, str]) -> None:
    rows = re.findall(r"^\| `.*\| ([\d.]+)% \|$", tables["check"], re.MULTILINE)
    assert len(rows) == len(page.SIZES)
    assert all(float(row) < 0.1 for row in rows)
