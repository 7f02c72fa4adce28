"""The rules for arguments of a command that need no configuration, and their messages.

`tasks.flags` applies them to the options of dataclasses, and `tasks.slips` to lists of options that
are written down, so that a slip is told before torch is loaded. This module loads no torch.
"""

import difflib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from runpy import run_path
from typing import NamedTuple, Self

# By its path, since the package `solvers` loads torch.
unknown = run_path(str(Path(__file__).parents[1] / "solvers" / "unknown.py"))["unknown"]

# Options of earlier versions, and what they are called now. Checkpoints and results keep the old
# names, and are translated when they are read; the command line answers with the new ones.
RENAMED = {"free_steps": "train_max_steps", "eval_steps": "eval_max_steps", "depth": "max_steps"}

HELP = ("-h", "--help")


class Takes(NamedTuple):
    """What an option takes.

    Attributes:
        kind: "int", "float", "text", "bool" for a flag without a value, or "choice".
        choices: The values of a choice.
        several: Whether it takes any number of values.
    """

    kind: str
    choices: Sequence[str] = ()
    several: bool = False

    @classmethod
    def read(cls, text: str) -> Self:
        """Undo `written`."""
        kind, several, _ = text.partition(" ...")
        choices = tuple(kind.split("|")) if "|" in kind else ()
        return cls("choice" if choices else kind, choices, bool(several))

    def written(self) -> str:
        """In one word, as in a file of options."""
        return ("|".join(self.choices) or self.kind) + " ..." * self.several

    def wanted(self, value: str) -> str | None:
        """What a value must be that is not taken; None for one that is, or may be."""
        if value == "None":
            return None
        if self.kind == "choice":
            return None if value in self.choices else f"one of {', '.join(self.choices)}"
        try:
            {"int": int, "float": float}.get(self.kind, str)(value)
        except ValueError:
            return {"int": "a whole number", "float": "a number"}[self.kind]
        return None


def flag(name: str) -> str:
    """The flag of an option: "--train-max-steps"."""
    return "--" + name.replace("_", "-")


def option(argument: str) -> str:
    """The name of the option that an argument such as "--train-max-steps=3" sets."""
    return argument.partition("=")[0].removeprefix("--").replace("-", "_")


def given(arguments: Sequence[str]) -> list[str]:
    """The names of the options whose flags are among the arguments."""
    return [option(each) for each in arguments if each.startswith("--")]


def take(arguments: list[str], name: str) -> tuple[list[str], str | None]:
    """Remove `name VALUE` or `name=VALUE` from the arguments."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return arguments[:i] + arguments[i + 1 :], argument.partition("=")[2]
        if argument == name:
            if i + 1 == len(arguments):
                raise ValueError(f"`{name}` needs a value.")
            return arguments[:i] + arguments[i + 2 :], arguments[i + 1]
    return arguments, None


def refuse_renamed(arguments: Sequence[str]) -> None:
    """Check that no flag has a name of earlier versions.

    Raises:
        ValueError: One has; the message says its new name.
    """
    for name in given(arguments):
        if now := RENAMED.get(name):
            raise ValueError(f"`{flag(name)}` is called `{flag(now)}` now.")


def require_values(arguments: Sequence[str], options: Mapping[str, Takes]) -> None:
    """Check that options have values, and that numbers are numbers.

    Args:
        arguments: The flags.
        options: What each option takes; others are left alone.

    Raises:
        ValueError: An option has no value, or one that it does not take.
    """
    for name, takes, values in _with_values(arguments, options):
        if takes is None or takes.kind == "bool":
            continue
        if not values and not takes.several:
            raise ValueError(f"`{name}` needs a value.")
        for value in values:
            if wanted := takes.wanted(value):
                raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")


def left(arguments: Sequence[str], options: Mapping[str, Takes]) -> list[str]:
    """The arguments that are neither one of these options nor a value of one."""
    return [name for name, takes, _ in _with_values(arguments, options) if takes is None]


def _with_values(
    arguments: Sequence[str], options: Mapping[str, Takes]
) -> Iterator[tuple[str, Takes | None, list[str]]]:
    """Each flag with what it takes and its values; other arguments alone, as they are."""
    at = 0
    while at < len(arguments):
        argument, at = arguments[at], at + 1
        name, equals, text = argument.partition("=")
        key = option(name)
        takes = options.get(key) if name.startswith("--") else None
        if takes is None:
            negated = options.get(key.removeprefix("no_")) if name.startswith("--no") else None
            found = negated if negated is not None and negated.kind == "bool" else None
            yield (argument, found, [])
            continue
        values: list[str] = []
        if equals:
            values = [text]
        elif takes.kind != "bool":
            after = itertools.takewhile(lambda each: not each.startswith("--"), arguments[at:])
            values = list(itertools.islice(after, None if takes.several else 1))
            at += len(values)
        yield name, takes, values


def require_all(
    arguments: Sequence[str], options: Mapping[str, Takes], required: Sequence[str], program: str
) -> None:
    """Check that all is given that has no default.

    Args:
        arguments: What is given.
        options: What each option takes.
        required: Names of options; in capitals, an argument without one.
        program: The command.

    Raises:
        ValueError: Something is missing.
    """
    unnamed = [each for each in left(arguments, options) if not each.startswith("--")]
    for name in required:
        if not (unnamed if name.isupper() else name in given(arguments)):
            missing = name if name.isupper() else flag(name)
            raise ValueError(f"`{program}` needs `{missing}`: `{program} --help` says what it is.")


def refuse_rest(
    rest: Sequence[str], names: Collection[str], program: str, elsewhere: Mapping[str, str]
) -> None:
    """Check that no argument is left.

    Args:
        rest: Those that are no option of the command.
        names: Its options.
        program: The command.
        elsewhere: Names of options that users look for here, and the commands that have them.

    Raises:
        ValueError: One is left; the message has the option that was meant, or its command.
    """
    if not rest:
        return
    got = rest[0].partition("=")[0]
    name = got.lstrip("-").replace("-", "_")
    if command := elsewhere.get(name):
        reason = f"`{got}` is an option of `{program.rpartition(' ')[0]} {command}`."
    elif got.startswith("-"):
        close = difflib.get_close_matches(name, names, n=1)
        meant = "".join(f" Did you mean `{flag(each)}`?" for each in close)
        reason = f"Unknown option `{got}`.{meant}"
    else:
        reason = f"Unexpected argument {got!r}."
    raise ValueError(f"{reason} `{program} --help` lists what there is.")


def refuse_bare_preset(arguments: Sequence[str], presets: Collection[str]) -> None:
    """Check that a training command does not begin with the name of a preset.

    Raises:
        ValueError: It does, perhaps with a slip in it.
    """
    if arguments and not arguments[0].startswith("-"):
        for meant in difflib.get_close_matches(arguments[0], presets, n=1):
            raise ValueError(
                f"Unexpected argument {arguments[0]!r}. Did you mean `--preset {meant}`?"
            )


def find_preset(
    name: str, presets: Collection[str], kinds: Collection[str]
) -> tuple[str, str | None]:
    """The preset that a name stands for, and the kind of model in place of that preset's.

    "770m" is a preset; "deq-770m" is that preset with another model. Where a preset of that model
    is among them, as "sudoku-extreme-trm-7m" is for "trm-sudoku-extreme-7m", it is meant: its
    recipe and size are those of its name.

    Args:
        name: What the user wrote.
        presets: All names.
        kinds: All kinds of model.

    Raises:
        ValueError: There is none of this name.
    """
    if name in presets:
        return name, None
    model, _, rest = name.partition("-")
    first, _, size = rest.rpartition("-")
    if (own := f"{first}-{model}-{size}") in presets:
        return own, None
    if rest in presets and model in kinds:
        return rest, model
    others = [kind for kind in kinds if kind != "attractor"]
    raise ValueError(
        f"{unknown('preset', name, list(presets), 'Presets')} With another model: "
        f"`{others[0]}-{next(iter(presets))}` and the like, of {', '.join(others)}."
    )


def refuse_foreign(names: Sequence[str], kind: str, kinds: Mapping[str, Collection[str]]) -> None:
    """Check that no option is one of other kinds of model only.

    Args:
        names: The options.
        kind: The kind of model that is trained.
        kinds: The options of each kind.

    Raises:
        ValueError: One is.
    """
    for name in names:
        having = [each for each, options in kinds.items() if name in options]
        if having and kind not in having:
            article = "an" if kind[0] in "aeu" else "a"
            raise ValueError(
                f"`{flag(name)}` is an option of `--model {'|'.join(having)}`; this run trains "
                f"{article} {kind}."
            )
