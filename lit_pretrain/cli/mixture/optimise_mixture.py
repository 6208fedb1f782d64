"""`mixture optimise`: small runs over the simplex, a law of their losses, the best, a check.

The runs are those of a sweep: planned and priced before anything starts, kept when they are
finished, continued when they were stopped. First come the mixtures of a design, and the natural one
with several seeds. Their losses give the law and the best mixture. Then the best and the natural
mixture are trained with fresh seeds, and only what is better there is called better.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
import yaml
from scipy import stats

from lit_pretrain.cli.scaling.options import aligned
from lit_pretrain.cli.sweep import point_config
from lit_pretrain.cli.sweep.fit_options import FitOptions, parse_as_plan, shared_options
from lit_pretrain.cli.sweep.launch import CONFIGS
from lit_pretrain.cli.sweep.planned_runs import (
    PlannedRun,
    check_launch,
    cost_of,
    expected_speed,
    make_runs,
    missing_runs,
)
from lit_pretrain.corpus.manifest import MANIFEST_FILENAME, Manifest
from lit_pretrain.errors import UserError, did_you_mean
from lit_pretrain.files import check_output, write_file, writing
from lit_pretrain.report.html_page import html_page, html_table
from lit_pretrain.report.run_folder import read_metrics
from lit_pretrain.scaling.mixture_law import (
    LEAST_RUNS,
    RUNS_PER_SOURCE,
    MixtureFit,
    design_mixtures,
    fit_mixture,
    round_shares,
)

if TYPE_CHECKING:
    from lit_pretrain.cli.mixture import MixtureSettings

OURS = {
    "name": "runs are named after their mixture",
    "runs": "their folder is out",
    "resume": "a run that is there goes on",
    "config": "name config files before the options",
}
"""Options of `fit` that are for this verb to set, and why."""
_OF_MIXTURE = ("weights", "temperature", "phases")
"""Options of `data` that would contradict the mixtures."""
REPORT, PAGE, WEIGHTS = "mixture.json", "mixture.html", "weights.yaml"
"""Files in the output folder."""
_SAME = 0.01
"""Sum of the differences of shares below which two mixtures are the same."""
Floats = npt.NDArray[np.float64]


class ConfirmedGain(TypedDict):
    """Best and natural mixture with fresh seeds, in pairs."""

    natural: list[float]
    """Loss on the target, by seed."""
    best: list[float]
    gain: float
    """Mean of natural minus best."""
    standard_error: float
    interval: tuple[float, float]
    """95 % (Student's t)."""
    better: bool
    """Whether the gain is more than two standard errors."""


class TargetLaw(TypedDict):
    """The law of the loss on one target."""

    floor: float
    slopes: dict[str, float]
    """By source."""
    rank_correlation: float
    """Of predictions for runs that were left out of the fit."""
    error: float
    """Of these predictions, as a share of the loss."""
    noise: float
    """Standard deviation over seeds."""


class TriedMixture(TypedDict):
    """One run of the sweep."""

    name: str
    weights: dict[str, float]
    losses: dict[str, float]
    """By target."""


class MixtureReport(TypedDict):
    """All figures, as mixture.json holds them."""

    sources: list[str]
    tokens: dict[str, int]
    natural: dict[str, float]
    best: dict[str, float]
    interval: dict[str, tuple[float, float]]
    cap: dict[str, float]
    target: dict[str, float]
    length: float
    """Tokens of the run that the mixture is for."""
    laws: dict[str, TargetLaw]
    """By target."""
    predicted: dict[str, float]
    """Loss on the target of natural, uniform and best mixture, and the gain."""
    predicted_interval: tuple[float, float]
    confirmed: ConfirmedGain | None
    """None if the best mixture is the natural one."""
    runs: list[TriedMixture]


@dataclass(frozen=True)
class _Space:
    """The simplex of mixtures, and what is planned on it."""

    sources: list[str]
    tokens_M: Floats
    natural_M: Floats
    caps_M: Floats
    target: dict[str, float]
    """Weights that sum to 1."""
    length: float
    shared: FitOptions
    resolved: Mapping[str, Any]
    flops: float
    devices: int
    shape: str
    speed: float | None
    speed_source: str
    out: str

    def run(self, name: str, weights_M: Floats, seed: int) -> PlannedRun:
        """Plan a run of a mixture."""
        shares = {
            source: float(weight)
            for source, weight in zip(self.sources, weights_M, strict=True)
            if weight > 0
        }
        own = [("model.seed", seed), ("data.seed", seed), ("data.weights", shares)]
        config = point_config(self.shared, own, self.resolved)
        return PlannedRun(
            name=name,
            config=config | {"name": name, "runs": self.out},
            flops=self.flops,
            devices=self.devices,
            shape=self.shape,
            speed=self.speed,
            speed_source=self.speed_source,
        )

    def losses(self, name: str) -> dict[str, float]:
        """Read the held-out bits per byte of a finished run, by target."""
        lines = read_metrics(Path(self.out) / name)
        held_out = [line for line in lines if "val/loss" in line]
        found = {
            source: held_out[-1][f"val_bits_per_byte/{source}"]
            for source in self.target
            if held_out and f"val_bits_per_byte/{source}" in held_out[-1]
        }
        for source in self.target:
            if not math.isfinite(found.get(source, math.nan)):
                raise UserError(
                    f"{Path(self.out) / name} has no held-out loss of the target {source}: the"
                    " dataset holds too little of its text for data.val_tokens; raise it, or hold"
                    " out more"
                )
        return found

    def loss(self, name: str) -> float:
        """Return the loss of a finished run on the whole target."""
        found = self.losses(name)
        return sum(weight * found[source] for source, weight in self.target.items())


def optimise_mixture(
    settings: MixtureSettings, base: Sequence[str], more: FitOptions, stdout: IO[str]
) -> int:
    """Find the best mixture, as far as the runs are there, and make those that are missing.

    Returns:
        The exit code.

    Raises:
        UserError: An option is wrong, or runs failed or were stopped.
    """
    _check(settings)
    space = _space(settings, base, more)
    sources = len(space.sources)
    count = settings.mixtures or max(LEAST_RUNS, RUNS_PER_SOURCE * sources)
    design = design_mixtures(space.natural_M, space.caps_M, count, settings.design_seed)
    if len(design) < _fewest(sources):
        raise UserError(
            f"tokens={space.length:,.0f} with max_epochs={settings.max_epochs:g} leave"
            f" {len(design)} {'mixture' if len(design) == 1 else 'mixtures'} to try; the law of"
            f" {sources} sources needs at least {_fewest(sources)}: give more text, a shorter run"
            " or more passes"
        )
    weights = [*design, *[space.natural_M] * settings.repeats]
    runs = [space.run(f"mixture-{_digest(each)}", each, 0) for each in design]
    runs += [
        space.run(f"natural,seed={seed}", space.natural_M, seed) for seed in range(settings.repeats)
    ]
    missing = missing_runs(Path(settings.out), runs)
    print(_plan_table(space, weights, runs, missing), file=stdout)
    # What the confirmation takes is known before its mixture is.
    later = [
        space.run(f"{side} mixture, confirmed {n}", space.natural_M, n)
        for side in (("best", "natural") if missing else ())
        for n in range(settings.repeats)
    ]
    print(
        f"{len(design)} mixtures, {settings.repeats} seeds of the natural one"
        + (f", and {len(later)} runs to confirm the best" if later else ""),
        cost_of([*runs, *later], [*missing, *later], settings),
        sep="\n",
        file=stdout,
        flush=True,
    )
    if settings.dry_run:
        return 0
    if missing and (written := make_runs(settings, missing, alike=True)):
        print(written, file=stdout)
        return 0
    losses = np.array([[space.losses(run.name)[t] for t in space.target] for run in runs])
    found = fit_mixture(
        np.array(weights), losses, list(space.target.values()), space.natural_M, space.caps_M,
        kl=settings.kl,
    )  # fmt: skip
    confirmed = None
    if np.abs(found.best_M - space.natural_M).sum() > _SAME:
        print(
            f"\nbest by the law: {_spell(space, found.best_M)}; now with fresh seeds", file=stdout
        )
        seeds = range(settings.repeats, 2 * settings.repeats)
        pairs = [
            (
                space.run(f"natural,seed={seed}", space.natural_M, seed),
                space.run(f"best-{_digest(found.best_M)},seed={seed}", found.best_M, seed),
            )
            for seed in seeds
        ]
        both = [run for pair in pairs for run in pair]
        missing = missing_runs(Path(settings.out), both)
        print(cost_of(both, missing, settings), file=stdout, flush=True)
        if missing and (written := make_runs(settings, missing, alike=True)):
            print(written, file=stdout)
            return 0
        sides = zip(*pairs, strict=True)
        confirmed = _confirm(*([space.loss(run.name) for run in side] for side in sides))
    report = _report(space, runs, weights, losses, found, confirmed, settings.repeats)
    _write(report, settings.out)
    print(f"\n{mixture_table(report)}", file=stdout)
    side = "best" if advised(report) == report["best"] else "natural"
    print(
        f"{Path(settings.out) / WEIGHTS}: the {side} weights, for `lit_pretrain fit --config`",
        file=stdout,
    )
    return 0


# ------------------------------------------------------------------ planning


def _check(settings: MixtureSettings) -> None:
    """Refuse settings that cannot work."""
    check_launch(settings)
    if not settings.target:
        raise UserError(
            "target is empty: name the sources whose held-out loss counts, as in --target"
            " '{prose: 1}'"
        )
    for source, weight in settings.target.items():
        if not 0 < weight < math.inf:
            raise UserError(f"target.{source}={weight:g} must be positive and finite")
    for name, value in (("tokens", settings.tokens), ("max_epochs", settings.max_epochs)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name}={value:g} must be positive and finite")
    if not 0 <= settings.kl < math.inf:
        raise UserError(f"kl={settings.kl:g} must be at least 0 and finite")
    if settings.repeats < 2:
        raise UserError(f"repeats={settings.repeats} must be at least 2: one seed has no error")
    if settings.design_seed < 0:
        raise UserError(f"design_seed={settings.design_seed} must be at least 0")
    if not settings.dry_run:
        check_output(Path(settings.out) / CONFIGS / "base.yaml", f"--out={settings.out}")


def _space(settings: MixtureSettings, base: Sequence[str], more: FitOptions) -> _Space:
    """Plan one of the small runs, all of which cost the same, and lay out the simplex."""
    from lit_pretrain.cli.plan.question import ask
    from lit_pretrain.scaling.plan import make_plan

    shared = shared_options(base, more, OURS, where="set")
    cli = parse_as_plan(shared, settings)
    question = ask(cli, bare=False)
    plan = make_plan(question)
    resolved = cli.config.as_dict()
    data = resolved["data"]
    of_data = data.get("init_args", data)
    if "path" not in of_data or not isinstance(of_data["path"], str):
        raise UserError(
            "data: a mixture is one of the sources of a prepared dataset (TextData); found"
            f" {data.get('class_path', 'no data.path')}"
        )
    for name in _OF_MIXTURE:
        if of_data.get(name):
            raise UserError(f"data.{name} is for the mixtures to set; leave it out of the config")
    path = of_data["path"]
    if "://" in path or not (Path(path).expanduser() / MANIFEST_FILENAME).is_file():
        raise UserError(
            f"data.path={path} is no prepared dataset on this machine, whose manifest says how much"
            " text each source has"
        )
    manifest = Manifest.load(Path(path).expanduser())
    for option, names in (("target", settings.target), ("leave_out", settings.leave_out)):
        for name in names:
            if name not in manifest.sources:
                raise UserError(
                    f"{option}: {path} has no source"
                    f" {name!r}.{did_you_mean(name, manifest.sources)} It has:"
                    f" {', '.join(manifest.sources)}"
                )
    for name in settings.target:
        if not manifest.sources[name].splits["validation"].tokens:
            raise UserError(f"target: {path} holds out no text of {name} for validation")
    tokens = {
        name: source.splits["train"].tokens
        for name, source in manifest.sources.items()
        if name not in settings.leave_out and source.splits["train"].tokens
    }
    if len(tokens) < 2:
        raise UserError(
            f"{path} has {len(tokens)} {'source' if len(tokens) == 1 else 'sources'} to mix; a"
            " mixture needs at least 2"
        )
    length = float(settings.tokens or plan["length"]["tokens"])
    tokens_M = np.array(list(tokens.values()), dtype=np.float64)
    caps_M = np.minimum(1.0, settings.max_epochs * tokens_M / length)
    if settings.max_epochs * tokens_M.sum() < length:
        raise UserError(
            f"tokens={length:,.0f} are more than max_epochs={settings.max_epochs:g} passes over the"
            f" {tokens_M.sum():,.0f} tokens of all sources; give more text, a shorter run or more"
            " passes"
        )
    fewest = _fewest(len(tokens))
    if settings.mixtures is not None and settings.mixtures < fewest:
        raise UserError(
            f"mixtures={settings.mixtures}: the law of {len(tokens)} sources needs at least"
            f" {fewest}"
        )
    whole = sum(settings.target.values())
    speed, speed_source = expected_speed(question)
    return _Space(
        sources=list(tokens),
        tokens_M=tokens_M,
        natural_M=_natural(tokens_M),
        caps_M=caps_M,
        target={name: weight / whole for name, weight in settings.target.items()},
        length=length,
        shared=shared,
        resolved=resolved,
        flops=plan["length"]["flops"],
        devices=question.layout.devices,
        shape=repr((question.net, question.layout)),
        speed=speed,
        speed_source=speed_source,
        out=settings.out,
    )


def _fewest(sources: int) -> int:
    """Return how many mixtures the law needs: one more than it has parameters."""
    return sources + 2


def _natural(tokens_M: Floats) -> Floats:
    """Return the shares of the text, none of them 0."""
    return round_shares(np.maximum(tokens_M / tokens_M.sum(), 0.001))


def _digest(weights_M: Floats) -> str:
    """Name a mixture; another one has another name, so that no run is taken for its own."""
    text = ",".join(f"{weight:.3f}" for weight in weights_M)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _spell(space: _Space, weights_M: Floats) -> str:
    return ", ".join(
        f"{source} {weight:.3f}" for source, weight in zip(space.sources, weights_M, strict=True)
    )


def _plan_table(
    space: _Space,
    weights: Sequence[Floats],
    runs: Sequence[PlannedRun],
    missing: Sequence[PlannedRun],
) -> str:
    left = {run.name for run in missing}
    rows: list[Sequence[str]] = [("run", *space.sources, "")]
    rows += [
        (run.name, *(f"{weight:.3f}" for weight in each), "" if run.name in left else "done")
        for run, each in zip(runs, weights, strict=True)
    ]
    return "\n".join(aligned(rows))


# ------------------------------------------------------------------ what the runs say


def _confirm(natural: Sequence[float], best: Sequence[float]) -> ConfirmedGain:
    """Compare both mixtures in pairs of one seed."""
    gains = np.array(natural) - np.array(best)
    error = float(gains.std(ddof=1) / math.sqrt(len(gains)))
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * error
    gain = float(gains.mean())
    return ConfirmedGain(
        natural=list(natural),
        best=list(best),
        gain=gain,
        standard_error=error,
        interval=(gain - half, gain + half),
        better=gain > 2 * error,
    )


def _report(
    space: _Space,
    runs: Sequence[PlannedRun],
    weights: Sequence[Floats],
    losses: Floats,
    found: MixtureFit,
    confirmed: ConfirmedGain | None,
    repeats: int,
) -> MixtureReport:
    def by_source(values: Floats) -> dict[str, float]:
        return {s: float(value) for s, value in zip(space.sources, values, strict=True)}

    targets = list(space.target.values())

    def predict(weights_M: Floats) -> float:
        return sum(
            weight * float(law.loss(weights_M))
            for weight, law in zip(targets, found.laws, strict=True)
        )

    return MixtureReport(
        sources=space.sources,
        tokens={s: int(n) for s, n in zip(space.sources, space.tokens_M, strict=True)},
        natural=by_source(space.natural_M),
        best=by_source(found.best_M),
        interval={
            source: (float(low), float(high))
            for source, low, high in zip(space.sources, *found.interval_2M, strict=True)
        },
        cap=by_source(space.caps_M),
        target=space.target,
        length=space.length,
        laws={
            name: {
                "floor": math.exp(law.c),
                "slopes": by_source(law.t_M),
                "rank_correlation": found.rank_correlation[j],
                "error": found.error[j],
                "noise": float(losses[-repeats:, j].std(ddof=1)),
            }
            for j, (name, law) in enumerate(zip(space.target, found.laws, strict=True))
        },
        predicted={
            "natural": predict(space.natural_M),
            "uniform": predict(np.full(len(space.sources), 1 / len(space.sources))),
            "best": predict(found.best_M),
            "gain": found.gain,
        },
        predicted_interval=found.gain_interval,
        confirmed=confirmed,
        runs=[
            {
                "name": run.name,
                "weights": by_source(each),
                "losses": dict(zip(space.target, map(float, row), strict=True)),
            }
            for run, each, row in zip(runs, weights, losses, strict=True)
        ],
    )


def mixture_table(report: MixtureReport) -> str:
    """Format a report for the terminal."""
    lines = []
    for title, rows in _tables(report).items():
        lines += [title, *(f"  {line}" for line in aligned(rows)), ""]
    return "\n".join([*lines, verdict(report)])


def _tables(report: MixtureReport) -> dict[str, list[tuple[str, ...]]]:
    """Lay out the tables of a report by title; the first row of each is its head."""
    shares: list[tuple[str, ...]] = [
        ("source", "tokens", "natural", "best", "95 % interval", "cap", "epochs")
    ]
    for source in report["sources"]:
        low, high = report["interval"][source]
        epochs = report["best"][source] * report["length"] / report["tokens"][source]
        shares.append((
            source, f"{report['tokens'][source]:,}", f"{report['natural'][source]:.3f}",
            f"{report['best'][source]:.3f}", f"{low:.3f} to {high:.3f}",
            f"{report['cap'][source]:.3f}", f"{epochs:.2f}",
        ))  # fmt: skip
    laws: list[tuple[str, ...]] = [
        ("target", "weight", "floor", *report["sources"], "rank correlation", "error", "noise")
    ]
    for name, law in report["laws"].items():
        laws.append((
            name, f"{report['target'][name]:.3f}", f"{law['floor']:.4f}",
            *(f"{law['slopes'][source]:+.3f}" for source in report["sources"]),
            f"{law['rank_correlation']:.3f}", f"{law['error']:.2%}", f"{law['noise']:.4f}",
        ))  # fmt: skip
    predicted = report["predicted"]
    return {
        f"shares, for a run of {report['length']:,.0f} tokens": shares,
        (
            "law: bits per byte = floor + exp(Σ slope × share); rank correlation and error of"
            " predictions for runs that were left out; noise over seeds"
        ): laws,
        "bits per byte on the target, by the law": [
            ("natural", "uniform", "best", "gain", "95 % interval"),
            (
                f"{predicted['natural']:.4f}", f"{predicted['uniform']:.4f}",
                f"{predicted['best']:.4f}", f"{predicted['gain']:.4f}",
                f"{report['predicted_interval'][0]:.4f} to {report['predicted_interval'][1]:.4f}",
            ),
        ],
    }  # fmt: skip


def verdict(report: MixtureReport) -> str:
    """Say in words what the confirmation has shown."""
    confirmed = report["confirmed"]
    if confirmed is None:
        return (
            "The natural mixture is the best that the law knows: nothing was confirmed, and the"
            " weights are the natural ones."
        )
    low, high = confirmed["interval"]
    figures = (
        f"{confirmed['gain']:+.4f} bits per byte (standard error {confirmed['standard_error']:.4f},"
        f" 95 % {low:+.4f} to {high:+.4f}; {len(confirmed['best'])} fresh seeds in pairs)"
    )
    if confirmed["better"]:
        return f"Confirmed: the best mixture beats the natural one by {figures}."
    return (
        f"Not confirmed: against the natural mixture the best one gains {figures}, which is not"
        " more than two standard errors. Stay with the natural mixture, or take longer or more"
        " runs."
    )


def advised(report: MixtureReport) -> dict[str, float]:
    """Return the shares that a run should take: the best ones only where they were confirmed."""
    confirmed = report["confirmed"]
    return report["best"] if confirmed is not None and confirmed["better"] else report["natural"]


def _write(report: MixtureReport, out: str) -> None:
    """Write the report as JSON and as a page, and the weights as a config of `fit`."""
    tables = "".join(
        f"<div><h3>{escape(title)}</h3>{html_table(rows)}</div>"
        for title, rows in _tables(report).items()
    )
    runs = [
        ("run", *report["sources"], *report["target"]),
        *(
            (
                str(run["name"]),
                *(f"{run['weights'][source]:.3f}" for source in report["sources"]),
                *(f"{run['losses'][target]:.4f}" for target in report["target"]),
            )
            for run in report["runs"]
        ),
    ]
    body = (
        f'<p>{escape(verdict(report))}</p><div class="tables">{tables}</div>'
        f"<h2>Runs: shares, and bits per byte of the targets</h2>{html_table(runs)}"
    )
    weights = {"data": {"weights": {s: w for s, w in advised(report).items() if w > 0}}}
    with writing(f"out: {out}"):
        folder = Path(out)
        write_file(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        write_file(folder / PAGE, html_page("The best mixture", body))
        write_file(
            folder / WEIGHTS,
            f"# {verdict(report)}\n" + yaml.safe_dump(weights, sort_keys=False, allow_unicode=True),
        )
