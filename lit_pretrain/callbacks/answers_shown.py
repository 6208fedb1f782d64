"""AnswersShown: some answers of rollouts as text in TensorBoard, because a reward that rises may be one that is cheated."""

from typing import Any

import lightning as L


class AnswersShown(L.Callback):
    """Writes a few prompts with their answers and rewards: of training at the end of every window of metrics, of validation at each.

    Args:
        every: Optimizer steps between those of training.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.writer: Any = None
        """TensorBoard's SummaryWriter, if there is one."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Write those of the step's rollout."""
        step = trainer.global_step
        if step % self.every == 0 or step == trainer.max_steps:
            self._write("answers/train", pl_module, step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write those of the last held-out prompts."""
        if trainer.state.fn == "fit":
            self._write("answers/validation", pl_module, trainer.global_step)

    def _write(self, name: str, stage: Any, step: int) -> None:
        if self.writer is None or stage.answers is None or not stage.answers.shown:
            return
        lines = ["| prompt | answer | right | reward |", "|---|---|---|---|"]
        for shown in stage.answers.shown:
            end = " (cut off)" if shown.truncated else ""
            lines.append(f"| {_cell(shown.prompt)} | {_cell(shown.completion)}{end} | {_cell(shown.right)} | {shown.reward:g} |")
        self.writer.add_text(name, "\n".join(lines), step)


def _cell(text: str) -> str:
    """A text that stays in its cell of a Markdown table."""
    shown = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
    return shown.replace("\r", "").replace("\n", "<br>")
