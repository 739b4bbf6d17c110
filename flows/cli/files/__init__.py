"""``dora generate``, ``dora judge`` and ``dora evaluate`` on files, without a configuration, a flow or a server of ours."""
