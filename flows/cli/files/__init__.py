"""``dora generate``, ``dora judge`` and ``dora evaluate`` on files, without a configuration, a flow or the servers of `dora up`."""
