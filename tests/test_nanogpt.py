"""nanoGPT's checkpoints: equal logits, safe reading, and errors that say what to do."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import sample
import train
from model import GPT
from nanoloop.checkpoint import load_weights, model_config
from nanoloop.generate import generate
from nanoloop.options import UserError
from nanoloop.tokenizer import Tokenizer
from nanoloop.vocabulary import END_OF_TEXT
from tests.models import random_tokens
from tests.runs import final_weights

# --------------------------------------------------------------------------------------------------
# nanoGPT's model, written from its description: GPT-2 with nn.Linear, exact GELU and a tied head


def tensor_names(sizes: dict) -> dict[str, tuple]:
    """Return the name and the shape of each weight of a nanoGPT checkpoint."""
    C = sizes["n_embd"]
    shapes = {
        "transformer.wte.weight": (sizes["vocab_size"], C),
        "transformer.wpe.weight": (sizes["block_size"], C),
        "transformer.ln_f.weight": (C,),
        "lm_head.weight": (sizes["vocab_size"], C),
    }
    parts = {
        "ln_1": (C,),
        "attn.c_attn": (3 * C, C),
        "attn.c_proj": (C, C),
        "ln_2": (C,),
        "mlp.c_fc": (4 * C, C),
        "mlp.c_proj": (C, 4 * C),
    }
    for layer in range(sizes["n_layer"]):
        for part, shape in parts.items():
            shapes[f"transformer.h.{layer}.{part}.weight"] = shape
    if sizes["bias"]:
        for name, shape in list(shapes.items()):
            if ".h." in name or "ln_f" in name:
                shapes[name.replace("weight", "bias")] = shape[:1]
    return shapes


def nanogpt_logits(weights: dict, sizes: dict, tokens: torch.Tensor) -> torch.Tensor:
    """Compute the logits as nanoGPT does, with attention written out: (B, T, V)."""
    T = tokens.size(1)
    H = sizes["n_head"]

    def parameters(part: str) -> tuple:
        return weights[f"{part}.weight"], weights.get(f"{part}.bias")

    def norm(x, part: str):
        return F.layer_norm(x, x.shape[-1:], *parameters(part), eps=1e-5)

    def heads(x):
        return x.unflatten(-1, (H, -1)).transpose(1, 2)  # (B, H, T, D)

    x = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][:T]
    is_future = torch.ones(T, T, dtype=torch.bool).triu(1)
    for layer in range(sizes["n_layer"]):
        block = f"transformer.h.{layer}"
        qkv = F.linear(norm(x, f"{block}.ln_1"), *parameters(f"{block}.attn.c_attn"))
        q, k, v = map(heads, qkv.chunk(3, dim=-1))
        scores = q @ k.mT / math.sqrt(q.size(-1))
        y = scores.masked_fill(is_future, -math.inf).softmax(dim=-1) @ v
        y = y.transpose(1, 2).flatten(2)
        x = x + F.linear(y, *parameters(f"{block}.attn.c_proj"))
        h = F.linear(norm(x, f"{block}.ln_2"), *parameters(f"{block}.mlp.c_fc"))
        x = x + F.linear(F.gelu(h), *parameters(f"{block}.mlp.c_proj"))
    return F.linear(norm(x, "transformer.ln_f"), weights["lm_head.weight"])


# --------------------------------------------------------------------------------------------------
# Its checkpoint

CHARACTERS = sorted(set("\n !,.:ABCDEFGHIJabcdefghijklmnopqrstuvwxyz"))


def make_sizes(**changes) -> dict:
    sizes = {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 16,
        "block_size": 16,
        "bias": False,
        "vocab_size": len(CHARACTERS),
        "dropout": 0.0,
    }
    return sizes | changes


def write_checkpoint(folder, sizes: dict, prefix: str = "") -> dict:
    """Write ckpt.pt as nanoGPT does, with large random weights; return the weights."""
    rng = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=rng) * 0.3 for name, shape in tensor_names(sizes).items()
    }
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    content = {
        "model": {prefix + name: value for name, value in weights.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "model_args": sizes,
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3},
    }
    torch.save(content, folder / "ckpt.pt")
    return weights


def character_tokenizer(characters: list[str] = CHARACTERS) -> Tokenizer:
    """Make what docs/from_nanogpt.md makes of a text; the sign ! stands for end-of-text."""
    tokens = [character.encode() for character in characters]
    special = {END_OF_TEXT: characters.index("!")}
    return Tokenizer("characters", tokens, special, r"[\s\S]")


@pytest.fixture
def folder(tmp_path):
    """A folder with nanoGPT's checkpoint, and the vocabulary beside it."""
    path = tmp_path / "out-shakespeare-char"
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(character_tokenizer().to_json()))
    write_checkpoint(path, make_sizes())
    return path


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])  # the second of a compiled model
def test_a_nanogpt_checkpoint_gives_nanogpts_logits_and_text(folder, bias, prefix):
    sizes = make_sizes(bias=bias)
    stored = write_checkpoint(folder, sizes, prefix)
    weights = load_weights(str(folder / "ckpt.pt"))
    model = GPT(model_config(weights)).eval()
    model.load_state_dict(weights["model"])
    tokens = random_tokens(2, 16, vocab_size=sizes["vocab_size"])
    expected = nanogpt_logits(stored, sizes, tokens)
    assert expected.std() > 0.3  # or anything would be close
    torch.testing.assert_close(model(tokens), expected, atol=2e-5, rtol=1e-5)

    text = tokens[:1, :4]
    for _ in range(10):
        logits = nanogpt_logits(stored, sizes, text)
        text = torch.cat((text, logits[:, -1:].argmax(-1)), dim=1)
    assert generate(model, tokens[:1, :4].tolist(), 10, temperature=0) == text[:, 4:].tolist()


def test_nanogpts_padding_of_gpt2s_vocabulary_is_no_vocabulary(folder):
    (folder / "tokenizer.json").unlink()
    sizes = make_sizes(vocab_size=50304, n_embd=4, n_head=1, n_layer=1)
    stored = write_checkpoint(folder, sizes)
    weights = load_weights(str(folder / "ckpt.pt"))
    model = GPT(model_config(weights)).eval()
    model.load_state_dict(weights["model"])
    assert weights["tokenizer"] is None and model.config.vocab_size == 50257
    tokens = random_tokens(1, 2, vocab_size=50257)
    expected = nanogpt_logits(stored, sizes, tokens)[..., :50257]
    torch.testing.assert_close(model(tokens), expected, atol=2e-5, rtol=1e-5)


def test_a_nanogpt_checkpoint_writes_text(folder, command):
    options = ("--prompt=AB", "--temperature=0", "--max_new_tokens=5", "--device=cpu")
    result = command(sample.main, f"--init_from={folder / 'ckpt.pt'}", *options)
    assert result.code == 0 and result.out.startswith("AB"), result.err
    again = command(sample.main, str(folder), *options)
    assert again.out == result.out


def test_a_nanogpt_checkpoint_can_be_fine_tuned(folder, tmp_path):
    """On text that is prepared with the vocabulary beside it."""
    import prepare_data

    text = "Ababa cab, a bad Bed.\n" * 60
    (tmp_path / "input.txt").write_text(text)
    options = prepare_data.PrepareConfig(
        source=(str(tmp_path / "input.txt"),), name="letters", tokenizer=str(folder)
    )
    data = prepare_data.prepare(options, tmp_path)
    config = train.TrainConfig(
        data=str(data),
        out=str(tmp_path / "run"),
        init_from=str(folder / "ckpt.pt"),
        block_size=16,
        batch_tokens=32,
        max_steps=1,
        optimizer="adamw",
        learning_rate=0.0,
        device="cpu",
        dtype="float32",
    )
    train.train(config)
    expected = load_weights(str(folder / "ckpt.pt"))["model"]
    weights = final_weights(tmp_path / "run")
    assert torch.equal(weights["h.1.attn.c_k.weight"], expected["h.1.attn.c_k.weight"])


# --------------------------------------------------------------------------------------------------
# Errors


def test_without_its_characters_the_checkpoint_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="vocabulary of 42, expected 50257.*docs/from_nanogpt.md"):
        load_weights(str(folder / "ckpt.pt"))


def test_a_vocabulary_of_another_size_is_refused(folder):
    other = character_tokenizer(CHARACTERS[:-1])
    (folder / "tokenizer.json").write_text(json.dumps(other.to_json()))
    with pytest.raises(UserError, match="vocabulary of 42, expected 41, that of .*tokenizer.json"):
        load_weights(str(folder / "ckpt.pt"))


def test_data_with_another_vocabulary_is_refused(folder, config):
    """The data of `config` are bytes."""
    defaults = {"n_layer": 12, "n_head": 6, "n_embd": 768, "value_embeds": 3, "block_size": 16}
    options = config(**defaults, init_from=str(folder / "ckpt.pt"), batch_tokens=32)
    with pytest.raises(UserError, match="another tokenizer than the weights"):
        train.train(options)


def test_a_damaged_checkpoint_of_nanogpt_is_refused(folder):
    path = folder / "ckpt.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged or no checkpoint"):
        load_weights(str(path))


def test_a_checkpoint_that_holds_code_is_not_executed(folder):
    content = torch.load(folder / "ckpt.pt", weights_only=True)
    torch.save(content | {"config": {"run": print}}, folder / "ckpt.pt")
    with pytest.raises(UserError, match="damaged or no checkpoint.*[Ww]eights"):
        load_weights(str(folder / "ckpt.pt"))


def test_a_checkpoint_with_other_keys_is_refused(folder):
    content = torch.load(folder / "ckpt.pt", weights_only=True)
    del content["model"]["transformer.h.1.mlp.c_fc.weight"]
    content["model"]["transformer.h.1.mlp.gate.weight"] = torch.zeros(1)
    torch.save(content, folder / "ckpt.pt")
    with pytest.raises(UserError, match="changed nanoGPT.*h.1.mlp.c_fc.weight.*h.1.mlp.gate"):
        load_weights(str(folder / "ckpt.pt"))


def test_settings_of_another_model_are_refused(folder):
    write_checkpoint(folder, make_sizes() | {"n_expert": 8})
    with pytest.raises(UserError, match="n_expert"):
        load_weights(str(folder / "ckpt.pt"))


def test_characters_become_tokens_and_text_again():
    tokenizer = character_tokenizer()
    ids = tokenizer.encode("Cab: a bad,\nbad Bed.")
    assert len(ids) == 20 and tokenizer.decode(ids) == "Cab: a bad,\nbad Bed."
