"""The sampler: text from a checkpoint alone."""

import io
import shutil
import subprocess
import sys

import checkpoint
import pytest
import torch

import sample
import train
from tests.conftest import ROOT
from tests.test_model import VARIANTS, random_model, random_tokens


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """A run that is moved away from its data: the checkpoint has to be enough."""
    out = tmp_path_factory.mktemp("out") / "run"
    train.train(
        train.TrainConfig(
            data=str(data_dir),
            out=str(out),
            block_size=32,
            n_layer=2,
            n_head=2,
            n_embd=32,
            value_embeds=1,
            batch_tokens=256,
            max_steps=60,
            device="cpu",
            dtype="float32",
        )
    )
    return shutil.move(out, out.with_name("moved"))


def test_the_text_begins_with_the_prompt_and_a_seed_repeats_it(run, command):
    texts = [
        command(sample.main, run, "--prompt=the model", "--max_new_tokens=40", f"--seed={s}").out
        for s in (1, 1, 2)
    ]
    assert all(text.startswith("the model") and len(text) > 20 for text in texts)
    assert texts[0] == texts[1] != texts[2]


def test_several_samples_differ(run, command):
    out = command(sample.main, run, "--prompt=a ", "--num_samples=3", "--max_new_tokens=30").out
    parts = out.split("--- sample ")[1:]
    assert len(parts) == 3 and len({part[2:] for part in parts}) == 3


def test_a_prompt_comes_from_a_file_or_standard_input_too(run, command, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("naïve 🙂", encoding="utf-8")
    assert command(
        sample.main, run, f"--prompt=FILE:{tmp_path / 'prompt.txt'}", "--max_new_tokens=3"
    ).out.startswith("naïve 🙂")
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert command(sample.main, run, "--prompt=-", "--max_new_tokens=3").out.startswith(
        "from a pipe"
    )


def test_characters_of_several_tokens_are_printed_whole(run, command, monkeypatch):
    """The bytes of é and 🙂 arrive one by one; none may be printed as a broken character."""
    monkeypatch.setattr("model.sample_token", lambda logits, *rest: torch.tensor([next(stream)]))
    stream = iter("é🙂".encode())
    assert command(sample.main, run, "--prompt=x", "--max_new_tokens=6").out == "xé🙂\n"


@pytest.mark.parametrize(
    "wrong", [{"special": {"<|endoftext|>": 999}}, {"tokens": [""] * 999}, {"pattern": 5}]
)
def test_a_checkpoint_with_another_tokenizer_than_its_models_is_refused(
    run, command, wrong, tmp_path
):
    whole = checkpoint.load_checkpoint(run / "last.pt")
    torch.save(whole | {"tokenizer": whole["tokenizer"] | wrong}, tmp_path / "bad.pt")
    done = command(sample.main, tmp_path / "bad.pt", "--max_new_tokens=1")
    assert done.code == 2 and "error: " in done.err and "bad.pt" in done.err, done.err


def test_the_text_ends_where_the_document_does(run, command, monkeypatch):
    stream = iter([*b"end", 256, *b"more"])
    monkeypatch.setattr("model.sample_token", lambda logits, *rest: torch.tensor([next(stream)]))
    assert command(sample.main, run, "--prompt=the ", "--max_new_tokens=20").out == "the end\n"


@pytest.mark.parametrize(
    "args, told",
    [
        (["out/nothing"], "'out/nothing' is no run"),
        (["nothing.pt"], "'nothing.pt' does not exist"),
        (["RUN", "--prompt=FILE:nothing.txt"], "nothing.txt"),
        (["RUN", "--prompt=\udcff"], "cannot be encoded"),
        (["RUN", "--temperature=-1"], "temperature=-1"),
        (["RUN", "--top_p=2"], "top_p=2"),
        (["RUN", "--num_samples=0"], "num_samples"),
        (["RUN", "--device=nonsense"], "device=nonsense"),
        (["RUN", "--temprature=1"], "--temperature"),
    ],
)
def test_mistakes_are_told_in_one_message(run, command, args, told):
    result = command(sample.main, *[str(run) if arg == "RUN" else arg for arg in args])
    assert result.code == 2 and told in result.err and "Traceback" not in result.err


def test_a_checkpoint_of_another_version_says_so(run, command, tmp_path):
    checkpoint = torch.load(f"{run}/last.pt", weights_only=True)
    torch.save(checkpoint | {"format": 99}, tmp_path / "future.pt")
    result = command(sample.main, tmp_path / "future.pt")
    assert result.code == 2 and "format 99" in result.err and "version of the program" in result.err


def test_gpt2_from_a_local_folder_writes_text(tmp_path, command, monkeypatch):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tiny = transformers.GPT2Config(vocab_size=257, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(tiny).save_pretrained(tmp_path / "tiny")
    from nanoloop.tokenizer import make_tokenizer

    # GPT-2's own tokenizer has to be downloaded; bytes stand in for it.
    monkeypatch.setattr(sample, "make_tokenizer", lambda name, texts: make_tokenizer("byte", texts))
    result = command(
        sample.main, f"--init_from={tmp_path / 'tiny'}", "--prompt=Hello", "--max_new_tokens=5"
    )
    assert result.code == 0 and result.out.startswith("Hello")


def test_gpt2_by_name_without_a_network_says_what_to_do(command, monkeypatch):
    transformers = pytest.importorskip("transformers")

    def offline(name):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", offline)
    result = command(sample.main, "--init_from=gpt2")
    assert result.code == 2 and "local folder" in result.err and "Traceback" not in result.err


def test_the_sampler_works_as_a_program(run, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "sample.py"), str(run), "--prompt=-", "--max_new_tokens=5"],
        input="the",
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("the"), done.stderr


@pytest.mark.parametrize("name", VARIANTS)
def test_casting_the_weights_changes_no_prediction(name):
    """Bit for bit: the sampler multiplies by the same rounded numbers, it only rounds them once."""
    model, tokens = random_model(VARIANTS[name]), random_tokens(2, 16)
    model.compute_dtype = torch.bfloat16
    before = model(tokens)
    sample.cast_weights(model, torch.bfloat16)
    assert model.h[0].mlp.c_fc.weight.dtype == torch.bfloat16 and torch.equal(model(tokens), before)
