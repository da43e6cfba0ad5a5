"""The `teemesh` command. It is responsible for what people do with a mesh: run one on this machine, ask it, audit it,
govern it.

Trust: nothing. Whatever it shows was verified here or is named as somebody's word; its keys are the operator's own.
"""
