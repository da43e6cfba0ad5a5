"""It is responsible for processes: ending with their parent, being restarted, saying that they are ready, stopping.

And for what nobody else may read of them.
"""

from libs.process.beside import beside
from libs.process.heap import freeze_heap
from libs.process.memory import protect_memory
from libs.process.notify import notify_ready, notify_status, notify_stopping
from libs.process.supervisor import Exit, Program, Supervisor, supervised
from libs.process.termination import until_terminated
from libs.process.tether import tethered

__all__ = [
    "Exit",
    "Program",
    "Supervisor",
    "beside",
    "freeze_heap",
    "notify_ready",
    "notify_status",
    "notify_stopping",
    "protect_memory",
    "supervised",
    "tethered",
    "until_terminated",
]
