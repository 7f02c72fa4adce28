"""Loss by the number of loops, up to more than a model was trained with."""

import json
from pathlib import Path

import pytest
import torch
from counting import Counting

from tasks.lm.__main__ import main
from tasks.lm.config import PRESETS, LanguageConfig
from tasks.lm.data import Corpus, measure
from tasks.lm.loops import by_loops
from tasks.lm.tokenizer import ByteTokenizer

SMALL = {"width": 16, "num_heads": 2, "context": 16, "eval_tokens": 64}


def made(name: str) -> tuple[torch.nn.Module, Corpus, LanguageConfig]:
    torch.manual_seed(0)
    config = PRESETS["tiny"].adapted(model=name, **SMALL)
    tokens = torch.randint(256, (65,))
    return config.build().eval(), Corpus(ByteTokenizer(), tokens, tokens), config


def test_a_solve_goes_on_beyond_its_tolerance_and_its_loss_stays() -> None:
    model, corpus, config = made("attractor")
    progress = Counting()
    found = by_loops(model, corpus, config, loops=(0, 8, 32), progress=progress)
    progress.require_whole()
    assert len(progress.parts) == 4  # its own, and those
    assert [row["max_steps"] for row in found["rows"]] == [0, 8, 32]
    assert "mean_steps" not in found["rows"][0]
    assert found["rows"][2]["mean_steps"] > 2 * found["own"]
    assert abs(found["rise"]) < 1e-3
    assert found["own_loss"] == measure(model, corpus, config)["loss"]  # its tolerance is back


def test_the_loops_of_parcae_are_counted_from_its_own() -> None:
    model, corpus, config = made("parcae")
    found = by_loops(model, corpus, config, loops=(1, 8, 9, 20))
    losses = {row["max_steps"]: row["loss"] for row in found["rows"]}
    assert (found["own"], found["own_loss"]) == (8, losses[8])
    assert found["rise"] == max(losses[9], losses[20]) / losses[8] - 1


def test_a_transformer_has_no_loops() -> None:
    with pytest.raises(ValueError, match="A transformer has no loops to vary"):
        by_loops(*made("transformer"))


def test_models_are_compared_in_one_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("attractor", "parcae"):
        flags = ["--preset", "tiny", "--width", "16", "--num-heads", "2", "--steps", "2"]
        flags += ["--max-bytes", "60000", "--eval-tokens", "128", "--model", name, "--out", name]
        assert main(["train", *flags]) == 0
    capsys.readouterr()
    assert main(["loops", "attractor", "parcae", "--limit", "64", "--draw", "pictures"]) == 0
    found = json.loads(capsys.readouterr().out)["loops"]
    assert [figures["model"] for figures in found.values()] == ["attractor", "parcae"]
    assert (tmp_path / "pictures/loops.png").stat().st_size > 0
    assert main(["loops", "--limit", "0"]) == 2
    assert "`--limit` must be at least 1" in capsys.readouterr().err
