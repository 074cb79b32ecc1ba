"""Real Apache Kafka, PostgreSQL 18 and Valkey on this machine, from packages: nothing has to be installed but Python.

>>> from services.runtime import embedded
>>> sorted(embedded.NAMES)
['kafka', 'postgres', 'valkey']
"""

from services.runtime.embedded.process import Running
from services.runtime.embedded.servers import NAMES, Name, Servers, log_of, running, start, status, stop

__all__ = ["NAMES", "Name", "Running", "Servers", "log_of", "running", "start", "status", "stop"]
