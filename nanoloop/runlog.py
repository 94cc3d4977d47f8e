"""A run's folder: config.json, log.jsonl, loss.png, summary.json."""

import gc
import json
import math
import statistics
from collections import deque
from pathlib import Path

from nanoloop.files import if_possible, remove, replace_file, write_json
from nanoloop.options import UserError, explained, first_line, require

RUN_FILES = (
    "config.json",
    "log.jsonl",
    "loss.png",
    "summary.json",
    "last.pt",
    "previous.pt",
    "best.pt",
)


def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Never destroy a run unasked: raises UserError where `out` holds one and neither way to treat it was chosen."""
    there = (
        bool(list(out.glob("*.pt"))) or (out / "summary.json").exists()
    )  # a run that died at once left no more
    told = f"'{out}' holds a run: type --resume=True to go on with it, --overwrite=True to delete it, or --out=FOLDER"
    require(not there or resume or overwrite, told)


class Log:
    """The log of a run in folder `out`, which begins, or goes on, after `step` steps and `seconds` of training.

    config: the run's options. n_params, flops_per_token: the model's. peak: floating-point operations per second that
    the devices can do at most; the share that is used (mfu, model FLOPs utilisation) is None where that is None.
    """

    def __init__(
        self,
        out: Path,
        step: int,
        seconds: float,
        config: dict,
        n_params: int,
        flops_per_token: float,
        peak,
    ):
        self.out, self.path, self.config, self.n_params, self.wandb = (
            out,
            out / "log.jsonl",
            config,
            n_params,
            None,
        )
        self.flops_per_token, self.peak_flops = flops_per_token, peak
        out.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:  # and nothing else that may be in the folder
            remove(out / f"{name}.tmp")  # of a run that was killed
            if config["overwrite"]:
                remove(out / name)
        write_json(out / "config.json", config)
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        self.rows = [
            row for row in map(whole_row, lines) if row
        ]  # a line that a kill has cut off is no row
        self.rewind(step, seconds)
        if config["wandb"]:
            import wandb

            with explained(
                "Weights & Biases did not start", "type `wandb login`, or set WANDB_MODE=offline"
            ):
                self.wandb = wandb.init(project="nanoloop", name=out.name, dir=out, config=config)

    def rewind(self, step: int, seconds: float) -> None:
        """Drop what came after `step`: it will come again."""
        self.rows, self.written = [row for row in self.rows if row["step"] <= step], (step, seconds)
        self.whole = if_possible(self.path, replace_file, self.write_rows)

    def write_rows(self, file) -> None:
        file.write("".join(json.dumps(row) + "\n" for row in self.rows).encode("utf-8"))

    def speed(self, steps: int, seconds: float) -> dict:
        per_second = steps * self.config["batch_tokens"] / seconds if seconds else 0.0
        mfu = per_second * self.flops_per_token / self.peak_flops if self.peak_flops else None
        return {"tokens_per_second": per_second, "mfu": mfu}

    def write(self, step: int, seconds: float, progress: float, **figures) -> None:
        """Print a row of figures for people and append it for programs."""
        gc.collect(1)  # of the young; keep_memory took it out of the steps
        row = {
            "step": step,
            "tokens": step * self.config["batch_tokens"],
            "seconds": seconds,
        } | figures
        row |= self.speed(step - self.written[0], seconds - self.written[1])
        row["seconds_left"] = max(0.0, seconds / progress - seconds)
        self.written = step, seconds
        print(
            " | ".join(f"{key} {show(value)}" for key, value in row.items() if value is not None),
            flush=True,
        )
        self.rows.append(row)
        try:
            require(self.whole and self.path.is_file(), "")
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except (
            OSError,
            UserError,
        ):  # it was deleted, or a full disk took no row, or part of one: all rows anew
            self.whole = if_possible(self.path, replace_file, self.write_rows)
        self.track(lambda: self.wandb.log(row, step=step))

    def track(self, send) -> None:
        """Do something with Weights & Biases; if that fails, training goes on without it."""
        try:
            if self.wandb:
                send()
        except Exception as error:  # of many kinds, its own among them
            print(
                f"warning: Weights & Biases failed ({first_line(error)}): going on without it; log.jsonl has it all"
            )
            self.wandb = None

    def pause(self, step: int) -> None:
        self.draw()
        print(f"stopped and saved at step {step}: the same command with --resume=True goes on")

    def draw(self) -> None:
        """loss.png: training and validation loss against tokens."""
        from matplotlib.figure import Figure

        axes = Figure(figsize=(8, 5), layout="constrained").subplots()
        for key, style in (("loss", "-"), ("val_loss", "o--")):
            points = [(row["tokens"], row[key]) for row in self.rows if key in row]
            if points:
                axes.plot(*zip(*points), style, label=f"{key}, last {points[-1][1]:.4f}")
        axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=str(self.out))
        axes.grid(alpha=0.3)
        axes.legend()
        axes.figure.savefig(self.out / "loss.png", dpi=120)

    def finish(
        self, step: int, seconds: float, total_seconds: float, memory_mb: float | None, **figures
    ) -> dict:
        """Print the summary as `key: value` lines, write it to summary.json, draw the losses; returns the summary."""
        tokens = step * self.config["batch_tokens"]
        summary = figures | {
            "train_seconds": seconds,
            "total_seconds": total_seconds,
            "tokens": tokens,
            "steps": step,
        }
        summary |= self.speed(step, seconds) | {
            "peak_memory_mb": memory_mb,
            "params": self.n_params,
        }
        write_json(self.out / "summary.json", summary)
        print("---", *(f"{key}: {show(value)}" for key, value in summary.items()), sep="\n")
        self.draw()
        self.track(lambda: self.wandb.summary.update(summary))
        self.track(lambda: self.wandb.finish())
        return summary


class Silence:
    """What the other ranks have in place of the log, and who only evaluates: it keeps nothing."""

    def __init__(self, *args):
        pass

    def __getattr__(self, name):
        return lambda *args, **figures: None

    def finish(self, *args, **figures) -> dict:
        print(
            *(
                [f"{key}: {show(value)}" for key, value in figures.items()]
                or ["no validation data"]
            ),
            sep="\n",
        )
        return figures


class SpikeWatch:
    """Which losses are spikes: those more than `deviations` standard deviations above the mean of the latest 100.

    action: "skip", "stop", "rewind", or None, with which nobody looks. count: spikes so far. ahead: steps by which the
    data are ahead of the optimizer steps, after rewinding. last: the latest loss that was good, for messages.
    """

    LATEST, FEWEST, PATIENCE = (
        100,
        20,
        10,
    )  # losses to compare with; before so many none is a spike; spikes in a row
    KEPT = ("count", "ahead", "in_row", "back_at", "tries")
    REMEDY = "The last checkpoint is older, and good: lower the learning rates, or choose another --on_spike"

    def __init__(self, action: str | None, deviations: float):
        self.action, self.deviations, self.last, self.rewinds = action, deviations, None, False
        self.recent: deque[float] = deque(maxlen=self.LATEST)
        self.count, self.ahead, self.in_row, self.back_at, self.tries = 0, 0, 0, -1, 0

    def look(self, step: int, loss: float) -> bool:
        """Whether the loss of `step` is a spike. Raises UserError where that, or their number, is to end the run."""
        mean, deviation = math.inf, 0.0
        if len(self.recent) >= self.FEWEST:
            mean, deviation = statistics.fmean(self.recent), statistics.stdev(self.recent)
        spike = (
            math.isfinite(loss) and loss > mean + self.deviations * deviation
        )  # not finite: the run ends anyway
        self.rewinds, self.in_row = (
            spike and self.action == "rewind",
            self.in_row + 1 if spike else 0,
        )
        self.count += spike
        if spike:
            told = f"spike {self.count}: the loss {loss:.4f} of step {step} is {(loss - mean) / (deviation or 1):,.1f} "
            told += f"deviations above the mean of the latest {len(self.recent)}, {mean:.4f}: on_spike={self.action}"
            ends = self.action == "stop" or self.in_row > self.PATIENCE
            require(not ends, f"{told}, {self.in_row} in a row. {self.REMEDY}")
            print(told, flush=True)
        else:
            self.recent.append(loss)
        return spike

    def mean(self, losses: list[float], step: int, rates) -> dict[str, float]:
        """The mean of the latest losses, up to `step`, and the count of spikes if they are looked for. Raises UserError
        at the first loss that is not finite. rates: the learning rates, for the message."""
        for at, value in enumerate(losses, start=step - len(losses)):
            told = f"the loss is {value} at step {at}, {self.last} before it, with learning rates {sorted(set(rates))}"
            told += "; the last checkpoint is older. Likely: a rate too high, dtype=float16"
            require(math.isfinite(value), told)
            self.last = value
        return {"loss": statistics.fmean(losses)} | ({"spikes": self.count} if self.action else {})

    def state(self) -> dict:
        """What the checkpoint keeps, so that a resumed run finds the same spikes."""
        return {name: getattr(self, name) for name in self.KEPT} | {"recent": list(self.recent)}

    def restore(self, state: dict) -> None:
        vars(self).update({name: int(state[name]) for name in self.KEPT})
        self.recent = deque(map(float, state["recent"]), self.LATEST)

    def rewound(self, step: int, checkpoint: dict) -> dict:
        """The checkpoint to go back to from after `step` steps, with the data that come after those (as PaLM did,
        arXiv:2204.02311, section 5.1); its spikes stay counted. Raises UserError where going back is of no use."""
        self.tries = self.tries + 1 if self.back_at == checkpoint["step"] else 1
        self.back_at, self.ahead = checkpoint["step"], step + self.ahead - checkpoint["step"]
        told = f"each of {self.PATIENCE} ways on from step {self.back_at} led to a spike. {self.REMEDY}"
        require(self.tries <= self.PATIENCE, told)
        return checkpoint | {"spikes": self.state() | {"recent": checkpoint["spikes"]["recent"]}}


def whole_row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return (
        row
        if isinstance(row, dict) and isinstance(row.get("step"), int) and "tokens" in row
        else None
    )


def show(value) -> str:
    """A figure for people: digits after the point where it is small, thousands marked where it is large."""
    if isinstance(value, float) and math.isfinite(value):
        return (
            f"{value:.4f}"
            if abs(value) < 10
            else f"{value:,.1f}"
            if abs(value) < 1000
            else f"{value:,.0f}"
        )
    return f"{value:,}" if isinstance(value, int) else str(value)
