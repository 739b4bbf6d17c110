"""Adapter: rows of any schema → canonical rows. Start reading at ``base.py``, then ``pair.py``; one file per shape."""
