"""Chat templates that read a content as a list of parts, as those of vision-language models do, get the text."""

import pytest

from internal_policy.models.templates import reads_parts
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import encode_problem, split_messages

PARTS = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Like LLaVA's: a text is read character by character, and lost."""
EITHER = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% if message['content'] is string %}"
    "{{ message['content'] + ' ' }}{% else %}{% for part in message['content'] %}{{ part['type'] }}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Like Qwen2-VL's, which reads both."""
QUESTION = Message(role="user", content="What is 7 + 5?")


@pytest.mark.parametrize(("template", "expected"), [(PARTS, True), (EITHER, False), ("{{ messages }}", False)])
def test_a_template_that_would_lose_a_text_is_found(template, expected):
    assert reads_parts(template) is expected


@pytest.mark.parametrize("template", [PARTS, EITHER])
def test_the_question_is_in_the_prompt(monkeypatch, tokenizer, template):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    ids = encode_problem(tokenizer, Problem((QUESTION,), None), {})
    assert tokenizer.decode(ids) == "USER: What is 7 + 5? ASSISTANT:"


@pytest.mark.parametrize("template", [PARTS, EITHER])
def test_a_response_is_split_from_its_prompt(monkeypatch, tokenizer, template):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    prompt, response = split_messages(tokenizer, (QUESTION, Message(role="assistant", content="12")), {})
    assert (tokenizer.decode(prompt), tokenizer.decode(response)) == ("USER: What is 7 + 5? ASSISTANT:", " 12")
