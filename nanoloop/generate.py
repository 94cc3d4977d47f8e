"""Decoding: a cache of keys and values, and sampling."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from model import GPT, GPTConfig
from nanoloop.attention import attend
from nanoloop.options import UserError, require

MAX_NEW_TOKENS = 10**7


class KVCache:
    """Keys and values of the positions so far, (L, B, G, block_size, D) each.

    has_fixed_shapes: attend to all block_size slots and mask the empty ones. A step of one token
    then has the same shapes each time, which a CUDA graph needs. On a CPU the masked slots are
    wasted work.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
        has_fixed_shapes: bool = False,
    ):
        self.has_fixed_shapes = has_fixed_shapes
        shape = (2, config.n_layer, batch_size, config.kv_heads(), config.block_size)
        # PyTorch attends from one query up to eight times as fast in float32 on CPUs.
        self.dtype = torch.float32 if device.type == "cpu" else dtype
        # Zeros, because a masked slot that holds NaN would still give NaN.
        slots = torch.zeros(*shape, config.head_size(), dtype=self.dtype, device=device)
        self.keys, self.values = slots
        self.length = torch.zeros(1, dtype=torch.long, device=device)
        self.positions = self.length  # of the tokens under way, (T,)
        self.last_token = torch.zeros(batch_size, dtype=torch.long, device=device)

    def clear(self) -> None:
        self.length.zero_()
        self.last_token.zero_()

    def decode(self, model: GPT, tokens: Tensor) -> Tensor:
        """Append (B, T) tokens; return the logits of the last, (B, V) float32."""
        steps = torch.arange(tokens.size(1), device=tokens.device)
        self.positions = self.length + steps
        logits = model(tokens, cache=self)[:, -1]
        self.length += tokens.size(1)
        self.last_token.copy_(tokens[:, -1])
        return logits

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int, scale: float):
        """Store a layer's keys and values, (B, G, T, D), and attend to all that are stored."""
        keys = self.keys[layer]
        values = self.values[layer]
        keys.index_copy_(2, self.positions, k.to(self.dtype))
        values.index_copy_(2, self.positions, v.to(self.dtype))
        query = q.to(self.dtype)
        if self.has_fixed_shapes:
            y = attend(query, keys, values, window, scale, positions=self.positions)
        else:
            end = int(self.positions[-1]) + 1
            y = attend(query, keys[:, :, :end], values[:, :, :end], window, scale)
        return y.to(q.dtype)


@torch.no_grad()
def generate(
    model: GPT,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_token: int | None = None,
    on_token=None,
) -> list[list[int]]:
    """Continue each prompt by up to max_new_tokens tokens.

    prompts: equally many tokens each. Returns the new tokens of each, without stop_token.
    temperature: 0 takes the most probable token, 1 samples the model's distribution.
    top_k, top_p: sample among the k most probable tokens, or the fewest that hold probability p
    (nucleus sampling, arXiv:1904.09751).
    seed: the same seed gives the same tokens.
    on_token: called with each new (B,) column of tokens. A finished row repeats its last token.

    A token is predicted from at most block_size tokens before it. A full cache is filled again
    with the latest half of them, so a token costs the same however long the text gets.
    Raises UserError for values out of range.
    """
    check_sampling(prompts, max_new_tokens, temperature, top_k, top_p)
    device = model.wte.weight.device
    block_size = model.config.block_size
    was_training = model.training
    model.eval()
    rng = None if seed is None else torch.Generator(device).manual_seed(seed)
    # Capturing a CUDA graph takes a few steps itself.
    is_graphed = device.type == "cuda" and min(max_new_tokens, block_size) > 8
    cache = KVCache(model.config, len(prompts), model.compute_dtype, device, is_graphed)

    def decode(tokens: Tensor) -> Tensor:
        return cache.decode(model, tokens)

    decode_one = decode
    if is_graphed:
        example = torch.zeros(len(prompts), 1, dtype=torch.long, device=device)
        decode_one = torch.cuda.make_graphed_callables(decode, (example,))
        cache.clear()

    text = pad(torch.tensor(prompts, device=device), (0, max_new_tokens))  # (B, …)
    is_done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    start = len(prompts[0])
    filled = 0  # slots of the cache
    unseen = min(start, block_size)  # tokens before `now` that go into the cache next
    for now in range(start, text.size(1)):
        if filled == block_size:
            cache.clear()
            filled = 0
            unseen = max(1, block_size // 2)
        step = decode_one if unseen == 1 else decode
        logits = step(text[:, now - unseen : now])
        filled += unseen
        unseen = 1
        token = sample_token(logits, temperature, top_k, top_p, rng)  # (B,)
        token = torch.where(is_done, text[:, now - 1], token)
        text[:, now] = token
        if on_token is not None:
            on_token(token)
        if stop_token is not None:
            is_done |= token == stop_token
            if is_done.all():  # waits for the device
                break
    model.train(was_training)

    results = []
    for new in text[:, start : now + 1].tolist():
        results.append(new[: new.index(stop_token)] if stop_token in new else new)
    return results


def check_sampling(prompts, max_new_tokens: int, temperature: float, top_k, top_p) -> None:
    """Raise UserError for values that cannot be sampled with."""
    if not prompts or not all(prompts):
        raise UserError("every prompt needs at least one token: begin it with end-of-text")
    # Below 0.0001 the division of the logits overflows.
    require(
        temperature == 0 or temperature >= 1e-4,
        f"temperature must be 0, or at least 0.0001, got {temperature}",
    )
    require(top_k is None or top_k >= 1, f"top_k must be at least 1, got {top_k}")
    require(top_p is None or 0 < top_p <= 1, f"top_p must be in (0, 1], got {top_p}")
    require(
        1 <= max_new_tokens <= MAX_NEW_TOKENS,
        f"max_new_tokens must be 1 to {MAX_NEW_TOKENS:,}, got {max_new_tokens}",
    )


def sample_token(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, rng=None
) -> Tensor:
    """Draw one token per row from (B, V) logits; returns (B,) int64. rng: a torch.Generator."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    k = min(top_k or logits.size(-1), logits.size(-1))
    ordered, tokens = (logits / temperature).topk(k)  # descending
    probability = ordered.softmax(dim=-1)
    if top_p is not None:
        # A token is dropped if the more probable ones hold top_p already; the first never is. A
        # top_p below 1e-30 is 0 in float32 and would drop it too.
        before = probability.cumsum(dim=-1) - probability
        probability = probability.masked_fill(before >= max(top_p, 1e-30), 0.0)
    choice = torch.multinomial(probability, 1, generator=rng)
    return tokens.gather(-1, choice).squeeze(-1)
