"""Optimizers and schedule, against slow references and the claims of their papers."""

from dataclasses import replace

import pytest
import torch

from model import GPT, GPTConfig
from nanoloop.gpt2 import SWITCHES
from nanoloop.muon import Muon, orthogonalize
from train import TrainConfig, lr_scale, make_optimizers, set_schedule

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

# --------------------------------------------------------------------------------------------------
# Muon


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (64, 16)])
def test_orthogonalizing_drives_singular_values_to_one_and_keeps_the_directions(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    result = orthogonalize(matrices)
    assert result.shape == matrices.shape
    singular_values = torch.linalg.svdvals(result)
    assert singular_values.min() > 0.7 and singular_values.max() < 1.2
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    nearest = u @ v  # the polar factor: the nearest matrix with singular values 1
    alignment = torch.nn.functional.cosine_similarity(result.flatten(1), nearest.flatten(1))
    assert alignment.min() > 0.99


def test_orthogonalizing_does_not_depend_on_the_scale():
    torch.manual_seed(0)
    matrix = torch.randn(1, 16, 16)
    expected = orthogonalize(matrix)
    torch.testing.assert_close(orthogonalize(matrix * 1000), expected, atol=1e-3, rtol=1e-3)


def test_a_matrix_without_gradient_stays_as_it_is():
    assert not orthogonalize(torch.zeros(1, 4, 4)).any()


def test_muon_steps_as_its_definition_one_matrix_at_a_time():
    torch.manual_seed(0)
    shapes = [(8, 8), (32, 8), (8, 8), (8, 32)]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    expected = [p.detach().clone() for p in params]
    momenta = [torch.zeros_like(p) for p in params]
    optimizer = Muon(params, lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(3):
        for p, target, momentum in zip(params, expected, momenta):
            p.grad = torch.randn_like(p)
            momentum.mul_(0.9).add_(p.grad, alpha=0.1)
            nesterov = 0.1 * p.grad + 0.9 * momentum
            rows, columns = p.shape
            update = orthogonalize(nesterov[None])[0] * max(1, rows / columns) ** 0.5
            is_along = update * target > 0  # cautious: decay acts along the update only
            target -= 0.1 * (update + 0.2 * target * is_along)
        optimizer.step()
        for p, target in zip(params, expected):
            torch.testing.assert_close(p.detach(), target, atol=1e-5, rtol=1e-4)


def test_muon_agrees_with_torchs_where_both_do_the_same(monkeypatch):
    """torch.optim.Muon repeats one polynomial; with its coefficients ours takes the same step."""
    monkeypatch.setattr("nanoloop.muon.POLAR_EXPRESS", [(3.4445, -4.775, 2.0315)] * 5)
    torch.manual_seed(0)
    start = torch.randn(32, 32)
    grad = torch.randn(32, 32)
    steps = []
    for optimizer, options in ((Muon, {}), (torch.optim.Muon, {"nesterov": True})):
        p = torch.nn.Parameter(start.clone())
        p.grad = grad.clone()
        optimizer([p], lr=0.1, momentum=0.95, weight_decay=0.0, **options).step()
        steps.append((p.detach() - start).flatten())
    ours, reference = steps
    # The reference computes in bfloat16.
    assert torch.nn.functional.cosine_similarity(ours, reference, dim=0) > 0.99
    assert ours.norm().item() == pytest.approx(reference.norm().item(), rel=0.05)


# --------------------------------------------------------------------------------------------------
# Groups


@pytest.mark.parametrize(
    "switches",
    [{}, SWITCHES, {"activation": "swiglu", "n_kv_head": 1}, {"tie_embeddings": True}],
    ids=["modern", "gpt2", "swiglu_grouped", "tied"],
)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_group(optimizer, switches):
    config = replace(SMALL, optimizer=optimizer, **switches)
    model = GPT(config)
    groups = [group for o in make_optimizers(model, config) for group in o.param_groups]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_muon_has_the_hidden_matrices_and_nothing_else():
    model = GPT(SMALL)
    adamw, muon = make_optimizers(model, SMALL)
    of_muon = {id(p) for p in muon.param_groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in of_muon}
    assert {name.split(".")[-2] for name in names} == {"c_q", "c_k", "c_v", "c_proj", "c_fc"}
    assert len(names) == 2 * 6
    rates = {group["peak_lr"] for group in adamw.param_groups}
    assert rates == {SMALL.embed_lr, SMALL.head_lr, SMALL.scalar_lr}


def test_groups_do_not_depend_on_the_rates():
    """Optimizer states are restored by group, so equal rates must not merge two groups."""

    def sizes(config: TrainConfig) -> list[list[int]]:
        optimizers = make_optimizers(GPT(config), config)
        return [[len(group["params"]) for group in o.param_groups] for o in optimizers]

    assert sizes(replace(SMALL, embed_lr=0.0, head_lr=0.0, scalar_lr=0.0)) == sizes(SMALL)


def test_adamw_alone_is_torchs_adamw_with_nanogpts_decay_rule():
    """Three steps of our groups against torch.optim.AdamW set up by hand."""
    config = replace(
        SMALL, optimizer="adamw", learning_rate=0.01, weight_decay=0.1, eps=1e-6, **SWITCHES
    )
    torch.manual_seed(0)
    ours = GPT(config)
    other = GPT(config)
    other.load_state_dict(ours.state_dict())
    matrices = [p for p in other.parameters() if p.dim() >= 2]
    vectors = [p for p in other.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )
    tokens = torch.randint(0, 50, (2, 16))
    for model, optimizers in ((ours, make_optimizers(ours, config)), (other, [reference])):
        for _ in range(3):
            model.zero_grad()
            model(tokens, tokens).backward()
            for optimizer in optimizers:
                optimizer.step()
    for (name, p), expected in zip(ours.named_parameters(), other.parameters()):
        torch.testing.assert_close(p, expected, atol=2e-5, rtol=1e-3, msg=name)


# --------------------------------------------------------------------------------------------------
# Schedule


def scales(config: TrainConfig, *progress: float) -> list[float]:
    return [lr_scale(fraction, config) for fraction in progress]


def test_the_learning_rate_rises_stays_and_falls():
    config = replace(SMALL, warmup=0.1, decay=0.5, final_lr=0.2)
    assert scales(config, 0, 0.05, 0.1, 0.3, 0.5) == pytest.approx([0.01, 0.5, 1, 1, 1])
    assert scales(config, 0.75, 1.0) == pytest.approx([0.6, 0.2])


def test_a_cosine_leaves_the_peak_slowly():
    linear = replace(SMALL, decay=0.5, final_lr=0.2)
    cosine = replace(linear, decay_shape="cosine")
    assert scales(cosine, 0.5, 0.75, 1.0) == pytest.approx([1, 0.6, 0.2])
    assert lr_scale(0.625, cosine) > lr_scale(0.625, linear)


def test_without_warmup_and_decay_the_rate_stays():
    assert scales(replace(SMALL, warmup=0.0, decay=0.0), 0, 0.5, 1) == [1, 1, 1]


def test_the_schedule_reaches_every_group():
    config = replace(
        SMALL, decay=1.0, final_lr=0.0, momentum=0.95, momentum_warmup=0.5, weight_decay=0.3
    )
    optimizers = make_optimizers(GPT(config), config)
    set_schedule(optimizers, 0.25, config)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        assert group["lr"] == pytest.approx(0.75 * group["peak_lr"])
    muon = optimizers[1].param_groups[0]
    assert muon["momentum"] == pytest.approx(0.90)
    assert muon["weight_decay"] == pytest.approx(0.3 * 0.75)


def test_the_nearest_limit_ends_the_run():
    config = replace(SMALL, max_steps=100, max_tokens=32 * 50, max_seconds=10.0)
    assert config.progress(25, seconds=1.0) == 0.5  # half of the tokens
    assert config.progress(10, seconds=9.0) == 0.9
    assert replace(config, max_steps=20).progress(20, seconds=0.0) == 1.0
    # The last batch may exceed the limit; progress does not.
    assert config.progress(60, seconds=0.0) == 1.0


def test_the_options_of_a_run_contain_the_options_of_its_model():
    assert isinstance(SMALL, GPTConfig)
