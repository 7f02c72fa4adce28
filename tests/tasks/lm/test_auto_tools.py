"""What is built on the package `transformers`, on exported folders: training, pipelines, scores."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Run

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import tasks.lm
import tasks.lm.auto as auto
from tasks.lm.__main__ import main
from tasks.lm.config import LanguageConfig
from tasks.lm.generate import Sampling
from tasks.lm.hub import PretrainedLM
from tasks.lm.tokenizer import train_tokenizer

CONTEXT = 32
WORDS = "hello world! hello world!! the answer is wonderful wordless worlds "
PAIRS = [
    ("the answer", " is"), ("hello", " world!"), ("", "the answer"), ("hello\n", "\nworld"),
    ("past the context " * 5, "end"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, on byte pairs."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    config = LanguageConfig.of(
        vocabulary=300, width=16, num_heads=2, context=CONTEXT, backbone_blocks=1, rtol=1e-6
    )
    state = train_tokenizer([WORDS * 50], 300).to_json()
    PretrainedLM(config.to_json(), state).save_pretrained(folder)
    return folder


def test_a_pipeline_writes_our_text(folder: Path) -> None:
    ours, texts = PretrainedLM.from_pretrained(folder), ["hello", "the answer is wonderful and"]
    write = pipeline("text-generation", model=str(folder))
    assert isinstance(write.model, auto.AttractorForCausalLM)
    write.model.generation_config.eos_token_id = None
    found = write(texts, max_new_tokens=30, do_sample=False, batch_size=2)
    greedy = Sampling(temperature=0)
    for text, (row,) in zip(texts, found, strict=True):
        assert row["generated_text"] == ours.write(text, tokens=30, sampling=greedy)


@pytest.mark.filterwarnings("default")  # the packages have some of their own
def test_the_trainer_learns_and_goes_on(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra `lm-eval` is not installed")
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(folder)
    data: Any = [tokenizer("hello world! " * (1 + i % 3)) for i in range(32)]

    def trainer(steps: int) -> Trainer:
        options = TrainingArguments(
            output_dir=str(tmp_path / "run"), max_steps=steps, per_device_train_batch_size=8,
            learning_rate=1e-2, use_cpu=True, report_to=[], save_steps=8, disable_tqdm=True,
        )  # fmt: skip
        return Trainer(
            model=AutoModelForCausalLM.from_pretrained(folder), args=options, train_dataset=data,
            eval_dataset=data[:8], processing_class=tokenizer,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        )  # fmt: skip

    first = trainer(8)
    before = first.evaluate()["eval_loss"]
    assert before == pytest.approx(math.log(300), rel=0.3)
    first.train()
    again = trainer(24)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 24
    assert again.evaluate()["eval_loss"] < before / 2
    again.save_model(str(tmp_path / "trained"))
    ours = PretrainedLM.from_pretrained(tmp_path / "trained")
    ids = torch.arange(5)[None]
    assert torch.equal(ours(ids).logits, again.model.eval()(ids).logits)


@pytest.mark.filterwarnings("default")
def test_the_backend_hf_of_the_harness_scores_and_writes_as_ours(folder: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")
    pytest.importorskip("accelerate", reason="the extra `lm-eval` is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from tasks.lm.harness import HarnessLM

    def ask(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
        return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]

    ours = HarnessLM(folder, "cpu", batch_size=2)
    options: Any = {"pretrained": str(folder), "device": "cpu", "dtype": "float32"}
    theirs = HFLM(**options, batch_size=2, logits_cache=False)
    assert theirs.max_length == CONTEXT
    scores = [m.loglikelihood(ask("loglikelihood", *PAIRS), True) for m in (ours, theirs)]
    for (nats, greedy), (expected, is_greedy) in zip(*scores, strict=True):
        assert nats == pytest.approx(expected, abs=1e-3)
        assert greedy == is_greedy
    # Otherwise its windows begin with two ends of text.
    bare = HFLM(**options, add_bos_token=False)
    texts = ask("loglikelihood_rolling", ("hello world!",), (WORDS * 3,))
    rolled = [m.loglikelihood_rolling(texts, True) for m in (ours, bare)]
    assert rolled[0] == pytest.approx(rolled[1], abs=1e-2)
    wanted = {"until": ["\n"], "max_gen_toks": 8}
    prompts = ask("generate_until", ("hello", wanted), ("the answer is", wanted))
    assert theirs.generate_until(prompts, True) == ours.generate_until(prompts)


LOADS = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert AutoTokenizer.from_pretrained(sys.argv[1])("a").input_ids[0] == 256
model.save_pretrained(sys.argv[2])
print(type(model).__module__)
"""


@pytest.mark.slow
def test_programs_that_do_not_know_us_load_it_if_told_to(
    folder: Path, tmp_path: Path, new_process: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    ended = new_process(LOADS, str(folder), str(tmp_path / "again"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "tasks.lm.auto"
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "modeling_attractor.py"
    }  # fmt: skip
    first, again = (
        json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "again")
    )
    assert first["auto_map"] == again["auto_map"]


@pytest.mark.slow
def test_the_model_that_comes_with_the_package_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path / "small"), "--checkpoint", "small"]) == 0
    assert "import tasks.lm.auto" in capsys.readouterr().out
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    model.generation_config.eos_token_id = None
    writer = tasks.lm.load("small", device="cpu")
    for prompt in ("def read(", "import os\n\n", "class Shape:\n    def __init__"):
        batch = tokenizer(prompt, return_tensors="pt")
        found = model.generate(**batch, max_new_tokens=300, do_sample=False)
        text = tokenizer.decode(found[0], skip_special_tokens=True)
        assert text == writer.generate(prompt, tokens=300, temperature=0)
