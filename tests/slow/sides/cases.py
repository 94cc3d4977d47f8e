"""The cases: what each side does, and what of it is compared.

A case is a function of a Side that returns what must be equal. Its needs are cases whose files it
reads; both sides have finished them when it begins, so it may read the other side's files too.
"""

import importlib.util
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sides.checkout import Side, Skipped, expect
from sides.compare import SharedKeys, first_difference
from sides.results import complete_checkpoint, read_checkpoint, read_data, read_model, read_run
from sides.variants import GPT2, MODELS, PROMPT, RUNS, SMALL, Variant, flags


@dataclass(frozen=True)
class Case:
    action: Callable[[Side], dict]
    needs: tuple[str, ...] = ()


CASES: dict[str, Case] = {}


def case(name: str, *needs: str):
    """Register a function as the case of this name."""

    def register(action: Callable[[Side], dict]):
        CASES[name] = Case(action, needs)
        return action

    return register


def require_library(name: str) -> None:
    if not importlib.util.find_spec(name):
        raise Skipped(f"needs the library {name}")


def copy_from_other(side: Side, source: str, name: str) -> None:
    """Copy a folder of the other side to the path `name` of this one."""
    shutil.copytree(side.other.folder / source, side.folder / name)


def copy_run_from_other(side: Side, source: str, name: str) -> None:
    """Copy a run of the other side.

    A value that checkpoints of this side have and the other's lack, because one version no longer
    writes it, is taken from this side's own run of that name.
    """
    copy_from_other(side, source, name)
    for path in (side.folder / source).glob("*.pt"):
        complete_checkpoint(side.folder / name / path.name, path)


# --------------------------------------------------------------------------------------------------
# Preparation

HELD_OUT = ("--val_fraction=0.1", "--test_fraction=0.1")
BYTES = ("--tokenizer=byte", *HELD_OUT)
PAIRS = ("--tokenizer=bpe:300", *HELD_OUT)
LARGE = ("--source=texts/large.jsonl", *BYTES, "--workers=2", "--shard_tokens=500_000")
CURATION = ("--source=texts/curation.jsonl", *PAIRS)
ALL_RULES = (
    "--quality=gopher,c4,fineweb",
    "--duplicates=near",
    "--decontaminate=texts/exam.jsonl",
)
# Rules that drop first what the later ones would drop.
COMMON = "min_alphabetic min_stop_words min_words max_bullets max_brace_lines min_punctuated_lines"
OFF = ",".join(f"{rule}=off" for rule in f"{COMMON} max_symbols max_repeated_lines".split())
PREPARATIONS: dict[str, tuple[str, ...]] = {
    "words": ("--source=texts/words", *BYTES, "--shard_tokens=5000"),
    "more": ("--source=texts/more", *BYTES),
    "faults": ("--source=texts/faults", *PAIRS),
    "one_text": ("--source=texts/one.txt", *PAIRS),
    "one_text_no_test": ("--source=texts/one.txt", "--tokenizer=byte", "--test_fraction=0"),
    "long": ("--source=texts/long", *BYTES),
    "defaults": ("--source=texts/one.txt", "--tokenizer=bpe:512"),
    "several": ("--source", "texts/words", "texts/lines.jsonl", "texts/more/0*.txt", *BYTES),
    "lines": ("--source=texts/lines.jsonl", *PAIRS),
    "lines_gzip": ("--source=texts/lines.jsonl.gz", *PAIRS),
    "lines_zstandard": ("--source=texts/lines.jsonl.zst", *PAIRS),
    "text_key": ("--source=texts/lines.jsonl", "--text_key=other", *BYTES),
    "parquet": ("--source=texts/tables", "--text_key=content", *PAIRS),
    "arrow": ("--source=texts/rows.arrow", "--text_key=content", *BYTES),
    "limited": ("--source=texts/words", *BYTES, "--max_documents=30"),
    "limited_bytes": ("--source=texts/large.jsonl", *PAIRS, "--max_bytes=200_000"),
    "shuffled": ("--source=texts/words", *BYTES, "--shuffle_buffer=20", "--seed=3"),
    "workers": LARGE,
    "workers_shuffled": (*LARGE, "--shuffle_buffer=500"),
    "python": ("--source=python", "--max_bytes=2_000_000", "--duplicates=near", *PAIRS),
    "synthetic": ("--source=synthetic:all", "--max_documents=300", *BYTES),
    "synthetic_two": (
        "--source=synthetic:addition,python",
        "--max_documents=99",
        "--seed=5",
        *PAIRS,
    ),
    "exact": (*CURATION, "--duplicates=exact"),
    "near": (*CURATION, "--duplicates=near", "--duplicates_mb=8"),
    "gopher": (*CURATION, "--quality=gopher"),
    "c4": (*CURATION, "--quality=c4"),
    "fineweb": (*CURATION, "--quality=fineweb"),
    "single_rules": (*CURATION, "--quality=gopher,max_digits=0.15,max_bullets=off,min_words=100"),
    "hidden_rules": (*CURATION, f"--quality=gopher,c4,fineweb,max_digits=0.15,{OFF}"),
    "decontaminated": (*CURATION, "--decontaminate=texts/exam.jsonl"),
    "curated": (*CURATION, *ALL_RULES, "--workers=2"),
}


def prepare(side: Side, name: str, options: tuple[str, ...], **job) -> dict:
    side.run("prepare_data.py", *options, f"--name={name}", **job)
    return read_data(side.folder / "data" / name)


for _name, _options in PREPARATIONS.items():
    CASES[f"data/{_name}"] = Case(partial(prepare, name=_name, options=_options))


@case("data/standard_input")
def prepare_standard_input(side: Side) -> dict:
    return prepare(side, "piped", ("--source=-", *PAIRS), stdin="texts/one.txt")


@case("data/languages")
def prepare_languages(side: Side) -> dict:
    require_library("py3langid")
    return prepare(side, "languages", (*CURATION, "--languages=de,fr"))


@case("data/languages_counted")
def prepare_counted_languages(side: Side) -> dict:
    require_library("py3langid")
    return prepare(side, "counted", (*CURATION, "--languages=all"))


@case("data/other_tokenizer", "data/faults")
def prepare_with_existing_tokenizer(side: Side) -> dict:
    return prepare(side, "existing", ("--source=texts/words", "--tokenizer=data/faults", *HELD_OUT))


@case("data/plain_tokens", "data/faults")
def prepare_plain_tokens(side: Side) -> dict:
    return prepare(side, "plain", ("--source=texts/plain", "--tokenizer=data/faults"))


@case("data/shards", "data/words")
def prepare_shards(side: Side) -> dict:
    return prepare(side, "shards", ("--source=data/words/*.bin", "--tokenizer=byte"))


@case("data/overwritten", "data/more")
def prepare_again(side: Side) -> dict:
    options = ("--source=texts/words", *PAIRS)
    prepare(side, "overwritten", options)
    return prepare(side, "overwritten", ("--source=texts/more", *PAIRS, "--overwrite=True"))


def prepare_killed(side: Side, name: str, like: str, file: str, size: int) -> dict:
    """Kill the preparation `like` when a file of it has `size` bytes, then run it to its end."""
    options = PREPARATIONS[like]
    pattern = f"data/*{name}.partial"  # hidden or not
    interrupt = {"signal": signal.SIGKILL, "path": f"{pattern}/{file}", "size": size}
    flag = f"--name={name}"
    side.run("prepare_data.py", *options, flag, interrupt=interrupt, code=-signal.SIGKILL)
    expect(list(side.folder.glob(pattern)), f"{pattern} did not survive the kill")
    result = prepare(side, name, options)
    expect(not list(side.folder.glob(pattern)), f"{pattern} is left")
    difference = first_difference(without_name(result), without_name(read_data_of(side, like)))
    expect(not difference, f"the resumed preparation differs from an unbroken one: {difference}")
    return result


def read_data_of(side: Side, name: str) -> dict:
    return read_data(side.folder / "data" / name)


def without_name(result: dict) -> dict:
    report = result["report.json"]
    key = "plan" if "plan" in report else "meta"  # as editions until 2026-11-27 have it
    return result | {"report.json": report | {key: report[key] | {"name": None}}, "meta.json": None}


KILLS = {
    "early": ("workers", "tokenizer.json", 1),
    "noted": ("workers", "progress.json", 1),
    "first_shard": ("workers_shuffled", "train_000000.bin", 1),
    "second_shard": ("workers_shuffled", "train_000001.bin", 250_000),
    "late": ("workers_shuffled", "train_000006.bin", 1),
}
for _name, (_like, _file, _size) in KILLS.items():
    _action = partial(prepare_killed, name=f"killed_{_name}", like=_like, file=_file, size=_size)
    CASES[f"data/killed_{_name}"] = Case(_action, (f"data/{_like}",))


# --------------------------------------------------------------------------------------------------
# Models and runs


def compare_gradients(side: Side, variant: Variant) -> dict:
    options = variant.options()
    dtype = options["dtype"]
    return side.probe("gradients", options=options, dtype=dtype, max_logits=variant.max_logits)


def train(side: Side, name: str, variant: Variant) -> dict:
    options = flags(variant.options() | {"out": f"out/{name}"})
    printed = side.run("train.py", *options, max_logits=variant.max_logits)
    result = read_run(side.folder / "out" / name)
    if "sample_prompt" in variant.changes:
        result["sample"] = printed[printed.rindex(PROMPT) :]
    return result


for _name, _variant in MODELS.items():
    CASES[f"model/{_name}"] = Case(partial(compare_gradients, variant=_variant))
for _name, _variant in (MODELS | RUNS).items():
    CASES[f"train/{_name}"] = Case(partial(train, name=_name, variant=_variant), _variant.needs)


@case("train/published_gpt2", "data/words")
def train_published_gpt2(side: Side) -> dict:
    require_library("transformers")
    changes = {name: value for name, value in SMALL.items() if name not in ("n_layer", "n_head")}
    del changes["n_embd"], changes["value_embeds"]
    options = flags(changes | {"init_from": "texts/gpt2", "out": "out/published"})
    side.run("train.py", *options)
    return read_run(side.folder / "out/published")


@case("train/prepared_on_demand")
def train_with_missing_data(side: Side) -> dict:
    command = f"--source=texts/words {' '.join(BYTES)} --name=demanded"
    options = SMALL | {"data": "data/demanded", "prepare": command, "max_steps": 3}
    side.run("train.py", *flags(options | {"out": "out/demanded"}))
    return read_run(side.folder / "out/demanded") | read_data_of(side, "demanded")


@case("train/overwritten", "train/modern")
def train_again(side: Side) -> dict:
    shutil.copytree(side.folder / "out/modern", side.folder / "out/overwritten")
    options = SMALL | {"out": "out/overwritten", "seed": 5, "max_steps": 4, "overwrite": True}
    side.run("train.py", *flags(options))
    return read_run(side.folder / "out/overwritten")


@case("train/evaluated", "train/modern", "train/bigrams_hashed", "data/more")
def evaluate(side: Side) -> dict:
    """Evaluate weights of a run on other data, and of a run itself."""
    options = {"data": "data/more", "eval_only": True, "batch_tokens": 256, "device": "cpu"}
    other = side.run("train.py", *flags(options | {"init_from": "out/modern", "block_size": 32}))
    kept = SMALL | {"bigram_rows": 1000, "eval_only": True, "resume": True}
    same = side.run("train.py", *flags(kept | {"out": "out/bigrams_hashed"}))
    return {"other": figures(other), "same": figures(same)}


def figures(printed: str) -> list[str]:
    lines = [line for line in printed.splitlines() if line.startswith("val_")]
    expect(len(lines) == 2, f"no val_loss and val_bpb in {printed!r}")
    return lines


RECIPES: dict[str, tuple[str, ...]] = {
    "quickstart": (),
    "shakespeare_char": ("--max_steps=7",),
    "gpt2": (),
    "gpt2_classic": ("--n_layer=2",),
    "finetune": (),
    "depth": ("--depth=4",),
}


def read_recipe(side: Side, name: str, options: tuple[str, ...]) -> dict:
    path = side.checkout / "config" / f"{name}.py"
    return SharedKeys(side.probe("recipe_options", argv=[str(path), *options]))


for _name, _options in RECIPES.items():
    CASES[f"recipe/{_name}"] = Case(partial(read_recipe, name=_name, options=_options))


@case("recipe/trained", "data/words")
def train_recipe(side: Side) -> dict:
    """Train by a config file, whose name gives the run its folder."""
    lines = [f"{name} = {value!r}" for name, value in SMALL.items()]
    recipe = side.folder / "small_recipe.py"
    recipe.write_text("_twice = 2\n" + "\n".join(lines) + "\nn_layer = 1 * _twice\n")
    side.run("train.py", "small_recipe.py", "--max_steps=6")
    return read_run(side.folder / "out/small_recipe")


# --------------------------------------------------------------------------------------------------
# Resuming. An epoch of data/words has 90 steps; these runs cross the end of one.

LONG_RUNS = {
    "muon": SMALL | {"bigram_rows": 1000, "dropout": 0.1},
    "adamw_float16": SMALL | GPT2 | {"dtype": "float16", "optimizer": "adamw", "dropout": 0.1},
    "aligned": SMALL | {"align_documents": True, "document_mask": True},
}
LONG = {"max_steps": 130, "eval_interval": None, "save_interval": 50}


def long_flags(kind: str, out: str, **changes) -> list[str]:
    return flags(LONG_RUNS[kind] | LONG | changes | {"out": out})


def train_alone(side: Side, kind: str) -> dict:
    """Train without a stop: what every resumed run must come to."""
    side.run("train.py", *long_flags(kind, f"out/alone_{kind}"))
    return read_run(side.folder / f"out/alone_{kind}")


def expect_as_alone(side: Side, kind: str, out: str) -> dict:
    """Compare a resumed run with the one that had no stop; return its result."""
    resumed = read_checkpoint(side.folder / out / "last.pt")
    alone = read_checkpoint(side.folder / f"out/alone_{kind}/last.pt")
    tensors = ("model", "optimizer", "scaler", "step", "best")
    parts = [{key: state[key] for key in tensors} for state in (resumed, alone)]
    difference = first_difference(*parts)
    expect(not difference, f"the resumed run differs from an unbroken one: {difference}")
    return read_run(side.folder / out)


def stop(side: Side, kind: str) -> dict:
    """Stop a run by SIGTERM after some steps; keep its folder as it is then for the other side."""
    out = f"out/stopped_{kind}"
    interrupt = {"signal": signal.SIGTERM, "path": f"{out}/log.jsonl", "size": 8000}
    side.run("train.py", *long_flags(kind, out), interrupt=interrupt, code=75)
    state = read_checkpoint(side.folder / out / "last.pt")
    expect(0 < state["step"] < LONG["max_steps"], f"it stopped at step {state['step']}")
    shutil.copytree(side.folder / out, side.folder / f"out/kept_{kind}")
    side.run("train.py", *long_flags(kind, out, resume=True))
    return expect_as_alone(side, kind, out)


def resume_other(side: Side, kind: str) -> dict:
    """Resume the run that the other side stopped."""
    out = f"out/other_{kind}"
    copy_run_from_other(side, f"out/kept_{kind}", out)
    side.run("train.py", *long_flags(kind, out, resume=True))
    return expect_as_alone(side, kind, out)


for _kind in LONG_RUNS:
    _alone = f"resume/{_kind}_alone"
    _stopped = f"resume/{_kind}_stopped"
    CASES[_alone] = Case(partial(train_alone, kind=_kind), ("data/words",))
    CASES[_stopped] = Case(partial(stop, kind=_kind), (_alone,))
    CASES[f"resume/{_kind}_of_the_other"] = Case(partial(resume_other, kind=_kind), (_stopped,))


@case("resume/longer", "resume/muon_alone")
def resume_with_more_steps(side: Side) -> dict:
    """End a run before the end of an epoch, then give it more steps, twice."""
    for steps in (85, 95, 130):
        side.run("train.py", *long_flags("muon", "out/longer", max_steps=steps, resume=True))
    return read_run(side.folder / "out/longer")


@case("resume/previous", "resume/muon_stopped")
def resume_from_previous(side: Side) -> dict:
    """Cut the last checkpoint of a run: it resumes from the one before."""
    out = side.folder / "out/previous"
    shutil.copytree(side.folder / "out/alone_muon", out)
    content = (out / "last.pt").read_bytes()
    (out / "last.pt").write_bytes(content[: len(content) // 2])
    side.run("train.py", *long_flags("muon", "out/previous", resume=True))
    return expect_as_alone(side, "muon", "out/previous")


# --------------------------------------------------------------------------------------------------
# Each reads the other's files


@case("other/data", "train/modern")
def train_on_other_data(side: Side) -> dict:
    copy_from_other(side, "data/words", "data/other_words")
    options = SMALL | {"data": "data/other_words", "out": "out/other_words"}
    side.run("train.py", *flags(options))
    difference = first_difference(
        read_model(side.folder / "out/other_words/last.pt"),
        read_model(side.folder / "out/modern/last.pt"),
    )
    expect(not difference, f"the other side's data train another model: {difference}")
    return read_run(side.folder / "out/other_words")


@case("other/tokenizer", "data/faults")
def prepare_with_other_tokenizer(side: Side) -> dict:
    copy_from_other(side, "data/faults", "data/other_faults")
    options = ("--source=texts/more", "--tokenizer=data/other_faults", *HELD_OUT)
    return prepare(side, "by_other_tokenizer", options)


@case("other/weights", "train/gpt2_adamw")
def finetune_other_weights(side: Side) -> dict:
    copy_run_from_other(side, "out/gpt2_adamw", "out/other_weights")
    options = SMALL | {"init_from": "out/other_weights", "out": "out/other_finetuned"}
    side.run("train.py", *flags(options | {"value_embeds": 0} | GPT2))
    return read_run(side.folder / "out/other_finetuned")


@case("other/sample", "train/bigrams_hashed")
def sample_from_other(side: Side) -> dict:
    copy_run_from_other(side, "out/bigrams_hashed", "out/other_sampled")
    return {"text": side.run("sample.py", "out/other_sampled", *SAMPLING, "--prompt=the model")}


# --------------------------------------------------------------------------------------------------
# Generation

SHORT_PROMPT = [256, 116]
LONG_PROMPT = [256, *range(60)]  # longer than the context
PROMPTS = [[256, *range(start, start + 20)] for start in (97, 32, 0, 200)]
GENERATIONS: list[dict] = [
    {"prompts": [SHORT_PROMPT], "max_new_tokens": 20, "temperature": 0},
    {"prompts": [LONG_PROMPT], "max_new_tokens": 20, "temperature": 0},
    {"prompts": [[256]], "max_new_tokens": 90, "temperature": 1.0, "seed": 0},
    {"prompts": PROMPTS, "max_new_tokens": 90, "temperature": 0},
    {"prompts": PROMPTS, "max_new_tokens": 90, "temperature": 1.0, "seed": 1},
    {"prompts": PROMPTS, "max_new_tokens": 40, "temperature": 0.7, "top_k": 5, "seed": 2},
    {"prompts": PROMPTS, "max_new_tokens": 40, "temperature": 1.5, "top_p": 0.8, "seed": 3},
    {"prompts": PROMPTS[:2], "max_new_tokens": 40, "top_k": 50, "top_p": 0.9, "seed": 4},
    {"prompts": PROMPTS, "max_new_tokens": 60, "temperature": 2.0, "seed": 5, "stop_token": 101},
    {"prompts": [SHORT_PROMPT], "max_new_tokens": 1, "temperature": 1.0, "seed": 6},
]
GENERATED = (
    "modern",
    "gpt2",
    "bigrams_hashed",
    "bigrams_full",
    "kv_heads",
    "windows",
    "document_mask",
    "value_embeds_2",
    "bfloat16",
    "bfloat16_switches",
    "float16",
    "epochs",
)


def generate(side: Side, name: str) -> dict:
    checkpoint = f"out/{name}/last.pt"
    dtype = (MODELS | RUNS)[name].options()["dtype"]
    return side.probe("generated", checkpoint=checkpoint, dtype=dtype, settings=GENERATIONS)


for _name in GENERATED:
    CASES[f"generate/{_name}"] = Case(partial(generate, name=_name), (f"train/{_name}",))

SAMPLING = ("--device=cpu", "--max_new_tokens=80")
SAMPLES: dict[str, tuple[str, ...]] = {
    "greedy": ("out/modern", "--temperature=0", "--prompt=the "),
    "top_k": ("out/modern", "--top_k=3", "--num_samples=3", "--seed=5"),
    "top_p": ("out/modern", "--top_k=None", "--top_p=0.7", "--prompt=no other"),
    "all": ("out/epochs", "--top_k=None", "--temperature=1.2", "--prompt=é 中"),
    "checkpoint": ("out/modern/last.pt", "--prompt=a model"),
    "bfloat16": ("out/epochs", "--dtype=bfloat16", "--prompt=a model"),
    "long_prompt": ("out/epochs", "--prompt=FILE:texts/words/003.txt"),
    "byte_pairs": ("out/byte_pairs", "--prompt=The object"),
}


def sample(side: Side, options: tuple[str, ...], **job) -> dict:
    return {"text": side.run("sample.py", *SAMPLING, *options, **job)}


for _name, _options in SAMPLES.items():
    _run = Path(_options[0].removesuffix("/last.pt")).name
    CASES[f"sample/{_name}"] = Case(partial(sample, options=_options), (f"train/{_run}",))
CASES["sample/standard_input"] = Case(
    partial(sample, options=("out/modern", "--prompt=-"), stdin="texts/words/001.txt"),
    ("train/modern",),
)


# --------------------------------------------------------------------------------------------------
# Two ranks

RANKS = SMALL | {"dropout": 0.1, "bigram_rows": 1000, "max_steps": 16}


def rank_flags(out: str, **changes) -> list[str]:
    return flags(RANKS | changes | {"out": out})


@case("ranks/plain", "data/words")
def train_on_two_ranks(side: Side) -> dict:
    side.torchrun(*rank_flags("out/ranks", micro_batch_size=2))
    return read_run(side.folder / "out/ranks")


@case("ranks/sharded", "data/words")
def train_sharded(side: Side) -> dict:
    side.run_ranks(*rank_flags("out/sharded", shard=True, tie_embeddings=True))
    return read_run(side.folder / "out/sharded")


@case("ranks/plain_of_the_other", "ranks/plain")
def resume_other_ranks(side: Side) -> dict:
    copy_run_from_other(side, "out/ranks", "out/other_ranks")
    side.run_ranks(*rank_flags("out/other_ranks", max_steps=24, grad_clip=0.5, resume=True))
    return read_run(side.folder / "out/other_ranks")


@case("ranks/sharded_of_the_other", "ranks/sharded")
def resume_other_sharded(side: Side) -> dict:
    copy_run_from_other(side, "out/sharded", "out/other_sharded")
    changes = {"shard": True, "tie_embeddings": True, "max_steps": 24, "resume": True}
    side.run_ranks(*rank_flags("out/other_sharded", **changes))
    return read_run(side.folder / "out/other_sharded")


@case("ranks/one_from_sharded", "ranks/sharded")
def resume_other_sharded_alone(side: Side) -> dict:
    """Resume the other side's sharded run in one process, and sample from it."""
    copy_run_from_other(side, "out/sharded", "out/one_from_sharded")
    text = side.run("sample.py", "out/one_from_sharded", *SAMPLING)
    changes = {"tie_embeddings": True, "max_steps": 24, "resume": True}
    side.run("train.py", *rank_flags("out/one_from_sharded", **changes))
    return read_run(side.folder / "out/one_from_sharded") | {"text": text}
