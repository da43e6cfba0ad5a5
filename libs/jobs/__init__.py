"""It is responsible for what a job needs: to run a stage of a pipeline, and to have the log say what came of it.

A job is a workload of role `job`. Its code and its app-compose are its owner's; that policy lists its measurement is
what makes its word on a stage count. It trusts the mesh for nothing but being there: what it reads is its own to know.
"""

from libs.jobs.job import open_job
from libs.jobs.sealed_inputs import InputThereBefore, Release, SealedInput
from libs.jobs.settings import JobSettings
from libs.jobs.stages import Given, OutputThereBefore, Recorded, Stages
from libs.jobs.stated_privacy import PrivacyNotStated

__all__ = [
    "Given",
    "InputThereBefore",
    "JobSettings",
    "OutputThereBefore",
    "PrivacyNotStated",
    "Recorded",
    "Release",
    "SealedInput",
    "Stages",
    "open_job",
]
