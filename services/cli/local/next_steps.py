"""It is responsible for what to do with a mesh that is ready: the text that `teemesh up` ends its start with."""

from __future__ import annotations

import shutil
import sys

from services.cli.mesh.layout import DEFAULT_STATE, Layout
from services.cli.mesh.mesh_file import MeshDescription


def next_steps(layout: Layout, mesh: MeshDescription) -> str:
    """Return commands that work in this shell and folder, and a program to paste."""
    usual = layout.root == DEFAULT_STATE.absolute()
    state = "" if usual else f" --state {layout.root}"
    teemesh = "teemesh" if shutil.which("teemesh") else sys.argv[0]
    return f"""
The mesh serves at {mesh.router_url}. Its evidence is a software TEE's: for development, worthless as security.

Ask it, and verify the answer:

{teemesh} chat{state} "Why is the sky blue? Answer in one sentence."

Or with the OpenAI SDK, which verifies nothing but TLS:

import ssl
from openai import DefaultHttpxClient, OpenAI

client = OpenAI(
    base_url="{mesh.router_url}/v1",
    api_key="{mesh.api_key}",
    http_client=DefaultHttpxClient(verify=ssl.create_default_context(cafile="{mesh.router_ca}")),
)
question = [{{"role": "user", "content": "Why is the sky blue? Answer in one sentence."}}]
print(client.chat.completions.create(model="{mesh.model}", messages=question).choices[0].message.content)

See what was logged: {teemesh} ledger tail{state}. How everything is: {teemesh} status{state}. Everything else
a client or an operator needs is in {layout.mesh_file}.
"""
