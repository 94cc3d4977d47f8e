"""Decoding with a cache, against full passes; sampling, against its definition."""

from dataclasses import replace

import pytest
import torch

from model import GPT
from nanoloop.generate import KVCache, generate, sample_token
from nanoloop.options import UserError
from tests.models import CPU, SMALL, VARIANTS, random_model, random_tokens

# --------------------------------------------------------------------------------------------------
# The cache


def assert_same_logits(cached, full) -> None:
    torch.testing.assert_close(cached, full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("has_fixed_shapes", [False, True])
def test_decoding_with_a_cache_gives_the_logits_of_a_full_pass(name, has_fixed_shapes):
    """A prompt, several tokens behind it, then one at a time."""
    model = random_model(VARIANTS[name])
    tokens = random_tokens(2, 16).clamp(min=1)  # 0 begins another document, a prompt is one
    full = model(tokens)
    cache = KVCache(model.config, 2, torch.float32, CPU, has_fixed_shapes)
    # What stands in slots that are not filled must not count.
    cache.keys.fill_(100.0)
    cache.values.fill_(100.0)
    with torch.no_grad():
        assert_same_logits(cache.decode(model, tokens[:, :5]), full[:, 4])
        assert_same_logits(cache.decode(model, tokens[:, 5:8]), full[:, 7])
        for t in range(8, 16):
            assert_same_logits(cache.decode(model, tokens[:, t : t + 1]), full[:, t])


def test_decoding_in_bfloat16_errs_no_more_than_the_full_pass():
    """On a CPU the cache holds float32, because attention is faster there: nothing is lost."""
    model = random_model(SMALL)
    tokens = random_tokens(8, 16)
    exact = model(tokens)
    model.compute_dtype = torch.bfloat16
    full = model(tokens)
    cache = KVCache(model.config, 8, torch.bfloat16, CPU)
    with torch.no_grad():
        steps = [cache.decode(model, tokens[:, t : t + 1]) for t in range(16)]
    decoded = torch.stack(steps, dim=1)
    assert cache.keys.dtype == cache.values.dtype == torch.float32
    assert 0 < (decoded - exact).square().mean() < 1.5 * (full - exact).square().mean()


# --------------------------------------------------------------------------------------------------
# Text


def greedy_by_definition(model: GPT, prompt: list[int], count: int) -> list[int]:
    """Take the most probable token of a full pass over the growing text, without a cache."""
    text = list(prompt)
    for _ in range(count):
        logits = model(torch.tensor([text]))[0, -1]
        text.append(logits.argmax().item())
    return text[len(prompt) :]


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_text_is_that_of_full_passes(name):
    model = random_model(VARIANTS[name])
    prompt = [3, 1, 4]
    expected = greedy_by_definition(model, prompt, 13)
    assert generate(model, [prompt], 13, temperature=0) == [expected]


@pytest.mark.parametrize("name", ["modern", "gpt2", "windows"])
def test_several_prompts_do_not_disturb_each_other(name):
    model = random_model(VARIANTS[name])
    prompts = [[7, 2, 8], [3, 1, 4], [9, 2, 6]]
    together = generate(model, prompts, 8, temperature=0)
    assert together == [generate(model, [prompt], 8, temperature=0)[0] for prompt in prompts]
    assert [len(row) for row in together] == [8, 8, 8]


@pytest.mark.parametrize("name", ["modern", "gpt2", "windows"])
@pytest.mark.parametrize("prompt_length", [3, 16, 25])
def test_beyond_the_context_each_token_follows_from_the_latest_ones(name, prompt_length):
    """The context begins again with its latest 8 tokens when all 16 are in use, twice here."""
    model = random_model(VARIANTS[name])
    prompt = random_tokens(1, prompt_length)[0].tolist()
    new = generate(model, [prompt], 24, temperature=0)[0]
    text = prompt + new
    begin = max(0, prompt_length - 16)
    for end in range(prompt_length, prompt_length + 24):
        if end - begin > 16:
            begin = end - 8
        logits = model(torch.tensor([text[begin:end]]))[0, -1]
        assert text[end] == logits.argmax().item()


def test_generation_ends_with_the_stop_token_and_shows_each_token():
    model = random_model(SMALL)
    free = generate(model, [[3]], 12, temperature=0)[0]
    stop = free[4]
    columns = []
    stopped = generate(
        model,
        [[3]],
        12,
        temperature=0,
        stop_token=stop,
        on_token=lambda column: columns.append(column.item()),
    )
    length = free.index(stop)
    assert stopped == [free[:length]]
    assert columns == free[: length + 1]


def test_a_finished_row_repeats_its_last_token_while_others_continue():
    model = random_model(SMALL)
    prompts = [[7], [3]]
    free = generate(model, prompts, 12, temperature=0)
    stop = free[0][2]
    assert stop not in free[1] and stop not in free[0][:2]
    columns = []
    generate(
        model,
        prompts,
        12,
        temperature=0,
        stop_token=stop,
        on_token=lambda column: columns.append(column.tolist()),
    )
    finished, other = zip(*columns)
    assert list(finished) == free[0][:2] + 10 * [stop]
    assert list(other) == free[1]


def test_a_seed_fixes_the_text_and_another_changes_it():
    model = random_model(SMALL)
    first, again, other = (generate(model, [[3]], 30, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_generation_restores_the_mode_of_the_model():
    """Dropout does not act while text is generated, and acts again afterwards."""
    model = random_model(replace(SMALL, dropout=0.5)).train()
    first, again = (generate(model, [[3]], 9, temperature=0) for _ in range(2))
    assert first == again
    assert model.training


# --------------------------------------------------------------------------------------------------
# Sampling


def shares(**options) -> list[float]:
    """Sample 4,000 times from four tokens with probabilities 0.5, 0.25, 0.15 and 0.1."""
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(4000, 4)
    rng = torch.Generator().manual_seed(0)
    options = {"temperature": 1.0, "top_k": None, "top_p": None} | options
    tokens = sample_token(logits, **options, rng=rng)
    return (tokens.bincount(minlength=4) / 4000).tolist()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 99}, [0.5, 0.25, 0.15, 0.1]),  # more than there are
        ({"top_p": 0.7}, [2 / 3, 1 / 3, 0, 0]),  # 0.5 does not hold 0.7, 0.75 does
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 1e-300}, [1, 0, 0, 0]),  # 0 in float32
    ],
    ids=str,
)
def test_sampling_follows_temperature_top_k_and_top_p(options, expected):
    assert shares(**options) == pytest.approx(expected, abs=0.03)
    assert [share > 0 for share in shares(**options)] == [share > 0 for share in expected]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"prompts": []}, "every prompt needs at least one token"),
        ({"prompts": [[]]}, "every prompt needs at least one token"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 to 10,000,000, got 0"),
        ({"temperature": -1}, "temperature must be 0, or at least 0.0001, got -1"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0}, "top_p must be in .0, 1., got 0"),
    ],
    ids=str,
)
def test_generation_refuses_values_out_of_range(wrong, message):
    with pytest.raises(UserError, match=message):
        generate(GPT(SMALL), **({"prompts": [[1]], "max_new_tokens": 2} | wrong))
