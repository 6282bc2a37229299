"""dask-jobqueue without its handler of Ctrl-C: importing it (0.9) makes SIGINT end the process silently."""

import signal

_HANDLER = signal.getsignal(signal.SIGINT)
import dask_jobqueue  # noqa: E402
from dask_jobqueue.core import Job  # noqa: E402

__all__ = ["Job", "dask_jobqueue"]

if _HANDLER is not None:
    signal.signal(signal.SIGINT, _HANDLER)
