"""The commands of the language task.

As in `tasks.cli`, a command imports what other commands do without when it is called.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.cli import CommandLine
from tasks.flags import require_defaults
from tasks.folders import require_writable
from tasks.lm.command_options import (
    ConvertOptions,
    EvalOptions,
    ExportOptions,
    GenerateOptions,
    HarnessOptions,
    HeldOutOptions,
    InternaliseOptions,
    LoopsOptions,
    PrepareOptions,
)
from tasks.lm.config import LanguageConfig, LanguageTask
from tasks.lm.tokenizer import END, Tokenizer, read_tokenizer
from tasks.output import print_result, say, visible, wrapped
from tasks.runs import choose_checkpoint, load_model, locate, read_checkpoint
from tasks.shipped import called

if TYPE_CHECKING:
    from tasks.experiments.jobs import SearchOptions
    from tasks.experiments.run import Experiment

UNSOLVED = "on a model that is solved; this one is not"


class LanguageCommands(CommandLine):
    """The command line of the language task."""

    def __init__(self) -> None:
        super().__init__(LanguageTask())

    @property
    def purpose(self) -> str:
        """See `CommandLine`."""
        return "Train, evaluate and use causal language models."

    @property
    def calls(self) -> dict[str, str]:
        """See `CommandLine`."""
        return {
            "(none)": "the same as `train`",
            "train --preset NAME": "one of the presets below",
            "train --resume FILE": "go on with an interrupted run",
            "eval": "loss, perplexity, bits per byte; --max-steps",
            "generate PROMPT...": "go on with a text",
            "internalise": "what fewer solver steps cost",
            "loops RUN ...": "loss with more loops than in training",
            "compare": "models at equal size and budget, one table",
            "harness --tasks ...": "tasks of the lm-evaluation-harness",
            "prepare FOLDER": "tokens of a text, once, for `train --shards`",
            "plan": "memory, time and cost on GPUs; --gpus",
            "export FOLDER": "a folder as the Hugging Face Hub has it",
            "export FILE.pt2": "a program that runs without this project",
            "convert FOLDER": "a model released with the paper",
        }

    joint = (*CommandLine.joint, "eval", "internalise", "loops")

    def commands(self) -> dict[str, Callable[[list[str]], int]]:
        """See `CommandLine`."""
        return {
            "train": self.train,
            "eval": self.evaluate,
            "generate": self.generate,
            "internalise": self.internalise,
            "loops": self.loops,
            "compare": self.compare,
            "harness": self.harness,
            "prepare": self.prepare,
            "plan": self.plan,
            "export": self.export,
            "convert": self.convert,
        }

    @property
    def experiment(self) -> Experiment:
        """See `CommandLine`."""
        from tasks.lm.experiment import TextExperiment

        return TextExperiment()

    def comparison(self) -> tuple[type[SearchOptions], Callable[[str, Any, Any], object]]:
        """See `CommandLine`."""
        from tasks.lm.experiment import CompareOptions, compare_language

        return CompareOptions, compare_language

    def next_steps(self, config: LanguageConfig, folder: str) -> list[str]:
        """See `CommandLine`."""
        write = f"{self.program} generate 'def read(' --checkpoint {folder}"
        return [write, *super().next_steps(config, folder)]

    def require_source(self, config: LanguageConfig, name: str) -> None:
        """See `CommandLine`."""
        from tasks.lm.data import text_files
        from tasks.lm.shard_batches import open_folder

        if name == "shards":
            open_folder(config.data)
        else:
            text_files(config.data.text)

    def evaluate(self, arguments: list[str]) -> int:
        """Print the loss of a checkpoint on held-out text."""
        from tasks.distributed import Group
        from tasks.lm.data import measure
        from tasks.lm.experiment import print_figures
        from tasks.lm.lambada import last_words, read_passages
        from tasks.reports.logger import ProgressBar
        from tasks.reports.page import write_page_beside

        options = self.options(EvalOptions, arguments, "eval")
        passages = None if options.lambada is None else read_passages(options.lambada)
        path, model, config, corpus = self._load_all(options)
        _refuse_unused(options, config)
        group = Group.current()
        steps, limit = options.max_steps, options.limit
        with ProgressBar(not group.first) as bar:
            figures = measure(
                model, corpus, config, limit=limit, max_steps=steps, group=group, progress=bar
            )
        if not group.first:
            return 0
        if passages is not None:
            context = config.data.context
            figures |= last_words(model, corpus.tokenizer, passages, context, max_steps=steps)
        print_figures(str(path), figures)
        result = {"task": "lm", "eval": figures, "config": config.to_json()}
        print_result(result, options.json)
        write_page_beside(options.json, str(path), result)
        return 0

    def internalise(self, arguments: list[str]) -> int:
        """Print how much the loss depends on the solver, and recommend a budget."""
        from tasks.distributed import Group
        from tasks.lm.internalise import draw, export_with_budget, study
        from tasks.reports.logger import ProgressBar, print_table
        from tasks.reports.page import write_page_beside

        options = self.options(InternaliseOptions, arguments, "internalise")
        path, model, config, corpus = self._load_all(options)
        if model.solving is None:
            raise ValueError(f"{path} is a {config.model.name}, which has no solver to do without.")
        group = Group.current()
        with ProgressBar(not group.first) as bar:
            found = study(model, corpus, config, options.limit, group, bar)
        if not group.first:
            return 0
        rows = {
            f"loss after {steps} step{'s' * (steps != 1)}": f"{row['loss']:.4f}"
            for row in found["by_budget"]
            for steps in [row["max_steps"]]
        }
        converged, advice = found["converged"], found["advice"]
        rows |= {
            f"converged, {converged['mean_steps']:.1f} steps": f"{converged['loss']:.4f}",
            "distance of the proposal, |y0 - y*| / |y*|": f"{converged['distance']:.3f}",
            "spectral radius at y*": f"{found['spectral_radius']:.2f}",
        }
        print_table(str(path), rows)
        text = (
            f"--max-steps {advice['max_steps']} costs {max(advice['extra_loss'], 0):.2%} loss and "
            f"saves {advice['saved']:.0%} of the refiner's work."
        )
        print(wrapped(text))
        if options.export is not None:
            export_with_budget(path, advice["max_steps"], options.export)
            print(f"Written with that budget: {options.export}")
        if options.draw is not None:
            draw(found, path, model, corpus, config, options.draw)
            print(f"Drawn: budgets.png, training.png and trajectory.png in {options.draw}")
        result = {"task": "lm", "internalise": found, "config": config.to_json()}
        print_result(result, options.json)
        write_page_beside(options.json, str(path), result, options.draw)
        return 0

    def loops(self, arguments: list[str]) -> int:
        """Print the loss of models by the number of loops or solver updates."""
        from tasks.distributed import Group
        from tasks.lm.loops import by_loops
        from tasks.reports.logger import ProgressBar, print_table
        from tasks.reports.page import write_page_beside

        options = self.options(LoopsOptions, arguments, "loops")
        group, found = Group.current(), {}
        for named in options.checkpoints or (None,):
            one = HeldOutOptions(checkpoint=named, text=options.text, device=options.device)
            path, model, config, corpus = self._load_all(one)
            try:
                with ProgressBar(not group.first) as bar:
                    figures = by_loops(
                        model, corpus, config, limit=options.limit, group=group, progress=bar
                    )
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            found[str(path)] = {"model": config.model.name, **figures}
            rows = {f"loss after {r['max_steps']}": f"{r['loss']:.4f}" for r in figures["rows"]}
            own, rise = figures["own"], figures["rise"]
            rows[f"its own loops, {own:.1f}"] = f"{figures['own_loss']:.4f}"
            rows["largest change with more"] = f"{rise:+.2%}"
            print_table(f"{path} ({config.model.name})", rows)
        if not group.first:
            return 0
        if options.draw is not None:
            from tasks.lm.pictures import plot_loops

            options.draw.mkdir(parents=True, exist_ok=True)
            print(f"Drawn: {plot_loops(found, options.draw / 'loops.png')}")
        result = {"task": "lm", "loops": found}
        print_result(result, options.json)
        write_page_beside(options.json, "Loss by loops", result, options.draw)
        return 0

    def harness(self, arguments: list[str]) -> int:
        """Evaluate a checkpoint on tasks of the lm-evaluation-harness."""
        options = self.options(HarnessOptions, arguments, "harness")
        try:
            from tasks.lm.core import run_core
            from tasks.lm.harness import HarnessLM, run_tasks
            from tasks.reports.logger import ProgressBar
        except ImportError as error:
            raise ValueError(
                "`harness` needs the package `lm-eval`: install the extra with `pip install "
                "'attractor-models[lm-eval]'`."
            ) from error
        path = self._path(options.checkpoint)
        model = HarnessLM(path, options.device, options.batch_size, options.max_steps)
        with ProgressBar() as model.progress:
            if (folder := Path(options.tasks)).is_dir():
                found, table = run_core(model, folder, options.limit)
            else:
                found, table = run_tasks(model, options.tasks.split(","), options.limit)
        print(table)
        result = {"task": "lm", "checkpoint": str(path), "limit": options.limit, "harness": found}
        print_result(result, options.json)
        return 0

    def prepare(self, arguments: list[str]) -> int:
        """Write the tokens of a text or data set into a folder that `train --shards` reads."""
        from tasks.lm.prepare import prepare, summary
        from tasks.lm.shards import tokenizer_of

        arguments, preset, config = self._take_preset(arguments)
        options = self.options(PrepareOptions, arguments, "prepare")
        config = options.applied(config)
        state = None
        if (named := options.tokenizer) is not None:
            state = tokenizer_of(named)
            if state is None:
                checkpoint = read_checkpoint(locate(self.task.name, named))
                state = read_tokenizer(checkpoint).to_json()
        tokens = options.tokens or config.num_train_tokens
        made = prepare(options.folder, config, state, tokens, options.shard_tokens)
        print(summary(options.folder, made, f"{self.program} train --preset {preset}"))
        return 0

    def export(self, arguments: list[str]) -> int:
        """Write configuration and weights in the format of the Hugging Face Hub, or a program."""
        options = self.options(ExportOptions, arguments, "export")
        path = self._path(options.checkpoint)
        if options.target.suffix == ".pt2":
            return self._export_program(options, path)
        if (options.max_steps, options.solver) != (None, None):
            raise ValueError(
                "A folder has no budget and no solver of its own. Leave `--max-steps` and "
                "`--solver` out, or name a program, FILE.pt2."
            )
        from tasks.lm.hub import PretrainedLM

        require_writable(options.target, is_folder=True, named=str(options.target))
        say(f"Exporting {path} as a folder for the Hugging Face Hub.")
        PretrainedLM.of_checkpoint(path).save_pretrained(options.target)
        text = (
            f"Written: {options.target}; tasks.lm.hub.PretrainedLM.from_pretrained reads it, and "
            "`transformers` does after `import tasks.lm.auto`."
        )
        print(wrapped(text))
        return 0

    def convert(self, arguments: list[str]) -> int:
        """Make a checkpoint of a model that was released with the paper."""
        from tasks.lm.released import convert

        options = self.options(ConvertOptions, arguments, "convert")
        path, config = convert(options.folder, options.out, options.tokenizer)
        shown = shlex.quote(str(path.parent))
        print(
            f"Written: {path}, solved to {config.solve.rtol:g} in at most "
            f"{config.solve.eval_max_steps} steps. What next:\n"
            f"  {self.program} eval --checkpoint {shown} --text FILE\n"
            f"  {self.program} internalise --checkpoint {shown}\n"
            f"  {self.program} generate --checkpoint {shown} 'Once upon a time'"
        )
        return 0

    def _export_program(self, options: ExportOptions, path: Path) -> int:
        from tasks.export import write_program

        _, model, config, _ = self._load(path, "cpu", options.solver)
        steps = config.solve.eval_max_steps
        if steps is None:
            require_defaults(options, ("max_steps", "solver"), UNSOLVED)
        else:
            steps = steps if options.max_steps is None else options.max_steps
        # A program writes a recurrence out, token by token or round by round: for one length.
        fixed = config.spec().mixer in ("scan", "gru")
        x = torch.zeros(
            2, config.data.context if fixed else min(config.data.context, 16), dtype=torch.int64
        )
        about = {"task": self.task.name, "max_steps": steps, "config": config.to_json()}
        longest = None if fixed else config.data.context
        write_program(model, x, steps, options.target, about, longest)
        length = f"{'exactly' if fixed else 'up to'} {config.data.context} tokens"
        budget = "" if steps is None else f" and {steps} steps"
        print(f"Written: {options.target}, for {length}{budget}.")
        return 0

    def _path(self, named: Path | None) -> Path:
        """The checkpoint of a command, which may name none."""
        if named is not None:
            return locate(self.task.name, named)
        return choose_checkpoint(self.task, lambda _: True, "of a language model")

    def generate(self, arguments: list[str]) -> int:
        """Print each prompt and what follows it."""
        from tasks.lm.generate import generate, print_drawn

        options = self.options(GenerateOptions, arguments, "generate")
        path, model, config, tokenizer = self._load(options.checkpoint, options.device)
        print(f"Writing with {called(path)}", file=sys.stderr)
        _refuse_unused(options, config)
        prompts = [[END, *tokenizer.encode(text)] for text in options.prompt]
        for text, prompt in zip(options.prompt, prompts, strict=True):
            if len(prompt) > config.data.context:
                print(f"(of {text[:20]!r}... the model sees the last {config.data.context} tokens)")
        drawn = generate(
            model, prompts, tokens=options.tokens, context=config.data.context, sampling=options,
            max_steps=options.max_steps,
        )  # fmt: skip
        if len(prompts) == 1:
            print_drawn(tokenizer, options.prompt[0], drawn)
            return 0
        rows = torch.stack(list(drawn), 1).tolist()
        for text, row in zip(options.prompt, rows, strict=True):
            print(f"{text}{visible(tokenizer.decode(row))}\n")
        return 0

    def _load(
        self, path: Path | None, device: str, solver: str | None = None
    ) -> tuple[Path, Any, LanguageConfig, Tokenizer]:
        path = self._path(path)
        checkpoint = read_checkpoint(path)
        model, config = load_model(self.task, checkpoint, device=device, solver=solver)
        return path, model, config, read_tokenizer(checkpoint, config)

    def _load_all(self, options: HeldOutOptions) -> tuple[Path, Any, LanguageConfig, Any]:
        from tasks.lm.stream import load_batches

        path, model, config, tokenizer = self._load(
            options.checkpoint, options.device, options.solver
        )
        if options.text is not None:
            config = config.changed(text=options.text)
        else:
            config.data.require_recorded(", or name other text with `--text`")
        return path, model, config, load_batches(config, tokenizer.to_json()).corpus


def _refuse_unused(options: Any, config: LanguageConfig) -> None:
    """Refuse options of a solve that this model does not have.

    Raises:
        ValueError: There is one.
    """
    if config.solve.eval_max_steps is None:
        require_defaults(options, ("solver",), UNSOLVED)
    if config.model.name == "transformer":
        require_defaults(options, ("max_steps",), "on a model that is solved or looped")
