"""Templates of an experiment: rendered as lm-eval does, and held within bounds."""

import pytest

from ordermerge.errors import UserError
from ordermerge.sandbox import render_fields


def test_fields_are_rendered_as_lm_eval_renders_them() -> None:
    from lm_eval.utils import apply_template

    records = [{"a": "x y", "n": 3, "deep": {"b": [1, None]}}, {"a": "ü\n", "n": 0.5, "deep": {"b": []}}]
    templates = {"p": "{{a}}-{{n}}\n", "q": "{% for i in deep.b %}{{i}},{% endfor %}{{a|regex_replace('x', 'z')}}"}
    expected = [{name: apply_template(text, record) for name, text in templates.items()} for record in records]
    assert render_fields(templates, records) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 2 s, or",
        ),
        ("{{ 'a' * 10**10 }}", r"takes more than 2 s, or 0\.54 GB, for 1 records; make it shorter"),
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        (
            "{% for i in range(99999) %}{{ a * 99 }}{% endfor %}",
            "`p` makes more than 1,000,000 characters of one",
        ),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError: access to attribute '__init__'"),
        ("{{ ''.__class__ }}", "SecurityError: access to attribute '__class__'"),
        ("{{ b }}", "^'b' is undefined; its records have the fields a$"),
        ("{{ 1 / 0 }}", "`p` cannot be rendered: ZeroDivisionError"),
        ("{% if", "`p` is no valid template: unexpected 'end of template'"),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "`p` is no valid template: maximum recursion depth exceeded"),
    ],
)
def test_a_template_out_of_bounds_ends_in_one_sentence(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        render_fields({"p": template}, [{"a": "x"}])
