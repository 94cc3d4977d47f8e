"""Generate text from a checkpoint.

    python sample.py                                        # the quickstart's run
    python sample.py out/shakespeare_char --prompt="ROMEO:" --num_samples=3 --max_new_tokens=500
    python sample.py out/quickstart --prompt=FILE:story.txt
    echo "def main" | python sample.py out/quickstart --prompt=-
    python sample.py --init_from=gpt2-medium --prompt="The answer is"

A checkpoint holds its tokenizer, so nothing else is needed.
"""

import nanoloop.environment  # noqa: F401, says how to install what is missing

import codecs
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tyro.conf import Positional

from model import GPT
from nanoloop.checkpoint import load_weights, model_config
from nanoloop.device import pick_device, require_memory
from nanoloop.generate import generate
from nanoloop.options import read_options, reading, require, run_program
from nanoloop.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class SampleConfig:
    """Continue a prompt with a trained model."""

    # folder of a run, or a checkpoint; without it: out/quickstart
    run: Positional[str] = "out/quickstart"
    init_from: str | None = None  # instead of a run: gpt2, gpt2-medium, … or a local folder of it
    prompt: str = ""  # text to continue; FILE:PATH reads a file, - standard input; empty: none
    num_samples: int = 1  # number of continuations
    max_new_tokens: int = 300  # longest continuation; the model may end the document earlier
    temperature: float = 0.8  # 0: the most probable token; 1: the model's distribution
    top_k: int | None = 200  # sample among the k most probable tokens; None: all
    top_p: float | None = None  # sample among the fewest tokens with this probability; None: all
    seed: int | None = 1337  # the same seed gives the same text; None: a new text each time
    device: str = "auto"  # cpu, cuda, mps; auto: the fastest there is
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of activations

    NEEDS = {"temperature": "top_k top_p seed"}


def read_prompt(prompt: str) -> str:
    """Return the text that --prompt names. Raises UserError."""
    with reading("the prompt cannot be read", "give text in UTF-8"):
        if prompt == "-":
            text = sys.stdin.read()
        elif prompt.startswith("FILE:"):
            path = Path(prompt.removeprefix("FILE:"))
            require(path.is_file(), f"--prompt={prompt}: the file '{path}' does not exist")
            text = path.read_text("utf-8")
        else:
            text = prompt
        text.encode("utf-8")  # an argument of the command line may hold bytes that are no UTF-8
    return text


def load_model(source: str, device: torch.device, dtype: torch.dtype) -> tuple[GPT, Tokenizer]:
    """Load a model, ready to generate, and its tokenizer. Raises UserError.

    source: the folder of a run, a checkpoint, or a name or folder of GPT-2.
    """
    weights = load_weights(source)
    config = model_config(weights)
    require_memory(config, 0, trains_here=False)
    model = GPT(config, dtype)
    with reading(f"'{source}' has other weights than its config", "name another checkpoint"):
        model.load_state_dict(weights["model"])
        if weights["tokenizer"]:
            tokenizer = Tokenizer.from_json(weights["tokenizer"])
        else:  # GPT-2's published weights come without one
            tokenizer = load_tokenizer("gpt2")
        highest = tokenizer.encode(" ").max()
    require(
        highest < config.vocab_size >= tokenizer.vocab_size,
        f"the tokenizer in '{source}' has {tokenizer.vocab_size} tokens, its model "
        f"{config.vocab_size}: name another checkpoint",
    )
    cast_weights(model, dtype)
    return model.to(device).eval(), tokenizer


def cast_weights(model: GPT, dtype: torch.dtype) -> None:
    """Store matrices and tables in the dtype they are used in.

    Reading the weights is most of the work of decoding. Predictions stay the same: training casts
    its float32 weights to the same numbers at each use.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.to(dtype)


def main(argv: list[str]) -> None:
    config = read_options(SampleConfig, argv, "sample.py [RUN]", config_files=False)
    require(config.num_samples >= 1, f"num_samples must be at least 1, got {config.num_samples}")
    is_seed = config.seed is None or 0 <= config.seed < 2**63
    require(is_seed, f"seed must be at least 0 and below 2**63, got {config.seed}")
    is_one = config.init_from is None or config.run == SampleConfig.run
    require(is_one, f"'{config.run}' and --init_from={config.init_from}: give one of them")
    prompt = read_prompt(config.prompt)
    device, dtype = pick_device(config.device, config.dtype)
    model, tokenizer = load_model(config.init_from or config.run, device, dtype)
    tokens = [tokenizer.end_of_text, *tokenizer.encode(prompt).tolist()]
    for index in range(config.num_samples):
        if config.num_samples > 1:
            print(f"--- sample {index + 1}")
        print(prompt, end="", flush=True)
        print_continuation(model, tokenizer, tokens, config, index)


def print_continuation(
    model: GPT, tokenizer: Tokenizer, tokens: list[int], config: SampleConfig, index: int
) -> None:
    """Generate a continuation of the tokens; print its text as it is generated."""
    # A token may end inside a character: the decoder keeps its bytes until the rest comes.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def print_token(column: torch.Tensor) -> None:
        token = column.item()  # waits for the device
        if token != tokenizer.end_of_text:
            print(decoder.decode(tokenizer.decode_bytes([token])), end="", flush=True)

    generate(
        model,
        [tokens],
        config.max_new_tokens,
        config.temperature,
        config.top_k,
        config.top_p,
        seed=None if config.seed is None else config.seed + index,
        stop_token=tokenizer.end_of_text,
        on_token=print_token,
    )
    print(decoder.decode(b"", final=True))


if __name__ == "__main__":
    run_program(main)
