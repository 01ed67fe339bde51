"""A chat template is rendered as transformers renders it, within limits and with one date per run."""

import copy
import datetime
import pickle

import pytest
from chat_templates import LLAMA3, QWEN3, R1, THINKS, USER

from internal_policy.errors import InputError
from internal_policy.models import templates
from internal_policy.models.templates import LONGEST, Template, render

MESSAGES = [{"role": "user", "content": "What is 3 + 4?"}]
LISTS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLES = "{% set n = namespace(x='a' * 16) %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"


@pytest.mark.parametrize("template", [None, LLAMA3, QWEN3, R1, THINKS, USER])
@pytest.mark.parametrize("prompt", [False, True])
def test_a_template_is_rendered_as_transformers_renders_it(either, template, prompt):
    changed = copy.deepcopy(either)
    changed.chat_template = template or either.chat_template
    arguments = {**changed.special_tokens_map, "tools": None, "add_generation_prompt": prompt}
    expected = changed.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
    assert render(changed.chat_template, MESSAGES, arguments) == expected


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 1/0 }}", "division by zero"),
        ("{{ messages[0].no.no }}", "has no attribute 'no'"),
        ("\n{% if %}", "line 2: Expected an expression"),
        ("{{ raise_exception('no system messages here.') }}", "no system messages here"),
        ("{{ 3 | tojson(indent='x', sort_keys=1/0) }}", "division by zero"),
        ("{{ ''.__class__ }}{{ ().__class__.__bases__[0].__subclasses__() }}", "unsafe"),
        (f"{{{{ 'a' * {LONGEST + 1} }}}}", "10,000,001 characters, more than 10,000,000"),
    ],
)
def test_a_failing_template_gets_a_one_sentence_error(template, why):
    with pytest.raises(
        InputError, match=rf"^The chat template t\.jinja rejected the messages \(.*{why}.*--chat-template"
    ):
        render(template, MESSAGES, {}, name="The chat template t.jinja")


@pytest.mark.parametrize("template", [LISTS, DOUBLES, "{{ 'a' * 3000000000 }}", "{{ '%99999999999d' % 1 }}"])
def test_an_endless_template_is_stopped_and_the_next_one_is_rendered(monkeypatch, template):
    monkeypatch.setattr(templates, "TIME_LIMIT", 1.0)
    with pytest.raises(InputError, match=r"takes more than 1 s or 1 GB of memory|rejected the messages \(MemoryError"):
        render(template, MESSAGES, {})
    monkeypatch.undo()
    assert render("{{ messages[0].content }}", MESSAGES, {}) == "What is 3 + 4?"


def test_a_message_that_json_cannot_hold_is_rejected():
    messages = [{**MESSAGES[0], "sent": datetime.date(2026, 11, 25)}]
    with pytest.raises(InputError, match=r"^The chat template can't read the messages \(Object of type date"):
        render("{{ messages[0].sent }}", messages, {})


def test_the_date_stays_that_of_the_first_template(monkeypatch):
    templates.today.cache_clear()
    first = render("{{ strftime_now('%Y-%m-%d') }}", MESSAGES, {})
    assert first == datetime.date.today().isoformat()

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return cls(2126, 1, 1)

    monkeypatch.setattr(templates, "date", Tomorrow)
    assert render("{{ strftime_now('%Y-%m-%d') }}", MESSAGES, {}) == first


def test_an_argument_overrides_the_date():
    arguments = {"strftime_now": "2024-07-26"}
    assert render("{{ strftime_now('%d %b %Y') }}", MESSAGES, arguments) == "26 Jul 2024"


@pytest.mark.parametrize("day", ["yesterday", 3])
def test_an_invalid_date_is_rejected(day):
    with pytest.raises(InputError, match=r"'strftime_now' is .* expected a date such as 2026-11-25"):
        render("{{ strftime_now('%d') }}", MESSAGES, {"strftime_now": day})


def test_a_template_keeps_the_name_of_its_file():
    template = Template("{{ 1 }}", "t.jinja")
    assert [copy.deepcopy(template).file, pickle.loads(pickle.dumps(template)).file] == ["t.jinja", "t.jinja"]


ATTACKS = {
    "{{ range(10**9) | list }}": "Range too big",
    "{{ '{0.__class__.__mro__}'.format(messages) }}": "unsafe",
    "{{ lipsum.__globals__['os'].popen('id').read() }}": "unsafe",
    "{{ cycler.__init__.__globals__ }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{% include '/etc/passwd' %}": "no loader",
    "{% import '/etc/passwd' as x %}": "no loader",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "recursion depth",
    f"{{{{ {'(' * 5000}1{')' * 5000} }}}}": "recursion depth",
    "{% if 1 %}" * 3000: "recursion depth",
    "{{ (10 ** 5000) ~ '' }}": "4300 digits",
    "{{ 'x' | center(10**11) }}": "MemoryError",
    "{{ [1] * 10**11 }}": "MemoryError",
    "{{ messages | tojson(indent=10**11) }}": "MemoryError",
    "{{ ('a' * 10**5).replace('a', 'b' * 10**6) }}": "MemoryError",
}
"""Template -> what its refusal says."""


@pytest.mark.parametrize("template", ATTACKS)
def test_a_template_that_reaches_outside_or_grows_is_refused(template):
    with pytest.raises(InputError, match=ATTACKS[template]):
        render(template, MESSAGES, {})


@pytest.mark.parametrize(
    "template",
    [
        "{{ '{x.__class__}'.format_map({'x': messages}) }}",
        "{% set f = '{0.__class__}'.format %}{{ f(messages) }}",
        "{{ '%s' | format(messages.__class__) }}",
        "{{ raise_exception.__globals__ }}{{ strftime_now.__closure__ }}{{ '' | attr('__class__') }}",
        "{{ messages['__class__'] }}{{ self._TemplateReference__context }}",
    ],
)
def test_a_template_sees_nothing_of_the_objects_it_is_given(template):
    assert render(template, MESSAGES, {}) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{{ ('a' * 10**7) | wordwrap(1) | length }}",
        "{{ lipsum(n=10**9) }}",
        "{{ range(10) | slice(10**11) | list }}",
    ],
)
def test_a_template_without_end_is_stopped(template, monkeypatch):
    monkeypatch.setattr(templates, "TIME_LIMIT", 1.0)
    with pytest.raises(InputError, match=r"takes more than 1 s or 1 GB of memory|MemoryError"):
        render(template, MESSAGES, {})
