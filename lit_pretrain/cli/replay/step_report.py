"""Step report: what a replay has found, as lines for people, as Markdown and as JSON."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from lit_pretrain.callbacks.layer_statistics import LayerFigures
from lit_pretrain.cli.replay.step_look import NotFinite, StepFindings
from lit_pretrain.cli.scaling.options import aligned
from lit_pretrain.files import write_file, writing
from lit_pretrain.step_size import counted


class Difference(NamedTuple):
    """A figure that the run has recorded and the replay does not repeat."""

    step: int
    name: str
    recorded: float
    computed: float | None

    def __str__(self) -> str:
        return (
            f"{self.name} of the line of step {self.step} is {self.computed!r}, recorded is"
            f" {self.recorded!r}"
        )


class Repetition(NamedTuple):
    """The lines of metrics.jsonl beside those of the replay."""

    steps: list[int]
    """Of the lines that were compared."""
    differences: list[Difference]

    @property
    def first(self) -> Difference | None:
        """Return the first difference."""
        return self.differences[0] if self.differences else None

    @property
    def line(self) -> str:
        """Say what was compared, and how it came out."""
        if not self.steps:
            return "the run has recorded no loss between the checkpoint and the step"
        lines = counted(len(self.steps), "lines")
        where = f"{lines} of metrics.jsonl, of step {self.steps[0]}"
        where += "" if len(self.steps) == 1 else f" to {self.steps[-1]}"
        if self.first is None:
            return f"equal to the last bit: losses and gradient norms of {where}"
        return f"not equal: of {where} the first difference is {self.first}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What is told of a step."""

    run: str
    step: int
    begin: int
    """Step from which the replay went on."""
    unit: str
    """Of the loss."""
    repetition: Repetition
    found: StepFindings
    clip_norm: float | None

    def lines(self, shown: int, *, markdown: bool = False) -> list[str]:
        """Write the report as lines.

        Args:
            shown: Most documents and tokens.
            markdown: Whether they are to be Markdown.
        """
        found = self.found
        head = "## " if markdown else ""
        lines = [f"# Step {self.step} of {self.run}", ""] if markdown else []
        lines.append(self.repetition.line)
        lines += [""] if markdown else []
        clipped = self.clip_norm is not None and found.grad_norm > self.clip_norm
        norm = f"{found.grad_norm:.6g}" + (f", clipped to {self.clip_norm:g}" if clipped else "")
        lines.append(f"step {self.step}: loss {found.loss:.6f} {self.unit}, gradient norm {norm}")
        if found.stopped is not None:
            lines.append(f"no update is made: {found.stopped.splitlines()[0]}")
        lines += ["", f"{head}Not finite", *([""] if markdown else []), *self._not_finite()]
        if found.documents:
            lines += ["", f"{head}Documents by loss per token", *([""] if markdown else [])]
            rows = [
                [f"{d.mean:.4f}", f"{d.tokens:,}", f"{d.sample}", d.source,
                 d.origin + (f" ({d.note})" if d.note else "")]
                for d in found.documents[:shown]
            ]  # fmt: skip
            lines += table(["loss", "tokens", "sample", "source", "document"], rows, markdown)
            if len(found.documents) > shown:
                lines.append(f"and {len(found.documents) - shown:,} more")
        if self.unit != "nats per token":
            lines += ["", f"{head}Rows by the objective", *([""] if markdown else [])]
            rows = [
                [f"{row.loss:.4f}", f"{row.terms:g}", f"{row.sample}", row.note]
                for row in found.rows[:shown]
            ]
            lines += table(["loss", "terms", "sample", "row"], rows, markdown)
        if found.tokens:
            lines += ["", f"{head}Tokens with the largest loss", *([""] if markdown else [])]
            rows = [
                [f"{t.nats:.4f}", f"{t.sample}", f"{t.place}", f"{t.before}⟦{t.text}⟧{t.after}",
                 t.origin]
                for t in found.tokens[:shown]
            ]  # fmt: skip
            lines += table(["loss", "sample", "place", "text", "document"], rows, markdown)
        lines += ["", f"{head}Gradients per token and updates", *([""] if markdown else [])]
        rows = [
            [name, *_cells(its, updated=found.stopped is None)]
            for name, its in [
                *((f"layer {layer}", its) for layer, its in found.layers.items()),
                *found.roles.items(),
            ]
        ]
        lines += table(["", "RMS", "largest", "update / weight"], rows, markdown)
        return lines

    def _not_finite(self) -> list[str]:
        found, bad = self.found, self.found.not_finite
        if bad is not None:
            lines = [f"the first output that is not finite is that of {described(bad)}"]
        elif any(not math.isfinite(document.nats) for document in found.documents):
            lines = ["all modules have finite outputs, but the loss is not finite"]
        else:
            lines = ["all modules have finite outputs"]
        if found.bad_gradients:
            lines.append(
                f"gradients that are not finite: {counted(len(found.bad_gradients), 'parameters')};"
                f" the backward pass meets them first at {found.bad_gradients[-1]}"
            )
        return lines

    def content(self) -> dict[str, Any]:
        """Return all of it for JSON; numbers that are not finite become text."""
        found = self.found
        named = {
            "run": self.run, "step": self.step, "begin": self.begin, "unit": self.unit,
            "compared": self.repetition.steps,
            "differences": [d._asdict() for d in self.repetition.differences],
            "loss": found.loss, "grad_norm": found.grad_norm, "clip_norm": self.clip_norm,
            "stopped": found.stopped,
            "not_finite": None if found.not_finite is None else found.not_finite._asdict(),
            "bad_gradients": found.bad_gradients,
            "documents": [d._asdict() | {"mean": d.mean} for d in found.documents],
            "rows": [row._asdict() for row in found.rows],
            "tokens": [token._asdict() for token in found.tokens],
            "layers": {str(layer): its._asdict() for layer, its in found.layers.items()},
            "roles": {role: its._asdict() for role, its in found.roles.items()},
        }  # fmt: skip
        plain: dict[str, Any] = finite_json(named)
        return plain


def described(bad: NotFinite) -> str:
    """Describe an output that is not finite, and what may be at fault."""
    where = "" if bad.sample is None else f", sample {bad.sample}, place {bad.place}"
    where += f" ({bad.origin})" if bad.origin else ""
    if not bad.weights_finite:
        why = "its weights are not finite"
    elif not bad.inputs_finite:
        why = "its inputs are not finite"
    else:
        why = "its inputs and weights are finite"
    return f"{bad.module} ({bad.kind}){where}: {why}"


def _cells(its: LayerFigures, *, updated: bool) -> list[str]:
    """Write the figures of a layer or role."""
    ratio = "-" if its.update_ratio is None or not updated else f"{its.update_ratio:.3g}"
    return [f"{its.gradient_rms:.3g}", f"{its.gradient_max:.3g}", ratio]


def table(head: list[str], rows: list[list[str]], markdown: bool) -> list[str]:
    """Lay out a table in columns, or as Markdown."""
    if markdown:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        ruled = [head, ["---"] * len(head), *cells]
        return [f"| {' | '.join(row)} |" for row in ruled]
    return aligned([head, *rows], left=tuple(range(len(head))))


def finite_json(value: Any) -> Any:
    """Return a plain value with text in place of numbers that JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(entry) for entry in value]
    return value


def write_report(report: Report, place: Path) -> None:
    """Write a report as JSON or as Markdown, as the name of the file says."""
    if place.suffix == ".json":
        text = json.dumps(report.content(), indent=1, ensure_ascii=False)
    else:
        count = max(len(report.found.documents), len(report.found.tokens), len(report.found.rows))
        text = "\n".join(report.lines(max(count, 1), markdown=True))
    with writing(f"--report={place}"):
        write_file(place, text + "\n")
