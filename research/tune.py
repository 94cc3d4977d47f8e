"""Search options, then judge the best like any change.

    python -m research tune "muon_lr=log(0.005,0.05) n_layer=int(1,4) activation=relu2|swiglu"

A space is a list of options: `name=log(low,high)`, `float(low,high)`, `int(low,high)` or `one|of|these`, or a file of
them. Every setting is scored on the validation split with the same few seeds; what lies behind the best by more than
the noise floor allows is dropped before it has had them all. The search lives in <folder>/tune.db, so that the same
command goes on where it was. The winner of a search is its luckiest setting as well: only the trial
that follows, on fresh seeds and the test split, says whether it is better.
"""

import math
from ast import literal_eval
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from nanoloop.options import reading as explained, require
from research import patch
from research.judge import exit_code, known_noise, try_change
from research.runs import Options, Setup, Slot


@dataclass(frozen=True)
class TuneOptions(Options):
    """Search options, then judge the best."""

    space: Annotated[str, tyro.conf.Positional] = (
        ""  # "name=log(low,high) name=int(low,high) name=one|two", or a file
    )
    tries: int = 30  # settings that are scored, those before a restart included
    seeds: int = 2  # runs of each setting that is not dropped


def read_space(text: str, names: set[str]) -> dict:
    """Option to Optuna's distribution of its values. Raises UserError."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kinds = {
        "log": partial(FloatDistribution, log=True),
        "float": FloatDistribution,
        "int": IntDistribution,
    }
    space = {}
    for part in (Path(text).read_text(encoding="utf-8") if Path(text).is_file() else text).split():
        name, _, value = part.partition("=")
        require(
            name in names - patch.PROTECTED,
            f"'{part}': {name} is no option of the recipe that may be searched",
        )
        kind, _, bounds = value.rstrip(")").partition("(")
        with explained(
            f"'{part}' makes no sense",
            f"write {name}=log(0.01,0.1), float(0,1), int(1,4) or one|two",
        ):
            ends = map(literal_eval, bounds.split(","))
            space[name] = (
                kinds[kind](*ends) if bounds else CategoricalDistribution(value.split("|"))
            )
    require(
        space,
        'no SPACE was given: type one as "muon_lr=log(0.005,0.05) n_layer=int(1,4) activation=relu2|swiglu"',
    )
    return space


def search(
    space: dict,
    score,
    folder: Path,
    tries: int,
    seeds: int,
    places=((),),
    sd: float = math.inf,
    start=None,
):
    """The Optuna study (Akiba et al. 2019, arXiv:1907.10902) of `space` after `tries` settings.

    score(settings, seed, place) is bits per byte, or raises patch.Invalid; as many run at once as there are places. sd:
    the noise floor; inf drops nothing. start: a setting to begin with.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'tune.db'}", study_name=repr(space), load_if_exists=True
    )
    study.enqueue_trial(start) if start and not study.trials else None
    free, state = list(places), optuna.trial.TrialState

    def one(_) -> None:
        trial, place, scores, best = study.ask(space), free.pop(), [], math.inf
        try:
            while len(scores) < seeds and (
                not scores or sum(scores) / len(scores) - best <= 2 * sd
            ):
                scores.append(score(trial.params, len(scores), place))
                print(
                    f"setting {trial.number}: {scores[-1]:.4f} bits per byte | {trial.params}",
                    flush=True,
                )
                best = min(
                    (other.value for other in study.get_trials(states=[state.COMPLETE])),
                    default=math.inf,
                )
            whole = len(scores) == seeds
            study.tell(
                trial,
                sum(scores) / seeds if whole else None,
                state=state.COMPLETE if whole else state.PRUNED,
            )
        except patch.Invalid as error:
            print(f"setting {trial.number}: {error} | {trial.params}", flush=True)
            study.tell(trial, state=state.FAIL)
        finally:
            free.append(place)

    done = sum(trial.state.is_finished() for trial in study.trials)
    with ThreadPoolExecutor(len(free)) as pool:
        list(pool.map(one, range(tries - done)))
    return study


def flags(settings: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def main(chosen: TuneOptions) -> int:
    setup = Setup(chosen, patch.ROOT)
    space = read_space(chosen.space, {field.name for field in fields(setup.recipe)})
    noise = known_noise(setup.ledger, chosen)
    start, sd = (
        {name: getattr(setup.recipe, name) for name in space},
        noise.sd if noise else math.inf,
    )

    def score(settings: dict, seed: int, slot: Slot) -> float:
        """Bits per byte, on the validation split, of one run with these options. Raises Invalid."""
        change = patch.from_settings(setup.base, setup.options.config, flags(settings), setup.root)
        slot.place(
            "baseline", patch.apply(setup.base, change)
        )  # there is nothing beside it that it is compared with
        return slot.run("baseline", seed, "val")["bpb"]

    with ExitStack() as stack:
        slots = [
            stack.enter_context(closing(Slot(setup, {}, i, chosen.workers)))
            for i in range(chosen.workers)
        ]
        study = search(
            space, score, setup.ledger.folder, chosen.tries, chosen.seeds, slots, sd, start
        )
    require(
        [trial for trial in study.trials if trial.value is not None],
        "no setting could be scored: mend the space",
    )
    count, best = len(study.trials), flags(study.best_params)
    if study.best_params == start:
        print(
            f"none of {count} settings was lower than the recipe as it is: there is nothing to judge"
        )
        return 1
    print(f"the lowest of {count} settings: {best}; now the trial, on fresh seeds")
    row = try_change(
        chosen,
        patch.ROOT,
        settings=best,
        hypothesis=f"The lowest of {count} settings of {chosen.space}",
    )
    print(f"{row['verdict']}: {row['reason']}")
    return exit_code(row)
