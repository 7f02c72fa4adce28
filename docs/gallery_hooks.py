"""Puts the pages of the gallery into the site, each run in a process of its own.

A page is run again only if it or the library has changed. With GALLERY=source in the environment
none is run, and the site shows text and code only.
"""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from notebooks import FROM_OUTSIDE, GALLERY, LINK, ROOT, write

PACKAGES = ("solvers", "implicit", "models", "tasks")


def on_config(config: Any) -> Any:
    """List the pages in the navigation, in the order of the index."""
    index = (GALLERY / "index.md").read_text()
    pages = [f"gallery/{name}.md" for name in LINK.findall(index)]
    config.nav = [
        {"Gallery": ["gallery/index.md", *pages]} if "Gallery" in entry else entry
        for entry in config.nav
    ]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links from the programs of the gallery to the pages made of them."""
    link = LINK if page.file.src_uri == "gallery/index.md" else FROM_OUTSIDE
    return link.sub(r"](\1.md)", markdown)


def on_files(files: Files, config: Any) -> Files:
    """Make all pages, two at a time, and add them with pictures and notebooks."""
    out = ROOT / "build" / ("gallery" if runs() else "gallery-source")
    pages = sorted(GALLERY.glob("*.py"))
    library = hashlib.sha256((GALLERY.parent / "notebooks.py").read_bytes())
    for path in sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py")):
        library.update(path.read_bytes())
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda path: make(path, out, library.copy()), pages))
    for page in pages:
        for path in sorted((out / page.stem).iterdir()):
            if path.name != "key":
                uri = f"gallery/{path.name}"
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def runs() -> bool:
    """Whether pages are run."""
    return os.environ.get("GALLERY") != "source"


def make(path: Path, out: Path, key: Any) -> None:
    """Run a page, unless what it gave last time is still true."""
    if not runs():
        return write(path, out, run=False)
    key.update(path.read_bytes())
    kept = out / path.stem / "key"
    if kept.exists() and kept.read_text() == key.hexdigest():
        return None
    run = run_page(path, out)
    if run.returncode or run.stderr:
        raise PluginError(f"{path.relative_to(ROOT)} failed, or printed a warning:\n{run.stderr}")
    if any(kept.parent.glob("*.png")):  # else it has only said what to install
        kept.write_text(key.hexdigest())
    return None


def run_page(path: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """As a reader would, with this checkout's packages."""
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, str(GALLERY.parent / "notebooks.py"), str(path), str(out)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
