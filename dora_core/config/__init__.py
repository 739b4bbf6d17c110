"""Settings of the method: typed, described, bounded. Start reading at ``method.py``; ``alignment.py`` has loss and objective."""
