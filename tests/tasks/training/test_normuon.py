"""NorMuon: the updates of the public code, and who is trained by what."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from models import AttractorLM, LanguageSpec
from tasks.lm.config import PRESETS, LanguageConfig
from tasks.training.normuon import NorMuon, polar_factor
from tasks.training.optimizers import build_optimizers

# What `MuonAdamW` of https://github.com/jacobfa/Attractor (commit fcf045f) makes of the matrices
# below in three steps of four; run in float64 throughout, without `torch.compile` and the casts.
RECORDED = {
    (5, 3): [
        -0.02772337032976148, 0.5060829089289536, -0.10196794547336062, -0.4714124892861944,
        0.21138013934649974, 0.41863187226528253, -0.3287162986374218, -0.3429183274808086,
        0.41635921750002175, 0.2253284872009996, -0.4721377971138698, -0.10255847115427055,
        0.49496373827989054, -0.015110174427196092, -0.49291238268637405,
    ],
    (3, 4): [
        -0.03246951927206733, 0.4874986598694156, -0.09371452806036398, -0.46397192964679396,
        0.22751023883563298, 0.4143486827935624, -0.33487689760084244, -0.32764242263752424,
        0.4300939282179544, 0.2295352420677205, -0.4897837657172113, -0.1038794409349512,
    ],
}  # fmt: skip
SPEC = LanguageSpec(vocabulary=300, width=16, num_heads=2, backbone_blocks=1)
RELEASED = LanguageConfig.of(
    optimizer="normuon", weight_decay=0.2, adamw_rate=0.75, refiner_rate=0.5, refiner_decay=0.1
)


def matrix(shape: tuple[int, int], phase: float) -> Tensor:
    rows, columns = shape
    numbers = torch.arange(rows * columns, dtype=torch.float64)
    return torch.sin(1.7 * numbers + phase).view(rows, columns)


@pytest.mark.parametrize("shape", list(RECORDED))
def test_updates_are_those_of_the_public_code(shape: tuple[int, int]) -> None:
    weight = nn.Parameter(0.5 * matrix(shape, 0.0))
    optimizer = NorMuon([weight], 0.02)
    for step in range(3):
        optimizer.advance(step, step / 4)
        weight.grad = matrix(shape, 1.0 + step)
        optimizer.step()
    wanted = torch.tensor(RECORDED[shape], dtype=torch.float64).view(shape)
    torch.testing.assert_close(weight.detach(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_the_polar_factor_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=draw, dtype=torch.float64)
    u, s, v = torch.linalg.svd(noise, full_matrices=False)
    found = polar_factor(u @ torch.diag(s.clamp(min=0.1)) @ v)
    values = torch.linalg.svdvals(found)
    assert 0.85 < values.min() <= values.max() < 1.15
    # Left and right singular vectors are kept, so that the product with them is diagonal.
    product = u.T @ found @ v.T
    torch.testing.assert_close(product, torch.diag(product.diagonal()), rtol=0, atol=1e-10)


def test_adamw_trains_what_is_solved_and_what_is_no_matrix() -> None:
    model = AttractorLM(SPEC)
    normuon, adamw = build_optimizers(model, RELEASED)
    names = {id(p): name for name, p in model.named_parameters()}
    taken = [
        [names[id(p)] for p in group["params"]]
        for optimizer in (normuon, adamw)
        for group in optimizer.param_groups
    ]
    assert sorted(itertools.chain(*taken)) == sorted(names.values())
    backbone, others, solved, vectors = taken
    assert backbone
    assert all("backbone" in name for name in backbone)
    assert "vocabulary.embedding.weight" in others
    assert all("refiner" in name for name in solved + vectors)
    groups = adamw.param_groups
    assert [group["share"] for group in groups] == [0.75, 0.375, 0.375]
    assert [group["weight_decay"] for group in groups] == [0, 0.1, 0]
    assert {group["betas"] for group in groups} == {(0.8, 0.95)}


def test_a_model_that_is_solved_as_a_whole_has_adamw_alone() -> None:
    model = PRESETS["60m"].changed(model="deq", width=16, num_heads=2, vocabulary=300).build()
    (adamw,) = build_optimizers(model, RELEASED)
    assert isinstance(adamw, torch.optim.AdamW)
    found = [p for group in adamw.param_groups for p in group["params"]]
    assert len(found) == len(list(model.parameters()))


def test_decay_falls_and_momentum_rises() -> None:
    optimizer = NorMuon([nn.Parameter(torch.eye(2))], 0.1, weight_decay=0.4)
    (group,) = optimizer.param_groups
    for step, progress, momentum, decay in (
        (0, 0.0, 0.85, 0.4),
        (150, 0.5, 0.9, 0.2),
        (900, 1.0, 0.95, 0.0),
    ):
        optimizer.advance(step, progress)
        assert (group["momentum"], group["weight_decay"]) == pytest.approx((momentum, decay))


@pytest.mark.parametrize("name", ["60m", "140m", "370m", "770m", "1.3b"])
def test_published_presets_have_it(name: str) -> None:
    train = PRESETS[name].train
    assert (train.optimizer, train.weight_decay) == ("normuon", 0.2)
    assert train.schedule == "trapezoid-to-zero"
    assert train.adamw_rate * train.learning_rate == pytest.approx(
        {"770m": 5e-3, "1.3b": 4e-3}.get(name, 8e-3), rel=1e-9
    )
