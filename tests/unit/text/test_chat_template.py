"""Chat templates: found where transformers finds them, rendered as it renders them."""

import json
from pathlib import Path
from typing import Any

import pytest

from indexshare.text.chat_template import ChatTemplate

SIMPLE = """{{ bos_token }}{% for message in messages %}
    {% if message.role == 'tool' %}
        {{ raise_exception('no tools here') }}
    {% endif %}
<|{{ message['role'] }}|>{{ message.content | trim }}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>\
{% if thinking is defined and not thinking %}</think>{% endif %}\
{% endif %}"""
HELLO = [{"role": "user", "content": " Hello "}]


def folder(tmp_path: Path, **files: Any) -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / {"config": "tokenizer_config.json", "template": "chat_template.jinja"}[name]).write_text(text)
    return tmp_path


def test_rendering(tmp_path: Path) -> None:
    template = ChatTemplate.load(folder(tmp_path, template=SIMPLE, config={"bos_token": {"content": "<s>"}}))
    assert template is not None
    assert template.render(HELLO) == "<s><|user|>Hello\n<|assistant|>"
    assert template.render(HELLO, thinking=False).endswith("<|assistant|></think>")
    assert template.render(HELLO, answer_follows=False) == "<s><|user|>Hello\n"
    with pytest.raises(ValueError, match="refuses the conversation: no tools here"):
        template.render([{"role": "tool", "content": ""}])
    with pytest.raises(ValueError, match="refuses the conversation"):
        ChatTemplate("{{ messages[0].content + 1 }}").render(HELLO)


def test_where_templates_are(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    found = ChatTemplate.load(folder(tmp_path, config={"chat_template": "one"}))
    assert found is not None and found.source == "one"
    listed = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    found = ChatTemplate.load(folder(tmp_path, config={"chat_template": listed}))
    assert found is not None and found.source == "three"
    with pytest.raises(ValueError, match=r"has chat templates \['tool_use'\]; expected a default"):
        ChatTemplate.load(folder(tmp_path, config={"chat_template": listed[:1]}))
    found = ChatTemplate.load(folder(tmp_path, template="four"))
    assert found is not None and found.source == "four", "the file goes before the configuration"
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is damaged"):
        ChatTemplate.load(folder(tmp_path, config="{"))


def test_templates_that_are_none() -> None:
    with pytest.raises(ValueError, match="the chat template is not valid"):
        ChatTemplate("{% for %}")
    with pytest.raises(ValueError, match="refuses the conversation"):  # the sandbox
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}").render(HELLO)


def test_as_transformers_renders(tmp_path: Path) -> None:
    from indexshare.config.shipped import model_directory

    transformers = pytest.importorskip("transformers")
    template = (
        SIMPLE + "{{ messages | tojson }}{% set a = namespace(x=1) %}{% for i in [1, 2] %}{% if i == 2 %}{% break %}"
    )
    template += "{% endif %}{{ i }}{% endfor %}é"
    for file in model_directory("pico").glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [*HELLO, {"role": "assistant", "content": "ä\n"}, *HELLO]
    ours = ChatTemplate.load(tmp_path)
    assert ours is not None
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ours.render(messages) == expected
