"""Which extra installs a package that the core does without, for those who meet its absence."""

import contextlib
from collections.abc import Iterator

# Packages by the name that they are imported by. The extras are those of `pyproject.toml`.
EXTRAS = {
    **dict.fromkeys(
        ("tyro", "docstring_parser", "rich", "safetensors", "matplotlib", "PIL", "tensorboard"),
        "tasks",
    ),
    **dict.fromkeys(("tokenizers", "huggingface_hub", "transformers"), "lm"),
    "datasets": "lm-data",
    **dict.fromkeys(("lm_eval", "accelerate"), "lm-eval"),
    **dict.fromkeys(("fastapi", "uvicorn"), "serve"),
}


def advice(error: ImportError, what: str) -> str | None:
    """What to install after an import that failed; None if no extra has that package.

    Args:
        error: Of the import.
        what: What needs the package, to begin a sentence with.
    """
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None or not isinstance(error, ModuleNotFoundError):
        return None
    return (
        f"{what} needs the package `{package}`, which is not installed: install the extra with "
        f"`pip install 'attractor-models[{extra}]'`."
    )


@contextlib.contextmanager
def explaining(what: str) -> Iterator[None]:
    """Let an import that fails in the context say which extra to install.

    Args:
        what: What needs the packages, to begin a sentence with.

    Raises:
        ModuleNotFoundError: One of them is missing.
    """
    try:
        yield
    except ImportError as error:
        if (message := advice(error, what)) is None:
            raise
        raise ModuleNotFoundError(message, name=error.name) from error
