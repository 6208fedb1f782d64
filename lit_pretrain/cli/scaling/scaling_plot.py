"""`scaling plot`: draw the figures of a fit and of an IsoFLOP analysis (PNG, TensorBoard)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.cli.scaling.options import add_fit, add_runs, fit_of, read_runs
from lit_pretrain.cli.scaling.scaling_laws import add_isoflop, isoflop_of
from lit_pretrain.errors import warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_pretrain.scaling.isoflop import IsoFlop
    from lit_pretrain.scaling.runs import Runs

FIGURES = ("isoflop", "optimum", "envelope", "contour", "residuals", "bootstrap")


def main(argv: list[str]) -> int:
    """Run `lit_pretrain scaling plot`."""
    parser = make_parser("scaling plot", "Draw the figures of a fit and of an IsoFLOP analysis.")
    add_runs(parser)
    add_fit(parser, bootstrap=1000)
    add_isoflop(parser)
    parser.add_argument("--out", type=str, default="scaling", help="Folder for the PNG files.")
    parser.add_argument(
        "--tensorboard",
        type=str,
        default=None,
        help="A folder of TensorBoard events to add the figures to as images.",
    )
    parser.add_argument(
        "--figures",
        type=str,
        nargs="+",
        default=[],
        help=(
            f"Figures to draw: {', '.join(FIGURES)}. Default: all that the runs allow, with a"
            " warning for those left out."
        ),
    )
    options = parser.parse_args(argv)

    from lit_pretrain.errors import UserError
    from lit_pretrain.files import check_output, write_file, writing
    from lit_pretrain.scaling.figures import png

    unknown = [name for name in options.figures if name not in FIGURES]
    if unknown:
        raise UserError(f"--figures {' '.join(unknown)}: there is {', '.join(FIGURES)}")
    check_output(Path(options.out) / "figure.png", f"--out={options.out}")
    if options.tensorboard:
        check_output(Path(options.tensorboard) / "events", f"--tensorboard={options.tensorboard}")
    images = {name: png(figure) for name, figure in _draw(options, read_runs(options)).items()}
    for name, content in images.items():
        file = Path(options.out) / f"{name}.png"
        with writing(f"--out={options.out}"):
            write_file(file, content)
        print(file)
    if options.tensorboard:
        from lit_pretrain.scaling.figures import write_images

        with writing(f"--tensorboard={options.tensorboard}"):
            write_images(
                Path(options.tensorboard),
                {f"scaling/{name}": content for name, content in images.items()},
            )
        print(f"{options.tensorboard}: {len(images)} images for TensorBoard")
    return 0


def _draw(options: Any, runs: Runs) -> dict[str, Figure]:
    """Draw the figures that the options name, or all that the runs allow."""
    from lit_pretrain.scaling import figures

    wanted = options.figures or FIGURES
    iso = _isoflop(options, runs) if {"isoflop", "optimum"} & set(wanted) else None
    drawn: dict[str, Figure] = {}
    if "isoflop" in wanted and iso is not None:
        drawn["isoflop"] = figures.isoflop_figure(iso)
    if set(wanted) == {"isoflop"}:
        return drawn
    fitted = fit_of(options, runs)
    makers: dict[str, Callable[[], Figure]] = {
        "optimum": lambda: figures.optimum_figure(fitted, iso),
        "envelope": lambda: figures.envelope_figure(fitted),
        "contour": lambda: figures.contour_figure(fitted),
        "residuals": lambda: figures.residual_figure(fitted),
        "bootstrap": lambda: figures.pairs_figure(fitted),
    }
    for name, make in makers.items():
        if name == "bootstrap" and fitted.draws is None and not options.figures:
            warn("bootstrap.png is left out: --bootstrap 0")
        elif name in wanted:
            drawn[name] = make()
    return drawn


def _isoflop(options: Any, runs: Runs) -> IsoFlop | None:
    """Analyse runs at fixed budgets; return None, with a warning, for runs that are no sweeps.

    Raises:
        UserError: The runs are no sweeps, but --figures names the IsoFLOP figure.
    """
    from lit_pretrain.errors import UserError

    try:
        return isoflop_of(options, runs)
    except UserError as error:
        if "isoflop" in options.figures:
            raise
        warn(f"no parabolas: {error}")
        return None
