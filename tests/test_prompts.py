"""A problem is put to the model as its chat template says, and the prompt of a text told from the response."""

import copy

import pytest

from internal_policy.errors import InputError
from internal_policy.prompts import encode_problem, split_messages, split_text
from internal_policy.tasks import Message, Problem

PROBLEM = Problem((Message(role="user", content="What is 3 + 4?"),), None)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
R1 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def conversation(asked, answered):
    return Message(role="user", content=asked), Message(role="assistant", content=answered)


def with_template(tokenizer, template):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def with_bos(tokenizer):
    """A tokenizer that, as Llama's, adds a BOS to what it is given, and whose template writes one too."""
    from tokenizers.processors import TemplateProcessing

    changed = with_template(tokenizer, "<|bos|>" + tokenizer.chat_template)
    changed.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return changed


def test_the_prompt_is_what_the_template_writes(tokenizer):
    ids = encode_problem(tokenizer, PROBLEM, {})
    assert tokenizer.decode(ids) == "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"


def test_without_a_template_the_prompt_is_the_text(tokenizer):
    assert tokenizer.decode(encode_problem(tokenizer, PROBLEM, None)) == "What is 3 + 4?"


@pytest.mark.parametrize("chat", [{}, None])
def test_a_prompt_never_begins_with_two_bos(tokenizer, chat):
    ids = encode_problem(with_bos(tokenizer), PROBLEM, chat)
    assert (ids[0], ids.count(0)) == (0, 1)


def test_the_templates_arguments_reach_it(tokenizer):
    ids = encode_problem(with_template(tokenizer, QWEN3), PROBLEM, {"enable_thinking": False})
    assert tokenizer.decode(ids).endswith("<think>\n\n</think>\n\n")


def test_a_missing_template_names_the_options(tokenizer):
    with pytest.raises(InputError, match="--chat-template FILE, or --chat-template none"):
        encode_problem(with_template(tokenizer, None), PROBLEM, {})


def test_a_template_that_refuses_says_why(tokenizer):
    with pytest.raises(InputError, match="no system messages here"):
        encode_problem(with_template(tokenizer, "{{ raise_exception('no system messages here') }}"), PROBLEM, {})


@pytest.mark.parametrize("answered", ["7", " 7\n\n", "<|im_start|>assistant\n7<|im_end|>\nassistant\n"])
@pytest.mark.parametrize(
    "asked", ["3 + 4?", "The assistant", "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\n9"]
)
def test_the_boundary_is_the_templates_whatever_the_texts_hold(tokenizer, asked, answered):
    prompt_ids, response_ids = split_messages(tokenizer, conversation(asked, answered), {})
    assert prompt_ids == encode_problem(tokenizer, Problem(conversation(asked, answered)[:1], None), {})
    assert tokenizer.decode(response_ids) == answered + "<|im_end|>"


def test_a_response_of_whitespace_keeps_it(tokenizer):
    assert tokenizer.decode(split_messages(tokenizer, conversation("a", "\n"), {})[1]) == "\n<|im_end|>"


def test_what_qwen3s_template_puts_between_is_refused_with_the_remedy(tokenizer):
    with pytest.raises(InputError, match=r"writes '<think>\\n\\n</think>\\n\\n7<.*where '7' was.*enable_thinking"):
        split_messages(with_template(tokenizer, QWEN3), conversation("3 + 4?", "7"), {})


def test_a_response_of_whitespace_does_not_hide_what_the_template_adds(tokenizer):
    with pytest.raises(InputError, match="enable_thinking"):
        split_messages(with_template(tokenizer, QWEN3), conversation("3 + 4?", " "), {})


def test_that_remedy_works(tokenizer):
    qwen3 = with_template(tokenizer, QWEN3)
    _, response_ids = split_messages(qwen3, conversation("3 + 4?", "7"), {"enable_thinking": False})
    assert tokenizer.decode(response_ids) == "7<|im_end|>"


def test_a_template_that_drops_the_thinking_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"writes '7<\|im_end\|>\\n' where '<think>\\n3, 4</think>7' was expected"):
        split_messages(with_template(tokenizer, R1), conversation("3 + 4?", "3, 4</think>7"), {})


@pytest.mark.parametrize(
    ("template", "response", "written"),
    [
        ("{{ m['content'] | trim }}", " 7\n", "7<|im_end|>"),  # Llama 3
        ("{{ ' ' + m['content'] }}", "7", " 7<|im_end|>"),  # Mistral
    ],
)
def test_white_space_around_the_response_is_the_templates(tokenizer, template, response, written):
    changed = with_template(tokenizer, tokenizer.chat_template.replace("{{ m['content'] }}", template))
    prompt, ids = split_messages(changed, conversation("3 + 4?", response), {})
    assert tokenizer.decode(ids) == written
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("messages", [(), conversation("a", "b")[:1], conversation("a", "")])
def test_what_does_not_end_with_a_response_is_refused(tokenizer, messages):
    with pytest.raises(InputError, match="The last message is no response"):
        split_messages(tokenizer, messages, {})


def test_without_a_template_the_response_follows_the_prompt(tokenizer):
    prompt_ids, response_ids = split_messages(with_bos(tokenizer), conversation("3 + 4 =", " 7"), None)
    assert (tokenizer.decode(prompt_ids), tokenizer.decode(response_ids)) == ("<|bos|>3 + 4 =", " 7")


@pytest.mark.parametrize("chat", [{}, None])
def test_a_token_across_the_boundary_is_refused(tokenizer, chat):
    piece = tokenizer.decode([299])
    open_ended = with_template(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(InputError, match="A token spans the end of the prompt"):
        split_messages(open_ended, conversation(piece[:-1], piece[-1]), chat)


def test_a_text_is_predicted_from_its_second_token_on(tokenizer):
    prompt_ids, response_ids = split_text(with_bos(tokenizer), "7 + 5")
    assert (prompt_ids, tokenizer.decode(response_ids)) == ((0,), "7 + 5")


def test_a_text_of_one_token_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"'7' is 1 token\(s\) long"):
        split_text(tokenizer, "7")


# generation
