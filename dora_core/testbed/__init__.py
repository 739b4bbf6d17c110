"""The known mixture: text generators whose exact densities and gold reward are known. Start reading at ``mixture.py``."""

from dora_core.config.method import TestbedConfig
from dora_core.testbed.mixture import FLOOR, GOLDEN, REFERENCE, Testbed, materialize, write_rows

__all__ = ["FLOOR", "GOLDEN", "REFERENCE", "Testbed", "TestbedConfig", "materialize", "write_rows"]
