"""Find the mixture of sources that is best for a target, by many small runs (`optimise`)."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from lit_pretrain.cli.command.verb import Group, Verb
from lit_pretrain.cli.sweep.launch import LaunchSettings


@dataclass(kw_only=True)
class MixtureSettings(LaunchSettings):
    """What the mixture is for, and how many runs find it."""

    out: str = "runs/mixture"
    """Folder for the runs, and for the report and the weights."""
    target: dict[str, float] = field(default_factory=dict)
    """Source -> its weight in the loss to minimise: bits per byte of its held-out text. Any source
    of the dataset, also one that is not trained on.
    """
    leave_out: list[str] = field(default_factory=list)
    """Sources that no mixture reads, such as one that is only measured."""
    tokens: float | None = None
    """Length of the run that the mixture is for; with `max_epochs` it caps the shares. Default:
    that of the small runs.
    """
    max_epochs: float = 4.0
    """How often that run may read a source: a share is at most max_epochs × its tokens / tokens."""
    mixtures: int | None = None
    """Mixtures to try. Default: four for each source, and at least 16."""
    repeats: int = 3
    """Seeds of the natural mixture beside them, and of each side of the confirmation."""
    kl: float = 0.05
    """Weight of the distance from the natural mixture (Kullback-Leibler, in nats) in the objective,
    in bits per byte: what the runs say little about stays natural.
    """
    design_seed: int = 0
    """Seed of the mixtures to try."""


def _optimise(argv: list[str]) -> int:
    from lit_pretrain.cli.command.parser import make_parser
    from lit_pretrain.cli.sweep.fit_options import mapping

    parser = make_parser("mixture optimise", VERB.parts["optimise"].help)
    parser.add_argument(
        "base",
        type=str,
        nargs="*",
        default=[],
        help="Config files of `fit` for the small runs; later ones win.",
    )
    parser.add_argument(
        "--set",
        type=mapping,
        default={},
        help="More options of `fit` for the small runs, as a config has them; they override base.",
    )
    parser.add_class_arguments(MixtureSettings)
    given = parser.instantiate(parser.parse_args(argv))
    settings = MixtureSettings(
        **{name: given[name] for name in MixtureSettings.__dataclass_fields__}
    )

    from lit_pretrain.cli.mixture.optimise_mixture import optimise_mixture

    return optimise_mixture(settings, given.base, given.set, sys.stdout)


VERB = Group(
    {
        "optimise": Verb(
            _optimise,
            example=(
                "lit_pretrain mixture optimise configs/pretrain/quickstart.yaml --target"
                " '{prose: 1}'"
            ),
            help="Small runs over mixtures, a law of their losses, the best weights, and a check.",
        )
    }
)
