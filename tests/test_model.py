"""The model: what every causal language model must do, for every switch.

That the classic switches are GPT-2 is shown in test_gpt2.py.
"""

import math
from dataclasses import replace

import pytest
import torch

from model import GPT, GPTConfig, rotate
from nanoloop.device import flops_per_token
from nanoloop.gpt2 import SWITCHES
from tests.models import SMALL, VARIANTS, random_model, random_tokens

# --------------------------------------------------------------------------------------------------
# What a prediction depends on


@pytest.mark.parametrize("name", VARIANTS)
def test_a_prediction_depends_on_nothing_that_comes_later(name):
    model = random_model(VARIANTS[name])
    tokens = random_tokens(2, 16)
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 7) % 50
    before = model(tokens)
    after = model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_prediction_depends_on_no_other_row(name):
    model = random_model(VARIANTS[name])
    tokens = random_tokens(3, 16)
    torch.testing.assert_close(model(tokens)[1:2], model(tokens[1:2]), atol=1e-4, rtol=1e-4)


def test_a_window_hides_what_lies_before_it():
    """Two layers with a window of 3, and no long one between them, reach back 4 tokens."""
    config = replace(SMALL, n_layer=3, window_pattern="S", window_size=3, value_embeds=1)
    assert [config.window(layer) for layer in range(3)] == [3, 3, 16]  # the last is always long
    model = random_model(config)
    tokens = random_tokens(1, 16)
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 50
    inputs = []
    model.h[2].register_forward_pre_hook(lambda block, args: inputs.append(args[0]))
    model(tokens)
    model(changed)
    difference = (inputs[0] - inputs[1]).abs().amax(dim=-1)[0]  # (T,), at the last layer
    assert (difference > 1e-6).tolist() == [True] * 5 + [False] * 11


def test_with_a_document_mask_each_document_is_predicted_as_if_it_stood_alone():
    """Rotary positions are relative, so a document's position in the row does not matter."""
    config = VARIANTS["documents"]
    model = random_model(config)
    first, second = random_tokens(2, 8).clamp(min=1)
    first[0] = config.document_token
    second[0] = config.document_token
    row = torch.cat([first, second])[None]
    together = model(row)[0]
    torch.testing.assert_close(together[:8], model(first[None])[0])
    torch.testing.assert_close(together[8:], model(second[None])[0])
    unmasked = random_model(replace(config, document_mask=False))
    assert not torch.allclose(unmasked(row)[0, 8:], together[8:])


def test_rotation_makes_scores_depend_on_distance_alone():
    model = GPT(SMALL)
    torch.manual_seed(0)
    q = torch.randn(8).expand(1, 16, 1, 8)  # one vector at all 16 positions
    k = torch.randn(8).expand(1, 16, 1, 8)
    rotated_q = rotate(q, model.cos, model.sin)[0, :, 0]
    rotated_k = rotate(k, model.cos, model.sin)[0, :, 0]
    scores = rotated_q @ rotated_k.T  # (16, 16): query at position i, key at position j
    for distance in (0, 1, 5):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores[5, 0], scores[0, 0])


def test_padding_the_vocabulary_changes_no_prediction():
    """50 tokens have tables of 64 rows; the other 14 have no output, whatever their weights."""
    model = random_model(SMALL)
    tokens = random_tokens(2, 16)
    assert model.wte.num_embeddings == model.lm_head.out_features == 64
    logits = model(tokens)
    assert logits.shape == (2, 16, 50)
    with torch.no_grad():
        model.lm_head.weight[50:] = 1000.0
    assert torch.equal(model(tokens), logits)


def bigram_rows_of_all_pairs(rows: int) -> torch.Tensor:
    """Return the row of each pair of tokens: (50, 50), by token and the token before it."""
    table = GPT(replace(SMALL, bigram_rows=rows)).bigrams
    table.weight.data = torch.arange(float(rows))[:, None]
    tokens, previous = torch.meshgrid(torch.arange(50), torch.arange(50), indexing="ij")
    return table(tokens, previous, vocab_size=50)[..., 0]


def test_with_v_squared_rows_each_pair_of_tokens_has_its_own():
    assert len(bigram_rows_of_all_pairs(50 * 50).unique()) == 50 * 50


def test_fewer_rows_are_shared_by_pairs_that_differ_in_either_token():
    rows = bigram_rows_of_all_pairs(37)
    assert len(rows.unique()) == 37
    for token in range(50):
        assert len(rows[token].unique()) > 15
        assert len(rows[:, token].unique()) > 15


# --------------------------------------------------------------------------------------------------
# Training


def test_initial_deviations_are_those_of_the_table():
    torch.manual_seed(0)
    model = GPT(replace(SMALL, n_embd=128, vocab_size=1000))
    hidden = 0.6 / math.sqrt(128)
    expected = {
        "wte.weight": 0.8,
        "value_embeds.3.weight": 0.01,
        "h.0.attn.c_q.weight": hidden,
        "h.2.mlp.c_fc.weight": hidden,
        "h.0.attn.c_proj.weight": 0.0,
        "h.3.mlp.c_proj.weight": 0.0,
        "lm_head.weight": 0.001,
        "h.3.attn.value_gate.weight": 0.0,
    }
    for name, deviation in expected.items():
        assert model.get_parameter(name).std().item() == pytest.approx(deviation, rel=0.05), name


def test_gpt2s_initial_deviations_are_gpt2s():
    torch.manual_seed(0)
    model = GPT(replace(SMALL, n_embd=128, vocab_size=1000, **SWITCHES))
    residual = 0.02 / math.sqrt(2 * 4)
    expected = {
        "wte.weight": 0.02,
        "wpe.weight": 0.02,
        "h.0.attn.c_q.weight": 0.02,
        "h.0.attn.c_proj.weight": residual,
        "h.0.mlp.c_proj.weight": residual,
        "h.1.mlp.c_fc.bias": 0.0,
    }
    for name, deviation in expected.items():
        assert model.get_parameter(name).std().item() == pytest.approx(deviation, rel=0.05), name


@pytest.mark.parametrize("name", VARIANTS)
def test_one_batch_can_be_overfitted_and_every_parameter_has_a_gradient(name):
    torch.manual_seed(0)
    model = GPT(VARIANTS[name])
    tokens = random_tokens(2, 16)
    targets = random_tokens(2, 16, seed=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(26):
        optimizer.zero_grad()
        loss = model(tokens, targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_dropout_acts_in_training_only():
    model = random_model(replace(SMALL, dropout=0.5))
    tokens = random_tokens(1, 16)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_activations_stay_close_to_float32(name):
    exact = random_model(VARIANTS[name])
    coarse = GPT(VARIANTS[name], torch.bfloat16).eval()
    coarse.load_state_dict(exact.state_dict())
    tokens = random_tokens(4, 16)
    targets = random_tokens(4, 16, seed=2)
    assert coarse(tokens).dtype == torch.float32
    assert coarse(tokens, targets).item() == pytest.approx(exact(tokens, targets).item(), rel=0.02)


def test_flops_count_every_matrix_product():
    """6 FLOPs per weight and token, and 12·C per layer and attended position."""
    config = GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=16, value_embeds=0)
    attention = 4 * 16 * 16
    mlp = 2 * 4 * 16 * 16
    head = 64 * 16
    weights = 2 * (attention + mlp) + head
    assert flops_per_token(GPT(config)) == 6 * weights + 12 * 16 * (8 + 8)
    windowed = replace(config, window_pattern="SL", window_size=4)
    assert flops_per_token(GPT(windowed)) == 6 * weights + 12 * 16 * (4 + 8)


# --------------------------------------------------------------------------------------------------
# Sizes


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n_embd": 30}, "n_embd=30 is not divisible by n_head=4"),
        ({"n_kv_head": 3}, "n_head=4 is not divisible by n_kv_head=3"),
        ({"n_embd": 36}, "even head size: n_embd=36 / n_head=4"),
        ({"value_embeds": 3}, "value_embeds=3 must be 0 to 2"),
        ({"window_pattern": "SXL"}, "window_pattern=SXL must be S and L"),
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_their_values(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(AssertionError, match="17 tokens exceed block_size=16"):
        GPT(SMALL)(random_tokens(1, 17))
