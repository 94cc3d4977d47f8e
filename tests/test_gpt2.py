"""GPT-2's published weights: our model gives its logits, and they can be trained and sampled."""

from dataclasses import asdict

import pytest
import torch

import sample
import train
from model import GPT, GPTConfig
from nanoloop import checkpoint
from nanoloop.data import open_data
from nanoloop.generate import generate
from nanoloop.gpt2 import published_weights
from nanoloop.options import UserError
from nanoloop.tokenizer import load_tokenizer
from tests.models import random_tokens
from tests.runs import final_weights

SHAPE = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def published(transformers):
    """A small GPT-2 of transformers, whose every parameter matters."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=257, **SHAPE)
    network = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in network.parameters():  # fresh biases of 0 would hide a missing one
            p.add_(torch.randn_like(p) * 0.1)
    return network


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory):
    """The same in a folder, as transformers writes it."""
    path = tmp_path_factory.mktemp("gpt2") / "published"
    published.save_pretrained(path)
    return path


def test_gpt2s_weights_give_gpt2s_logits_and_text(published, folder):
    weights = published_weights(str(folder))
    model = GPT(GPTConfig(**weights["config"])).eval()
    model.load_state_dict(weights["model"])
    tokens = random_tokens(2, 24, vocab_size=257)
    expected = published(tokens).logits
    torch.testing.assert_close(model(tokens), expected, atol=1e-4, rtol=1e-4)

    prompt = tokens[:1, :6]
    text = published.generate(prompt, max_new_tokens=10, do_sample=False, pad_token_id=0)
    assert generate(model, prompt.tolist(), 10, temperature=0) == text[:, 6:].tolist()


def test_gpt2s_weights_can_be_fine_tuned(config, published, folder, tmp_path):
    """With a shorter context, of whose positions the first are kept."""
    names = ("n_layer", "n_head", "n_embd", "value_embeds")
    defaults = {name: getattr(train.TrainConfig, name) for name in names}
    options = config(
        **defaults,
        init_from=str(folder),
        optimizer="adamw",
        learning_rate=0.0,
        max_steps=1,
        block_size=16,
        batch_tokens=64,
    )
    train.train(options)
    weights = final_weights(tmp_path / "run")
    expected = published.state_dict()
    assert torch.equal(weights["wte.weight"][:257], expected["transformer.wte.weight"])
    assert torch.equal(weights["wpe.weight"], expected["transformer.wpe.weight"][:16])
    mlp = "h.1.mlp.c_fc.weight"
    assert torch.equal(weights[mlp], expected[f"transformer.{mlp}"].T)


def test_gpt2s_weights_are_not_trained_with_another_tokenizer(config, data_dir):
    """They come without a tokenizer; a vocabulary of another size cannot be GPT-2's."""
    start = {"config": asdict(config(vocab_size=300)), "model": {}, "tokenizer": None}
    with pytest.raises(UserError, match="another tokenizer.*--tokenizer=gpt2"):
        checkpoint.complete(config(), start, open_data(str(data_dir)), resuming=False)


def test_gpt2_from_a_local_folder_writes_text(folder, command, monkeypatch):
    # GPT-2's own tokenizer must be downloaded; bytes stand in for it.
    monkeypatch.setattr(sample, "load_tokenizer", lambda name: load_tokenizer("byte"))
    result = command(
        sample.main, f"--init_from={folder}", "--prompt=Hello", "--max_new_tokens=5", "--device=cpu"
    )
    assert result.code == 0 and result.out.startswith("Hello"), result.err


def test_gpt2_by_name_without_a_network_says_what_to_do(transformers, command, monkeypatch):
    def fail(name):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", fail)
    result = command(sample.main, "--init_from=gpt2")
    assert result.code == 2 and "Traceback" not in result.err
    assert "'gpt2' cannot be loaded" in result.err and "path of a folder" in result.err
