"""lm-evaluation-harness reads an exported run, and its rolling likelihood is our bits per byte."""

import json
from pathlib import Path

import pytest

import train
from nanoloop.checkpoint import load_weights
from research.exam import score
from research.insight.export import export
from research.insight.reading import model_of, tokenizer_of
from tests.conftest import make_documents
from tests.test_export import PLAIN

lm_eval = pytest.importorskip("lm_eval")  # an optional library

EXPORTED = {"trust_remote_code": True, "dtype": "float32", "add_bos_token": False}


@pytest.fixture
def texts(tmp_path) -> Path:
    """Write texts that fit into a context, one for each line of JSON."""
    path = tmp_path / "texts.jsonl"
    rows = [{"text": text[: 5 + number]} for number, text in enumerate(make_documents(20, seed=1))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("settings", [{}, PLAIN])
def test_the_harness_computes_our_bits_per_byte(settings, config, texts, tmp_path):
    train.train(config(max_steps=20, **settings))
    run = str(tmp_path / "run")
    folder = tmp_path / "exported"
    export(run, folder)
    task = {
        "task": "texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(texts)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    found = lm_eval.simple_evaluate(
        "hf", model_args=EXPORTED | {"pretrained": str(folder)}, tasks=[task], device="cpu"
    )

    state = load_weights(run)
    tokenizer = tokenizer_of(state)
    rows = map(json.loads, texts.read_text().splitlines())
    items = [([tokenizer.end_of_text], tokenizer.encode(row["text"]).tolist()) for row in rows]
    bits, sizes, _ = score(model_of(state), items, tokenizer.token_bytes, "cpu")
    ours = bits.sum() / sizes.sum()
    assert found["results"]["texts"]["bits_per_byte,none"] == pytest.approx(ours, rel=1e-5)
