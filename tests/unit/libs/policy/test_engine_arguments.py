"""What an engine may be measured with leaves true what the node says of it; all else is refused."""

from __future__ import annotations

import pytest

from libs.policy.engine_arguments import EngineArgumentsRefused, require_known


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--tensor-parallel-size", "8"),
        ("--tensor-parallel-size=8", "--pipeline_parallel_size=2", "--gpu-memory-utilization", "0.9"),
        ("--dtype", "bfloat16", "--enforce-eager", "--no_enable_prefix_caching"),
        ("--runner", "pooling", "--allowed-media-domains", "images.example.org"),
        ("--structured-outputs-config.backend", "xgrammar", "--enable-auto-tool-choice", "--tool-call-parser=hermes"),
    ],
    ids=" ".join,
)
def test_what_says_how_much_and_how_precisely_is_known(arguments: tuple[str, ...]) -> None:
    require_known("vllm", arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        # Other files, other code.
        ("--model", "/data/other"),
        ("--model=/data/other",),
        ("--mod=/data/other",),
        ("/data/other",),
        ("--tokenizer", "/data/other"),
        ("--config", "/data/x.yaml"),
        ("--load-format", "dummy"),
        ("--load_format=dummy",),
        ("--load-f=dummy",),
        ("--enable-lora", "--lora-modules", "m=/data/l"),
        ("--speculative-config", '{"model":"/data/draft"}'),
        ("--speculative-config.model", "/data/draft"),
        ("--structured-outputs-config.reasoning_parser_plugin", "x.py"),
        ("--chat-template", "/data/x.jinja"),
        ("--tool-parser-plugin", "/data/x.py"),
        ("--middleware", "evil"),
        ("--trust-remote-code",),
        ("--hf-overrides={}",),
        ("-O3",),
        ("-tp", "8"),
        # What the node says itself.
        ("--served-model-name", "other"),
        ("--max-model-len", "1"),
        ("--max-num-seqs", "1"),
        # Where it listens, and for whom.
        ("--api-key", "known"),
        ("--uds", "/tmp/x"),
        ("--host", "192.0.2.1"),
        ("--port", "8000"),
        ("--root-path", "x"),
        # What it tells.
        ("--enable-log-requests",),
        ("--enable_log_requests",),
        ("--enable-log-r",),
        ("--enable-log-outputs",),
        ("--no-disable-uvicorn-access-log",),
        ("--otlp-traces-endpoint", "grpc://host"),
        # No option in full, once, with a name or a number.
        ("--",),
        ("",),
        ("--dtype",),
        ("--dtype", "--enable-log-requests"),
        ("--dtype=",),
        ("--dtype", "/data/x"),
        ("--dtype", "a b"),
        ("--dtype", "half", "other"),
        ("--no-dtype", "half"),
        ("--enforce-eager=True",),
        ("--enforce-e",),
        ("--no-no-enforce-eager",),
        ("--dtype", "half", "--dtype=float"),
        ("--no-enable-prefix-caching", "--enable_prefix_caching"),
    ],
    ids=" ".join,
)
def test_all_else_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(EngineArgumentsRefused) as refusal:
        require_known("vllm", arguments)
    assert refusal.value.reason == "ENGINE_ARGUMENTS_REFUSED"


def test_the_embedded_engine_takes_none() -> None:
    require_known("embedded", ())
    with pytest.raises(EngineArgumentsRefused):
        require_known("embedded", ("--enforce-eager",))
