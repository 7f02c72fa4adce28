"""Models as they were released, converted: the same network, and clear words where it is none."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from released_weights import fill
from safetensors.torch import save_file
from torch import Tensor

import solvers
from tasks.checkpoints.checkpoint import Checkpoint
from tasks.checkpoints.file import CheckpointError
from tasks.lm.__main__ import main
from tasks.lm.commands import LanguageCommands
from tasks.lm.config import PRESETS
from tasks.lm.hub import PretrainedLM
from tasks.lm.released import configuration, convert, state_dict
from tasks.lm.released_tokenizer import ReleasedTokenizer
from tasks.lm.tokenizer import END, load_tokenizer, numbered_as_ours

WIDTH, VOCABULARY = 16, 264
# What `save_pretrained` of the public code writes for such a model, without options of no effect.
RELEASED: dict[str, Any] = {
    "_class_name": "AttractorConfig", "name": "small", "block_size": 32, "n_embd": WIDTH,
    "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2,
    "vocab_size": VOCABULARY, "padded_vocab_size": VOCABULARY, "causal": True,
    "rope_settings": {"use_rope": True, "rope_condense_ratio": 1, "rope_base": 50_000},
    "block_class_name": "TransformerPreNormBlock", "norm_class_name": "RMSNorm", "norm_eps": 1e-5,
    "mlp_class_name": "BaseMLP", "nonlin_name": "ReLU2", "bias": False, "qk_bias": False,
    "init_strategy": "scaled-zero", "mup_model_scaling_factor": 1, "clip_qkv": None,
    "qk_norm": True, "logit_softcap": None, "n_backbone_layers": 2, "n_fp_blocks": 2,
    "tie_embeddings": True, "solver": "anderson", "max_iter": 64, "min_iter": 6, "tol": 3e-4,
    "anderson_m": 5, "backward_type": "onestep", "layer_scale_init": 0.5, "gamma_max": 0.75,
}  # fmt: skip


def released_weights() -> dict[str, Tensor]:
    """Tensors by their names in the public code, filled as they were there."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCABULARY, WIDTH), "transformer.ln_f.weight": (WIDTH,)
    }  # fmt: skip
    for stack in ("prelude", "core_block"):
        for block in (0, 1):
            before = f"transformer.{stack}.{block}."
            for part in ("c_q", "c_k", "c_v", "c_proj"):
                shapes[f"{before}attn.{part}.weight"] = WIDTH, WIDTH
            shapes[f"{before}mlp.fc.weight"] = 4 * WIDTH, WIDTH
            shapes[f"{before}mlp.proj.weight"] = WIDTH, 4 * WIDTH
            gates = ("raw_gamma_attn", "raw_gamma_mlp") if stack == "core_block" else ()
            for part in ("norm_1.weight", "norm_2.weight", *gates):
                shapes[f"{before}{part}"] = (WIDTH,)
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    for seed, name in enumerate(sorted(weights)):
        if "norm" in name or "ln_f" in name:
            fill(weights[name], seed, 0.1, 1.0)
        else:
            fill(weights[name], seed, 0.5 if "gamma" in name else 0.2)
    angle = torch.arange(32.0)[:, None] * 50_000.0 ** (-torch.arange(4) / 4)
    weights["freqs_cis"] = torch.stack((angle.cos(), angle.sin()), -1)[None, :, None]
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return weights


def released_tokenizer() -> str:
    """A file of the form that the public code writes, with other splits at digits."""
    import tokenizers

    before, pattern = tokenizers.pre_tokenizers, r"\p{N}{1,2}| ?[^\s\p{N}]+|\s+"
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, fuse_unk=False))
    split = before.Split(tokenizers.Regex(pattern), "isolated", invert=False)
    over_bytes = before.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = before.Sequence([split, over_bytes])
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=262, show_progress=False, initial_alphabet=before.ByteLevel.alphabet(),
        special_tokens=["<|bos|>", "<|eos|>", "<|pad|>"],
    )  # fmt: skip
    inner.train_from_iterator(["hello hello 1234 there"] * 9, trainer)
    return inner.to_str()


@pytest.fixture
def in_float64() -> Iterator[None]:
    """Also what is computed in the default dtype, such as the angles of rotary positions."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as it was released."""
    made = tmp_path / "attractor-small"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(RELEASED))
    torch.save(released_weights(), made / "model.pt")
    (made / "tokenizer.json").write_text(released_tokenizer())
    return made


# Of the released `Attractor` in float64 with these weights, its own float32 parts lifted to
# float64: norm and some numbers of the states of three updates from the proposal (whose norm is
# the first), and of the logits after one, two, three and 2000 updates of its solver "fpi".
IDS = (torch.arange(20).view(2, 10) * 37 + 3) % 262
PROPOSAL = 3.4475576546092235
UPDATES = [
    (3.632883259921899, [0.05692550825129475, 0.19420674469280413, -0.10109546281733092]),
    (3.662040479937341, [0.06404913862847504, 0.19861888797712174, -0.09594788684675476]),
    (3.6616162316535736, [0.06261869105285174, 0.1999066948823962, -0.09644086502347163]),
]
LOGITS = {
    1: (112.09625579649732, [
        -0.9531976875990448, -0.9049813034190821, -0.6981253822376791, -0.7699734756785118,
    ]),
    2: (111.19414189058553, [
        -0.9412473735195658, -0.8936928356135415, -0.6896578234435016, -0.7589901907760906,
    ]),
    3: (111.24407678785973, [
        -0.9453806331672056, -0.8976133845027053, -0.6926669829384604, -0.7624132432982988,
    ]),
    2000: (111.24148356758863, [
        -0.944975627346012, -0.8972299519561674, -0.6923757523755469, -0.7620608906022112,
    ]),
}  # fmt: skip
SHOWN = [0, 1, 5, 263]


@pytest.mark.usefixtures("in_float64")
@torch.no_grad()
def test_updates_and_logits_are_those_of_the_released_module() -> None:
    path = Path("config.json")
    config = configuration(RELEASED, path)
    # The beginning of a text is the token 0 there, and END here.
    order = [*range(1, END + 1), 0]
    model: Any = config.build().eval()
    model.load_state_dict(state_dict(released_weights(), config, order, path))
    model.solving.solver = solvers.Picard(rtol=1e-15, atol=0.0)
    ours = torch.tensor([*order, *range(len(order), VOCABULARY)]).argsort()
    y0 = y = model.attractor.backbone(model.vocabulary(ours[IDS]))
    assert y.norm().item() == pytest.approx(PROPOSAL, rel=1e-12)
    for norm, some in UPDATES:
        y = model.solving.module(y, y0)
        assert y.norm().item() == pytest.approx(norm, rel=1e-12)
        assert y[1, -1, :3].tolist() == pytest.approx(some, rel=1e-12)
    for steps, (norm, some) in LOGITS.items():
        logits = model(ours[IDS], max_steps=steps).logits
        assert logits.norm().item() == pytest.approx(norm, rel=1e-12)
        assert logits[1, -1, ours[SHOWN]].tolist() == pytest.approx(some, rel=1e-12)


def test_what_a_configuration_becomes() -> None:
    config = configuration(RELEASED, Path("config.json"))
    spec, solve = config.spec(), config.solve
    assert (spec.width, spec.num_heads, spec.vocabulary, spec.context) == (16, 2, 264, 32)
    assert (spec.backbone_blocks, spec.refiner_blocks) == (2, 2)
    assert (spec.gate, spec.gate_start, spec.rope_base, spec.norm_eps) == (0.75, 0.5, 5e4, 1e-5)
    assert (solve.rtol, solve.min_steps, solve.eval_max_steps, solve.history) == (3e-4, 6, 64, 5)
    assert (solve.solver, solve.backward, solve.terms) == ("anderson", "neumann", 1)
    other = {**RELEASED, "solver": "fpi", "backward_type": "anderson", "_class_name": "EQLMConfig"}
    config = configuration(other, Path("config.json"))
    assert (config.solve.solver, config.solve.backward) == ("picard", "exact")


@pytest.mark.parametrize("size", ["140m", "370m", "770m"])
def test_the_released_sizes_become_the_presets(size: str) -> None:
    model, solve, data = (getattr(PRESETS[size], part) for part in ("model", "solve", "data"))
    backward = {"exact": "anderson", "neumann": "onestep"}[solve.backward]
    values = {
        **RELEASED, "n_embd": model.width, "intermediate_size": 4 * model.width,
        "num_attention_heads": model.num_heads, "num_key_value_heads": model.num_heads,
        "vocab_size": 32_768, "padded_vocab_size": 32_768, "block_size": data.context,
        "n_backbone_layers": model.backbone_blocks, "n_fp_blocks": model.refiner_blocks,
        "gamma_max": model.gate, "layer_scale_init": model.gate_start, "tol": solve.rtol,
        "min_iter": solve.min_steps, "max_iter": solve.eval_max_steps, "backward_type": backward,
    }  # fmt: skip
    assert configuration(values, Path("config.json")) == PRESETS[size]


def test_a_converted_model_evaluates_and_writes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("hello there 12 34 hello\n" * 600)
    assert main(["convert", str(folder)]) == 0
    run = "runs/lm/attractor-small"
    assert f"eval --checkpoint {run}" in capsys.readouterr().out
    held_out = ["--checkpoint", run, "--text", "text.txt", "--limit", "320", "--device", "cpu"]
    assert main(["eval", *held_out, "--json", "eval.json"]) == 0
    found = json.loads(Path("eval.json").read_text())["eval"]
    assert found["converged"] == 1.0
    assert found["mean_steps"] >= 6
    assert main(["internalise", *held_out, "--json", "internal.json"]) == 0
    assert main(["loops", run, *held_out[2:6], "--device", "cpu"]) == 0
    assert main(["generate", "hello", "--checkpoint", run, "--tokens", "5", "--device", "cpu"]) == 0
    assert main(["convert", str(folder)]) == 2
    assert "already" in capsys.readouterr().err
    PretrainedLM.of_checkpoint(Path(run) / "model.safetensors").save_pretrained(tmp_path / "hub")
    again = PretrainedLM.from_pretrained(tmp_path / "hub")
    _, model, _, tokenizer = LanguageCommands()._load(Path(run), "cpu")
    ids = torch.tensor([[END, *tokenizer.encode("hello 12")]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_other_files_of_weights_are_read(folder: Path, tmp_path: Path) -> None:
    def written(name: str) -> Checkpoint:
        return Checkpoint.load(convert(folder, tmp_path / name)[0])

    first = written("first")
    weights = torch.load(folder / "model.pt", weights_only=True)
    (folder / "model.pt").rename(folder / "pytorch_model.bin")
    second = written("second")
    (folder / "pytorch_model.bin").unlink()
    del weights["lm_head.weight"]  # which safetensors does not write twice
    save_file(
        {name: each.to(torch.bfloat16) for name, each in weights.items()},
        folder / "model.safetensors",
    )
    third = written("third")
    for name, tensor in first.group("average").items():
        assert torch.equal(second.group("average")[name], tensor)
        assert third.group("average")[name].dtype == torch.float32
        torch.testing.assert_close(third.group("average")[name], tensor, rtol=1e-2, atol=1e-2)


def test_the_tokenizer_has_the_numbers_of_the_embedding() -> None:
    import tokenizers

    text = "hello there 12345 <|bos|>\n wörld"
    file = released_tokenizer()
    theirs, found = tokenizers.Tokenizer.from_str(file), ReleasedTokenizer.of_file(file)
    known = found.encode("hello there 123")
    assert [found.order[i] for i in known] == theirs.encode("hello there 123").ids
    assert sorted(found.order) == list(range(262))
    assert (found.order[END], found.ends) == (0, (0, END))  # 1, the end of a text, comes first
    tokens = found.encode_batch([text])[0]
    assert tokens == [*found.encode(text), *found.ends]
    assert found.decode(tokens) == text
    again = load_tokenizer(found.to_json(), 264)
    assert again.encode(text) == found.encode(text)
    assert (again.size, again.ends) == (262, found.ends)
    fast, begin = numbered_as_ours(found)
    assert begin == "<|bos|>"
    assert fast.encode("hello 12").ids == [END, *found.encode("hello 12")]
    assert fast.encode("<|eos|>", add_special_tokens=False).ids == [found.ends[0]]


@pytest.mark.parametrize(
    "state", ['{"released": 3}', '{"released": []}', '{"released": {}, "more": 1}', '{"released": ']
)
def test_a_state_that_is_none_is_refused(state: str) -> None:
    with pytest.raises(ValueError, match="The tokenizer is broken"):
        load_tokenizer(state)


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def without(folder: Path, *names: str, **others: Tensor) -> None:
    weights = torch.load(folder / "model.pt", weights_only=True)
    kept = {name: each for name, each in weights.items() if name not in names}
    torch.save(kept | others, folder / "model.pt")


def turned(folder: Path) -> None:
    weights = torch.load(folder / "model.pt", weights_only=True)
    weights["freqs_cis"] = weights["freqs_cis"].flip(-1)
    torch.save(weights, folder / "model.pt")


def unsplit(folder: Path) -> None:
    file = json.loads((folder / "tokenizer.json").read_text())
    file["pre_tokenizer"] = file["pre_tokenizer"]["pretokenizers"][1]
    (folder / "tokenizer.json").write_text(json.dumps(file))


def unnamed(folder: Path, old: str, new: str) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace(old, new))


CONFIG = "config.json"
NORM, QUERY = "transformer.ln_f.weight", "transformer.prelude.0.attn.c_q.weight"
BROKEN: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: changed(f / CONFIG, _class_name="ParcaeConfig"),
     "describes a 'ParcaeConfig'; what can be converted are Attractors: 'AttractorConfig'"),
    (lambda f: (f / CONFIG).write_text("{}"), "describes another kind of model"),
    (lambda f: changed(f / CONFIG, nonlin_name="GELU"), "`nonlin_name` is 'GELU' instead of"),
    (lambda f: changed(f / CONFIG, num_key_value_heads=1), "`num_key_value_heads` is 1 instead"),
    (lambda f: changed(f / CONFIG, layer_scale_init=None), "the refiner has no gates"),
    (lambda f: changed(f / CONFIG, n_embd="wide"), "is not the configuration of a released model"),
    (lambda f: changed(f / CONFIG, rope_settings=3), "is not the configuration of a released"),
    (lambda f: changed(f / CONFIG, max_iter=-1), "is not the configuration of a released model"),
    (lambda f: changed(f / CONFIG, solver="newton"), "the option 'newton' is missing"),
    (lambda f: (f / CONFIG).write_text("[]"), "its options are not a JSON object"),
    (lambda f: (f / CONFIG).unlink(), "cannot be read .No such file or dir.*Name the folder"),
    (lambda f: (f / "model.pt").unlink(), "has no weights: it needs model.pt or pytorch_model.bin"),
    (lambda f: (f / "model.pt").write_bytes(b"PK" * 40), "is no file of weights that can be read"),
    (lambda f: torch.save({"model": {}}, f / "model.pt"), "something else than named tensors"),
    (lambda f: without(f, QUERY, NORM), f"missing: {NORM}, {QUERY}. Use the two files"),
    (lambda f: without(f, more=torch.ones(2)), "not of such a model: more"),
    (lambda f: without(f, **{NORM: torch.ones(3)}), r"another shape or type: .*\(3,\) torch.float"),
    (lambda f: without(f, **{NORM: torch.ones(16).long()}), "torch.int64 instead of"),
    (lambda f: without(f, **{"lm_head.weight": torch.ones(264, 16)}), "other than the embedding"),
    (turned, "are not those of the base 50000"),
    (lambda f: changed(f / CONFIG, rope_settings={"rope_base": 10}), "not those of the base 10"),
    (lambda f: (f / "tokenizer.json").unlink(), "There is no tokenizer at .*--tokenizer"),
    (lambda f: changed(f / "tokenizer.json", normalizer={"type": "NFC"}), "another `normalizer`"),
    (lambda f: changed(f / "tokenizer.json", pre_tokenizer={"pretokenizers": 3}), "does not split"),
    (unsplit, "does not split texts by a regular expression"),
    (lambda f: unnamed(f, "<|eos|>", "<|end|>"), r"it has no token '<\|eos\|>'"),
    (lambda f: unnamed(f, r"\\p{N}{1,2}|", "("), "its pattern is no regular expression"),
    (lambda f: (f / "tokenizer.json").write_text("}"), "it is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "message"), BROKEN)
def test_what_is_no_released_model_is_refused(
    broken: Callable[[Path], Any], message: str, folder: Path, tmp_path: Path
) -> None:
    broken(folder)
    with pytest.raises(CheckpointError, match=message):
        convert(folder, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    values = {**RELEASED, "vocab_size": 260, "padded_vocab_size": 260}
    (folder / CONFIG).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"The tokenizer has 262 tokens, .* knows 260"):
        convert(folder, tmp_path / "made")
