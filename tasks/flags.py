"""Flags from configurations: of each section those options that have an effect, and no others.

A command reads `--preset` and `--model` first, then the options that decide which others there
are, and only then lets tyro parse the rest. So a flag of another model is refused with the reason.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from tasks.output import STDOUT
from tasks.training.options import PARTS, RENAMED, Config, Section, flag

T = TypeVar("T")
C = TypeVar("C", bound=Config)
IMPORT = "Module of yours, with solvers or backward modes"
IMPORT_FIELD = "import_"
# Options that take a trained model, and all that name a checkpoint: each command has some of them.
MODELS = ("checkpoint", "weights")
CHECKPOINTS = (*MODELS, "resume")
# Options that name what a command writes, and whether that is a folder.
WRITTEN = {"draw": True, "out": True, "json": False, "export": False}
# How `--help` calls values.
METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}
NUMBERS = {int: "a whole number", float: "a number"}
# Options that decide which others have an effect.
CHOICES = ("layout", "mixer", "solver", "backward")


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


def given(arguments: Sequence[str]) -> list[str]:
    """The names of the options whose flags are among the arguments."""
    flags = [a.partition("=")[0] for a in arguments if a.startswith("--")]
    return [name.removeprefix("--").replace("-", "_") for name in flags]


def parse(kind: type[T], arguments: list[str], program: str, models: Sequence[str] = ()) -> T:
    """Parse the flags of a command whose options are a dataclass of their own.

    Args:
        kind: The dataclass. If it has an attribute `elsewhere`, this maps names of options that
            users look for here to the commands that have them.
        arguments: The flags.
        program: The command, for messages.
        models: Names that options for a trained model take besides paths, for the help.

    Raises:
        ValueError: An argument is none of this command's, or a value is out of its range.
    """
    found, rest = parse_some(kind, arguments, program, models)
    hints = get_type_hints(kind, include_extras=True)
    names = [
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if tyro.conf.Positional not in getattr(hints[field.name], "__metadata__", ())
    ]
    _refuse_rest(rest, names, program, getattr(kind, "elsewhere", {}))
    return found


def parse_some(
    kind: type[T], arguments: list[str], program: str, models: Sequence[str] = ()
) -> tuple[T, list[str]]:
    """Parse the flags that are options of a dataclass; see `parse`.

    Returns:
        The options, and the arguments that are none of them.

    Raises:
        ValueError: A value is none of its option's, or out of its range, or what it names cannot
            be written.
    """
    _require_values(arguments, get_type_hints(kind))
    found, rest = tyro.cli(
        _readable(kind, models),
        args=arguments,
        prog=program,
        description=described(kind),
        return_unknown_args=True,
    )
    # Here and not by tyro, whose message of what `kind` refuses has the name of the class.
    options = kind(**{n: v for n, v in vars(found).items() if n != IMPORT_FIELD})
    for name, is_folder in WRITTEN.items():
        if (path := vars(options).get(name)) not in (None, STDOUT):
            from tasks.folders import require_writable  # what writes nothing does without it

            require_writable(path, is_folder, f"{flag(name)} {path}")
    return options, rest


def _require_values(arguments: Sequence[str], hints: Mapping[str, Any]) -> None:
    """Check that numbers are numbers, in the words of our other messages and not of tyro.

    Args:
        arguments: The flags.
        hints: The type of each option.

    Raises:
        ValueError: An option has no value, or one that it does not take.
    """
    for at, argument in enumerate(arguments):
        name, equals, text = argument.partition("=")
        option = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or option not in hints:
            continue
        kinds, several = _kinds(hints[option])
        if kinds == (bool,):
            continue
        after = itertools.takewhile(lambda each: not each.startswith("--"), arguments[at + 1 :])
        values = [text] if equals else list(after)[: None if several else 1]
        if not values and not several:
            raise ValueError(f"`{name}` needs a value.")
        for value in values:
            if len(kinds) == 1 and value != "None" and (wanted := _wanted(kinds[0], value)):
                raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")


def _wanted(kind: Any, value: str) -> str | None:
    """What a value must be that is none of this type; None for one that is, or may be."""
    if get_origin(kind) is Literal:
        return None if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    if kind not in NUMBERS:
        return None
    try:
        kind(value)
    except ValueError:
        return NUMBERS[kind]
    return None


def _kinds(hint: Any) -> tuple[tuple[Any, ...], bool]:
    """The types of a value, besides None, and whether an option takes several values."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    several = get_origin(bare) is tuple
    parts = get_args(bare) if several or get_origin(bare) in (Union, UnionType) else (bare,)
    return tuple(each for each in parts if each not in (type(None), Ellipsis)), several


def _refuse_rest(
    rest: Sequence[str], names: Sequence[str], program: str, elsewhere: Mapping[str, str]
) -> None:
    """Check that the parser has taken all arguments.

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
        alike = [each for each in CHECKPOINTS if name in CHECKPOINTS and each in names]
        close = alike or difflib.get_close_matches(name, names, n=1)
        meant = " or ".join(f"`{flag(each)}`" for each in close)
        meant = f" Did you mean {meant}?" if close else ""
        reason = f"Unknown option `{got}`.{meant}"
    else:
        reason = f"Unexpected argument {got!r}."
    raise ValueError(f"{reason} `{program} --help` lists what there is.")


def described(kind: type[Any]) -> str:
    """What `--help` says of a command, above its flags."""
    return docstring_parser.parse(kind.__doc__ or "").description or ""


def require_defaults(options: Any, names: Sequence[str], reason: str) -> None:
    """Check that options of a command have their defaults, where others would have no effect.

    Raises:
        ValueError: One has not.
    """
    for field in dataclasses.fields(options):
        if field.name in names and getattr(options, field.name) != field.default:
            raise ValueError(f"`{flag(field.name)}` has an effect only {reason}.")


def parse_config(
    default: C,
    arguments: list[str],
    program: str,
    top: Mapping[str, str] | None = None,
    others: Sequence[str] = (),
    models: Sequence[str] = (),
) -> C:
    """Change a configuration by flags.

    Args:
        default: What flags do not change.
        arguments: The flags.
        program: The command, for its help.
        top: Flags that the command has read already, and what they mean, for its help.
        others: Further options of the command, which its help has elsewhere.
        models: See `parse`.

    Raises:
        ValueError: A flag is unknown or has no effect, or a value is out of its range.
    """
    arguments, model = take(arguments, "--model")
    config = default if model is None else default.changed(model=model)
    known = {name for kind in config.kinds for name in config.hints(kind)}
    names = [name if name in known else name.removeprefix("no_") for name in given(arguments)]
    flat = config.flat()
    config.refuse_unused(name for name in names if name in known - set(flat))
    hidden: Collection[str] = ()
    if "help" in names or "-h" in arguments:
        chosen = {name: take(arguments, flag(name))[1] for name in CHOICES if name in flat}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        hidden = config.adapted(**chosen).unused()
    _require_values(arguments, config.hints(config.model.name))
    found, rest = tyro.cli(
        _shown(config, hidden, top or {}, models),
        args=arguments,
        prog=program,
        description=type(config).__doc__ or "",
        config=(tyro.conf.OmitArgPrefixes,),
        return_unknown_args=True,
    )
    _refuse_rest(rest, [*flat, *(top or ()), *others], program, {})
    values = {name: v for part in PARTS for name, v in vars(getattr(found, part)).items()}
    config = config.changed(
        **{n: v for n, v in values.items() if n in flat and (n in names or v != flat[n])}
    )
    config.refuse_unused(name for name in names if name in known)
    return config


def _shown(
    config: Config, hidden: Collection[str], top: Mapping[str, str], models: Sequence[str]
) -> Any:
    """A class for tyro: the options of a configuration by section, some of them hidden."""
    first = [*(_read_before(name, text, "NAME") for name, text in top.items()), _import()]
    sections: dict[str, list[Any]] = {"run": first}
    for part in PARTS:
        section = getattr(config, part)
        hints, texts = get_type_hints(type(section)), descriptions(type(section))
        sections[part] = [
            _field(name, hints[name], getattr(section, name), _naming(models, name, texts[name]))
            for name in section.names()
            if name not in hidden
        ]
    kinds = Literal[tuple(config.kinds)]  # type: ignore[valid-type]
    sections["model"].insert(0, _field("model", kinds, config.model.name, "Kind of model."))
    return _made(
        "config",
        [
            (part, (made := _made(part, fields)), dataclasses.field(default_factory=made))
            for part, fields in sections.items()
        ],
    )


def _readable(kind: type[Any], models: Sequence[str]) -> Any:
    """The same options for tyro, so that `--help` shows them as it shows those of `train`."""
    hints, texts, made = get_type_hints(kind, include_extras=True), _texts(kind), []
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING
        value = None if required else field.default
        text = _naming(models, field.name, texts[field.name])
        name, hint, _ = _field(field.name, hints[field.name], value, text)
        made.append((name, hint) if required else (name, hint, value))
    made.append(_import())
    return dataclasses.make_dataclass(kind.__name__, made, frozen=True, kw_only=True)


def _read_before(name: str, text: str, metavar: str) -> tuple[str, Any, str]:
    """A flag that a command has read before tyro, which only shows it."""
    option = tyro.conf.arg(name=name, help=text, help_behavior_hint="", metavar=metavar)
    # With a line below it, since `import` is a keyword and so no name of a field.
    return f"{name}_", Annotated[str, option], ""


def _import() -> tuple[str, Any, str]:
    return _read_before(IMPORT_FIELD.removesuffix("_"), IMPORT, "MODULE")


def _naming(models: Sequence[str], name: str, text: str) -> str:
    """The text of an option, with the models of the package where it takes one."""
    if name not in MODELS or not models:
        return text
    return f"{text} Those of the package: {', '.join(models)}."


def _made(name: str, fields: Sequence[Any]) -> Any:
    return dataclasses.make_dataclass(name.capitalize(), fields, frozen=True)


def _field(name: str, hint: Any, value: Any, text: str) -> tuple[str, Any, Any]:
    """An option for `make_dataclass`, with the line that `--help` shows of it."""
    words = " ".join(map(str, value)) if isinstance(value, tuple) else value
    shown = "" if words in (None, "") else f" ({words})"
    options: dict[str, Any] = {"help": text.removesuffix(".") + shown, "help_behavior_hint": ""}
    (kind, *others), several = _kinds(hint)
    if not others and kind in METAVARS:
        options["metavar"] = METAVARS[kind]
        if several:
            options["metavar"] = f"[{'TEXT' if kind is str else METAVARS[kind]} ...]"
    return name, Annotated[hint, tyro.conf.arg(**options)], value


def descriptions(section: type[Section]) -> dict[str, str]:
    """What the docstrings of a section class and of those below it say of each option."""
    found = _texts(section)
    return {name: found[name] for name in section.names()}


def _texts(kind: type[Any]) -> dict[str, str]:
    """What the docstrings of a class and of those below it say of its attributes, each one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__doc__ and dataclasses.is_dataclass(base):
            params = docstring_parser.parse(base.__doc__).params
            found |= {param.arg_name: param.description or "" for param in params}
    return {name: " ".join(text.split()) for name, text in found.items()}
