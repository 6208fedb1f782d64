"""One rule says which reference a run uses; the stage and the plan before it ask the same one."""

import pytest

from lit_pretrain.stage.reference import resolve_reference

LABELS, COLUMN = frozenset({"labels"}), frozenset({"labels", "ref_logp"})


@pytest.mark.parametrize(
    ("provides", "adapter", "reference", "init_from", "cache", "expected"),
    [
        (LABELS, False, None, "runs/sft", None, ("copy", None)),
        (LABELS, True, None, "runs/sft", None, ("adapter", None)),
        (LABELS, True, "runs/sft", "runs/sft", None, ("adapter", None)),
        (LABELS, True, "runs/other", "runs/sft", None, ("copy", "runs/other")),
        (LABELS, True, "runs/other", "runs/sft", "cache", ("cache", "runs/other")),
        (LABELS, True, None, "runs/sft", "cache", ("cache", None)),
        (COLUMN, True, None, "runs/sft", "cache", ("column", None)),
        (COLUMN, False, None, None, None, ("column", None)),
    ],
)
def test_the_cheapest_place_that_has_the_reference(
    provides, adapter, reference, init_from, cache, expected
):
    found = resolve_reference(
        provides, adapter=adapter, reference=reference, init_from=init_from, cache=cache
    )
    assert found == expected
