"""It is responsible for how the packaged model is told of tools: its own chat template passes over them, and llama.cpp
constrains an answer to a call only where the template shows what one looks like.

A prompt without tools is what the model's own template makes of it, byte for byte.
"""

from __future__ import annotations

SMOLLM2 = r"""
{%- for message in messages -%}
  {%- if loop.first -%}
    {{- '<|im_start|>system\n' -}}
    {%- if message['role'] == 'system' -%}
      {{- message['content'] -}}
    {%- else -%}
      {{- 'You are a helpful AI assistant named SmolLM, trained by Hugging Face' -}}
    {%- endif -%}
    {%- if tools -%}
      {{- '\n\nYou can call these functions:\n' -}}
      {%- for tool in tools -%}
        {{- tool | tojson -}}
        {{- '\n' -}}
      {%- endfor -%}
      {{- 'To call one, answer with its name and its arguments as JSON, and nothing else:\n' -}}
      {{- '<tool_call>[{"name": "the function", "arguments": {"name": "value"} }]</tool_call>' -}}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
  {%- endif -%}
  {%- if message['role'] == 'tool' -%}
    {{- '<|im_start|>user\n<tool_response>\n' -}}
    {{- message['content'] -}}
    {{- '\n</tool_response><|im_end|>\n' -}}
  {%- elif message['role'] != 'system' or not loop.first -%}
    {{- '<|im_start|>' + message['role'] + '\n' -}}
    {%- if message['content'] -%}
      {{- message['content'] -}}
    {%- endif -%}
    {%- if message['tool_calls'] -%}
      {{- '<tool_call>[' -}}
      {%- for call in message['tool_calls'] -%}
        {{- '{"name": "' if loop.first else ', {"name": "' -}}
        {{- call['function']['name'] -}}
        {{- '", "arguments": ' -}}
        {{- call['function']['arguments'] | tojson -}}
        {{- '}' -}}
      {%- endfor -%}
      {{- ']</tool_call>' -}}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""
"""Jinja, as llama.cpp reads it."""

SMOLLM2_CALL = "<tool_call>"
"""What a call begins with there."""
