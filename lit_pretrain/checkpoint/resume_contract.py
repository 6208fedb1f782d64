"""Contract: the fields that must be the same for a run to go on as if it had never stopped.

Every checkpoint stores them. A resume compares all of them; a fork lets a few differ.
"""

from collections.abc import Mapping
from typing import Any

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.checkpoint.layout import CheckpointRecord
from lit_pretrain.errors import UserError
from lit_pretrain.redaction import comparable, redact
from lit_pretrain.skips import Skips

Contract = dict[str, Any]
"""Plain values of the config by dotted name, such as `model.net.width`."""

HARMLESS = frozenset(
    {
        # how the same numbers are computed, where they are read from and what is printed
        "data.path", "data.micro_batch_size", "data.num_workers", "data.cache_dir",
        "data.max_cache_size",
        "data.val_tokens", "model.activation_checkpointing",
        "model.compile", "model.init_from",
        "model.reference_cache", "model.rollout.engine.init_args.rows",
        "model.net.attention",
    }
)  # fmt: skip
"""Fields of `model` and `data` that decide no number, and so are no part of the contract."""
MIXTURE = ("data.weights", "data.temperature", "data.max_epochs", "data.phases")
SKIPS = "skip_steps"
"""Ranges of optimizer steps that are left out of the order. They may grow; what the run has read
stays what it was.
"""
HELD = "held_steps"
"""Ranges of optimizer steps whose update is left out. They may grow as well."""
BATCH = ("data.global_batch_tokens:", "data.batch_schedule:")
"""Beginnings of the differences in the size of an optimizer step. Those of the steps to come may
change, of prepared text.
"""
OPTIMIZER = "model.optimizer.init_args."
APART = (
    "embedding_scalar_lr", "lr_scale.embedding_scalar", "role_betas.embedding_scalar",
)  # fmt: skip
"""Settings of the optimizer that make a group of their own of the scalars by which embeddings are
added. Moments of one group are not those of two.
"""
FORKABLE = (
    "model.schedule.", OPTIMIZER, "model.clip_norm", "model.float8", "max_steps", *MIXTURE,
)  # fmt: skip
"""Beginnings of the fields that a fork may change.

These are the settings of the optimizer, how the learning rate goes on, how long, products in fp8,
and the mixture from the fork's step on. The optimizer stays what it is, so that its moments mean
the same. Every source is read on from where it was, which the data module checks by comparing the
two orders.
"""


GROWING = (f"{SKIPS}:", f"{HELD}:")
LENGTH = (
    "\nmax_steps may be raised if the learning rates up to the checkpoint stay what they were:"
    " with schedule.kind constant, and with wsd before its decay, if warm-up is given in steps or"
    " tokens and not in % of the run. cosine and linear depend on the length from the end of"
    " warm-up on. The same holds for Muon's momentum and weight_decay_schedule."
)


def contract_of(
    config: Mapping[str, Any],
    *,
    manifest_hash: str,
    tokenizer_hash: str,
    template_hash: str | None = None,
) -> Contract:
    """Collect the fields of a resolved config that decide the numbers, by dotted name.

    Args:
        config: The resolved config, with `model`, `data`, `max_steps` and `trainer`, redacted.
        manifest_hash: Identity of the data.
        tokenizer_hash: Identity of its tokenizer.
        template_hash: Identity of its chat template, if it has one.
    """
    # Secrets have no place in a checkpoint, and other text of the environment only as a digest.
    config = comparable(config)
    data = config["data"]
    if "class_path" in data:
        data = {"class": data["class_path"], **data["init_args"]}
    if data.get("batch_schedule") is not None:
        # Schedules that cut the run into the same steps are equal, however they are written.
        data = {**data, **BatchSizes.of(data).settings}
    flat = flatten({"model": config["model"], "data": data})
    contract = {key: value for key, value in flat.items() if not _harmless(key)}
    contract["max_steps"] = config["max_steps"]
    if config.get(SKIPS):  # a checkpoint of a run that leaves nothing out need not say so
        contract[SKIPS] = config[SKIPS]
    contract["trainer.precision"] = config["trainer"]["precision"]
    contract["data.manifest"] = manifest_hash
    contract["data.tokenizer"] = tokenizer_hash
    if template_hash is not None:
        contract["data.template"] = template_hash
    return contract


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Contract:
    """Flatten nested mappings to one level of dotted names; lists and tuples are leaves."""
    flat: Contract = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _harmless(key: str) -> bool:
    return (
        key in HARMLESS
        or key.partition(".")[2].startswith("storage_options")
        or (key.startswith("data.sources.") and key.endswith((".path", ".validation_path")))
    )


def data_of(contract: Mapping[str, Any]) -> Contract:
    """Rebuild the `data` of a config as far as a contract holds it: the inverse of `flatten`."""
    data: Contract = {}
    for key, value in contract.items():
        group, _, field = key.partition(".")
        if group == "data":
            name, _, entry = field.partition(".")  # the name of a source may hold dots itself
            if entry:
                data.setdefault(name, {})[entry] = value
            else:
                data[name] = value
    return data


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe every field that differs: its name and both values.

    Older checkpoints hold secrets, which are neither compared nor shown.
    """
    saved, now = _compared(saved), _compared(now)
    return [
        f"{key}: the checkpoint has {saved.get(key)!r}, this run {now.get(key)!r}"
        for key in sorted(set(saved) | set(now))
        if saved.get(key) != now.get(key)
        # A switch that is newer than the checkpoint, and off.
        and not (key not in saved and now[key] is False)
    ]


def _compared(contract: Mapping[str, Any]) -> Contract:
    kept = {key: value for key, value in contract.items() if not _harmless(key)}
    compared: Contract = comparable(redact(kept))
    return compared


def skips_of(contract: Mapping[str, Any]) -> Skips:
    """Return the steps that the run of a contract leaves out."""
    return Skips.parse(contract.get(SKIPS))


def held_of(contract: Mapping[str, Any]) -> Skips:
    """Return the steps whose update the run of a contract leaves out."""
    return Skips.parse(contract.get(HELD))


def fits_skips(record: CheckpointRecord, skips: Skips) -> bool:
    """Tell whether a run that leaves out `skips` as well can go on from a checkpoint."""
    own = skips_of(record.contract)
    return own.begins_as(own | skips, record.step)


def check_resume(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    where: str,
    *,
    longer: bool = False,
    other_batches: str | None = "",
) -> None:
    """Refuse to go on from a checkpoint of another run.

    Args:
        saved: The contract of the checkpoint.
        now: The contract of the run.
        where: Names the checkpoint in messages.
        longer: Whether the schedule lets the run go on for another number of steps than it was
            begun with.
        other_batches: Why the batch may not be another one; None where it may.

    Raises:
        UserError: Names every field that differs, and both values.
    """
    may = ("max_steps:",) if longer else ()
    found, about_batch = _refused(saved, now, may, other_batches)
    if found:
        length = any(line.startswith("max_steps:") for line in found)
        raise UserError(
            f"cannot resume from {where}: it belongs to a run with other settings.\n  "
            + "\n  ".join(found)
            + "\nResume with the settings of the run (its config.yaml), start a new run with --from"
            " to take only the weights, or with --fork to go on with another schedule or length."
            + (about_batch or (LENGTH if length else ""))
        )


def _refused(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    may: tuple[str, ...],
    other_batches: str | None,
) -> tuple[list[str], str]:
    """List the differences that are refused, and say why, should the batch be among them.

    Args:
        saved: The contract of the checkpoint.
        now: The contract of the run.
        may: Beginnings of the differences that are allowed, beside those that always are.
        other_batches: Why the batch may not be another one; None where it may.
    """
    may = (*may, *GROWING, *(BATCH if other_batches is None else ()))
    found = [line for line in differences(saved, now) if not line.startswith(may)]
    batch = other_batches and any(line.startswith(BATCH) for line in found)
    return found, f"\nThe batch: {other_batches}." if batch else ""


def fork_lines(saved: Mapping[str, Any], now: Mapping[str, Any], where: str) -> list[str]:
    """Say what a fork keeps of its checkpoint, and which settings are its own."""
    changed = differences(saved, now)
    kept = "weights, the optimizer's moments and its counts of steps, and the place in the data"
    lines = [f"fork: of {where} it keeps {kept}"]
    if any(line.startswith(OPTIMIZER) for line in changed):
        lines.append("fork: the optimizer's settings are those of this run")
    return lines + [f"fork: {line}" for line in changed]


def check_fork(
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    where: str,
    *,
    other_batches: str | None = "",
) -> None:
    """Refuse to fork a checkpoint into a run whose network, optimizer or data are others.

    Args:
        saved: The contract of the checkpoint.
        now: The contract of the fork.
        where: Names the checkpoint in messages.
        other_batches: Why the batch may not be another one; None where it may.

    Raises:
        UserError: Names every field that differs and may not, and both values.
    """
    found, about_batch = _refused(saved, now, FORKABLE, other_batches)
    if found:
        raise UserError(
            f"cannot fork {where}: only the schedule, the settings of the same optimizer, the"
            " clipping, products in fp8, the mixture, the batch of the steps to come and the length"
            " may differ.\n  "
            + "\n  ".join(found)
            + "\nStart a new run with --from to take only the weights."
            + about_batch
        )
    before, after = _apart(saved), _apart(now)
    if bool(before) != bool(after):
        raise UserError(
            f"cannot fork {where}: {'the checkpoint' if before else 'this run'} sets"
            f" {(before or after)[0]}, which divides the moments of scalars into two groups, and"
            f" {'this run' if before else 'the checkpoint'} does not. Set it in both or in neither,"
            " or start a new run with --from to take only the weights."
        )


def _apart(contract: Mapping[str, Any]) -> list[str]:
    """Name the settings by which some scalars are a group of their own."""
    names = (f"{OPTIMIZER}{name}" for name in APART)
    return [name for name in names if contract.get(name) is not None]
