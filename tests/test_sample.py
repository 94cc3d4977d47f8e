"""The sampler: text from a checkpoint alone."""

import io
import shutil
import sys

import pytest
import torch

import sample
import train
from nanoloop import checkpoint
from tests.conftest import SMALL
from tests.models import VARIANTS, random_model, random_tokens

END_OF_TEXT = 256  # of the byte tokenizer


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """A run that is moved away from its data: the checkpoint must be enough."""
    out = tmp_path_factory.mktemp("out") / "run"
    train.train(train.TrainConfig(**SMALL, data=str(data_dir), out=str(out), max_steps=10))
    return shutil.move(out, out.with_name("moved"))


def test_the_text_begins_with_the_prompt_and_a_seed_repeats_it(run, command):
    options = ("--prompt=the model", "--max_new_tokens=40", "--device=cpu")
    texts = [command(sample.main, run, *options, f"--seed={seed}").out for seed in (1, 1, 2)]
    assert all(text.startswith("the model") and len(text) > 20 for text in texts)
    assert texts[0] == texts[1] != texts[2]


def test_several_samples_differ(run, command):
    out = command(sample.main, run, "--prompt=a ", "--num_samples=3", "--max_new_tokens=30").out
    parts = out.split("--- sample ")[1:]
    assert len(parts) == 3 and len({part[2:] for part in parts}) == 3


def test_a_prompt_comes_from_a_file_or_standard_input_too(run, command, tmp_path, monkeypatch):
    path = tmp_path / "prompt.txt"
    path.write_text("naïve 🙂", encoding="utf-8")
    out = command(sample.main, run, f"--prompt=FILE:{path}", "--max_new_tokens=3").out
    assert out.startswith("naïve 🙂")
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    out = command(sample.main, run, "--prompt=-", "--max_new_tokens=3").out
    assert out.startswith("from a pipe")


@pytest.fixture
def say(run, tmp_path):
    """Make a checkpoint that always writes the same bytes: say(content).

    Its layer adds nothing, so the position alone chooses the next token.
    """

    def make(content: bytes):
        config = checkpoint.load(run / "last.pt")["config"]
        classic = {"position": "learned", "logit_softcap": None, "residual_scalars": False}
        tokens = [*content, END_OF_TEXT]
        saved = checkpoint.load(run / "last.pt")
        saved["config"] = config | classic | {"value_embeds": 0, "n_layer": 1, "n_embd": 64}
        model = sample.GPT(checkpoint.model_config(saved))
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
            for position in range(32):
                token = tokens[min(position, len(tokens) - 1)]
                model.wpe.weight[position, position] = 1.0
                model.lm_head.weight[token, position] = 100.0
        torch.save(saved | {"model": model.state_dict()}, tmp_path / "says.pt")
        return tmp_path / "says.pt"

    return make


def test_characters_of_several_tokens_are_printed_completely(say, command):
    """The bytes of é and 🙂 arrive one by one; none may be printed as a broken character."""
    path = say("é🙂".encode())
    assert command(sample.main, path, "--max_new_tokens=6").out == "é🙂\n"


def test_the_text_ends_where_the_document_does(say, command):
    assert command(sample.main, say(b"end"), "--max_new_tokens=20").out == "end\n"


@pytest.mark.parametrize(
    "wrong", [{"special": {"<|endoftext|>": 999}}, {"tokens": [""] * 999}, {"pattern": 5}], ids=list
)
def test_a_checkpoint_with_another_tokenizer_than_its_models_is_refused(
    run, command, wrong, tmp_path
):
    saved = checkpoint.load(run / "last.pt")
    saved["tokenizer"] |= wrong
    torch.save(saved, tmp_path / "bad.pt")
    done = command(sample.main, tmp_path / "bad.pt", "--max_new_tokens=1")
    error = done.err.splitlines()[-1]  # a note on the machine may stand before it
    assert done.code == 2 and error.startswith("error: ") and "bad.pt" in error, done.err


def test_a_damaged_best_checkpoint_is_passed_over(run, command, tmp_path):
    shutil.copy(run / "last.pt", tmp_path)
    (tmp_path / "best.pt").write_bytes((run / "last.pt").read_bytes()[:5000])
    result = command(sample.main, tmp_path, "--max_new_tokens=4")
    assert result.code == 0 and result.out
    assert "checkpoint skipped" in result.err and "best.pt" in result.err
    (tmp_path / "last.pt").write_bytes(b"")
    result = command(sample.main, tmp_path)
    assert result.code == 2 and "name another run" in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "last.pt"}


def test_a_checkpoint_of_another_version_says_so(run, command, tmp_path):
    saved = torch.load(run / "last.pt", weights_only=True)
    torch.save(saved | {"format": 99}, tmp_path / "future.pt")
    result = command(sample.main, tmp_path / "future.pt")
    assert result.code == 2
    assert "format 99" in result.err and "version of the program" in result.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["out/nothing"], "'out/nothing' is no run"),
        (["nothing.pt"], "'nothing.pt' does not exist"),
        (["RUN", "--prompt=FILE:nothing.txt"], "nothing.txt"),
        (["RUN", "--prompt=\udcff"], "cannot be read"),
        (["RUN", "--temperature=-1"], "temperature must be 0, or at least 0.0001, got -1"),
        (["RUN", "--top_p=2"], "top_p must be in (0, 1], got 2"),
        (["RUN", "--num_samples=0"], "num_samples must be at least 1, got 0"),
        (["RUN", f"--seed={10**40}"], "seed must be at least 0 and below 2**63"),
        (["RUN", "--device=nonsense"], "device=nonsense"),
        (["RUN", "--temprature=1"], "did you mean --temperature?"),
    ],
    ids=str,
)
def test_a_mistake_is_one_message(run, command, arguments, message):
    arguments = [run if argument == "RUN" else argument for argument in arguments]
    result = command(sample.main, *arguments)
    assert result.code == 2 and message in result.err and "Traceback" not in result.err


@pytest.mark.parametrize("name", VARIANTS)
def test_casting_the_weights_changes_no_prediction(name):
    """Bit for bit: the sampler multiplies by the same rounded numbers, it only rounds them once."""
    model = random_model(VARIANTS[name])
    tokens = random_tokens(2, 16)
    model.compute_dtype = torch.bfloat16
    before = model(tokens)
    sample.cast_weights(model, torch.bfloat16)
    assert model.h[0].mlp.c_fc.weight.dtype == torch.bfloat16
    assert torch.equal(model(tokens), before)
