"""Adds the pages of the reference, which `reference_pages.py` lists, to the site."""

import functools
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files
from reference_pages import PACKAGES, entries, with_tables

ROOT = Path(__file__).resolve().parents[1]


def on_config(config: Any) -> Any:
    """List the pages below their package, by their short names."""
    pages = {
        package: [
            {"Overview": f"reference/{package}.md"},
            *(
                {e.name.removeprefix(f"{package}."): f"reference/{e.file}"}
                for e in entries(package)
            ),
        ]
        for package in PACKAGES
    }
    for entry in config.nav:
        if "Reference" in entry:
            entry["Reference"] = [{package: pages[package]} for package in PACKAGES]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each object."""
    for package in PACKAGES:
        for entry in entries(package):
            text = f"{entry.page()}\n{source(package, entry.path, config.repo_url)}"
            files.append(File.generated(config, f"reference/{entry.file}", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put tables on the packages' pages."""
    folder, _, name = page.file.src_uri.removesuffix(".md").partition("/")
    if folder != "reference" or name not in PACKAGES:
        return markdown
    return with_tables(markdown, name, lambda path: summary(name, path))


@functools.cache
def loaded(package: str) -> Any:
    """The package as its source says, without importing it."""
    return griffe.load(package, search_paths=[str(ROOT)], resolve_external=False)


def found(package: str, path: str) -> Any:
    """The object at a path."""
    return loaded(package)[path.removeprefix(f"{package}.")]


def summary(package: str, path: str) -> str:
    """The first line of a docstring."""
    docstring = found(package, path).docstring
    return docstring.value.splitlines()[0] if docstring else ""


def source(package: str, path: str, repository: str | None) -> str:
    """Where an object is defined, with a link where the repository is known."""
    target = found(package, path)
    file = Path(target.filepath).relative_to(ROOT).as_posix()
    if not repository:
        return f"Defined in `{file}`.\n"
    return f"Defined in [`{file}`]({repository}/blob/main/{file}#L{target.lineno}).\n"
