"""Optimizers and schedule, against slow references and the papers' claims."""

from dataclasses import replace

import pytest
import torch

from model import GPT, GPTConfig
from nanoloop.gpt2 import SWITCHES as GPT2_SWITCHES
from train import Muon, TrainConfig, lr_scale, make_optimizers, orthogonalize, set_schedule

CPU = torch.device("cpu")
SMALL = TrainConfig(
    block_size=16,
    vocab_size=50,
    n_layer=2,
    n_head=2,
    n_embd=32,
    value_embeds=1,
    batch_tokens=32,
    max_steps=1,
)


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (64, 16)])
def test_orthogonalizing_drives_singular_values_to_one_and_keeps_the_directions(shape):
    torch.manual_seed(0)
    matrix = torch.randn(3, *shape)
    result = orthogonalize(matrix)
    assert result.shape == matrix.shape
    singular = torch.linalg.svdvals(result)
    assert singular.min() > 0.7 and singular.max() < 1.2
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    nearest = u @ v  # the polar factor: the nearest matrix with singular values 1
    alignment = (result * nearest).sum(dim=(1, 2)) / (
        result.norm(dim=(1, 2)) * nearest.norm(dim=(1, 2))
    )
    assert alignment.min() > 0.99


def test_orthogonalizing_does_not_care_for_the_scale():
    torch.manual_seed(0)
    matrix = torch.randn(1, 16, 16)
    torch.testing.assert_close(
        orthogonalize(matrix * 1000), orthogonalize(matrix), atol=1e-3, rtol=1e-3
    )
    assert (
        orthogonalize(torch.zeros(1, 4, 4)).abs().max() == 0
    )  # a matrix without gradient stays where it is


def test_muon_steps_as_its_definition_one_matrix_at_a_time():
    torch.manual_seed(0)
    params = [
        torch.nn.Parameter(torch.randn(shape)) for shape in [(8, 8), (32, 8), (8, 8), (8, 32)]
    ]
    expected = [p.detach().clone() for p in params]
    means = [torch.zeros_like(p) for p in params]
    optimizer = Muon(params, lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(3):
        for p, target, mean in zip(params, expected, means):
            p.grad = torch.randn_like(p)
            mean.mul_(0.9).add_(p.grad, alpha=0.1)
            nesterov = 0.1 * p.grad + 0.9 * mean
            update = orthogonalize(nesterov[None])[0] * max(1, p.size(0) / p.size(1)) ** 0.5
            decayed = torch.where(
                update * target > 0, 0.2 * target, 0.0
            )  # cautious: only along the update
            target -= 0.1 * (update + decayed)
        optimizer.step()
        for p, target in zip(params, expected):
            torch.testing.assert_close(p.detach(), target, atol=1e-5, rtol=1e-4)


def test_muon_agrees_with_torchs_own_where_both_do_the_same(monkeypatch):
    """torch.optim.Muon repeats one polynomial and decays plainly; given its coefficients, ours takes the same step."""
    import train

    monkeypatch.setattr(train, "POLAR_EXPRESS", ((3.4445, -4.775, 2.0315),) * 5)
    torch.manual_seed(0)
    start, grad = torch.randn(32, 32), torch.randn(32, 32)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours.grad, theirs.grad = grad.clone(), grad.clone()
    Muon([ours], lr=0.1, momentum=0.95, weight_decay=0.0).step()
    torch.optim.Muon([theirs], lr=0.1, momentum=0.95, weight_decay=0.0, nesterov=True).step()
    ours_step, theirs_step = (p.detach() - start for p in (ours, theirs))
    assert (
        torch.nn.functional.cosine_similarity(ours_step.flatten(), theirs_step.flatten(), dim=0)
        > 0.99
    )  # theirs is bf16
    assert ours_step.norm().item() == pytest.approx(theirs_step.norm().item(), rel=0.05)


@pytest.mark.parametrize(
    "switches",
    [{}, GPT2_SWITCHES, dict(activation="swiglu", n_kv_head=1), dict(tie_embeddings=True)],
)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_group(optimizer, switches):
    config = replace(SMALL, optimizer=optimizer, **switches)
    model = GPT(config)
    held = [
        id(p)
        for o in make_optimizers(model, config, CPU)
        for group in o.param_groups
        for p in group["params"]
    ]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_muon_gets_the_hidden_matrices_and_nothing_else():
    model = GPT(SMALL)
    muon = make_optimizers(model, SMALL, CPU)[1]
    names = {
        name
        for name, p in model.named_parameters()
        if any(p is q for q in muon.param_groups[0]["params"])
    }
    kinds = {"c_q", "c_k", "c_v", "c_proj", "c_fc"}
    assert {name.split(".")[-2] for name in names} == kinds and len(names) == 2 * 6
    rates = {group["peak_lr"] for group in make_optimizers(model, SMALL, CPU)[0].param_groups}
    assert rates == {SMALL.embed_lr, SMALL.head_lr, SMALL.scalar_lr}


def test_groups_do_not_depend_on_the_rates():
    """A checkpoint's optimizer state is matched to parameters by their order: equal rates must not merge two groups."""

    def sizes(**rates) -> list[list[int]]:
        config = replace(SMALL, **rates)
        return [
            [len(g["params"]) for g in o.param_groups]
            for o in make_optimizers(GPT(config), config, CPU)
        ]

    assert sizes(embed_lr=0.0, head_lr=0.0, scalar_lr=0.0) == sizes()


def test_adamw_alone_is_torchs_adamw_with_nanogpts_decay_rule():
    """Three steps of our groups against torch.optim.AdamW set up by hand."""
    config = replace(
        SMALL, optimizer="adamw", learning_rate=0.01, weight_decay=0.1, eps=1e-6, **GPT2_SWITCHES
    )
    torch.manual_seed(0)
    ours, theirs = GPT(config), GPT(config)
    theirs.load_state_dict(ours.state_dict())
    optimizers = make_optimizers(ours, config, CPU)
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )
    tokens = torch.randint(0, 50, (2, 16))
    for _ in range(3):
        for model, steps in ((ours, optimizers), (theirs, [reference])):
            model.zero_grad()
            model(tokens, tokens).backward()
            for optimizer in steps:
                optimizer.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3, msg=name)


def test_the_learning_rate_rises_stays_and_falls():
    config = replace(SMALL, warmup=0.1, decay=0.5, final_lr=0.2)
    assert [lr_scale(p, config) for p in (0, 0.05, 0.1, 0.3, 0.5)] == pytest.approx(
        [0, 0.5, 1, 1, 1]
    )
    assert [lr_scale(p, config) for p in (0.75, 1.0)] == pytest.approx([0.6, 0.2])
    cosine = replace(config, decay_shape="cosine")
    assert [lr_scale(p, cosine) for p in (0.5, 0.75, 1.0)] == pytest.approx([1, 0.6, 0.2])
    assert lr_scale(0.625, cosine) > lr_scale(0.625, config)  # a cosine leaves its peak slowly
    flat = replace(config, warmup=0.0, decay=0.0)
    assert [lr_scale(p, flat) for p in (0, 0.5, 1)] == [1, 1, 1]


def test_the_schedule_reaches_every_group():
    config = replace(
        SMALL, decay=1.0, final_lr=0.0, momentum=0.95, momentum_warmup=0.5, weight_decay=0.3
    )
    optimizers = make_optimizers(GPT(config), config, CPU)
    set_schedule(optimizers, 0.25, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(0.75 * group["peak_lr"])
    muon = optimizers[1].param_groups[0]
    assert muon["momentum"] == pytest.approx(0.90) and muon["weight_decay"] == pytest.approx(
        0.3 * 0.75
    )


def test_the_budget_is_used_up_by_whichever_limit_comes_first():
    config = replace(SMALL, max_steps=100, max_tokens=32 * 50, max_seconds=10.0)
    assert config.progress(25, 1.0) == 0.5  # half of the tokens
    assert config.progress(10, 9.0) == 0.9
    assert replace(config, max_steps=20).progress(20, 0.0) == 1.0
    assert (
        config.progress(60, 0.0) == 1.0
    )  # the last batch may go beyond it; the learning rate does not


def test_model_config_is_part_of_train_config():
    assert isinstance(SMALL, GPTConfig)
