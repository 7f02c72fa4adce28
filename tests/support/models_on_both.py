"""Every model on both devices, forward and backward; see `on_both`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, get_args

import torch
from on_both import same
from torch import nn

from models import (
    AttractorLM,
    GridAttractor,
    GridSpec,
    GridTransformer,
    LanguageSpec,
    ParcaeLM,
    Reasoner,
    TokenLayout,
    TransformerLM,
    recompute_activations,
)
from models.language import Mixer
from models.reasoners import UPDATES

SIDE, SYMBOLS = 4, 4
UNITS = tuple(tuple(i // SIDE if kind else i % SIDE for i in range(SIDE**2)) for kind in (0, 1))
TEXT = LanguageSpec(
    vocabulary=11, width=16, num_heads=2, backbone_blocks=1, refiner_blocks=1, context=16
)


def _spec(layout: Any = "candidates") -> GridSpec:
    return GridSpec(num_symbols=SYMBOLS, side=SIDE, units=UNITS, layout=layout, width=8)


def _text(mixer: str) -> nn.Module:
    return AttractorLM(dataclasses.replace(TEXT, mixer=mixer))


def _recomputing() -> nn.Module:
    model = GridAttractor(_spec("cells"))
    recompute_activations(model)
    return model


GRIDS: dict[str, Callable[[], nn.Module]] = {
    **{f"grid of {layout}": lambda layout=layout: GridAttractor(_spec(layout))
       for layout in get_args(TokenLayout)},
    **{name: lambda name=name: Reasoner(_spec(), UPDATES[name](_spec()), halting="right")
       for name in UPDATES},
    "q-learning": lambda: Reasoner(_spec(), UPDATES["hrm"](_spec()), halting="q-learning"),
    "random start": lambda: Reasoner(_spec(), UPDATES["eqr"](_spec()), start="random"),
    "unrolled": lambda: Reasoner(_spec(), UPDATES["trm"](_spec()), backward="unrolled"),
    "noisy start": lambda: GridAttractor(_spec(), start_noise=0.1),
    "recomputing": _recomputing,
    "transformer of grids": lambda: GridTransformer(_spec()),
}  # fmt: skip
TEXTS: dict[str, Callable[[], nn.Module]] = {
    **{f"text by {mixer}": lambda mixer=mixer: _text(mixer) for mixer in get_args(Mixer)},
    "transformer": lambda: TransformerLM(TEXT),
    "Parcae": lambda: ParcaeLM(TEXT),
}


def _passes(name: str, device: torch.device) -> Any:
    build = GRIDS.get(name) or TEXTS[name]
    model = build().double().to(device)
    x = torch.randint(SYMBOLS + 1, (2, SIDE**2), generator=torch.Generator().manual_seed(2))
    x = x.to(device)
    # From here on, the devices draw the same numbers.
    torch.manual_seed(1)
    out = model(x, max_steps=2)
    found: dict[str, Any] = {"logits": out.logits, "halt": getattr(out, "halt", None)}
    (out.logits.square().mean() + (0 if found["halt"] is None else out.halt.sum())).backward()
    found["gradients"] = {key: value.grad for key, value in model.named_parameters()}
    model.eval()
    with torch.no_grad():
        fresh = torch.tensor([True, False], device=device)
        again = model(x, start=out.state, fresh=fresh, max_steps=3)
        found["again"] = again.logits
        unsolved = model(x, max_steps=0)
        found["no step"] = unsolved.logits
        for kind, out in (("again", again), ("no step", unsolved)):
            if (s := out.solution) is not None:
                found[f"evidence, {kind}"] = s.residual, s.result, s.num_steps
        if name in TEXTS:
            padded = torch.arange(8, device=device) >= torch.tensor([[0], [2]], device=device)
            whole = torch.ones_like(padded)
            found["cached"] = _generated(model, x, padded), _generated(model, x, whole)
    return found


def _generated(model: Any, ids: torch.Tensor, valid: torch.Tensor) -> Any:
    """Logits of a prompt, whose padding is not valid, and of a token after it."""
    first, cache = model.extend(ids[:, :8], model.empty_cache(valid), max_steps=2)
    second, _ = model.extend(ids[:, 8:9], cache, max_steps=2)
    return first.logits[valid], second.logits


def passes(name: str) -> None:
    """A training pass, and passes of a trained model."""
    # Llama's norms round to float32.
    same(functools.partial(_passes, name), slack=1e6 if "llama" in name else 1.0)


def _autocast(name: str, device: torch.device) -> Any:
    model = {**GRIDS, **TEXTS}[name]().to(device)
    x = torch.arange(16, device=device).remainder(5)[None]
    torch.manual_seed(1)
    with torch.autocast(device.type, torch.bfloat16):
        logits = model(x, max_steps=3).logits
    logits.float().square().mean().backward()
    return logits.shape, [p.grad.isfinite().all() for p in model.parameters() if p.grad is not None]


def autocast(name: str) -> None:
    """A training pass in bfloat16: devices differ in what they lower, so no values are compared."""
    same(functools.partial(_autocast, name))
