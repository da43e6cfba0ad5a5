"""What a trusted execution environment proves, and how the mesh judges it.

It is responsible for the evidence document, the formula that binds it, the verification of TDX quotes and event logs,
and the numbered appraisal. Everything is pure except `libs.tee.dstack`, the only module that talks to a guest agent.
"""
