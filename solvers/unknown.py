"""The message for an unknown name. This file imports no torch, so that commands can load it."""

import difflib


def unknown(kind: str, name: str, known: list[str], listing: str) -> str:
    """Build the message for an unknown name, with the known ones and the closest of them."""
    close = difflib.get_close_matches(str(name)[:100], known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown {kind} {repr(name)[:100]}. {listing}: {', '.join(known)}.{hint}"
