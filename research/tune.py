"""Search options, then judge the best like any change.

    python -m research tune "muon_lr=log(0.005,0.05) n_layer=int(1,4) activation=relu2|swiglu"

A space is a list of options: `name=log(low,high)`, `float(low,high)`, `int(low,high)` or
`one|of|these`. Each setting is scored on the validation split with the same few seeds; a setting
that is behind the best by more than the noise floor allows is dropped before it has had all of
them. The search is stored in <folder>/tune.db, so the same command resumes it. The winner of a
search is also its luckiest setting: only the trial that follows, on fresh seeds and the test split,
says whether it is better.
"""

import math
from ast import literal_eval
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock

from tyro.conf import Positional

from nanoloop.options import UserError, require
from research.referee import patch
from research.referee.judge import begin, exit_code, noise_row, plan, try_change
from research.referee.runs import Options, PairRunner, Setup, Slot, undisturbed
from research.referee.verdict import Noise

EXAMPLE = "muon_lr=log(0.005,0.05) n_layer=int(1,4) activation=relu2|swiglu"


@dataclass(frozen=True)
class TuneOptions(Options):
    """Search options, then judge the best."""

    space: Positional[str] = ""  # as "n_layer=int(1,4)"
    tries: int = 30  # settings that are scored, those before a restart included
    seeds: int = 2  # runs of each setting that is not dropped

    def __post_init__(self):
        super().__post_init__()
        message = f"tries and seeds must be at least 1, got {self.tries} and {self.seeds}"
        require(min(self.tries, self.seeds) >= 1, message)


def read_space(text: str, names: set[str]) -> dict:
    """Return each option's Optuna distribution. Raises UserError."""
    space = {}
    for part in text.split():
        name, _, values = part.partition("=")
        is_known = name in names - patch.PROTECTED
        require(is_known, f"'{part}': {name} is no option of the recipe that may be searched")
        try:
            space[name] = read_values(values)
        except (KeyError, TypeError, ValueError, SyntaxError):
            hint = f"write {name}=log(0.01,0.1), float(0,1), int(1,4) or one|two"
            raise UserError(f"'{part}' is not a range: {hint}") from None
    require(space, f'SPACE is missing: type one such as "{EXAMPLE}"')
    return space


def read_values(text: str):
    """Turn log(low,high), float(low,high), int(low,high) or one|two into values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    kind, _, bounds = text.removesuffix(")").partition("(")
    if not bounds:
        choices = text.split("|")
        if len(choices) == 1:
            raise ValueError("a single value")
        return CategoricalDistribution(choices)
    low, high = map(literal_eval, bounds.split(","))
    if kind == "int":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log={"log": True, "float": False}[kind])


def search(
    space: dict,
    score,
    folder: Path,
    tries: int,
    seeds: int,
    slots=(None,),
    noise_sd: float = math.inf,
    start: dict | None = None,
    name: str = "",
):
    """Return the Optuna study (arXiv:1907.10902) of `space` after `tries` settings.

    score(settings, seed, slot): returns bits per byte, or raises patch.Invalid. As many run at once
    as there are slots. noise_sd: the noise floor; inf drops no setting. start: the first setting;
    an option that it lacks is sampled. name: of what scores compare within; a search of another
    name has a study of its own.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{folder / 'tune.db'}"
    study = optuna.create_study(storage=storage, study_name=f"{name}{space}", load_if_exists=True)
    if start and not study.trials:
        study.enqueue_trial(start)
    free_slots = list(slots)

    def best_mean() -> float:
        complete = study.get_trials(states=[TrialState.COMPLETE])
        return min((trial.value for trial in complete), default=math.inf)

    def try_setting(_) -> None:
        trial = study.ask(space)
        slot = free_slots.pop()
        scores = []
        mean = -math.inf
        try:
            while len(scores) < seeds and mean - best_mean() <= 2 * noise_sd:
                scores.append(score(trial.params, len(scores), slot))
                mean = sum(scores) / len(scores)
                figure = f"{scores[-1]:.4f} bits per byte"
                print(f"setting {trial.number}: {figure} | {trial.params}")
            if len(scores) == seeds:
                study.tell(trial, mean)
            else:
                study.tell(trial, state=TrialState.PRUNED)
        except patch.Invalid as error:
            print(f"setting {trial.number}: {error} | {trial.params}")
            study.tell(trial, state=TrialState.FAIL)
        finally:
            free_slots.append(slot)

    finished = sum(trial.state.is_finished() for trial in study.trials)
    with ThreadPoolExecutor(len(free_slots)) as pool:
        list(pool.map(try_setting, range(tries - finished)))
    return study


def setting_of(recipe, space: dict) -> dict:
    """Return the options of the recipe that the space can express, as it writes them."""
    setting = {}
    for name, values in space.items():
        value = getattr(recipe, name)
        choices = getattr(values, "choices", None)
        if choices:
            value = str(value)
            is_inside = value in choices
        else:
            is_inside = value is not None and values.low <= value <= values.high
        if is_inside:
            setting[name] = value
    return setting


def to_text(settings: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def main(options: TuneOptions, root: Path = patch.ROOT) -> int:
    """Search, then judge; return an exit code. root: the folder whose recipe is the baseline."""
    from train import TrainConfig

    space = read_space(options.space, {field.name for field in fields(TrainConfig)})
    setup = Setup(options, root)
    noise = noise_row(setup)
    runs = options.tries * options.seeds
    print(f"at most {plan(options, runs, noise.get('run_seconds'))}, then a trial")
    # The recipe was read from this checkout: of another root the first setting is drawn.
    start = setting_of(setup.recipe, space) if root == patch.ROOT else None

    one_parser = Lock()  # the parser of options serves one thread at a time

    def score(settings: dict, seed: int, slot: Slot) -> float:
        """Score a run with these options on the validation split. Raises Invalid."""
        text = to_text(settings)
        with one_parser:
            change = patch.from_settings(setup.base, setup.options.config, text, setup.root)
        # Nothing runs beside it, so it is the baseline.
        slot.install("baseline", patch.apply(setup.base, change))
        bpb = undisturbed(lambda: slot.run_alone(seed))
        reason = f"seed {seed}: {bpb:.4f} bits per byte"
        begin("setting", setup, state="done", hypothesis=text, bpb=bpb, reason=reason)
        return bpb

    with closing(PairRunner(setup, {})) as runner:
        study = search(
            space,
            score,
            setup.ledger.folder,
            options.tries,
            options.seeds,
            runner.slots,
            Noise.of(noise).sd,
            start,
            f"{options.config} {setup.budget} {setup.data.folder} ",
        )
    is_scored = any(trial.value is not None for trial in study.trials)
    require(is_scored, "no setting could be scored: change the space")
    count = len(study.trials)
    if study.best_params == start:
        print(f"none of {count} settings was better than the recipe: there is nothing to judge")
        return 1
    best = to_text(study.best_params)
    print(f"the best of {count} settings: {best}; the trial follows, on fresh seeds")
    hypothesis = f"The best of {count} settings of {options.space}"
    row = try_change(options, root, settings=best, hypothesis=hypothesis)
    print(f"{row['verdict']}: {row['reason']}")
    return exit_code(row)
