"""Figures: every one draws for every form, shows what it should, and arrives in TensorBoard as
it is.
"""

import dataclasses
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_pretrain.errors import UserError
from lit_pretrain.scaling import figures
from lit_pretrain.scaling.figures import write_images
from lit_pretrain.scaling.fitted import Draws, Fitted, fit_runs
from lit_pretrain.scaling.isoflop import isoflop
from lit_pretrain.scaling.law import Law

from .synthetic import sweeps

RUNS = sweeps(sigma=0.003, seed=2)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit_runs(RUNS, draws=12)


def labels(ax: Axes) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def first(figure: Figure) -> Axes:
    assert figures.png(figure).startswith(b"\x89PNG")
    return figure.axes[0]


def test_parabolas_have_starred_minima() -> None:
    found = isoflop(RUNS, draws=20)
    ax = first(figures.isoflop_figure(found))
    stars = [line for line in ax.lines if line.get_marker() == "*"]
    assert [float(star.get_xdata()[0]) for star in stars] == pytest.approx(
        [m.n for m in found.minima]
    )
    assert ax.get_xlabel() == "parameters N (total)"
    assert ax.get_ylabel() == "validation loss (nats per token)"
    assert labels(ax).count("minimum") == 1


@pytest.mark.parametrize("draw", [figures.optimum_figure, figures.envelope_figure])
def test_compute_axes_have_a_band_and_shade_what_is_far(fitted: Fitted, draw: object) -> None:
    ax = first(draw(fitted))
    assert "95 % of bootstrap laws" in labels(ax)
    assert "more than 10× the largest run" in labels(ax)
    assert "FLOPs" in ax.get_xlabel()
    (shade,) = [
        patch for patch in ax.patches if patch.get_label() == "more than 10× the largest run"
    ]
    assert shade.get_x() == pytest.approx(10 * RUNS.largest_compute)


def test_minima_lie_on_the_optimum(fitted: Fitted) -> None:
    found = isoflop(RUNS, draws=0)
    figure = figures.optimum_figure(fitted, found)
    for ax, attribute in zip(figure.axes, ("n", "d"), strict=True):
        (stars,) = [line for line in ax.lines if line.get_marker() == "*"]
        assert list(stars.get_ydata()) == pytest.approx(
            [getattr(m, attribute) for m in found.minima]
        )
    first(figure)


def test_the_map_has_the_frontier(fitted: Fitted) -> None:
    ax = first(figures.contour_figure(fitted))
    (frontier,) = [line for line in ax.lines if line.get_label() == "efficient frontier"]
    for n, d in zip(frontier.get_xdata(), frontier.get_ydata(), strict=True):
        assert fitted.fit.law.optimum(6 * n * d).n == pytest.approx(n)


def test_residuals_and_pairs(fitted: Fitted) -> None:
    ax = first(figures.residual_figure(fitted))
    points = ax.collections[-1].get_offsets()
    assert list(points[:, 1]) == pytest.approx(list(100 * fitted.fit.residuals))
    figure = figures.pairs_figure(fitted)
    assert sum(ax.get_visible() for ax in figure.axes) == 15
    first(figure)
    with pytest.raises(UserError, match="needs resamples"):
        figures.pairs_figure(fit_runs(RUNS))


def test_resamples_that_run_away_leave_the_pairs_readable(fitted: Fitted) -> None:
    assert fitted.draws is not None
    lost = Law("chinchilla", {**fitted.fit.law.params, "E": 1e-300, "B": 1e300})
    figure = figures.pairs_figure(
        dataclasses.replace(fitted, draws=Draws((*fitted.draws.laws * 4, lost), 0))
    )
    first(figure)  # drawing is where an axis to 1e300 fails
    assert max(ax.get_xlim()[1] for ax in figure.axes) < 1e6


@pytest.mark.parametrize("form", ["tied", "kaplan"])
def test_other_forms_draw(form: str) -> None:
    other = fit_runs(RUNS, form, kind="lad")
    for draw in (
        figures.optimum_figure,
        figures.envelope_figure,
        figures.contour_figure,
        figures.residual_figure,
    ):
        first(draw(other))


def test_images_in_tensorboard(tmp_path: Path, fitted: Fitted) -> None:
    picture = figures.png(figures.envelope_figure(fitted))
    write_images(tmp_path, {"scaling/envelope": picture})
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["scaling/envelope"]
    (image,) = events.Images("scaling/envelope")
    assert image.encoded_image_string == picture
    assert (image.width, image.height) == (988, 598)
