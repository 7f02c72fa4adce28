"""Exported folders in the package `transformers`: our text, within our bounds, or a clear error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from tasks.checkpoints.file import CheckpointError
from tasks.lm.auto import AttractorConfig, AttractorForCausalLM
from tasks.lm.config import LanguageConfig
from tasks.lm.generate import Sampling, generate
from tasks.lm.hub import PretrainedLM
from tasks.lm.tokenizer import END, ByteTokenizer, numbered_as_ours, train_tokenizer
from tests.support.hostile_files import folders, wrong_answer

TEXT = "hello world! hello world!! the answer is wonderful wordless worlds "
PAIRS = train_tokenizer([TEXT * 50], 300)
CONTEXT = 24
KINDS: dict[str, dict[str, Any]] = {
    "attention": {"backbone_blocks": 2},
    "rotary": {"backbone_blocks": 2, "rope_base": 20.0},
    "untied": {"tied": False, "injection": "concat"},
    "scan": {"mixer": "scan"},
    "gru": {"mixer": "gru"},
    "gpt2": {"mixer": "gpt2"},
    "llama": {"mixer": "llama"},
    "deq": {"model": "deq"},
    "parcae": {"model": "parcae", "loops": 3},
    "released": {
        "model": "parcae",
        "loops": 3,
        "recurrence": "released",
        "value_embeddings": True,
        "initial": "released",
        "norm_eps": 1e-5,
    },
    "transformer": {"model": "transformer"},
}


def pretrained(kind: str = "attention", pairs: bool = False, **changes: Any) -> PretrainedLM:
    """A small model with random weights."""
    torch.manual_seed(0)
    options = {"width": 16, "num_heads": 2, "context": CONTEXT, "backbone_blocks": 1}
    config = LanguageConfig.of(
        vocabulary=300 if pairs else 257, **{**options, **KINDS[kind], **changes}
    )
    return PretrainedLM(config.to_json(), PAIRS.to_json() if pairs else "").eval()


def loaded(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer, as any user of the package gets them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, AttractorForCausalLM)
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good one."""
    pretrained().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder: Path) -> Any:
    """The model in it, which does not stop at an end of text."""
    found = AutoModelForCausalLM.from_pretrained(folder)
    found.generation_config.eos_token_id = None
    return found


@pytest.mark.parametrize(("kind", "pairs"), [*((kind, False) for kind in KINDS), ("untied", True)])
def test_greedy_text_is_ours_also_past_the_context(kind: str, pairs: bool, tmp_path: Path) -> None:
    ours = pretrained(kind, pairs)
    ours.save_pretrained(tmp_path)
    model, tokenizer = loaded(tmp_path)
    model.generation_config.eos_token_id = None
    texts = ["hello wor", "a", "a prompt that is longer than the context of the model by far"]
    prompts = [[END, *ours.tokenizer.encode(text)] for text in texts]
    greedy = Sampling(temperature=0)
    drawn = generate(ours.model, prompts, tokens=40, context=CONTEXT, sampling=greedy)
    expected = torch.stack(list(drawn), 1)
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    found = model.generate(**batch, max_new_tokens=40, do_sample=False)
    assert torch.equal(found[:, batch.input_ids.shape[1] :], expected)
    written = tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert written == [ours.tokenizer.decode(row) for row in expected.tolist()]


def test_text_ends_at_an_end_of_text(folder: Path) -> None:
    model, tokenizer = loaded(folder)
    with torch.no_grad():
        model.model.vocabulary.embedding.weight[END] *= 50.0
    found = model.generate(**tokenizer("a", return_tensors="pt"), max_new_tokens=9)
    assert END in found[0, 2:]
    assert found.shape[1] < 11


@pytest.mark.parametrize("kind", ["attention", "rotary", "scan", "parcae", "gpt2"])
def test_beams_are_those_of_whole_texts(kind: str, tmp_path: Path) -> None:
    changes = {} if "model" in KINDS[kind] else {"rtol": 1e-6}
    pretrained(kind, **changes).save_pretrained(tmp_path)
    model, tokenizer = loaded(tmp_path)
    batch = tokenizer(["hello", "a"], return_tensors="pt", padding=True)
    options = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    found, whole = (
        model.generate(**batch, **options, max_new_tokens=14, use_cache=cached)
        for cached in (True, False)
    )
    assert torch.equal(found, whole)
    # Past the context as well.
    assert len(model.generate(**batch, **options, max_new_tokens=CONTEXT)) == 4


def test_memory_and_work_are_bounded_by_the_context(model: Any) -> None:
    cache = model.new_cache()
    lengths = set()
    with torch.no_grad():
        for start in range(0, 10 * CONTEXT, 4):
            ids = torch.arange(start, start + 4).remainder(256)[None].expand(3, -1)
            out = model(ids, cache=cache, logits_to_keep=1)
            assert out.cache is cache
            assert cache.get_seq_length() == start + 4
            kept = cache.kept
            lengths.add(kept.ids.shape[1])
            buffers = [part.buffer for parts in kept.past for part in parts]
            assert all(buffer.keys.shape[2] <= 2 * CONTEXT for buffer in buffers)
    assert max(lengths) == CONTEXT
    assert cache.get_max_length() == CONTEXT
    cache.reset()
    assert (cache.get_seq_length(), cache.kept.past) == (0, None)


def test_a_cache_is_gone_on_with_by_a_later_call(model: Any) -> None:
    ids = torch.tensor([[END, *b"hello"]])
    cache = model.new_cache()
    first = model.generate(ids, cache=cache, max_new_tokens=4, do_sample=False)
    again = model.generate(first, cache=cache, max_new_tokens=4, do_sample=False)
    assert torch.equal(again, model.generate(ids, max_new_tokens=8, do_sample=False))
    chunks = model.generate(
        ids, cache=model.new_cache(), prefill_chunk_size=2, max_new_tokens=8, do_sample=False
    )
    assert torch.equal(again, chunks)


@given(st.text())
def test_tokens_are_ours(text: str) -> None:
    for tokenizer in (ByteTokenizer(), PAIRS):
        fast, end = numbered_as_ours(tokenizer)
        fast.encode_special_tokens = True
        for each in (text, f"{text}{end}{text}"):
            ids = fast.encode(each).ids
            assert ids == [END, *tokenizer.encode(each)]
            assert fast.decode(ids) == tokenizer.decode(ids[1:])


def test_the_name_of_an_end_of_text_is_text_within_one(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "a<|endoftext|>\u2028 \N{SNOWMAN}"
    assert tokenizer(text).input_ids == [END, *text.encode()]
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == END


@pytest.mark.parametrize("kind", ["attention", "scan", "transformer"])
def test_padding_at_either_end_changes_nothing(kind: str, tmp_path: Path) -> None:
    pretrained(kind, **({} if kind == "transformer" else {"rtol": 1e-6})).save_pretrained(tmp_path)
    model, _ = loaded(tmp_path)
    short, long = torch.arange(4)[None], torch.arange(7)[None]
    padded = {
        "left": torch.cat((torch.full((1, 3), END), short), 1),
        "right": torch.cat((short, torch.full((1, 3), END)), 1),
    }
    with torch.no_grad():
        alone = model(short).logits
        for side, row in padded.items():
            mask = torch.ones(2, 7, dtype=torch.long)
            where = slice(3, None) if side == "left" else slice(4)
            mask[0] = 0
            mask[0, where] = 1
            found = model(torch.cat((row, long)), attention_mask=mask).logits[:1, where]
            assert torch.allclose(found, alone, atol=1e-4), side


def test_the_loss_is_that_of_the_next_tokens(model: Any) -> None:
    ids = torch.arange(10).view(2, 5)
    labels = ids.clone()
    labels[0, :3] = -100
    out = model(ids, labels=labels)
    scores = out.logits.detach().log_softmax(-1)
    rows = [(0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    expected = -sum(scores[i, t, ids[i, t + 1]] for i, t in rows) / len(rows)
    assert out.loss.item() == pytest.approx(float(expected), rel=1e-5)
    out.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_what_is_known_of_the_solve(tmp_path: Path) -> None:
    pretrained(train_max_steps=2, rtol=1e-5).save_pretrained(tmp_path)
    model, _ = loaded(tmp_path)
    ids = torch.arange(6)[None]
    out = model(ids)
    assert out.num_steps.shape == (1, 6)
    assert out.converged.all()
    assert out.num_steps.max() > 2
    assert model(ids, max_steps=0).num_steps.max() == 0
    assert model(ids, logits_to_keep=torch.tensor([1, 4])).num_steps.shape == (1, 2)
    assert model.train()(ids).num_steps.max() == 2
    text = model.eval().generate(ids, max_new_tokens=3, max_steps=0)
    assert text.shape == (1, 9)


def test_saved_again_it_is_the_same_model_for_both(folder: Path, tmp_path: Path) -> None:
    model, again = AutoModelForCausalLM.from_pretrained(folder), tmp_path / "again"
    model.save_pretrained(again)
    ids = torch.arange(5)[None]
    for other in (AutoModelForCausalLM, PretrainedLM):
        assert torch.equal(other.from_pretrained(again)(ids).logits, model(ids).logits)
    before, after = (json.loads((f / "config.json").read_text()) for f in (folder, again))
    assert {**after, **before} == after
    module = f"{after['auto_map']['AutoConfig'].split('.')[0]}.py"
    assert (again / module).read_text() == (folder / module).read_text()


def test_folders_of_before_are_read(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    old = {name: values[name] for name in ("settings", "tokenizer")}
    (folder / "config.json").write_text(json.dumps(old))
    (folder / "generation_config.json").unlink()
    model = AttractorForCausalLM.from_pretrained(folder)
    assert model.generate(torch.tensor([[END]]), max_new_tokens=2, do_sample=False).shape[1] <= 3


def test_a_fresh_model_and_its_sizes() -> None:
    config = AttractorConfig(settings=pretrained().settings.to_json())
    model: Any = AutoModelForCausalLM.from_config(config)
    assert (config.vocab_size, config.hidden_size, config.n_ctx) == (257, 16, CONTEXT)
    assert (config.num_attention_heads, config.num_hidden_layers) == (2, 3)
    # As our own classes draw it, and not as the package would.
    std = model.get_input_embeddings().weight.std().item()
    assert std == pytest.approx(16**-0.75, rel=0.1)


def write(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """Two tokens."""
    return model.generate(ids, max_new_tokens=2, do_sample=False, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, ids: m(ids, cache=DynamicCache()), ValueError, "equilibria.*DynamicCache"),
        (lambda m, ids: m(ids, output_hidden_states=True), TypeError, "output_hidden_states"),
        (lambda m, ids: m(ids, attention_mask=ids[:, 1:]), ValueError, "`attention_mask` must"),
        (lambda m, ids: m(ids[:, :3], attention_mask=torch.tensor([[1, 0, 1]])), ValueError,
         "within a text"),
        (lambda m, ids: write(m, ids, attention_mask=(ids < 5).int()), ValueError, "on the left"),
        (lambda m, ids: write(m, ids, attention_mask=0 * ids), ValueError, "prompt is empty"),
        (lambda m, ids: m(ids, use_cache=True), ValueError, "30 tokens are asked.*only 24 fit"),
        (lambda m, ids: m.resize_token_embeddings(300), ValueError, "cannot become 300"),
        (lambda m, ids: write(m, ids, cache=m.new_cache(), prompt_lookup_num_tokens=2), ValueError,
         "cache that can be cropped"),
        (lambda m, ids: m.new_cache().crop(-1), ValueError, "cannot take tokens back"),
        (lambda m, ids: m.new_cache().update(ids, ids, 0), TypeError, "language models of this"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_said(call: Any, error: Any, message: str, model: Any) -> None:
    with pytest.raises(error, match=message):
        call(model, torch.arange(30)[None])


def test_broken_folders_give_one_kind_of_error(tmp_path: Path) -> None:
    def load(path: Path) -> object:
        try:
            return AttractorForCausalLM.from_pretrained(path)
        except OSError as error:  # of the package: a file is missing, and is named
            raise CheckpointError(str(error)) from error

    path = tmp_path / "folder"
    for label, _ in folders(path):
        assert wrong_answer(load, path) is None, label


@pytest.mark.parametrize("option", [10**9, "evil", None, []])
def test_a_configuration_alone_is_checked(option: Any, folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["settings"]["model"]["num_heads"] = option
    (folder / "config.json").write_text(json.dumps(values))
    if option == 10**9:  # of the right type: refused where there are weights to compare
        with pytest.raises(CheckpointError, match="`num_heads` = 1,000,000,000 exceeds"):
            AutoModelForCausalLM.from_pretrained(folder)
        return
    with pytest.raises(CheckpointError, match="damaged, or of another version"):
        AutoConfig.from_pretrained(folder)


def test_another_configuration_is_compared_with_the_weights(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    config.settings["solve"]["eval_max_steps"] = 0
    model = AutoModelForCausalLM.from_pretrained(folder, config=config)
    assert model(torch.arange(5)[None]).num_steps.max() == 0
    config.settings["model"]["backbone_blocks"] = 1
    with pytest.raises(CheckpointError, match="do not fit the configuration"):
        AutoModelForCausalLM.from_pretrained(folder, config=config)


@pytest.mark.slow
def test_an_earlier_version_of_the_package_is_refused(new_process: Run) -> None:
    code = "import transformers.modeling_outputs as m; import tasks.lm.hub\n"
    code += "del m.CausalLMOutputWithPast.__dataclass_fields__['cache']; import tasks.lm.auto"
    ended = new_process(code)
    assert "ValueError: `tasks.lm.auto` needs the package `transformers`, 5.24" in ended.stderr


def test_weights_of_another_model_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.vocabulary.norm.weight"
    save_file({**weights, name: torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"do not fit.*{name}"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_truncated_file_and_a_pickle(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="may be truncated"):
        AutoModelForCausalLM.from_pretrained(folder)
    weights.unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)
