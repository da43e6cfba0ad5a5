"""It is responsible for a guest's GPUs and the NVSwitches between them, where NVIDIA's libraries are at hand: in which
mode they are, which ones there are, and what they answer.

The libraries, NVML and NSCQ, are loaded by a process of their own (`python -m libs.gpus`), which holds no key, comes to
know no prompt and is killed when it does not answer in time. Nothing that it says proves anything to others: devices
and vendor sign what does. What it says of modes is for this service alone, to refuse to serve.
"""
