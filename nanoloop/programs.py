"""Programs of this project that another one runs, each in a process of its own."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from nanoloop.options import print_safely, reading, require


def prepare_missing(data: str, prepare: str | None) -> str:
    """Return `data`, a folder that is prepared first if it is missing.

    prepare: options of prepare_data.py, None for none; they count if their --name is this folder's.
    A process of its own prepares, because workers import the main program. Raises UserError.
    """
    with reading(f"prepare={prepare} cannot be read", "close each quotation mark"):
        arguments = shlex.split(prepare or "")
    folder = Path(data)
    is_named = folder.parts[:-1] == ("data",) and f"--name={folder.name}" in arguments
    if is_named and not folder.exists():
        print_safely(f"'{data}' does not exist, preparing it:")
        is_prepared = run_script("prepare_data.py", arguments)
        require(is_prepared, "the data could not be prepared: see the message above")
    return data


def sample_run(out: Path, config) -> None:
    """Continue config.sample_prompt with the last weights of a run."""
    arguments = [
        str(out / "last.pt"),
        f"--prompt={config.sample_prompt}",
        "--max_new_tokens=200",
        "--temperature=0.7",
        "--top_k=50",
        f"--seed={config.seed}",
        f"--device={config.device}",
        f"--dtype={config.dtype}",
    ]
    run_script("sample.py", arguments)


def run_script(name: str, arguments: list[str]) -> bool:
    """Run another program of this project; return whether it succeeded.

    It is a single process, also where torchrun started this one.
    """
    print_safely(f"python {name} {shlex.join(arguments)}")
    script = Path(__file__).parent.parent / name
    single = os.environ | {"WORLD_SIZE": "1"}
    result = subprocess.run([sys.executable, script, *arguments], env=single)
    return result.returncode == 0
