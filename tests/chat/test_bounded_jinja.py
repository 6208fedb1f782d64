"""Templates of others end, whatever they do, and their texts stay small."""

import resource
from datetime import date

import pytest

from lit_pretrain.chat.bounded_jinja import MAX_TEXT, BoundedSandbox
from lit_pretrain.chat.template import TEMPLATE_PRESETS, ChatTemplate, Refused
from lit_pretrain.errors import UserError

RANGE = "range(100000)"
DOUBLE = "{%% set n = namespace(x=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}"
ENDLESS = {
    "loops": f"{{% for a in {RANGE} %}}{{% for b in {RANGE} %}}{{% endfor %}}{{% endfor %}}",
    "filtered loops": f"{{% for a in {RANGE} if false %}}{{% endfor %}}" * 60,
    "recursive loop": "{% for a in [[1], [2]] recursive %}{{ loop([[1], [2]]) }}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "times": "{{ 'a' * 10000000000 }}",
    "list times": "{{ ([1] * 10000000000)|length }}",
    "power": "{{ 9 ** 999999999 }}",
    "powers": "{{ 99999 ** 1000 ** 1000 }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (9999999999, 1) }}",
    "format": "{{ '{:9999999999}'.format(1) }}",
    "format within": "{{ '{:{}}'.format(1, 9999999999) }}",
    "format filter": "{{ '%9999999999d'|format(1) }}",
    "center": "{{ 'a'|center(9999999999) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "zfill": "{{ 'a'.zfill(9999999999) }}",
    "expandtabs": "{{ '\t'.expandtabs(9999999999) }}",
    "indent": "{{ 'a'|indent(9999999999, true) }}",
    "replace": "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}",
    "replace filter": "{% set x = 'a' * 100000 %}{{ x|replace('a', x) }}",
    "join": "{% set x = 'a' * 100000 %}{{ x.join(x) }}",
    "join filter": "{% set x = 'a' * 100000 %}{{ x|join(x) }}",
    "doubling by plus": DOUBLE % ("'a'", "{% set n.x = n.x + n.x %}"),
    "doubling by tilde": DOUBLE % ("'a'", "{% set n.x = n.x ~ n.x %}"),
    "doubling of a list": DOUBLE % ("[1]", "{% set n.x = n.x + n.x %}"),
    "doubling of a block": DOUBLE
    % ("'a'", "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"),
    "output": f"{{% set x = 'a' * 1000000 %}}{{% for a in {RANGE} %}}{{{{ x }}}}{{% endfor %}}",
    "lipsum": "{{ lipsum(n=999999) }}",
    "tojson": "{{ [1]|tojson(indent=9999999999) }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_every_way_not_to_end(name: str) -> None:
    template = ChatTemplate(ENDLESS[name], name="here")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused):
        template.render([], bos="", eos="")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * MAX_TEXT // 1024


def test_long_conversations_are_rendered() -> None:
    """Presets have the same text as in Jinja's own sandbox, also of 2,000 messages."""
    messages = [
        {"role": role, "content": f"{n} 1234567890 {{x}} %d"}
        for n in range(1000)
        for role in ("user", "assistant")
    ]
    for preset in TEMPLATE_PRESETS.glob("*.jinja"):
        template = ChatTemplate(preset.read_text(), name=preset.name)
        for _ in range(3):
            rendered = template.render(messages, bos="<s>", eos="</s>", date=date(2026, 1, 1))
            assert len(rendered.text) > 10_000


def test_what_templates_do_is_unchanged() -> None:
    source = (
        "{% macro show(v) %}{{ v }};{% endmacro %}"
        "{% for m in ms %}{{ loop.index }}/{{ loop.length }}{{ '.' if loop.last }}"
        "{{ loop.previtem or '' }}{{ show(12345678) }}{{ m ~ '-' ~ 7 }}{% endfor %}"
        "{% for k, v in d.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}"
        "{{ ms|join(', ') }}{{ 'a,b'.split(',')[1] }}{{ '%s' % 12345678 }}{{ 3 * 'x' }}"
        "{{ '{} {}'.format(1234567, 2) }}{{ ms|length + 1234567 * 10 }}{{ ms|map('upper')|list }}"
    )
    text = BoundedSandbox().from_string(source).render(ms=["a", "b"], d={"k": 1})
    assert text == ("1/212345678;a-72/2.a12345678;b-7k1a, bb12345678xxx1234567 212345672['A', 'B']")


@pytest.mark.parametrize(
    "source",
    ["{{ " + "[" * 2000, "{% for a in b %}" * 30 + "{% endfor %}" * 30, f"{{{{ {'9' * 5000} }}}}"],
    ids=["brackets", "loops", "digits"],
)
def test_a_template_beyond_the_limits_of_python(source: str) -> None:
    with pytest.raises(UserError, match="the chat template mine cannot be compiled"):
        ChatTemplate(source, name="mine")
