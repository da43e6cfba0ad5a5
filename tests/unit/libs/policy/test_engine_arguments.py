"""What an engine may be measured with leaves true what the node says of it; all else is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from libs.policy.engine_arguments import KNOWN, EngineArgumentsRefused, require_known

OPERATING = Path(__file__).parents[4] / "docs" / "operating.md"


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


SETTINGS: dict[str, tuple[list[str], list[str]]] = {
    "--dtype": (["auto", "half", "bfloat16", "float32"], ["int8", "BFLOAT16", "float 32"]),
    "--quantization": (["awq", "gptq_marlin", "compressed-tensors", "fp8"], ["/data/quantization.json", "{}"]),
    "--kv-cache-dtype": (["auto", "fp8_e4m3"], ["-fp8"]),
    "--tensor-parallel-size": (["1", "8"], ["0", "-1", "1.5", "eight", "08"]),
    "--pipeline-parallel-size": (["1", "16"], ["0", "two", "2x"]),
    "--gpu-memory-utilization": (["0.9", "0.05", "1", "1.0"], ["0", "0.0", "1.1", "90", "-0.5", "90%", ".9", "nan"]),
    "--kv-cache-memory-bytes": (["1073741824", "25.6g", "16G"], ["0", "16 GB", "25.6G", "auto"]),
    "--block-size": (["16"], ["0", "16k"]),
    "--max-num-batched-tokens": (["8192", "16k", "25.6k"], ["0", "-1", "1e5"]),
    "--structured-outputs-config.backend": (["auto", "xgrammar"], ["{}", "a b"]),
    "--tool-call-parser": (["hermes", "qwen3_coder"], ["/data/parser.py", "a:b"]),
    "--reasoning-parser": (["deepseek_r1"], ["parsers/own.py"]),
    "--runner": (["generate", "pooling"], ["--pooling"]),
    "--convert": (["embed"], [""]),
    "--attention-backend": (["FLASH_ATTN"], ["a,b"]),
    "--allowed-media-domains": (["images.example.org"], ["https://images.example.org/"]),
    "--seed": (["0", "7"], ["-1", "random", "0x7"]),
}
SWITCHES = [
    "--enable-prefix-caching",
    "--enable-auto-tool-choice",
    "--enable-chunked-prefill",
    "--enable-expert-parallel",
    "--enforce-eager",
    "--async-scheduling",
    "--disable-custom-all-reduce",
    "--language-model-only",
]


@pytest.mark.parametrize(("option", "value"), [(name, value) for name, (good, _) in SETTINGS.items() for value in good])
def test_a_setting_takes_what_vllm_does(option: str, value: str) -> None:
    require_known("vllm", (option, value))
    require_known("vllm", (f"{option}={value}",))


@pytest.mark.parametrize(("option", "value"), [(name, value) for name, (_, bad) in SETTINGS.items() for value in bad])
def test_a_setting_is_of_its_kind_and_within_its_range(option: str, value: str) -> None:
    for arguments in ((option, value), (f"{option}={value}",)):
        with pytest.raises(EngineArgumentsRefused, match=f"{option} needs "):
            require_known("vllm", arguments)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_is_on_or_off_and_takes_nothing(switch: str) -> None:
    off = "--no-" + switch.removeprefix("--")
    for way in (switch, off):
        require_known("vllm", (way,))
    for arguments in ((switch, "true"), (f"{switch}=true",), (switch, off)):
        with pytest.raises(EngineArgumentsRefused):
            require_known("vllm", arguments)


def test_operators_are_told_of_every_setting_and_of_no_other() -> None:
    section = OPERATING.read_text().partition("### vLLM's arguments\n")[2].partition("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    told = re.findall(r"`(--[a-z][a-z.-]*[a-z])`", "\n".join(rows))
    assert sorted(told) == sorted(KNOWN)
    assert SETTINGS.keys() | set(SWITCHES) == KNOWN
