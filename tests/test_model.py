"""The model: oracles (naive attention, GPT-2 itself), and what any causal language model owes."""

import math
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import GPT, GPTConfig, KVCache, attend, flex_attend, rotate, sample_token
from nanoloop.gpt2 import SWITCHES as GPT2_SWITCHES
from nanoloop.gpt2 import published_weights

SMALL = GPTConfig(block_size=16, vocab_size=50, n_layer=4, n_head=4, n_embd=32, value_embeds=2)
# Every switch at least once, in combinations that meet each other.
VARIANTS = {
    "modern": SMALL,
    "gpt2": replace(SMALL, **GPT2_SWITCHES),
    "windows": replace(SMALL, window_pattern="SSL", window_size=5),
    "grouped_query": replace(SMALL, n_kv_head=2, value_embeds=1),
    "swiglu_tied": replace(SMALL, activation="swiglu", tie_embeddings=True, logit_softcap=None),
    "layer_norm_gelu": replace(SMALL, norm="layer", bias=True, activation="gelu", qk_norm=False),
    "bigrams": replace(SMALL, bigram_rows=50 * 50),
    "hashed_bigrams": replace(SMALL, bigram_rows=37, position="learned", residual_scalars=False),
    "documents": replace(
        SMALL, document_mask=True, document_token=0, window_pattern="SL", window_size=5
    ),
    "learned_windows": replace(
        SMALL, position="learned", residual_scalars=False, window_pattern="S", window_size=3
    ),
}


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """A model whose every parameter matters: at initialisation the zero projections would hide mistakes."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def random_tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def naive_attention(q, k, v, window: int, scale: float, documents=None) -> torch.Tensor:
    """Attention written as its definition: for every query a softmax over the keys it may see."""
    heads, T, S = q.size(1), q.size(2), k.size(2)
    out = torch.zeros_like(q)
    for b in range(q.size(0)):
        for h in range(heads):
            group = h * k.size(1) // heads  # query heads share key heads in consecutive groups
            for t in range(T):
                last = S - T + t
                seen = list(range(max(0, last - window + 1), last + 1))
                if documents is not None:
                    seen = [s for s in seen if documents[b, s] == documents[b, last]]
                weights = torch.softmax(k[b, group, seen] @ q[b, h, t] * scale, dim=0)
                out[b, h, t] = weights @ v[b, group, seen]
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    "T, S, window", [(9, 9, 9), (9, 9, 4), (9, 9, 1), (1, 9, 9), (1, 9, 4), (3, 9, 9), (3, 9, 4)]
)
def test_attention_is_the_naive_one(T, S, window, kv_heads):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 4, T, 8),
        torch.randn(2, kv_heads, S, 8),
        torch.randn(2, kv_heads, S, 8),
    )
    torch.testing.assert_close(attend(q, k, v, window, 0.3), naive_attention(q, k, v, window, 0.3))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_flex_attention_is_the_naive_one(kv_heads):
    """The kernel for windows on GPUs, run here without compilation."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 4, 32, 16),
        torch.randn(2, kv_heads, 32, 16),
        torch.randn(2, kv_heads, 32, 16),
    )
    documents = torch.tensor([[0] * 9 + [1] * 23, [1] * 30 + [2] * 2])
    for within in (None, documents):
        expected = naive_attention(q, k, v, 5, 0.3, within)
        torch.testing.assert_close(flex_attend(q, k, v, 5, 0.3, kv_heads != 4, within), expected)


@pytest.mark.parametrize("window", [12, 4])
def test_attention_within_documents_is_the_naive_one(window):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 12, 8), torch.randn(2, 2, 12, 8), torch.randn(2, 2, 12, 8)
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3], [1] * 12])
    out = attend(q, k, v, window, 0.3, documents=documents)
    torch.testing.assert_close(out, naive_attention(q, k, v, window, 0.3, documents))


def test_with_a_document_mask_each_document_is_predicted_as_if_it_stood_alone():
    """Rotary positions are relative, so a document's place in the row does not matter either."""
    model, (first, second) = random_model(VARIANTS["documents"]), random_tokens(2, 8).clamp(min=1)
    first[0] = second[0] = 0  # the token that begins a document
    together = model(torch.cat([first, second])[None])[0]
    torch.testing.assert_close(together[:8], model(first[None])[0])
    torch.testing.assert_close(together[8:], model(second[None])[0])
    unmasked = random_model(replace(VARIANTS["documents"], document_mask=False))
    assert not torch.allclose(unmasked(torch.cat([first, second])[None])[0, 8:], together[8:])


def test_rotation_makes_scores_depend_on_distance_alone():
    model = GPT(SMALL)
    q, k = torch.randn(8), torch.randn(8)
    at = [rotate(x.expand(1, 1, 16, 8), model.cos, model.sin)[0, 0] for x in (q, k)]
    scores = at[0] @ at[1].T  # (16, 16): score of a query at place i and a key at place j
    for distance in (0, 1, 5):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores[5, 0], scores[0, 0])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_prediction_depends_on_nothing_that_comes_later(name):
    model, tokens = random_model(VARIANTS[name]), random_tokens(2, 16)
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 7) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_prediction_depends_on_no_other_row(name):
    model, tokens = random_model(VARIANTS[name]), random_tokens(3, 16)
    torch.testing.assert_close(model(tokens)[1:2], model(tokens[1:2]), atol=1e-4, rtol=1e-4)


def test_a_window_hides_what_lies_before_it():
    """Two layers with a window of 3 and no full layer between reach back 4 tokens, not further."""
    config = replace(SMALL, n_layer=3, window_pattern="S", window_size=3, value_embeds=1)
    assert [config.window(layer) for layer in range(3)] == [
        3,
        3,
        16,
    ]  # the last layer always sees all
    model, tokens = random_model(config), random_tokens(1, 16)
    seen = []
    model.h[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(tokens)
    model(torch.cat(((tokens[:, :1] + 1) % 50, tokens[:, 1:]), dim=1))
    changed = (seen[0] - seen[1]).abs().amax(dim=-1)[0] > 1e-6
    assert changed.tolist() == [True] * 5 + [False] * 11


@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_with_a_cache_gives_the_full_passs_logits(name):
    model, tokens = (
        random_model(VARIANTS[name]),
        random_tokens(2, 16).clamp(min=1),
    )  # 0 begins another document
    full, cache = model(tokens), KVCache(model.config, 2, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(
        model(tokens[:, :5], cache=cache)[:, 0], full[:, 4], atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        model(tokens[:, 5:8], cache=cache)[:, 0], full[:, 7], atol=1e-4, rtol=1e-4
    )
    for t in range(8, 16):
        torch.testing.assert_close(
            model(tokens[:, t : t + 1], cache=cache)[:, 0], full[:, t], atol=1e-4, rtol=1e-4
        )


def test_decoding_in_bfloat16_errs_no_more_than_the_full_pass():
    """On a CPU the cache is in float32, because attention is faster there: nothing is lost by it."""
    model, tokens = random_model(SMALL), random_tokens(8, 16)
    exact, model.compute_dtype = model(tokens), torch.bfloat16
    full, cache = model(tokens), KVCache(model.config, 8, torch.bfloat16, torch.device("cpu"))
    with torch.no_grad():
        decoded = torch.cat([model(tokens[:, t : t + 1], cache=cache) for t in range(16)], dim=1)
    assert cache.both.dtype == torch.float32
    assert 0 < (decoded - exact).square().mean() < 1.5 * (full - exact).square().mean()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_whole_cache_hides_what_is_not_there_yet(name):
    """The cache of a CUDA graph: every step is given all places, those to come filled with what must not count."""
    model, tokens = random_model(VARIANTS[name]), random_tokens(2, 16).clamp(min=1)
    full, cache = (
        model(tokens),
        KVCache(model.config, 2, torch.float32, torch.device("cpu"), whole=True),
    )
    cache.both.fill_(100.0)
    torch.testing.assert_close(
        model(tokens[:, :5], cache=cache)[:, 0], full[:, 4], atol=1e-4, rtol=1e-4
    )
    for t in range(5, 16):
        torch.testing.assert_close(
            model(tokens[:, t : t + 1], cache=cache)[:, 0], full[:, t], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_at_initialisation_is_that_of_a_guess(name):
    torch.manual_seed(0)
    loss = GPT(VARIANTS[name])(random_tokens(8, 16), random_tokens(8, 16, seed=2))
    assert loss.item() == pytest.approx(math.log(50), abs=0.1)


def test_the_loss_is_the_cross_entropy_of_the_logits_and_skips_minus_one():
    model, tokens, targets = random_model(SMALL), random_tokens(2, 16), random_tokens(2, 16, seed=2)
    targets[0, 3:7] = -1
    each = model(tokens, targets, reduction="none")
    expected = -model(tokens).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(each, expected * (targets >= 0))
    torch.testing.assert_close(model(tokens, targets), each.sum() / (targets >= 0).sum())


@pytest.mark.parametrize("softcap", [15.0, None])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_loss_in_parts_is_the_loss_with_the_gradients_of_the_whole(
    monkeypatch, dtype, tolerance, softcap
):
    """Where the logits of all positions would be too many at once: here 33 positions, 7 at a time."""
    model, tokens, targets = (
        random_model(replace(SMALL, logit_softcap=softcap)),
        random_tokens(3, 11),
        random_tokens(3, 11, 2),
    )
    model.compute_dtype, targets[1, 3:9] = dtype, -1
    found = {}
    for limit in (2**28, 7 * 64):
        monkeypatch.setattr("model.MANY_LOGITS", limit)
        model.zero_grad()
        loss = model(tokens, targets)
        (3 * loss).backward()
        assert ("HeadLoss" in str(loss.grad_fn.next_functions)) == (limit < 2**28)
        found[limit] = [loss, *(p.grad for p in model.parameters())]
    for whole, parts in zip(*found.values()):
        assert (whole - parts).norm() <= tolerance * whole.norm()


def test_a_loss_in_parts_never_has_all_logits(monkeypatch):
    """The largest of all tensors that a step makes: 48 positions × 512 logits, or no more than the head's weights."""
    model, tokens, largest = (
        random_model(replace(SMALL, vocab_size=512, n_embd=32)),
        random_tokens(3, 16),
        [],
    )

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            largest[-1] = max(
                [largest[-1]]
                + [t.numel() for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
            )
            return made

    for limit in (2**28, 2048):
        monkeypatch.setattr("model.MANY_LOGITS", limit)
        largest.append(0)
        with Watch():
            model(tokens, tokens).backward()
    assert largest == [48 * 512, 32 * 512]


def test_a_compiled_loss_in_parts_is_one_graph_and_the_same(monkeypatch):
    monkeypatch.setattr("model.MANY_LOGITS", 1000)
    model, tokens = random_model(SMALL), random_tokens(2, 16)
    model(tokens, tokens).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.compile(model, backend="aot_eager", fullgraph=True)(tokens, tokens.clone()).backward()
    for p, grad in zip(model.parameters(), expected):
        torch.testing.assert_close(p.grad, grad)


def test_initial_deviations_are_those_of_the_table():
    torch.manual_seed(0)
    modern = dict(GPT(replace(SMALL, n_embd=128, vocab_size=1000)).named_parameters())
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
        assert modern[name].std().item() == pytest.approx(deviation, rel=0.05), name
    classic = dict(
        GPT(replace(SMALL, n_embd=128, vocab_size=1000, **GPT2_SWITCHES)).named_parameters()
    )
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
        assert classic[name].std().item() == pytest.approx(deviation, rel=0.05), name


def test_padding_the_vocabulary_changes_no_prediction():
    """50 tokens have tables of 64 rows; the model has no output for the other 14, whatever their weights are."""
    model, tokens = random_model(SMALL), random_tokens(2, 16)
    assert model.wte.num_embeddings == model.lm_head.out_features == 64
    logits = model(tokens)
    assert logits.shape == (2, 16, 50)
    with torch.no_grad():
        model.lm_head.weight[50:] = 1000.0
    assert torch.equal(model(tokens), logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_one_batch_can_be_learnt_by_heart(name):
    torch.manual_seed(0)
    model, tokens, targets = GPT(VARIANTS[name]), random_tokens(2, 16), random_tokens(2, 16, seed=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(80):
        loss = model(tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()
    )  # nothing is left out


def test_dropout_acts_in_training_only():
    model, tokens = random_model(replace(SMALL, dropout=0.5)), random_tokens(1, 16)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_activations_stay_close_to_float32(name):
    torch.manual_seed(0)
    exact = random_model(VARIANTS[name])
    coarse = GPT(VARIANTS[name], torch.bfloat16).eval()
    coarse.load_state_dict(exact.state_dict())
    tokens, targets = random_tokens(4, 16), random_tokens(4, 16, seed=2)
    assert coarse(tokens).dtype == torch.float32
    assert coarse(tokens, targets).item() == pytest.approx(exact(tokens, targets).item(), rel=0.02)


def test_flops_count_every_matrix_product():
    """6 FLOPs per weight and token, and 12·C per layer and attended position."""
    config = GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=16, value_embeds=0)
    matrices = 2 * (4 * 16 * 16 + 2 * 4 * 16 * 16) + 64 * 16
    assert GPT(config).flops_per_token() == 6 * matrices + 12 * 16 * (8 + 8)
    assert GPT(
        replace(config, window_pattern="SL", window_size=4)
    ).flops_per_token() == 6 * matrices + 12 * 16 * (4 + 8)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(n_embd=30), "n_embd=30 is not divisible by n_head=4"),
        (dict(n_kv_head=3), "n_head=4 is not divisible by n_kv_head=3"),
        (dict(n_embd=36), "even head size"),
        (dict(value_embeds=3), "value_embeds=3 is not 0 to 2"),
        (dict(window_pattern="SXL"), "SXL"),
        (dict(n_layer=0), "n_layer=0"),
        (dict(dropout=1.0), "dropout=1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_both_numbers(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **wrong)


# ---------------------------------------------------------------------------------------------------------------------
# Generation


def greedy_by_definition(model: GPT, prompt: list[int], count: int) -> list[int]:
    """The most probable next token, from a full pass over a growing text; no cache."""
    text = list(prompt)
    for _ in range(count):
        text.append(model(torch.tensor([text]))[0, -1].argmax().item())
    return text[len(prompt) :]


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_text_is_that_of_full_passes(name):
    model = random_model(VARIANTS[name])
    assert model.generate([[3, 1, 4]], 13, temperature=0) == [
        greedy_by_definition(model, [3, 1, 4], 13)
    ]


def recorded(function, arguments):
    """What torch.cuda.make_graphed_callables makes, on a CPU: the operations of one call, repeated without its Python.

    Like a CUDA graph it has its own places for input and output, and all numbers that Python knew are fixed in it.
    """
    for _ in range(3):  # the trial steps
        function(*arguments)
    tape, place = make_fx(function)(*arguments), arguments[0]
    return lambda new: tape(place.copy_(new))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_recorded_step_writes_the_same_text(name, monkeypatch):
    """Nothing in a step may depend on a number that Python knows: it would stay as it was when it was recorded."""
    model, prompts = random_model(VARIANTS[name]), [[7], [3, 1, 4, 1, 5], [9, 2]]
    expected = model.generate(
        prompts, 30, temperature=0
    )  # beyond the context: the cache is begun anew
    monkeypatch.setattr(torch.cpu, "make_graphed_callables", recorded, raising=False)
    assert model.generate(prompts, 30, temperature=0) == expected
    assert model.generate(prompts, 3, temperature=0) == [
        row[:3] for row in expected
    ]  # too short to be recorded


@pytest.mark.parametrize("name", ["modern", "gpt2", "windows"])
def test_prompts_of_several_lengths_do_not_disturb_each_other(name):
    model = random_model(VARIANTS[name])
    prompts = [[7], [3, 1, 4, 1, 5], [9, 2]]
    together = model.generate(prompts, 8, temperature=0)
    assert together == [model.generate([prompt], 8, temperature=0)[0] for prompt in prompts]
    assert [len(row) for row in together] == [8, 8, 8]


@pytest.mark.parametrize("name", ["modern", "gpt2", "windows"])
@pytest.mark.parametrize("prompt_length", [3, 16, 25])
def test_past_the_context_length_the_latest_tokens_are_what_counts(name, prompt_length):
    """Each token is the full pass's choice after a window of the latest tokens, half the context long at least."""
    model = random_model(VARIANTS[name])
    prompt = random_tokens(1, prompt_length)[0].tolist()
    new = model.generate([prompt], 40, temperature=0)[0]
    text, begin, end = prompt + new, max(0, prompt_length - 16), prompt_length
    for _ in new:
        if end - begin > 16:  # the context was full: it begins again with its latest half
            begin = end - 8
        assert text[end] == model(torch.tensor([text[begin:end]]))[0, -1].argmax().item()
        end += 1


def test_generation_ends_at_the_stop_token_and_streams_what_it_draws():
    model, columns = random_model(SMALL), []
    free = model.generate([[3]], 12, temperature=0)[0]
    stop = free[4]
    cut = model.generate(
        [[3]],
        12,
        temperature=0,
        stop_token=stop,
        on_token=lambda column: columns.append(column.item()),
    )
    assert cut == [free[: free.index(stop)]]
    assert columns == free[: free.index(stop) + 1]


def test_a_seed_fixes_the_text_and_another_changes_it():
    model = random_model(SMALL)
    first, again, other = (model.generate([[3]], 30, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_generation_leaves_the_model_in_the_mode_it_was_in():
    model = random_model(replace(SMALL, dropout=0.5)).train()
    assert model.generate([[3]], 9, temperature=0) == model.generate(
        [[3]], 9, temperature=0
    )  # no dropout while writing
    assert model.training


def test_sampling_follows_temperature_top_k_and_top_p():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(4000, 4)
    generator = torch.Generator().manual_seed(0)

    def shares(**options) -> list[float]:
        options = dict(temperature=1.0, top_k=None, top_p=None) | options
        return (
            sample_token(logits, generator=generator, **options).bincount(minlength=4) / 4000
        ).tolist()

    assert shares() == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.03)
    assert shares(temperature=0) == [1, 0, 0, 0]
    assert shares(temperature=0.5) == pytest.approx(
        [x**2 / 0.345 for x in (0.5, 0.25, 0.15, 0.1)], abs=0.03
    )
    assert shares(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)
    assert shares(top_p=0.7) == pytest.approx(
        [2 / 3, 1 / 3, 0, 0], abs=0.03
    )  # 0.5 does not hold 0.7, 0.75 does
    assert shares(top_p=0.4) == shares(top_p=1e-300) == [1, 0, 0, 0]  # which is 0 in float32
    assert shares(top_k=99) == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.03)


@pytest.mark.parametrize(
    "wrong",
    [dict(prompts=[]), dict(prompts=[[]]), dict(temperature=-1), dict(top_k=0), dict(top_p=0)],
)
def test_generation_refuses_what_it_cannot_do(wrong):
    with pytest.raises(ValueError):
        GPT(SMALL).generate(**(dict(prompts=[[1]], max_new_tokens=2) | wrong))


# ---------------------------------------------------------------------------------------------------------------------
# GPT-2


def test_gpt2_weights_give_gpt2s_logits(tmp_path):
    transformers = pytest.importorskip("transformers")
    shape = dict(vocab_size=300, n_positions=24, n_embd=32, n_layer=3, n_head=4)
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    with torch.no_grad():
        for p in theirs.parameters():  # biases are 0 in a fresh GPT-2, which would hide a lost one
            p.add_(torch.randn_like(p) * 0.1)
    theirs.save_pretrained(tmp_path)
    checkpoint = published_weights(str(tmp_path))
    ours = GPT(GPTConfig(**checkpoint["config"])).eval()
    ours.load_state_dict(checkpoint["model"])
    tokens = torch.randint(0, 300, (2, 24))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    prompt = tokens[0, :6].tolist()
    theirs_text = theirs.generate(
        tokens[:1, :6], max_new_tokens=10, do_sample=False, pad_token_id=0
    )[0, 6:].tolist()
    assert ours.generate([prompt], 10, temperature=0)[0] == theirs_text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpu_computes_the_same_model(name):
    model, tokens = random_model(VARIANTS[name]), random_tokens(2, 16)
    expected = model(tokens)
    torch.testing.assert_close(model.cuda()(tokens.cuda()).cpu(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_windows_on_a_gpu_are_those_of_the_mask():
    config = replace(SMALL, block_size=256, n_embd=128, window_pattern="SL", window_size=64)
    model, tokens = random_model(config).cuda(), random_tokens(2, 256).cuda()
    expected, compiled = model(tokens, tokens), torch.compile(model)
    torch.testing.assert_close(compiled(tokens, tokens), expected, atol=2e-3, rtol=2e-3)
    compiled(tokens, tokens).backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpu_writes_the_same_text_from_a_captured_graph(name):
    model, prompts = random_model(VARIANTS[name]), [[7], [3, 1, 4, 1, 5], [9, 2]]
    expected = model.generate(prompts, 30, temperature=0)
    assert model.cuda().generate(prompts, 30, temperature=0) == expected
    assert model.generate(prompts, 30, seed=1) == model.generate(prompts, 30, seed=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_compiled_loss_in_parts_on_a_gpu_takes_less_memory(monkeypatch):
    config = GPTConfig(
        block_size=1024, vocab_size=50304, n_layer=1, n_head=1, n_embd=64, value_embeds=0
    )
    model, tokens, taken, grads = (
        GPT(config, torch.bfloat16).cuda(),
        torch.randint(50304, (8, 1024)).cuda(),
        [],
        [],
    )
    for limit in (2**40, 2**26):
        monkeypatch.setattr("model.MANY_LOGITS", limit)
        torch.compiler.reset()
        torch.cuda.reset_peak_memory_stats()
        torch.compile(model, dynamic=False)(tokens, tokens.clone()).backward()
        taken.append(torch.cuda.max_memory_allocated())
        grads.append(model.lm_head.weight.grad.clone())
        model.zero_grad()
    assert taken[1] < 0.6 * taken[0]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=0.05)
