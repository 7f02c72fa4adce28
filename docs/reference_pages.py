"""The pages of the reference: one for each object, and a table of them for each package.

`docs/reference/*.md` say what belongs in the reference, by the directives of mkdocstrings. Each
directive becomes a page of its own, and those that follow one another become a table on the
package's page.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REFERENCE = Path(__file__).resolve().parent / "reference"
PACKAGES = ("solvers", "implicit", "models", "tasks")
DIRECTIVE = re.compile(r"^::: ([\w.]+)\n((?:[ ]{4}.*\n)*)", re.MULTILINE)
GROUP = re.compile(rf"(?:{DIRECTIVE.pattern}\n*)+", re.MULTILINE)
HEADING = re.compile(r'^ +heading: "(.+)"\n', re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """An object of the reference.

    Attributes:
        path: Where mkdocstrings finds it.
        name: How users write it.
        options: Lines of further options.
        file: Name of its page, different from all others where upper and lower case are the same.
    """

    path: str
    name: str
    options: str
    file: str

    def page(self) -> str:
        """The object's own page."""
        options = self.options or "    options:\n"
        return f"::: {self.path}\n{options}      heading_level: 1\n"


def entries(package: str) -> list[Entry]:
    """The objects of a package, in the order of its page."""
    found, taken = list[Entry](), set[str]()
    for path, options in DIRECTIVE.findall((REFERENCE / f"{package}.md").read_text()):
        heading = HEADING.search(options)
        name = heading[1] if heading else path
        file = f"{name}_" if name.lower() in taken else name
        taken.add(file.lower())
        found.append(Entry(path, name, options, f"{file}.md"))
    return found


def with_tables(markdown: str, package: str, summary: Callable[[str], str]) -> str:
    """A package's page with a table in place of each group of directives.

    Args:
        markdown: The page as it was written.
        package: Whose page.
        summary: The first line of the docstring of the object at a path.
    """
    known = iter(entries(package))

    def table(match: re.Match[str]) -> str:
        group = [next(known) for _ in DIRECTIVE.findall(match[0])]
        rows = [f"| [`{e.name}`]({e.file}) | {cell(summary(e.path))} |" for e in group]
        return "\n".join(["| Name | What it is |", "| --- | --- |", *rows]) + "\n\n"

    return GROUP.sub(table, markdown)


def cell(text: str) -> str:
    """A line as a cell of a table."""
    return text.replace("|", "\\|").replace("*", "\\*")
