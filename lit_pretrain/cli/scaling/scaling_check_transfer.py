"""`scaling check-transfer`: do a config's rates carry over to other widths and depths?"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_pretrain.cli.command.parser import make_parser
from lit_pretrain.cli.scaling.options import aligned
from lit_pretrain.cli.sweep.fit_options import mapping
from lit_pretrain.errors import UserError

if TYPE_CHECKING:
    from lit_pretrain.model.config import ModelConfig
    from lit_pretrain.optim import OptimizerRecipe
    from lit_pretrain.stage.coordinate_check import Part, Steps
    from lit_pretrain.transfer import Transfer

LIMIT, FEED_FORWARD_LIMIT = 0.15, 0.35
"""Largest slopes that pass. A feed-forward moves in a few directions at first, whose number does
not grow with the width.
"""


class Recipe(NamedTuple):
    """What a config says of the networks that are compared."""

    net: ModelConfig
    optimizer: OptimizerRecipe
    transfer: Transfer | None
    clip_norm: float | None


class Sweep(NamedTuple):
    """The changes of networks of several widths, or depths."""

    by: str
    """width or depth."""
    transferred: bool
    sizes: tuple[int, ...]
    changes: Mapping[Part, tuple[float, ...]]
    """Root mean square of the change by part, for each size."""
    slopes: Mapping[Part, float]

    @property
    def name(self) -> str:
        """Name the sweep in the table."""
        return f"{self.by}, {'with' if self.transferred else 'without'} transfer"

    def passes(self, part: Part) -> bool:
        """Tell whether a part moves alike at all sizes."""
        return abs(self.slopes[part]) <= limit(self.by, part)


def limit(by: str, part: Part) -> float:
    """Return the largest slope of a part that passes."""
    return FEED_FORWARD_LIMIT if (by, part) == ("width", "feed-forward") else LIMIT


def main(argv: list[str]) -> int:
    """Run `lit_pretrain scaling check-transfer`."""
    parser = make_parser(
        "scaling check-transfer",
        "Check whether a config's rates carry over: train networks of several widths and depths for"
        " a few steps, and compare how much their outputs move. The text is made; no data is read.",
    )
    parser.add_argument(
        "configs", type=str, nargs="+", help="Config files of `fit`; later ones win."
    )
    parser.add_argument(
        "--set",
        type=mapping,
        default={},
        help="More options of `fit`, as a config has them; they override the files.",
    )
    for name, default, text in (
        ("widths", [128, 256, 512, 1024], "Widths to compare; none leaves the comparison out."),
        ("depths", [2, 4, 8, 16], "Numbers of blocks to compare; none leaves it out."),
    ):
        parser.add_argument(f"--{name}", type=int, nargs="*", default=default, help=text)
    for name, number, text in (
        ("depth", 2, "Blocks of the networks whose widths are compared."),
        ("width", 128, "Width of the networks whose depths are compared."),
        ("steps", 10, "Optimizer steps of each network."),
        ("rows", 8, "Rows of a step."),
        ("seq_len", 64, "Tokens of a row."),
        ("vocab_size", 1024, "Tokens of the made text."),
        ("seeds", 1, "Networks of each size; their changes are averaged."),
    ):
        parser.add_argument(f"--{name}", type=int, default=number, help=text)
    parser.add_argument(
        "--control",
        action="store_true",
        help="Measure the same networks without model.transfer, too, for contrast.",
    )
    parser.add_argument(
        "--out", type=str, default="scaling", help="Folder for transfer.png and transfer.html."
    )
    parser.add_argument(
        "--tensorboard",
        type=str,
        default=None,
        help="A folder of TensorBoard events to add the figure to as an image.",
    )
    parser.add_argument("--json", action="store_true", help="Print the slopes as JSON.")
    options = parser.parse_args(argv)
    _check(options)

    from lit_pretrain.files import check_output

    check_output(Path(options.out) / "transfer.png", f"--out={options.out}")
    if options.tensorboard:
        check_output(Path(options.tensorboard) / "events", f"--tensorboard={options.tensorboard}")
    recipe = _recipe(options)
    sweeps = _sweeps(options, recipe)
    judged = [s for s in sweeps if s.transferred == (recipe.transfer is not None)]
    failed = [(sweep, part) for sweep in judged for part in sweep.slopes if not sweep.passes(part)]
    table, verdict = _table(sweeps), _verdict(recipe, failed)
    if options.json:
        print(json.dumps(_record(sweeps, passed=not failed), indent=1))
    else:
        print(table, verdict, sep="\n\n", flush=True)
    places = _draw(options, sweeps, f"{table}\n\n{verdict}")
    if not options.json:
        print(*places, sep="\n")
    return 1 if failed else 0


def _check(options: Any) -> None:
    for name in ("widths", "depths"):
        sizes = getattr(options, name)
        if sizes and (len(set(sizes)) < 2 or len(set(sizes)) != len(sizes) or min(sizes) < 1):
            found = " ".join(map(str, sizes))
            raise UserError(
                f"--{name} {found}: a slope needs at least two different positive sizes"
            )
    if not options.widths and not options.depths:
        raise UserError("--widths and --depths are both empty: nothing is compared")
    for name in ("depth", "width", "steps", "rows", "seq_len", "seeds"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be at least 1")
    if options.vocab_size < 64:
        raise UserError(f"--vocab_size={options.vocab_size} must be at least 64")


def _recipe(options: Any) -> Recipe:
    from lit_pretrain.cli.sweep.fit_options import parse_as_plan, shared_options
    from lit_pretrain.cli.sweep.launch import LaunchSettings
    from lit_pretrain.cli.train.resolve import net_of, optimizer_of, transfer_of
    from lit_pretrain.model.parameter_scales import transferred_shape

    given = shared_options(options.configs, options.set, {}, where="set")
    config = parse_as_plan(given, LaunchSettings()).config
    config.model.net.vocab_size = options.vocab_size
    net, transfer = net_of(config), transfer_of(config)
    if transfer is not None:
        # A run's own config holds the scale that the transfer has set; each width has another.
        net = replace(transferred_shape(net, transfer), logit_scale=None)
    return Recipe(net, optimizer_of(config), transfer, config.model.clip_norm)


def _sweeps(options: Any, recipe: Recipe) -> list[Sweep]:
    from lit_pretrain.stage.coordinate_check import Steps, resized

    steps = Steps(options.steps, options.rows, options.seq_len, options.vocab_size)
    found = []
    for transfer in dict.fromkeys([recipe.transfer, *([None] if options.control else [])]):
        for by, sizes in (("width", options.widths), ("depth", options.depths)):
            shapes = {
                size: resized(
                    recipe.net, transfer,
                    *((size, options.depth) if by == "width" else (options.width, size)),
                )
                for size in sorted(sizes)
            }  # fmt: skip
            if shapes:
                found.append(_sweep(by, shapes, recipe._replace(transfer=transfer), steps, options))
    return found


def _sweep(
    by: str, shapes: Mapping[int, ModelConfig], recipe: Recipe, steps: Steps, options: Any
) -> Sweep:
    from lit_pretrain.stage.coordinate_check import PARTS, changes, slope

    sums: dict[Part, list[float]] = {part: [] for part in PARTS}
    for size, shape in shapes.items():
        found = [
            changes(
                shape, recipe.optimizer, recipe.transfer, replace(steps, seed=seed),
                recipe.clip_norm,
            )
            for seed in range(options.seeds)
        ]  # fmt: skip
        for part in PARTS:
            mean = sum(each[part] for each in found) / options.seeds
            if not 0 < mean < math.inf:
                raise UserError(
                    f"with {by} {size} the {part} changed by {mean} in {steps.steps} steps, which"
                    " has no slope: lower the rates, or take fewer --steps"
                )
            sums[part].append(mean)
    sizes = tuple(shapes)
    return Sweep(
        by,
        recipe.transfer is not None,
        sizes,
        {part: tuple(values) for part, values in sums.items()},
        {part: slope(sizes, values) for part, values in sums.items()},
    )


def _table(sweeps: Sequence[Sweep]) -> str:
    blocks = []
    for sweep in sweeps:
        rows = [(sweep.name, *(f"{size:,}" for size in sweep.sizes), "slope", "limit", "")]
        for part, values in sweep.changes.items():
            rows.append(
                (
                    part, *(f"{value:.3g}" for value in values), f"{sweep.slopes[part]:+.2f}",
                    f"{limit(sweep.by, part):.2f}", "pass" if sweep.passes(part) else "FAIL",
                )
            )  # fmt: skip
        blocks.append("\n".join(aligned(rows, left=(0, len(rows[0]) - 1))))
    return "\n\n".join(blocks)


def _verdict(recipe: Recipe, failed: Sequence[tuple[Sweep, Part]]) -> str:
    what = "with model.transfer" if recipe.transfer is not None else "without model.transfer"
    if not failed:
        return f"pass: {what} all parts move alike at these sizes"
    parts = ", ".join(f"{part} over {sweep.by} {sweep.slopes[part]:+.2f}" for sweep, part in failed)
    mend = (
        "rates tuned at one of these sizes do not fit the others"
        if recipe.transfer is not None
        else "set model.transfer to the network on which the rates were tuned"
    )
    return f"FAIL: {what} the slope is too steep: {parts}; {mend}"


def _record(sweeps: Sequence[Sweep], *, passed: bool) -> dict[str, object]:
    found = [
        {
            "by": sweep.by,
            "transfer": sweep.transferred,
            "sizes": sweep.sizes,
            "parts": {
                part: {
                    "changes": values,
                    "slope": sweep.slopes[part],
                    "limit": limit(sweep.by, part),
                    "passes": sweep.passes(part),
                }
                for part, values in sweep.changes.items()
            },
        }
        for sweep in sweeps
    ]
    return {"passes": passed, "sweeps": found}


def _draw(options: Any, sweeps: Sequence[Sweep], text: str) -> list[str]:
    """Write the figure and the page, and return where they are."""
    from lit_pretrain.files import write_file, writing
    from lit_pretrain.report.html_page import html_page
    from lit_pretrain.scaling.figures import changes_figure, png, write_images

    image = png(changes_figure([(s.name, s.by, s.sizes, s.changes, s.slopes) for s in sweeps]))
    encoded = base64.b64encode(image).decode("ascii")
    page = html_page(
        f"Transfer of {' '.join(options.configs)}",
        f"<pre>{escape(text)}</pre>\n"
        '<img alt="Change of each part by width and depth" style="max-width: 100%" '
        f'src="data:image/png;base64,{encoded}">\n',
    )
    figure, html = Path(options.out) / "transfer.png", Path(options.out) / "transfer.html"
    with writing(f"--out={options.out}"):
        write_file(figure, image)
        write_file(html, page)
    places = [str(figure), str(html)]
    if options.tensorboard:
        with writing(f"--tensorboard={options.tensorboard}"):
            write_images(Path(options.tensorboard), {"scaling/transfer": image})
        places.append(f"{options.tensorboard}: 1 image for TensorBoard")
    return places
