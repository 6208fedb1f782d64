"""Worker: how a process of a data loader begins."""

import signal
from collections.abc import Mapping
from typing import Any

from lit_pretrain.data.remote import allow_plain_http


def start_worker(storage_options: Mapping[str, Any] | None, worker: int) -> None:
    """Prepare the process; a `worker_init_fn` once the options are bound.

    It stands in a file of its own because a worker imports the module in which it finds this function: that of the data module
    would cost every worker the import of Lightning.
    """
    # Schedulers signal every process of a job; the main process ends the step, saves, and then ends its workers.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    allow_plain_http(storage_options)  # a setting of the process, which a loader's worker does not inherit
