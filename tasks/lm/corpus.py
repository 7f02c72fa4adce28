"""Text to train on: a file, a folder, or the source code of the Python standard library."""

import hashlib
import sysconfig
from pathlib import Path
from random import Random

# Texts whose hash falls into this share are held out.
HELD_OUT = 0.05
MIN_BYTES = 10_000


def read_texts(source: Path | None, max_bytes: int) -> list[str]:
    """The texts of a file, of all files of a folder, or of the standard library, shuffled.

    The order, and with it what `max_bytes` cuts off, depends on the files alone.

    Args:
        source: A UTF-8 file, or a folder whose text files are read; None: the library.
        max_bytes: Stop after so many.

    Raises:
        ValueError: No such source, bytes that are not UTF-8, or too little text.
    """
    if source is None:
        paths = _library()
    elif source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.is_file())
    elif source.is_file():
        paths = [source]
    else:
        raise ValueError(f"There is no text at {source}. Name a file or a folder with `--text`.")
    Random(0).shuffle(paths)
    texts, left = [], max_bytes
    for path in paths:
        text = _read(path, strict=source is not None)
        if text:
            texts.append(text.encode()[:left].decode(errors="ignore"))
            left -= len(texts[-1].encode())
        if left <= 0:
            break
    total = sum(len(text.encode()) for text in texts)
    if total < MIN_BYTES:
        where = source or "the standard library"
        raise ValueError(
            f"{where} has {total:,} bytes of text, too few to train on: at least {MIN_BYTES:,} "
            "are needed."
        )
    return texts


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Split texts into training and held-out ones: by their hash, or at the end of few texts.

    No text is in both, whatever the order, also if it occurs twice.
    """
    if len(texts) < 40:
        whole = "\n".join(texts)
        cut = round(len(whole) * (1 - HELD_OUT))
        return [whole[:cut]], [whole[cut:]]
    train, held_out = [], []
    for text in texts:
        (held_out if is_held_out(text) else train).append(text)
    return train, held_out


def is_held_out(text: str) -> bool:
    """Whether a text is never trained on; its hash alone decides."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT


def _library() -> list[Path]:
    folder = Path(sysconfig.get_path("stdlib"))
    parts = [".", "asyncio", "collections", "concurrent", "ctypes", "email", "html", "http",
             "importlib", "json", "logging", "multiprocessing", "pydoc_data", "unittest",
             "urllib", "xml", "xmlrpc", "zoneinfo"]  # fmt: skip
    return sorted(path for part in parts for path in (folder / part).glob("*.py"))


def _read(path: Path, strict: bool) -> str:
    try:
        return path.read_text(encoding="utf-8").removeprefix("\ufeff")  # a byte order mark
    except UnicodeDecodeError as error:
        if not strict:
            return ""
        raise ValueError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}. "
            "Convert it, or name other files with `--text`."
        ) from error
