"""FilterSpec: a filter in a config, as class and arguments."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Union

from jsonargparse.typing import register_type

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.filters.nearest import did_you_mean


@dataclass(kw_only=True)
class FilterSpec:
    """One filter: `{class_path: Language, init_args: {keep: [en]}}`."""

    class_path: str
    """Name of one of ours (C4, FineWeb, GopherQuality, GopherRepetition, Language, Url), or the dotted path of any class whose
    objects, or of any function that, can be called with (document, view) and returns a Verdict, a bool, or (bool, reason)."""
    init_args: dict[str, Any] = field(default_factory=dict)
    """Its arguments by name."""


FilterEntry = Union[str, FilterSpec]
"""What stands in a list of filters: the name of a preset (gopher, c4, fineweb), or a FilterSpec."""


def _read(value: Any) -> FilterSpec:
    """A spec from its mapping in a config."""
    if isinstance(value, FilterSpec):
        return value
    if not isinstance(value, dict):
        raise UserError(f"a filter is the name of a preset, or a mapping with class_path and init_args; found {value!r}")
    known = [each.name for each in dataclasses.fields(FilterSpec)]
    for name in value:
        if name not in known:
            raise UserError(f"a filter takes class_path and init_args; found {name!r}.{did_you_mean(str(name), known)}")
    if not isinstance(value.get("class_path"), str):
        raise UserError(f"a filter needs class_path, the name of its class; found {value!r}")
    if not isinstance(value.get("init_args", {}), dict):
        raise UserError(f"init_args of {value['class_path']} must map names to values; found {value['init_args']!r}")
    return FilterSpec(**value)


# Left to itself jsonargparse takes {class_path, init_args} for a class to build, and refuses names without a dot.
register_type(FilterSpec, serializer=dataclasses.asdict, deserializer=_read, fail_already_registered=False)
