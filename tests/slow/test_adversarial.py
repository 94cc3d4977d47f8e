"""Every cheat is refused for the right reason, and no honest change is refused.

tests/slow/adversarial/ holds the cases, one per file: a docstring that says what the case does and
what catches it, and

    EDITS          edits of the recipe (see edits.py)
    FILES          path to text of files that the change adds or replaces; None: it deletes the file
    LINK           (path, target) of a symbolic link
    PATCH          a patch as text, instead of edits
    BUDGET         seconds, such as "1s", instead of the recipe's steps
    RUNS           how often it runs; 1 if it is not given

and what must become of it:

    REFUSED        a pattern of the reason for which it is refused, before or after training
    GAINS_NOTHING  it runs, and its score is the baseline's to within so many bits per byte. A case
                   that looks for something exits with status 99 where it finds it: a crash.
    SAME           it scores the same to the last bit
    SIMPLER        it has fewer tokens
    GAINS          it is scored as better by so many bits per byte: a cheat in open/, which
                   docs/research.md names as one that the referee does not defend against

An honest change without any of these is scored, unless another program disturbs its runs.
"""

import copy
import os
import re
import runpy
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from research.referee import judge, patch, runs
from tests.slow.adversarial.edits import apply_edits
from tests.trials import make_project, prepare_words

HERE = Path(__file__).parent / "adversarial"
FOLDERS = ("cheats", "honest", "open")
CASES = [path for folder in FOLDERS for path in sorted(HERE.glob(f"{folder}/*.py"))]
SEEDS = (102, 202)  # even: the baseline is first
BASELINE = "the baseline's scores, by seed"


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> runs.Setup:
    """Set up trials of a recipe that trains in a second, on text of its own."""
    data = prepare_words(tmp_path_factory.mktemp("data"))
    root = make_project(tmp_path_factory.mktemp("root"), data, n_layer=2, max_steps=25)
    folder = str(tmp_path_factory.mktemp("judge"))
    return runs.Setup(runs.Options(config="config/tiny.py", folder=folder, slowdown=3.0), root)


def make_change(case: dict, setup: runs.Setup, folder: Path) -> patch.Change:
    """Make the case's change, as a tree or, for paths outside of it, as a patch."""
    if "PATCH" in case:
        change = patch.from_patch(setup.base, case["PATCH"].encode())
        patch.refuse(not change.files, "it changes nothing")
        return change
    data = setup.data
    tokens = data.splits["val"].read(0, 2000)
    held_out = data.tokenizer.decode(tokens).replace("\n", " ")
    texts = {path: content.decode() for path, content in setup.base.items()}
    for path, text in apply_edits(texts, case.get("EDITS", [])).items():
        texts[path] = text.replace("HELD_OUT", held_out[300:600])
        texts[path] = texts[path].replace("BLOB", secrets.token_hex(10_000))
        if "HASHES" in text:
            texts[path] = texts[path].replace("HASHES", hashes(tokens))
    texts |= case.get("FILES", {})
    files = {path: text.encode() for path, text in texts.items() if text is not None}
    tree = patch.write_tree(files, folder / "tree")
    if "LINK" in case:
        path, target = case["LINK"]
        (tree / path).unlink()
        (tree / path).symlink_to(target)
    change = patch.from_tree(setup.base, tree)
    patch.refuse(patch.copies(change, held_out.encode()), "it spells out held-out text")
    return change


def hashes(tokens: list[int]) -> str:
    """Write hexadecimal numbers: a hash of 12 tokens in three bytes, and the next in one."""
    codes = []
    for end in range(12, 1012):
        code = hash(tuple(map(int, tokens[end - 12 : end]))) % 2**24
        codes.append(f"{code:06x}{tokens[end] % 256:02x}")
    return "".join(codes)


def outcome_of(
    case: dict, change: patch.Change, setup: runs.Setup, slots: dict, share, scores: dict
) -> dict:
    """Return the failure of a candidate that is refused, else its differences and tokens.

    scores: of the baseline under the recipe's own budget; each seed's set gets one more.
    """
    budget = case.get("BUDGET")
    if budget not in slots:
        own_setup = copy.copy(setup)
        if budget:
            own_setup.kind = "seconds"
            own_setup.amount = float(budget.removesuffix("s"))
        slots[budget] = runs.Slot(own_setup, {}, *share)
    slot = slots[budget]
    slot.install("candidate", patch.apply(setup.base, change))
    pairs = []
    for seed in SEEDS[: case.get("RUNS", 1)]:
        pairs.append(slot.pair(seed, "val"))
        if not budget and "baseline" in pairs[-1]:
            scores[seed].append(pairs[-1]["baseline"]["bpb"])
        failure = pairs[-1].get("failed") or judge.same_for_every_seed(pairs)
        if failure:
            return failure
    return {"differences": judge.differences(pairs, "val"), "tokens": change.tokens}


@pytest.fixture(scope="module")
def outcomes(request, tiny, tmp_path_factory) -> dict[str, dict]:
    """Judge all cases that were asked for, two at once where there are two cores."""
    items = [item for item in request.session.items if item.path == Path(__file__)]
    chosen = [item.callspec.params["path"] for item in items if hasattr(item, "callspec")]
    results = {BASELINE: {seed: [] for seed in SEEDS}}
    waiting = []
    for path in chosen:
        case = runpy.run_path(str(path))
        try:
            change = make_change(case, tiny, tmp_path_factory.mktemp("case"))
            waiting.append((name_of(path), case, change))
        except patch.Invalid as error:
            results[name_of(path)] = {"reason": str(error)}
    # Those with a budget of seconds come first, each slot with its own baseline.
    waiting.sort(key=lambda row: "BUDGET" not in row[1])

    def judge_cases(share: tuple[int, int]) -> None:
        slots = {}
        while waiting:
            name, case, change = waiting.pop(0)
            try:
                results[name] = outcome_of(case, change, tiny, slots, share, results[BASELINE])
            except Exception as error:
                results[name] = {"error": error}
        for slot in slots.values():
            if slot.setup.kind == "tokens":
                results[BASELINE][SEEDS[0]].append(slot.run_alone(SEEDS[0]))
            slot.close()

    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor() as pool:
        list(pool.map(judge_cases, [(number, cores) for number in range(min(2, cores))]))
    return results


@pytest.mark.parametrize("path", CASES, ids=name_of)
def test_cheats_are_refused_and_honest_changes_are_not(path, outcomes):
    case = runpy.run_path(str(path))
    outcome = outcomes[name_of(path)]
    if "error" in outcome:
        raise outcome["error"]
    message = f"{case['__doc__']} But: {outcome}"
    if "REFUSED" in case:
        assert re.search(case["REFUSED"], outcome.get("reason", "")), message
    elif "GAINS_NOTHING" in case:
        assert abs(outcome.get("differences", [9.9])[0]) <= case["GAINS_NOTHING"], message
    elif "GAINS" in case:
        assert outcome.get("differences", [9.9])[0] < -case["GAINS"], message
    elif outcome.get("verdict") == "disturbed":  # by another program: that is no refusal
        pytest.skip(outcome["reason"])
    else:
        assert "differences" in outcome, message
        assert not case.get("SIMPLER") or outcome["tokens"] < 0, message
        assert not case.get("SAME") or outcome["differences"] == [0.0], message


def test_no_case_has_harmed_the_baseline(outcomes):
    """Beside each of them its score is the same to the last bit: nothing outlives a run."""
    for seed, found in outcomes[BASELINE].items():
        assert len(set(found)) <= 1, (seed, found)


def test_the_suite_is_as_large_as_promised():
    assert len(list(HERE.glob("cheats/*.py"))) >= 82
    assert len(list(HERE.glob("honest/*.py"))) >= 36
