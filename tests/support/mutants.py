"""Sample mutants of `solvers` and `implicit`, and ask the tests to kill them: `make mutants`.

    python tests/support/mutants.py [--sample 320] [--seconds 10] [--again] [options of pytest]

mutmut makes the mutants. Its own runner skips decorated functions and calls each function through
a wrapper, which torch.compile, torch.func and signatures notice. Here pytest collects the tests
once. One child process runs all of them and notes with coverage which test reaches which line.
Then each mutant has a child process: the compiled code of the mutated function replaces the
original's, and tests that reach the line run until the first fails, for as many `--seconds` as they
take on the original. Mutants outside functions and in default values of arguments are left out,
since that code runs at import. `--again` asks only the mutants that survived before.
"""

import argparse
import ast
import functools
import gc
import hashlib
import json
import os
import pickle
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import libcst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).parents[2]
TESTS = ["tests/solvers", "tests/implicit", "solvers", "implicit"]
# These check parts that are not mutated, or start processes, which import the originals.
NO_WITNESS = ["solvers/test_testing.py", "implicit/test_testing.py", "implicit/test_distributed.py"]
# Its place and change as [file, line, column, old, new]; the lines of its statement; the module and
# the mutation, from which `changed` makes its text.
Mutant = tuple[list[Any], range, libcst.Module, Any]
SLOWER = 10  # a test that takes so many times as long as before, and 2 seconds more, has failed

Key = tuple[str, str]  # a test's id, and the digest of its file
Lines = set[tuple[str, int]]  # of files
Timed = tuple[pytest.Item, float]  # a test and its seconds
Test = tuple[pytest.Item, float, Lines]


class Visitor(MutationVisitor):
    """Collects mutants as mutmut does, and those of decorated functions."""

    def _skip_node_and_children(self, node: libcst.CSTNode) -> bool:
        if isinstance(node, (libcst.Param, libcst.Decorator)):
            return True
        decorated = isinstance(node, libcst.FunctionDef) and node.decorators
        return not decorated and super()._skip_node_and_children(node)

    def _create_mutations(self, node: libcst.CSTNode) -> None:
        before = len(self.mutations)
        super()._create_mutations(node)
        for mutation in self.mutations[before:]:
            mutation.start = self.get_metadata(PositionProvider, node).start  # type: ignore[attr-defined]


def mutants(path: Path) -> Iterator[Mutant]:
    """All mutants of a file inside functions."""
    visitor = Visitor(mutation_operators, IgnoredCode(set(), set(), set()))
    module = MetadataWrapper(libcst.parse_module(path.read_text())).visit(visitor)
    statements = [node for node in ast.walk(ast.parse(module.code)) if isinstance(node, ast.stmt)]
    mutations: list[Any] = visitor.mutations
    for change in mutations:
        if not isinstance(change.contained_by_top_level_function, libcst.FunctionDef):
            continue
        line, column = change.start.line, change.start.column
        around = [s for s in statements if s.lineno <= line <= s.end_lineno]
        inner = max(around, key=lambda statement: statement.lineno)
        body = getattr(inner, "body", None)
        end = max(inner.lineno, body[0].lineno - 1) if body else inner.end_lineno or inner.lineno
        name = [str(path.relative_to(ROOT)), line, column]
        name += [module.code_for_node(n) for n in (change.original_node, change.mutated_node)]
        yield name, range(inner.lineno, end + 1), module, change


def changed(module: libcst.Module, change: Any) -> str:
    """The text of a mutant."""
    found: Any = deep_replace(module, change.original_node, change.mutated_node)
    return found.code


def code_objects(text: str, path: str) -> dict[tuple[str, int], CodeType]:
    """The code of all functions in a text, by qualified name and how often that came before."""
    found, seen, pending = {}, Counter[str](), [compile(text, path, "exec")]
    for code in pending:
        found[code.co_qualname, seen[code.co_qualname]] = code
        seen[code.co_qualname] += 1
        pending += [const for const in code.co_consts if isinstance(const, CodeType)]
    return found


def content(code: CodeType) -> tuple[Any, ...]:
    """What a code object does, its line numbers aside."""
    consts = [content(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, consts


def digest(*paths: Path) -> str:
    """One number for the contents of files."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def in_child(work: Callable[[], Any]) -> Any:
    """The result of `work` in a forked process, or the signal that ended it."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            with open(writer, "wb") as pipe:
                pickle.dump(work(), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "killed by " + signal.Signals(os.WTERMSIG(status)).name
    return pickle.loads(answer) if answer else f"fault: exit {status}"


class Driver:
    """A pytest plugin that runs the collected tests in child processes, mutant by mutant."""

    def __init__(self, folder: Path, seconds: float, sources: list[Path], asked: list[Mutant]):
        self.folder, self.budget, self.sources, self.asked = folder, seconds, sources, asked
        self.failed: str | None = None
        self.functions: dict[str, list[FunctionType]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = f"{report.nodeid} ({report.when})\n{str(report.longrepr)[-300:]}"

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        tests = self.measured(session.items)
        for function in gc.get_objects():
            if type(function) is FunctionType:
                self.functions[function.__code__.co_filename].append(function)
        gc.freeze()
        counts = Counter[str]()
        with (self.folder / "answers.jsonl").open("a") as answers:
            for name, lines, module, change in self.asked:
                chosen, reaching = self.chosen({(name[0], line) for line in lines}, tests)
                text = changed(module, change)
                work = functools.partial(self.verdict, ROOT / name[0], module.code, text, chosen)
                began = time.monotonic()
                answer = in_child(work) if chosen else "unreached: no test"
                answers.write(json.dumps([*name, answer, len(chosen), reaching]) + "\n")
                answers.flush()
                counts[answer.split()[0].rstrip(":")] += 1
                file, line, column, *change = name
                old, new = (" ".join(part.split()) for part in change)
                spent = f"{len(chosen)} of {reaching} tests, {time.monotonic() - began:.0f} s"
                place = f"{file}:{line}:{column}"
                print(f"{place} {old} -> {new}: {answer.splitlines()[0]}, {spent}", flush=True)
        print(", ".join(f"{count} {answer}" for answer, count in counts.most_common()))
        return True

    def measured(self, items: list[pytest.Item]) -> list[Test]:
        """Each test with its seconds and lines: the fastest variant of each first, then the second.

        What was measured before is kept until the sources or the file of the test change.
        """
        file, sources = self.folder / "baseline.pickle", digest(*self.sources)
        before, known = pickle.loads(file.read_bytes()) if file.exists() else (None, {})
        known = known if before == sources else {}
        keys = {item: (item.nodeid, digest(item.path)) for item in items}
        if new := {key: item for item, key in keys.items() if key not in known}:
            print(f"measuring {len(new)} tests", flush=True)
            known |= in_child(functools.partial(self.baseline, new))
            file.write_bytes(pickle.dumps((sources, known)))
        for key in keys.values():
            if known[key][2]:
                raise pytest.UsageError(f"{key[0]} fails on the original: {known[key][2]}")
        ranks, order = Counter(), []
        for item in sorted(items, key=lambda item: known[keys[item]][0]):
            name, (seconds, lines, _) = item.nodeid.split("[")[0], known[keys[item]]
            order.append((ranks[name], seconds, len(order), item, lines))
            ranks[name] += 1
        return [(item, seconds, lines) for _, seconds, _, item, lines in sorted(order)]

    def baseline(self, items: dict[Key, pytest.Item]) -> dict[Key, list[Any]]:
        """Per test its seconds, the lines that it reaches, and how it failed."""
        measured = coverage.Coverage(data_file=None, source=["solvers", "implicit"], messages=False)
        found: dict[Key, list[Any]] = {}
        by_name: dict[str, list[Any]] = {}
        measured.start()
        for key, item in items.items():
            measured.switch_context(item.nodeid)
            self.failed = None
            found[key] = [self.seconds(item), set(), self.failed]
            by_name[item.nodeid] = found[key]
        measured.stop()
        data = measured.get_data()
        for name in data.measured_files():
            for line, tests in data.contexts_by_lineno(name).items():
                for test in set(tests) & set(by_name):
                    by_name[test][1].add((os.path.relpath(name, ROOT), line))
        return found

    def seconds(self, item: pytest.Item) -> float:
        """Run a test, and return its seconds."""
        began = time.process_time()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return time.process_time() - began

    def chosen(self, wanted: Lines, tests: list[Test]) -> tuple[list[Timed], int]:
        """Tests that reach one of the lines, within the budget; and how many reach them at all."""
        chosen, spent, reaching = [], 0.0, 0
        for item, seconds, lines in tests:
            if wanted & lines:
                reaching += 1
                if not chosen or spent + seconds <= self.budget:
                    chosen.append((item, seconds))
                    spent += seconds
        return chosen, reaching

    def verdict(self, path: Path, original: str, text: str, tests: list[Timed]) -> str:
        """Run tests on a mutant until one fails, and name it."""
        before = code_objects(original, str(path))
        names = {(code.co_qualname, code.co_firstlineno): name for name, code in before.items()}
        after, replaced = code_objects(text, str(path)), False
        for function in self.functions[str(path)]:
            code = function.__code__
            new = after.get(names[code.co_qualname, code.co_firstlineno])
            if new is not None and content(new) != content(code):
                function.__code__, replaced = new, True
        if not replaced:
            return "same code"
        for item, seconds in tests:
            signal.setitimer(signal.ITIMER_PROF, SLOWER * seconds + 2)
            self.seconds(item)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if self.failed:
                return f"killed by {self.failed}"
        return "survived"


def sampled(every: list[Mutant], number: int, seed: int) -> list[Mutant]:
    """Mutants at equal distances, in a random order, so that a part is a fair sample, too."""
    draw = random.Random(seed)
    start, step = draw.random(), max(len(every) / number, 1.0)
    found = [every[int((start + i) * step)] for i in range(min(number, len(every)))]
    draw.shuffle(found)
    return found


def alive(every: list[Mutant], answers: Path) -> Iterator[Mutant]:
    """The mutants that survived in a file of answers, by their change and the nearest place."""
    last = {tuple(row[:5]): row[5] for row in map(json.loads, answers.read_text().splitlines())}
    for (file, line, column, *change), answer in last.items():
        if answer.startswith("killed"):
            continue
        same = [m for m in every if m[0][0] == file and m[0][3:] == change]
        if same:
            yield min(same, key=lambda m: (abs(m[0][1] - line), abs(m[0][2] - column)))
        else:
            print("gone:", file, line, *change)


def main() -> int:
    """Sample, and run pytest with the driver."""
    parser = argparse.ArgumentParser(description="Sample mutants, and ask the tests to kill them.")
    parser.add_argument("--sample", type=int, default=320)
    parser.add_argument("--seed", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutants")
    options, arguments = parser.parse_known_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    sources = [
        path for top in ("solvers", "implicit") for path in sorted((ROOT / top).rglob("*.py"))
    ]
    every = [m for path in sources if "testing" not in path.parts for m in mutants(path)]
    if options.again:
        asked = list(alive(every, options.folder / "answers.jsonl"))
    else:
        asked = sampled(every, options.sample, options.seed)
    print(f"{len(every)} mutants, {len(asked)} to ask")
    ignored = [f"--ignore=tests/{name}" for name in NO_WITNESS]
    driver = Driver(options.folder, options.seconds, sources, asked)
    given = ["-q", "-s", "-p", "no:cacheprovider", *ignored, *TESTS, *arguments]
    return pytest.main(given, plugins=[driver])


if __name__ == "__main__":
    raise SystemExit(main())
