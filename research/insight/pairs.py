"""Right and wrong Python: the wrong function of a pair has two pieces of the right one swapped.

Both hold the same tokens in another order, so a model that knows no more than how frequent tokens
are cannot tell them apart.
"""

import random
import re
import symtable
import textwrap
import warnings
from itertools import chain
from keyword import kwlist

from nanoloop.options import UserError, note
from research.insight.reading import STRING, data_of

TRIES = 100  # swaps in a function; the first with the fault makes the pair
FUNCTION = r"(?m)^( *)def .*\n(?:\1 .*\n|\n)+"
# Groups: a string or comment, which stays; an indent, a bracket, a keyword, a name.
PIECES = rf"(?m){STRING}|^( +)(?=\S)|([()[\]{{}}])|\b({'|'.join(kwlist)})\b|\b([A-Za-z_]\w*)"
FAULTS = {"wrong indent": 2, "wrong bracket": 3, "wrong keyword": 4, "undefined name": 5}


def names_of(function: str):
    """Return the symbol table of a function; None if it does not compile."""
    with warnings.catch_warnings(action="ignore"):
        try:
            compile(function, "", "exec", dont_inherit=True)
            return symtable.symtable(function, "", "exec").get_children()[-1]
        except (SyntaxError, ValueError):
            return None


def is_python(text: str) -> bool:
    """Say whether the first function in a text compiles; a line cut by the end is left out."""
    found = re.search(FUNCTION, text)
    return bool(found and names_of(found[0]))


def held_out_functions(state):
    """Return the functions in the val split of a checkpoint's data; [] with a note without it."""
    functions = []
    try:
        for _, source in data_of(state).sources.values():
            text = source.tokenizer.decode(chain(*source.splits["val"].shards))
            functions += [textwrap.dedent(found[0]) for found in re.finditer(FUNCTION, text)]
    except UserError as error:
        note(f"no pairs and samples of Python: {error}")
    return list(filter(names_of, functions))


def pairs_of(functions, tokenizer, size: int, fault: str):
    """Yield pairs with a fault: the right and the wrong function, as items of the exam.

    size: tokens of a function at most. A function makes one pair at most. An undefined name is a
    variable of the right function that the wrong one reads and does not bind.
    """
    rng = random.Random(fault)
    for right in rng.sample(functions, len(functions)):
        tokens = tokenizer.encode(right).tolist()
        group = FAULTS[fault]
        spans = [found.span() for found in re.finditer(PIECES, right) if found.lastindex == group]
        if len(tokens) > size or len(spans) < 2:
            continue
        for _ in range(TRIES):
            (a, b), (c, d) = sorted(rng.sample(spans, 2))
            wrong = right[:a] + right[c:d] + right[b:c] + right[a:b] + right[d:]
            others = tokenizer.encode(wrong).tolist()
            if sorted(tokens) != sorted(others):
                continue
            names = names_of(wrong)
            lost = names and {*names_of(right).get_locals()} & {*names.get_globals()}
            if lost or not (names or fault == "undefined name"):
                start = [tokenizer.end_of_text]
                yield (start, tokens), (start, others)
                break
