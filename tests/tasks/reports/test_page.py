"""A result as a page of HTML."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tasks.reports.page import write_page, write_page_beside

RESULT = {
    "task": "sudoku",
    "eval": {"exact": 0.5, "by_rating": {"0": 1.0}, "name": "<b>", "starts": [1, 2]},
    "config": {"train": {"seed": 3}},
}


class Cells(HTMLParser):
    """The text of all cells of tables."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside = tag in ("th", "td")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found.append(data)


def test_figures_pictures_and_configuration_are_on_it(tmp_path: Path) -> None:
    (tmp_path / "steps.png").write_bytes(b"picture")
    (tmp_path / "log.jsonl").write_text("{}")
    path = tmp_path / "report.html"
    write_page(path, "sudoku & more", RESULT, tmp_path)
    page = path.read_text()
    cells = Cells(page).found
    assert dict(zip(cells[::2], cells[1::2], strict=True)) == {
        "task": "sudoku", "eval, exact": "0.5", "eval, by_rating, 0": "1", "eval, name": "<b>",
        "eval, starts": "[1, 2]",
    }  # fmt: skip
    (data,) = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    assert base64.b64decode(data) == b"picture"
    assert "&quot;seed&quot;: 3" in page
    assert "<title>sudoku &amp; more</title>" in page
    assert "http" not in page.replace("<!doctype html>", "")


def test_records_are_a_table_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    records = [{"steps": 1, "loss": 0.5}, {"steps": 2, "rating": "<3>"}]
    write_page(path, "eval", {"curve": records})
    assert (
        "<tr><th>curve</th><td><table><tr><th>steps</th><th>loss</th><th>rating</th></tr>"
        "<tr><td>1</td><td>0.5</td><td>null</td></tr>"
        "<tr><td>2</td><td>null</td><td>&lt;3&gt;</td></tr></table></td></tr>"
    ) in path.read_text()


def test_it_lies_beside_the_file_of_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_page_beside(tmp_path / "found.json", "eval", RESULT)
    said = f"Written: {tmp_path}/found.json, and as a page {tmp_path}/found.html\n"
    assert capsys.readouterr().out == said
    assert [path.name for path in tmp_path.iterdir()] == ["found.html"]
    write_page_beside(None, "eval", RESULT)
    write_page_beside(Path("-"), "eval", RESULT)
    assert len(list(tmp_path.iterdir())) == 1
