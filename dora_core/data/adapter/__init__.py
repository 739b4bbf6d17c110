"""Adapter: rows of any schema → canonical rows. Start reading at ``base.py``, then ``shapes/pair.py``; one file per shape."""
