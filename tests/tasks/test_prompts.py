"""Problems go through the model's chat template, which also separates prompt and response in a text."""

import copy
from typing import Any

import pytest
from chat_templates import LLAMA3, QWEN3, R1, THINKS, USER
from conftest import conversation

from internal_policy.errors import InputError
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import continuation, encode_problem, encode_text, split_messages, split_text

PROBLEM = Problem((Message(role="user", content="What is 3 + 4?"),), None)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": None}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "default": None}}}


def with_template(tokenizer, template):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def with_bos(tokenizer):
    """A tokenizer that adds a BOS, as Llama's does, with a template that writes one too."""
    from tokenizers.processors import TemplateProcessing

    changed = with_template(tokenizer, "<|bos|>" + tokenizer.chat_template)
    changed.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return changed


def test_the_prompt_is_the_rendered_template(tokenizer):
    ids = encode_problem(tokenizer, PROBLEM, {})
    assert tokenizer.decode(ids) == "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"


def test_without_a_template_the_prompt_is_the_text(tokenizer):
    assert tokenizer.decode(encode_problem(tokenizer, PROBLEM, None)) == "What is 3 + 4?"


@pytest.mark.parametrize("chat", [{}, None])
def test_a_prompt_never_begins_with_two_bos(tokenizer, chat):
    ids = encode_problem(with_bos(tokenizer), PROBLEM, chat)
    assert (ids[0], ids.count(0)) == (0, 1)


def with_ends(tokenizer):
    """A tokenizer that adds a BOS and an EOS, as with `add_eos_token`."""
    from tokenizers.processors import TemplateProcessing

    changed = copy.deepcopy(tokenizer)
    begins, ends = ("<s>", "</s>") if "<s>" in tokenizer.get_vocab() else ("<|bos|>", "<|im_end|>")
    pairs = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (begins, ends)]
    changed.backend_tokenizer.post_processor = TemplateProcessing(f"{begins} $A {ends}", special_tokens=pairs)
    return changed


@pytest.mark.parametrize("chat", [{}, None])
def test_a_prompt_never_ends_with_an_eos(either, chat):
    changed = with_ends(either)
    plain = changed("What is 3 + 4?", add_special_tokens=False)["input_ids"]
    assert changed("What is 3 + 4?")["input_ids"][-1] == either.eos_token_id
    ids = encode_problem(changed, PROBLEM, chat)
    assert ids == (encode_problem(either, PROBLEM, {}) if chat == {} else (changed("a")["input_ids"][0], *plain))


def test_a_text_gets_no_eos(either):
    _, response_ids = split_text(with_ends(either), "What is 3 + 4?")
    assert response_ids[-1] != either.eos_token_id


def rendered(tokenizer, messages, prompt):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


def test_a_rendered_transcript_gives_the_same_ids_as_its_messages(tokenizer, sentencepiece):
    for case in (with_bos(tokenizer), with_ends(with_bos(tokenizer)), sentencepiece, with_ends(sentencepiece)):
        messages = conversation("What is 3 + 4?", "7 + 5")
        prompt_ids, response_ids = split_messages(case, messages, {})
        begin, rest = split_text(case, rendered(case, messages, False).rstrip())
        assert begin + rest == prompt_ids + response_ids
        assert begin == (case.convert_tokens_to_ids("<s>" if case.bos_token else "<|bos|>"),)


def gemma(tokenizer):
    """A tokenizer whose template ends turns with a special token that isn't its EOS, and a newline."""
    case = with_template(tokenizer, tokenizer.chat_template)
    case.eos_token = "<|endoftext|>"
    return case


@pytest.mark.parametrize("chat", [{}, None])
def test_a_rendered_transcript_ends_with_its_end_of_turn(tokenizer, chat):
    for case in (tokenizer, gemma(tokenizer), with_ends(tokenizer)):
        messages = conversation("What is 3 + 4?", "7 + 5")
        prompt_ids, response_ids = split_messages(case, messages, {})
        begin, rest = split_text(case, rendered(case, messages, False), chat)
        assert (begin + rest)[-len(prompt_ids + response_ids) :] == prompt_ids + response_ids


def test_a_rendered_response_without_a_template_ends_with_its_end_of_turn(tokenizer):
    for case in (tokenizer, gemma(tokenizer)):
        prompt = rendered(case, list(PROBLEM.messages), True)
        _, ids = split_messages(case, conversation(prompt, "7<|im_end|>\n"), None)
        assert case.decode(ids) == "7<|im_end|>"


@pytest.mark.parametrize("template", [None, LLAMA3, "{{ raise_exception('no') }}"])
def test_white_space_after_another_special_token_is_kept(tokenizer, template):
    case = with_template(tokenizer, template)
    prompt = "<|im_start|>user<|endoftext|>\n\nhi<|im_end|><|im_start|>assistant<|endoftext|>\n\n"
    begin, rest = split_text(case, prompt, {})
    assert case.decode(begin + rest) == prompt


def test_a_rendered_prompt_gives_the_same_ids_as_its_messages(tokenizer, sentencepiece):
    for case in (with_bos(tokenizer), sentencepiece):
        prompt = rendered(case, list(PROBLEM.messages), True)
        ids = encode_problem(case, Problem((Message(role="user", content=prompt),), None), None)
        assert ids == encode_problem(case, PROBLEM, {})
        split = split_messages(case, conversation(prompt, " 7 + 5"), None)
        assert split[0] == ids


@pytest.mark.parametrize("template", [None, "<|bos|>", QWEN3, R1, LLAMA3, USER])
@pytest.mark.parametrize("system", [False, True])
def test_a_rendered_prompt_with_a_template_is_rejected_with_the_remedy(either, template, system):
    case = either
    if template:
        case = with_template(either, either.chat_template if template == "<|bos|>" else template)
    system = [{"role": "system", "content": "Box the answer."}] if system and template not in (None, USER) else []
    prompt = rendered(case, [*system, *PROBLEM.messages], True)
    for text in (prompt, prompt.strip(), prompt.removeprefix(case.bos_token or "")):
        with pytest.raises(InputError, match=r"would be applied twice\. Use --chat-template none"):
            encode_problem(case, Problem((Message(role="user", content=text),), None), {})
        with pytest.raises(InputError, match=r"would be applied twice\. Use --chat-template none"):
            split_messages(case, conversation(text, "7"), {})


SYSTEM = Message(role="system", content="Box the answer.")


@pytest.mark.parametrize("template", [None, USER])
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_a_rendered_prompt_is_recognised_by_plain_text_markers(sentencepiece, template, within, before):
    case = with_template(sentencepiece, template or sentencepiece.chat_template)
    prompt = rendered(case, [*([SYSTEM] if within else []), *PROBLEM.messages], True)
    messages = (*([SYSTEM] if before else []), Message(role="user", content=prompt))
    with pytest.raises(InputError, match="would be applied twice"):
        encode_problem(case, Problem(messages, None), {})


@pytest.mark.parametrize(
    "text", ["What does [INST] mean?", "[INST]", "user: a", "Is it system: or user: or assistant:"]
)
def test_a_question_about_templates_after_a_system_message_is_accepted(sentencepiece, text):
    for template in (sentencepiece.chat_template, USER):
        messages = (SYSTEM, Message(role="user", content=text))
        assert encode_problem(with_template(sentencepiece, template), Problem(messages, None), {})


@pytest.mark.parametrize(
    "text", ["What does [INST] mean?", "[INST]", "<|im_start|>user", "user: a", "<|im_end|> ends <|im_start|>user\n"]
)
def test_a_question_about_templates_is_not_mistaken_for_a_rendered_prompt(either, text):
    for template in (either.chat_template, LLAMA3, USER):
        case = with_template(either, template)
        assert encode_problem(case, Problem((Message(role="user", content=text),), None), {})


@pytest.mark.parametrize("after", ["", "\n"])
def test_a_response_that_has_an_end_of_turn_gets_no_second_one(either, after):
    end = either.eos_token
    split = split_messages(either, conversation("3 + 4?", f"7{end}{after}"), {})
    assert split == split_messages(either, conversation("3 + 4?", "7"), {})
    assert split[1].count(either.eos_token_id) == 1


OTHER_END = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{{ '<|endoftext|>' if m.role == 'assistant' and not loop.last else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Ends the last turn with another token than the earlier ones, as gpt-oss's."""


@pytest.mark.parametrize("after", ["", "\n"])
def test_an_earlier_turn_that_has_an_end_of_turn_gets_no_second_one(either, after):
    end = either.eos_token
    bare = (*conversation("hi", "a"), *conversation("yo", "b"))
    ended = (*conversation("hi", f"a{end}{after}"), *conversation("yo", f"b{end}{after}"))
    assert split_messages(either, ended, {}) == split_messages(either, bare, {})


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_an_earlier_turn_gets_no_second_end_if_the_last_turn_ends_differently(tokenizer, end):
    case = with_template(tokenizer, OTHER_END)
    bare = (*conversation("hi", "a"), *conversation("yo", "b"))
    ended = (*conversation("hi", f"a{end}"), *bare[2:])
    assert split_messages(case, ended, {}) == split_messages(case, bare, {})


def test_an_earlier_turn_of_a_problem_gets_no_second_end_of_turn(either):
    asked = Message(role="user", content="yo")
    bare = Problem((*conversation("hi", "a"), asked), None)
    ended = Problem((*conversation("hi", f"a{either.eos_token}"), asked), None)
    assert encode_problem(either, ended, {}) == encode_problem(either, bare, {})


def test_a_response_that_ends_with_the_eos_gets_no_end_of_turn(tokenizer):
    changed = with_template(tokenizer, tokenizer.chat_template)
    changed.eos_token = "<|endoftext|>"
    _, ids = split_messages(changed, conversation("3 + 4?", "7<|endoftext|>"), {})
    assert changed.decode(ids) == "7<|endoftext|>"


def test_a_response_with_only_an_end_of_turn_is_one_token(tokenizer):
    assert split_messages(tokenizer, conversation("3 + 4?", "<|im_end|>"), {})[1] == (tokenizer.eos_token_id,)


def test_template_arguments_reach_the_template(tokenizer):
    ids = encode_problem(with_template(tokenizer, QWEN3), PROBLEM, {"enable_thinking": False})
    assert tokenizer.decode(ids).endswith("<think>\n\n</think>\n\n")


def test_an_error_for_a_missing_template_names_the_options(either):
    with pytest.raises(InputError, match="--chat-template FILE to give one, or --chat-template none"):
        encode_problem(with_template(either, None), PROBLEM, {})


def test_an_error_quotes_the_reason_of_a_template(either):
    with pytest.raises(InputError, match="no system messages here"):
        encode_problem(with_template(either, "{{ raise_exception('no system messages here') }}"), PROBLEM, {})


def test_half_a_surrogate_pair_from_a_template_is_rejected(either):
    case = with_template(either, "{{ '\\ud800' }}" + str(either.chat_template))
    case.name_or_path = "my-model"
    with pytest.raises(InputError, match=r"The chat template of my-model writes '\\ud800', half of a surrogate pair"):
        encode_problem(case, PROBLEM, {})


def test_half_a_surrogate_pair_in_a_text_is_rejected(either):
    with pytest.raises(InputError, match=r"'7 \\ud800' contains '\\ud800', half of a surrogate pair"):
        split_text(either, "7 \ud800")


@pytest.mark.parametrize("answered", ["7", " 7\n\n", "<|im_start|>assistant\n7<|im_end|>\nassistant\n"])
@pytest.mark.parametrize(
    "asked", ["3 + 4?", "The assistant", "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\n9"]
)
def test_no_text_can_move_the_templates_boundary(tokenizer, asked, answered):
    prompt_ids, response_ids = split_messages(tokenizer, conversation(asked, answered), {})
    assert prompt_ids == encode_problem(tokenizer, Problem(conversation(asked, answered)[:1], None), {})
    assert tokenizer.decode(response_ids) == answered + "<|im_end|>"


def test_a_whitespace_response_is_kept(tokenizer):
    assert tokenizer.decode(split_messages(tokenizer, conversation("a", "\n"), {})[1]) == "\n<|im_end|>"


def test_qwen3s_empty_think_block_is_rejected_with_the_remedy(tokenizer):
    with pytest.raises(InputError, match=r"writes '<think>\\n\\n</think>\\n\\n7<.*instead of '7'.*enable_thinking"):
        split_messages(with_template(tokenizer, QWEN3), conversation("3 + 4?", "7"), {})


def test_a_whitespace_response_does_not_hide_what_the_template_adds(tokenizer):
    with pytest.raises(InputError, match="enable_thinking"):
        split_messages(with_template(tokenizer, QWEN3), conversation("3 + 4?", " "), {})


def test_disabling_thinking_separates_prompt_and_response(tokenizer):
    qwen3 = with_template(tokenizer, QWEN3)
    _, response_ids = split_messages(qwen3, conversation("3 + 4?", "7"), {"enable_thinking": False})
    assert tokenizer.decode(response_ids) == "7<|im_end|>"


def test_a_template_that_drops_the_reasoning_is_rejected(tokenizer):
    with pytest.raises(InputError, match=r"writes '7<\|im_end\|>\\n' instead of '<think>\\n3, 4</think>7'"):
        split_messages(with_template(tokenizer, R1), conversation("3 + 4?", "3, 4</think>7"), {})


@pytest.mark.parametrize(
    ("template", "response", "written"),
    [
        ("{{ m['content'] | trim }}", " 7\n", "7<|im_end|>"),  # Llama 3
        ("{{ ' ' + m['content'] }}", "7", " 7<|im_end|>"),  # Mistral
    ],
)
def test_the_template_decides_white_space_around_the_response(tokenizer, template, response, written):
    changed = with_template(tokenizer, tokenizer.chat_template.replace("{{ m['content'] }}", template))
    prompt, ids = split_messages(changed, conversation("3 + 4?", response), {})
    assert tokenizer.decode(ids) == written
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("messages", [(), conversation("a", "b")[:1], conversation("a", "")])
def test_a_conversation_must_end_with_a_response(either, messages):
    with pytest.raises(InputError, match="The last message must be the assistant's response"):
        split_messages(either, messages, {})


def test_without_a_template_the_response_follows_the_prompt(tokenizer):
    prompt_ids, response_ids = split_messages(with_bos(tokenizer), conversation("3 + 4 =", " 7"), None)
    assert (tokenizer.decode(prompt_ids), tokenizer.decode(response_ids)) == ("<|bos|>3 + 4 =", " 7")


@pytest.mark.parametrize("chat", [{}, None])
def test_a_token_across_the_boundary_is_rejected(tokenizer, chat):
    piece = tokenizer.decode([299])
    open_ended = with_template(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(InputError, match="One token spans the end of the prompt"):
        split_messages(open_ended, conversation(piece[:-1], piece[-1]), chat)


def test_a_text_is_measured_from_its_second_token_on(tokenizer):
    prompt_ids, response_ids = split_text(with_bos(tokenizer), "7 + 5")
    assert (prompt_ids, tokenizer.decode(response_ids)) == ((0,), "7 + 5")


def test_a_one_token_text_is_rejected(tokenizer):
    with pytest.raises(InputError, match=r"'7' has fewer than two tokens"):
        split_text(tokenizer, "7")


# generation


# more than a role and a content


def more(message, **keys) -> Any:
    return {**message, **keys}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_the_reasoning_of_a_response_is_measured(tokenizer, key):
    asked, answered = conversation("3 + 4?", "It is 7")
    split = split_messages(with_template(tokenizer, THINKS), [asked, more(answered, **{key: "3, then 4"})], {})
    assert tokenizer.decode(split[1]) == "<think>\n3, then 4\n</think>\n\nIt is 7<|im_end|>"


def test_the_tool_calls_of_a_response_are_measured(tokenizer):
    asked, answered = conversation("3 + 4?", "")
    _, ids = split_messages(with_template(tokenizer, THINKS), [asked, more(answered, tool_calls=[CALL])], {})
    written = '<tool_call>{"name": "add", "arguments": {"a": 3, "b": null}}</tool_call><|im_end|>'
    assert tokenizer.decode(ids) == written


@pytest.mark.parametrize(
    "calls",
    ["[]", 5, {"function": {"name": "add"}}, [5], [{"function": "add"}], [{"function": {}}], [{"function": None}]],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_an_error_for_malformed_tool_calls_says_what_was_expected(tokenizer, calls, earlier):
    asked, answered = conversation("3 + 4?", "It is 7")
    wrong = more(answered, tool_calls=calls)
    messages = [asked, wrong, asked, answered] if earlier else [asked, wrong]
    with pytest.raises(InputError, match=r"'tool_calls' holds .*; expected a list of objects with a 'function'"):
        split_messages(with_template(tokenizer, THINKS), messages, {})


@pytest.mark.parametrize("chat", [{}, None])
@pytest.mark.parametrize(
    ("key", "value"), [("reasoning_content", "3, then 4"), ("reasoning", "3, then 4"), ("tool_calls", [CALL])]
)
def test_an_error_names_the_part_of_a_response_that_the_template_drops(tokenizer, chat, key, value):
    asked, answered = conversation("3 + 4?", "It is 7")
    with pytest.raises(InputError, match=f"'{key}'"):
        split_messages(tokenizer, [asked, more(answered, **{key: value})], chat)


def test_tools_reach_the_template(tokenizer):
    problem = Problem(PROBLEM.messages, None, (TOOL,))
    text = tokenizer.decode(encode_problem(with_template(tokenizer, THINKS), problem, {}))
    assert '{"name": "add", "parameters": {"type": "object", "default": null}}' in text


@pytest.mark.parametrize("chat", [{}, None])
def test_tools_that_the_template_ignores_are_an_error(tokenizer, chat):
    with pytest.raises(InputError, match="'tools'"):
        encode_problem(tokenizer, Problem(PROBLEM.messages, None, (TOOL,)), chat)


def test_earlier_turns_reach_the_template_unchanged(tokenizer):
    template = "{% for m in messages %}{{ m.role }} {{ m.name }}{{ m.content }}{% endfor %}"
    turns = (more(PROBLEM.messages[0], content=" asks", name="Mia"),)
    assert tokenizer.decode(encode_problem(with_template(tokenizer, template), Problem(turns, None), {})) == (
        "user Mia asks"
    )


@pytest.mark.parametrize(("text", "more", "first"), [("the", " boat", "▁boat"), ("What is", " 3", "▁3")])
def test_a_continuation_is_read_where_it_goes_on(sentencepiece, text, more, first):
    ids = continuation(sentencepiece, encode_text(sentencepiece, text), text, more)
    assert sentencepiece.convert_ids_to_tokens(ids[0]) == first


def test_a_continuation_that_joins_the_last_token_is_read_by_itself(tokenizer):
    prompt = encode_text(tokenizer, "has 47 app")
    ids = continuation(tokenizer, prompt, "has 47 app", "les")
    assert tokenizer.decode(ids) == "les"


def test_a_continuation_without_tokens_is_refused(tokenizer):
    with pytest.raises(InputError, match="The target '' has no tokens"):
        continuation(tokenizer, encode_text(tokenizer, "a"), "a", "")


@pytest.mark.parametrize("template", ["$A:0", "<|bos|> $A:0 <|endoftext|>", "<|bos|>", "<|bos|> <|bos|>"])
def test_a_tokenizer_that_loses_the_text_is_refused(tokenizer, template):
    from tokenizers import processors

    changed = copy.deepcopy(tokenizer)
    special = [(token, changed.convert_tokens_to_ids(token)) for token in ("<|bos|>", "<|endoftext|>")]
    changed.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    if "$A" in template:
        assert changed.decode(encode_text(changed, "has 47")).removeprefix("<|bos|>") == "has 47"
    else:
        with pytest.raises(InputError, match="The tokenizer loses the text 'has 47'"):
            encode_text(changed, "has 47")
