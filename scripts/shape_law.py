"""Fit the law by which `plan --minutes` compares shapes, and the seconds of a step by parts.

    python scripts/shape_law.py runs/race/*-240s-*                  # E, A and B from run folders
    python scripts/shape_law.py runs/race/*-240s-* --seconds runs/race/timing.json --entrants FILE

A run counts with the parameters in the matrices of its blocks, the bytes of the text that it read,
its vocabulary and its last bits per byte. The exponents of N and S are those of the published law,
so that E, A, B and the exponent of the vocabulary are fitted, by least squares of relative errors,
none of them negative. Runs of one size of the batch belong together. --seconds are of race.py: a
step of each of its entrants, whose options --entrants holds.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from lit_pretrain.cli.plan.question import PlanCLI, ask
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.report.run_folder import read_metrics
from lit_pretrain.scaling.published import published_law
from lit_pretrain.scaling.shape_search import reshaped, size_by, useful_passes

Array = NDArray[np.float64]
GAMMAS = np.arange(0, 0.51, 0.005)
EARLIER = (
    (6, 384, 144 * 4096, 1.6054), (4, 256, 324 * 4096, 1.4471), (3, 192, 556 * 4096, 1.3884)
)  # fmt: skip
"""Layers, width, tokens and bits per byte of runs whose folders are gone (docs/experiments.md):
quickstart's recipe with 8,192 tokens, 3.81 bytes each, 240 s on two idle cores."""


def fitted(columns: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    """Fit factors of the columns that are not negative; return them and the relative errors."""
    x, y = np.asarray(columns, float), np.asarray(values, float)
    relative = x / y[:, None]
    scale = relative.max(axis=0)
    factors = nnls(relative / scale, np.ones(len(y)))[0] / scale
    return factors, x @ factors / y - 1


def read_run(folder: Path) -> tuple[ModelConfig, float, float]:
    """Return the network of a run, the bytes of new text that it read, and its bits per byte."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    net = ModelConfig(**config["model"]["net"])
    lines = read_metrics(folder)
    sources = Manifest.load(Path(config["data"]["path"])).sources.values()
    unique = sum(source.splits["train"].tokens for source in sources)
    size = sum(source.splits["train"].bytes for source in sources)
    tokens = max(line.get("progress/tokens", 0.0) for line in lines)
    bits = [line["val/bits_per_byte"] for line in lines if "val/bits_per_byte" in line]
    return net, useful_passes(tokens / unique) * size, bits[-1]


def parts(options: str) -> list[float]:
    """Return what the seconds of a step of an entrant are proportional to."""
    question = ask(PlanCLI(options.split()), bare=False)
    net, batch = question.net, question.batch_tokens
    assert batch is not None
    tokens, counts = batch.sizes[-1], count_parameters(net)
    return [
        6.0 * counts.matmul * tokens, float(net.n_layer * net.width * tokens),
        float(net.vocab_size * tokens), float(counts.total),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="run folders")
    parser.add_argument("--seconds", type=Path, help="JSON: seconds of a step of each entrant")
    parser.add_argument("--entrants", type=Path, help="YAML: options of each entrant")
    options = parser.parse_args()
    if options.runs:
        p = published_law().params
        shape = ModelConfig(activation="relu2")
        found = [read_run(folder) for folder in options.runs]
        found += [
            (reshaped(shape, layers, width, 8192), 3.81178 * tokens, bits)
            for layers, width, tokens, bits in EARLIER
        ]
        names = [folder.name for folder in options.runs]
        names += [f"{layers}x{width} (earlier)" for layers, width, _, _ in EARLIER]
        n = np.array([size_by(net, "blocks") for net, _, _ in found], float)
        read = np.array([its for _, its, _ in found])
        bits = np.array([its for _, _, its in found])
        vocabulary = np.array([net.vocab_size for net, _, _ in found], float)

        def by(gamma: float) -> tuple[Array, Array]:
            text = vocabulary**gamma * read ** -p["beta"]
            return fitted(np.stack([np.ones(len(n)), n ** -p["alpha"], text], axis=1), bits)

        gamma = min(GAMMAS, key=lambda its: float(np.sum(by(its)[1] ** 2)))
        (e, a, b), errors = by(gamma)
        print(f"{'run':40} {'N':>9} {'bytes':>10} {'bits/byte':>9} {'law':>7}")
        for name, size, its, measured, error in zip(names, n, read, bits, errors, strict=True):
            print(f"{name:40} {size:9.4g} {its:10.4g} {measured:9.4f} {error:+7.2%}")
        print(
            f"e={e:.4g}, a={a:.4g}, b={b:.4g}, gamma={gamma:.3g},"
            f" parameters=({n.min():.3g}, {n.max():.3g}),"
            f" bytes=({read.min():.3g}, {read.max():.3g}),"
            f" vocabularies=({vocabulary.min():g}, {vocabulary.max():g});"
            f" worst {np.abs(errors).max():.2%}"
        )
    if options.seconds:
        seconds = json.loads(options.seconds.read_text(encoding="utf-8"))
        entrants = yaml.safe_load(options.entrants.read_text(encoding="utf-8"))
        names = [name for name in entrants if name in seconds]
        factors, errors = fitted(
            [parts(entrants[name]) for name in names], [seconds[name] for name in names]
        )
        for name, error in zip(names, errors, strict=True):
            print(f"{name:40} {seconds[name]:9.4f} {error:+7.2%}")
        labels = ("products", "channel", "logit", "parameter")
        print(", ".join(f"{name}={its:.3g}" for name, its in zip(labels, factors, strict=True)))


if __name__ == "__main__":
    main()
