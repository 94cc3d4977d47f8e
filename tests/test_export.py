"""Exported folders: transformers computes the run's logits, or there is no folder."""

import os
import random
import unicodedata

import pytest
import torch

import train
from corpus.bpe import train_bpe
from model import GPT, GPTConfig
from nanoloop import checkpoint
from nanoloop.generate import generate
from nanoloop.gpt2 import SWITCHES, published_weights
from nanoloop.options import UserError
from nanoloop.tokenizer import GPT2_PATTERN, Tokenizer
from research.insight import export
from tests.conftest import make_documents
from tests.runs import assert_identical

PLAIN = {"value_embeds": 0, "residual_scalars": False, "logit_softcap": None}
# Settings, and the class of transformers that has the same parts.
FORMS = {
    "classic": (SWITCHES, "GPT2LMHeadModel"),
    "plain": (PLAIN | {"tie_embeddings": True}, "Qwen3ForCausalLM"),
    "gated": (PLAIN | {"activation": "swiglu", "n_kv_head": 1}, "Qwen3ForCausalLM"),
    "modern": (
        {"window_pattern": "SL", "window_size": 7, "bigram_rows": 50},
        "NanoloopForCausalLM",
    ),
}


@pytest.fixture(autouse=True)
def transformers():
    """Skip without this optional library, which takes seconds to import."""
    return pytest.importorskip("transformers")


@pytest.fixture
def run(config, tmp_path):
    """Train one step with other settings, so that every weight matters; return the folder."""

    def make(**settings):
        train.train(config(max_steps=2, sample_prompt=None, **settings))
        return tmp_path / "run"

    return make


@pytest.mark.parametrize("form", FORMS)
def test_an_exported_model_gives_its_runs_logits_and_is_read_back(
    form, run, tmp_path, transformers
):
    settings, kind = FORMS[form]
    folder = tmp_path / "exported"
    assert export.export(str(run(**settings)), folder) == kind
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    model = GPT(checkpoint.model_config(saved)).eval()
    model.load_state_dict(saved["model"])

    auto = transformers.AutoModelForCausalLM
    loaded = auto.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    prompt = tokenizer("the model", return_tensors="pt").input_ids
    torch.testing.assert_close(loaded(prompt).logits, model(prompt), atol=1e-5, rtol=1e-4)
    text = loaded.generate(prompt, max_new_tokens=8, do_sample=False)[:, prompt.size(1) :]
    assert text.tolist() == generate(model, prompt.tolist(), 8, temperature=0)

    back = published_weights(str(folder))
    again = GPT(GPTConfig(**back["config"])).eval()
    again.load_state_dict(back["model"])
    assert torch.equal(again(prompt), model(prompt))
    assert back["tokenizer"] == saved["tokenizer"]


def test_a_model_whose_logits_differ_leaves_no_folder(run, tmp_path, monkeypatch):
    convert = export.as_qwen3

    def with_an_error(config, weights):
        network = convert(config, weights)
        network.lm_head.weight.data[3, 5] += 0.5
        return network

    monkeypatch.setattr(export, "as_qwen3", with_an_error)
    out = run(**PLAIN)
    with pytest.raises(UserError, match="logits differ by"):
        export.export(str(out), tmp_path / "exported")
    assert os.listdir(tmp_path) == ["run"]


def test_an_existing_folder_is_not_replaced(run, tmp_path):
    (tmp_path / "exported").mkdir()
    with pytest.raises(UserError, match="exists: name a new folder"):
        export.export(str(run(**PLAIN)), tmp_path / "exported")


def test_an_exported_folder_can_be_fine_tuned(run, config, tmp_path):
    export.export(str(run(**PLAIN)), tmp_path / "exported")
    start = checkpoint.load(tmp_path / "run" / "last.pt")["model"]
    tuned = config(
        **PLAIN,
        init_from=str(tmp_path / "exported"),
        out=str(tmp_path / "tuned"),
        muon_lr=0.0,
        embed_lr=0.0,
        head_lr=0.0,
        scalar_lr=0.0,
        max_steps=1,
    )
    train.train(tuned)
    weights = checkpoint.load(tmp_path / "tuned" / "last.pt")["model"]
    used = 257  # rows beyond the vocabulary are not exported
    assert_identical(
        {name: value[:used] for name, value in weights.items()},
        {name: value[:used] for name, value in start.items()},
    )


@pytest.mark.parametrize("pattern", ["GPT-4", "GPT-2", "none"])
def test_the_exported_tokenizer_gives_the_same_ids(pattern):
    """Over all of Unicode, spaces, digits and line ends in every order."""
    trained = train_bpe("bpe:400", make_documents(30))
    patterns = {"GPT-4": trained.pattern, "GPT-2": GPT2_PATTERN}
    tokens = trained.tokens
    if pattern == "none":
        tokens = [bytes([value]) for value in range(256)] + [tokens[trained.end_of_text]]
    special = {"<|endoftext|>": len(tokens) - 1}
    tokenizer = Tokenizer("test", tokens, special, patterns.get(pattern))
    converted = export.hub_tokenizer(tokenizer, 32)
    rng = random.Random(0)
    letters = [chr(code) for code in range(0x20000) if unicodedata.category(chr(code))[0] != "C"]
    often = " \n\r\t'sthe0123é日,."
    text = "".join(rng.choice(rng.choice((letters, often))) for _ in range(20_000))
    assert converted.encode(text, add_special_tokens=False) == tokenizer.encode(text).tolist()
    assert converted.decode(converted.encode(text), skip_special_tokens=True) == text
