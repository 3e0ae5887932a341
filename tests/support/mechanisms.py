"""Small chat templates, one for each mechanism that templates in the wild use. Written for the tests."""

from __future__ import annotations

_ASK = "{% if add_generation_prompt %}<|open|>assistant\n{% endif %}"
_TURN = "<|open|>{{ m.role }}\n{{ m.content }}<|close|>\n"
_CALLS = "{% if m.tool_calls %}{% for c in m.tool_calls %}<call>{{ c.function | tojson }}</call>{% endfor %}{% endif %}"
_TOOLS = "{% if tools %}<|open|>system\n{{ tools | tojson }}<|close|>\n{% endif %}"
_EACH, _END = "{% for m in messages %}", "{% endfor %}"

MECHANISMS = {
    "one marker closes every turn": f"{_EACH}{_TURN}{_END}{_ASK}",
    "contents are trimmed": f"{_EACH}<|open|>{{{{ m.role }}}}\n{{{{ m.content | trim }}}}<|close|>\n{_END}{_ASK}",
    "the tokenizer's end alone": "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content + eos_token }}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
    "the next role ends a turn": f"{_EACH}<|{{{{ m.role }}}}|>\n{{{{ m.content }}}}{_END}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "the last turn ends otherwise": f"{_EACH}<|open|>{{{{ m.role }}}}\n{{{{ m.content }}}}"
    "{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|close|>{% endif %}" + _END + _ASK,
    "the last turn has no end": f"{_EACH}<|open|>{{{{ m.role }}}}\n{{{{ m.content }}}}"
    "{% if not loop.last or m.role != 'assistant' %}<|close|>\n{% endif %}" + _END + _ASK,
    "no turn has an end": "{% for m in messages %}{{ m.role | title }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}",
    "two markers close": f"{_EACH}<|open|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|done|><|close|>{_END}{_ASK}",
    "thoughts are cut from earlier turns": _EACH + "<|open|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|close|>\n" + _END + _ASK,
    "an empty thought before an answer without one": _EACH + "<|open|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|close|>\n" + _END + _ASK,
    "the prompt opens a thought": _EACH + "<|open|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|close|>\n" + _END
    + "{% if add_generation_prompt %}<|open|>assistant\n<think>\n{% endif %}",
    "thoughts are split out of the content": _EACH + "{% set c = m.content %}{% if m.role == 'assistant' and "
    "'</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|open|>{{ m.role }}\n{{ c }}<|close|>\n" + _END + _ASK,
    "thoughts under another key": _EACH + "<|open|>{{ m.role }}\n{% if m.thinking %}<|think|>{{ m.thinking }}<|thought|>"
    "{% endif %}{{ m.content }}<|close|>\n" + _END + _ASK,
    "a switch turns thinking off": _EACH + _TURN + _END + "{% if add_generation_prompt %}<|open|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    "the end also closes thoughts": _EACH + "{% if m.reasoning_content %}<|open|>assistant<|think|>"
    "{{ m.reasoning_content }}<|close|>{% endif %}<|open|>{{ m.role }}<|text|>{{ m.content }}<|close|>" + _END
    + "{% if add_generation_prompt %}<|open|>assistant{% endif %}",
    "no system turn": "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    + _EACH + _TURN + _END + _ASK,
    "turns must alternate": _EACH + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}" + _TURN + _END + _ASK,
    "markers made of pieces": _EACH + "{{ '<|' + m['role'] + '|>' + m['content'] + '<|close|>' }}" + _END
    + "{% if add_generation_prompt %}{{ '<|' ~ 'assistant' ~ '|>' }}{% endif %}",
    "a macro writes turns": "{% macro turn(r, c) %}<|open|>{{ r }}\n{{ c }}<|close|>\n{% endmacro %}"
    + _EACH + "{{ turn(m.role, m.content) }}" + _END + _ASK,
    "everything is gathered and written at once": "{% set ns = namespace(all='') %}" + _EACH
    + "{% set ns.all = ns.all ~ '<|open|>' ~ m.role ~ '\n' ~ m.content ~ '<|close|>\n' %}" + _END + "{{ ns.all }}" + _ASK,
    "turns are joined from a list": "{% set ns = namespace(all=[]) %}" + _EACH
    + "{% set ns.all = ns.all + ['<|open|>' + m.role, m.content + '<|close|>\n'] %}" + _END
    + "{{ ns.all | join('\n') }}" + "{% if add_generation_prompt %}{{ '\n<|open|>assistant\n' }}{% endif %}",
    "turns are formatted": _EACH + "{{ '<|open|>{}\n{}<|close|>\n'.format(m.role, m.content) }}" + _END + _ASK,
    "per cent signs": _EACH + "{{ '<|open|>%s\n%s<|close|>\n' % (m.role, m.content) }}" + _END + _ASK,
    "a set block": _EACH + "{% set t %}" + _TURN + "{% endset %}{{ t }}" + _END + _ASK,
    "a generation block": _EACH + "<|open|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|close|>{% endgeneration %}{% else %}{{ m.content }}<|close|>{% endif %}\n" + _END + _ASK,
    "the system prompt is taken out first": "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<|open|>{{ m.role }}\n{% if loop.first and s %}{{ s }}\n\n{% endif %}{{ m.content }}<|close|>\n"
    "{% endfor %}" + _ASK,
    "the prompt is always written": _EACH + _TURN + _END + "<|open|>assistant\n",
    "calls as JSON": _TOOLS + _EACH + "<|open|>{{ m.role }}\n{{ m.content }}" + _CALLS + "<|close|>\n" + _END + _ASK,
    "arguments as text": _TOOLS + _EACH + "<|open|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
    "{% for c in m.tool_calls %}<call>{{ c.function.name + ': ' + c.function.arguments }}</call>{% endfor %}{% endif %}"
    "<|close|>\n" + _END + _ASK,
    "arguments one by one": _TOOLS + _EACH + "<|open|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
    "{% for c in m.tool_calls %}<call>{{ c.function.name }}{% for k, v in c.function.arguments.items() %}<key>{{ k }}"
    "</key><value>{{ v }}</value>{% endfor %}</call>{% endfor %}{% endif %}<|close|>\n" + _END + _ASK,
    "calls end with a marker of their own": _TOOLS + _EACH + "<|open|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
    "{{ m.tool_calls[0].function | tojson }}<|eom|>{% else %}<|close|>{% endif %}\n" + _END + _ASK,
    "results follow in the next role's name": _TOOLS + _EACH + "{% if m.role == 'tool' %}<|observation|>{{ m.content }}"
    "{% else %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}<call>{{ m.tool_calls[0].function | tojson }}</call>"
    "{% endif %}{% endif %}" + _END + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "results stand inside the answer's turn": _TOOLS + "{% set ns = namespace(open=false, tool=false) %}" + _EACH
    + "{% if m.role == 'tool' %}{{ ', ' if ns.tool else '[' }}{{ m.content }}{% set ns.tool = true %}{% else %}"
    "{% if ns.tool %}]{% set ns.tool = false %}{% endif %}{% if m.role == 'assistant' %}{% if not ns.open %}<|assistant|>"
    "{% set ns.open = true %}{% endif %}{{ m.content }}{% if m.tool_calls %}<call>[{{ m.tool_calls[0].function | tojson }}]"
    "</call>{% endif %}{% else %}{% if ns.open %}<|done|>{% set ns.open = false %}{% endif %}<|{{ m.role }}|>{{ m.content }}"
    "{% endif %}{% endif %}" + _END + "{% if ns.tool %}]{% endif %}"
    "{% if add_generation_prompt and not ns.open %}<|assistant|>{% endif %}",
    "no turn has an end, and contents are trimmed": "{% for m in messages %}{{ m.role | title }}: {{ m.content | trim }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    "no turn has an end, and calls follow the text": "{% for m in messages %}{{ m.role | title }}: {{ m.content }}" + _CALLS
    + "\n\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
    "ids of nine letters": _TOOLS + _EACH + "<|open|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
    "{% if m.tool_calls[0].id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    "<call>{{ m.tool_calls[0].id }}{{ m.tool_calls[0].function | tojson }}</call>{% endif %}<|close|>\n" + _END + _ASK,
    "a called name is repeated with its result": _TOOLS + _EACH + "<|open|>{{ m.role }}{{ ' ' + m.name if m.role == 'tool' else '' }}\n{{ m.content }}"
    + _CALLS + "<|close|>\n" + _END + _ASK,
}  # fmt: skip
