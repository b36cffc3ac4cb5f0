"""Chat templates under Hugging Face's rules, what they refuse, and the text around a question."""

from __future__ import annotations

import sys

import pytest

from runtime.core.errors import PromptError, UserError
from runtime.prompt.template import ChatTemplate, question_about_clip

TEXT = "{{ messages[0].content[1].text }}"


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question):
    with pytest.raises(PromptError):
        question_about_clip(question)


def test_a_question_is_about_one_clip():
    assert question_about_clip(" a ") == [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": " a "}]}]


@pytest.mark.parametrize(
    ("template", "around"),
    [
        (f"<video> {TEXT} so", ("<video> ", " so")),
        (TEXT + "{% if add_generation_prompt %}!{% endif %}", ("", "!")),
        ("{{ messages[0].content[1].text | trim }}", None),
        ("{{ messages[0].content[1].text | upper }}", None),
        ("{{ messages[0].content[1].text | replace('\n', ' ') }}", None),
        (f"{TEXT} {TEXT}", None),
        ("{% for message in messages %}{% break %}{% endfor %}", None),
        ("a  {% if true %}\n " + TEXT + "\n  {% endif %}\nb", ("a   ", "\nb")),  # Hugging Face's rules of blanks
        ("{{ messages[0].role }} {{ messages | length }} " + TEXT, ("user 1 ", "")),
        ("{% generation %}" + TEXT + "{% endgeneration %} so", ("", " so")),
    ],
)
def test_the_text_around_a_question_where_it_is_left_as_it_is(template, around):
    assert ChatTemplate(template).prefix_and_suffix() == around


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ a.b.c }}", "UndefinedError"),
        ("{{", "TemplateSyntaxError"),
        ("{{ raise_exception('no videos') }}", "no videos"),
    ],
)
def test_a_template_that_does_not_work_is_refused_in_one_line(template, reason):
    with pytest.raises(PromptError, match=rf"^[^\n]*{reason}[^\n]*$"):
        ChatTemplate(template).render(question_about_clip("what"))


def test_without_its_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match='"jinja2"'):
        ChatTemplate("").render([])
