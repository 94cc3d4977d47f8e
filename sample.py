"""Text out of a checkpoint, as it is generated.

    python sample.py                                        # the quickstart's run
    python sample.py out/shakespeare_char --prompt="ROMEO:" --num_samples=3 --max_new_tokens=500
    python sample.py out/quickstart --prompt=FILE:story.txt
    echo "def main" | python sample.py out/quickstart --prompt=-
    python sample.py --init_from=gpt2-medium --prompt="The answer is"

A checkpoint carries its tokenizer, so it is all that is needed.
"""

import codecs
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from model import GPT, GPTConfig
from nanoloop.checkpoint import load_weights
from nanoloop.device import pick_device, require_memory
from nanoloop.options import UserError, explained, read_options, require, run_command, typed
from nanoloop.tokenizer import Tokenizer, make_tokenizer


@dataclass(frozen=True)
class SampleConfig:
    """Continue a prompt with a trained model."""

    run: Annotated[str, tyro.conf.Positional] = "out/quickstart"  # folder of a run, or a checkpoint
    init_from: str | None = None  # instead of a run: gpt2, gpt2-medium, …, or a local folder of it
    prompt: str = ""  # text to continue; FILE:PATH reads it from a file, - from standard input; empty: a new document
    num_samples: int = 1  # how many continuations
    max_new_tokens: int = (
        300  # how long each is at most; it ends earlier where the model ends the document
    )
    temperature: float = (
        0.8  # 0: always the most probable token; 1: the model's own distribution; above: wilder
    )
    top_k: int | None = 200  # sample among the k most probable tokens; None: all
    top_p: float | None = (
        None  # sample among the fewest tokens that hold this probability; None: all
    )
    seed: int | None = 1337  # the same seed gives the same text; None: another text every time
    device: str = "auto"  # cpu, cuda, mps; auto: the fastest there is
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of activations


def read_prompt(prompt: str) -> str:
    """The text that --prompt stands for. Raises UserError."""
    path = Path(prompt.removeprefix("FILE:"))
    require(
        path.is_file() or not prompt.startswith("FILE:"),
        f"--prompt={prompt}: there is no file '{path}'",
    )
    with explained("the prompt cannot be encoded", "give text in UTF-8"):
        text = (
            sys.stdin.read()
            if prompt == "-"
            else path.read_text("utf-8")
            if prompt.startswith("FILE:")
            else prompt
        )
        text.encode("utf-8")
    return text


def load_model(source: str, device: torch.device, dtype: torch.dtype) -> tuple[GPT, Tokenizer]:
    """The model of a run, a checkpoint or GPT-2, ready to generate, and its tokenizer. Raises UserError."""
    weights = load_weights(source)
    with explained(f"'{source}' cannot be used", "name another run or checkpoint"):
        config = GPTConfig(**typed(GPTConfig, weights["config"], GPTConfig.__dataclass_fields__))
        require_memory(config, 0, False)
        model = GPT(config, dtype)
        model.load_state_dict(weights["model"])
        cast_weights(model, dtype)
        tokenizer = (
            Tokenizer.from_json(weights["tokenizer"])
            if weights["tokenizer"]
            else make_tokenizer("gpt2", [])
        )
        encoded = tokenizer.encode(" ").max()  # now, for this builds the encoder
        require(
            encoded < config.vocab_size >= tokenizer.vocab_size,
            f"'{source}': its tokenizer is not its model's",
        )
    return model.to(device).eval(), tokenizer


def cast_weights(model: GPT, dtype: torch.dtype) -> None:
    """Store matrices and tables in the dtype they are used in: one token at a time, reading weights is all the work.

    No prediction changes: training keeps float32 weights and casts them to the same numbers at each use.
    """
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            module.to(dtype)


def main(argv: list[str]) -> None:
    options = read_options(SampleConfig, argv, "sample.py", config_files=False)
    require(
        min(options.num_samples, options.max_new_tokens) >= 1,
        "num_samples and max_new_tokens must be at least 1",
    )
    text = read_prompt(options.prompt)
    model, tokenizer = load_model(
        options.init_from or options.run, *pick_device(options.device, options.dtype)
    )
    tokens = [tokenizer.end_of_text, *tokenizer.encode(text).tolist()]
    for sample in range(options.num_samples):
        print(f"--- sample {sample + 1}\n" * (options.num_samples > 1) + text, end="", flush=True)
        # A token can end in the middle of a character: the decoder keeps such bytes until the rest has come.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

        def stream(column: torch.Tensor) -> None:
            token = column.item()
            if token != tokenizer.end_of_text:
                print(decoder.decode(tokenizer.decode_bytes([token])), end="", flush=True)

        seed = None if options.seed is None else options.seed + sample
        try:
            model.generate(
                [tokens],
                options.max_new_tokens,
                options.temperature,
                options.top_k,
                options.top_p,
                seed,
                tokenizer.end_of_text,
                stream,
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        print(decoder.decode(b"", final=True))


if __name__ == "__main__":
    run_command(main)
